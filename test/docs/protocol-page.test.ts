// The page of the control socket says what the table of requests says.
import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
// @ts-expect-error a script without types
import { renderProtocolPage } from '../../scripts/protocol-page.mjs';
import { REQUESTS } from '../../src/control/requests.ts';

test('docs/control-protocol.md is made from the table of requests: node scripts/protocol-page.mjs', () => {
  const page = readFileSync(new URL('../../docs/control-protocol.md', import.meta.url), 'utf8');
  expect(page).toBe(renderProtocolPage(REQUESTS));
});
