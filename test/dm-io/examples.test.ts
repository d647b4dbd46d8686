// Every example in dm-io's docstrings and document runs, and prints what its comments say.
import { readdirSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { DeviceMapper } from '../../src/api/device-mapper.ts';
import * as old from '../../src/api/dm-io-global.ts';
import * as promise from '../../src/api/dm-io-promise.ts';
import * as bio from '../../src/block/bio.ts';
import { MemoryDevice } from '../../src/devices/index.ts';
import * as dmIo from '../../src/dm-io/index.ts';
import { NodeLoop } from '../../src/reactor/node-loop.ts';
import { examplesOf, root, runExample } from '../support/examples.ts';

const dmkit: Record<string, unknown> = { ...bio, ...dmIo, ...old, ...promise, DeviceMapper, MemoryDevice, NodeLoop };
const files = [
  ...readdirSync(`${root}src/dm-io`).map((name) => `src/dm-io/${name}`),
  'src/api/dm-io-global.ts',
  'src/api/dm-io-promise.ts',
  'docs/dm-io.md',
];

describe('the example', () => {
  it.each(files.flatMap(examplesOf))('%s', async (_name, code) => {
    const printed = await runExample(code, dmkit);
    // What is printed by a callback comes a turn later.
    await new Promise((resolve) => setTimeout(resolve, 5));
    const promised = [...code.matchAll(/console\.log\(.*?\/\/ (.*)$|^ *\/\/ prints: (.*)$/gm)].map((m) => m[1] ?? m[2]);
    expect(printed.join('\n')).toContain(promised.join('\n'));
  });
});
