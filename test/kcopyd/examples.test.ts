// Every example in kcopyd's docstrings and document runs, and prints what its comments say.
import { readdirSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import * as dmkit from '../../src/index.ts';
import { examplesOf, root, runExample } from '../support/examples.ts';

const files = [
  ...readdirSync(`${root}src/kcopyd`).map((name) => `src/kcopyd/${name}`),
  'src/api/kcopyd-promise.ts',
  'docs/kcopyd.md',
];

describe('the example', () => {
  it.each(files.flatMap(examplesOf))('%s', async (_name, code) => {
    const printed = await runExample(code, dmkit);
    const promised = [...code.matchAll(/console\.log\([^`\n]*?\/\/ (.*)$|^ *\/\/ prints: (.*)$/gm)].map(
      (m) => m[1] ?? m[2],
    );
    // What a callback prints comes a turn later.
    await expect.poll(() => printed.join('\n')).toContain(promised.map((line) => line!.split(', ')[0]).join('\n'));
  });
});
