// Every example in dm-io's docstrings and document runs, and prints what its comments say.
import { readdirSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { inspect } from 'node:util';
import { describe, expect, it } from 'vitest';
import * as bio from '../../src/block/bio.ts';
import { MemoryDevice } from '../../src/devices/index.ts';
import * as dmIo from '../../src/dm-io/index.ts';
import { DeviceMapper } from '../../src/reactor/device-mapper.ts';
import * as old from '../../src/reactor/dm-io-global.ts';
import * as promise from '../../src/reactor/dm-io-promise.ts';
import { NodeLoop } from '../../src/reactor/node-loop.ts';

const dmkit: Record<string, unknown> = { ...bio, ...dmIo, ...old, ...promise, DeviceMapper, MemoryDevice, NodeLoop };
const root = fileURLToPath(new URL('../../', import.meta.url));
const files = [
  ...readdirSync(`${root}src/dm-io`).map((name) => `src/dm-io/${name}`),
  'src/reactor/dm-io-global.ts',
  'src/reactor/dm-io-promise.ts',
  'docs/dm-io.md',
];

function examplesOf(file: string): [string, string][] {
  const text = readFileSync(root + file, 'utf8').replaceAll(/^ *\* ?/gm, file.endsWith('.ts') ? '' : '$&');
  const blocks = [...text.matchAll(/```ts\n([\s\S]*?)```/g)];
  return blocks.map((match, i) => [`${file}, ${i + 1}`, match[1]!]);
}

function format(args: unknown[]): string {
  return args.map((arg) => (typeof arg === 'string' ? arg : inspect(arg))).join(' ');
}

type Run = (names: Record<string, unknown>, console: unknown) => Promise<void>;
const AsyncFunction = (async () => {}).constructor as new (...parts: string[]) => Run;

describe('the example', () => {
  it.each(files.flatMap(examplesOf))('%s', async (_name, code) => {
    const body = code.replaceAll(/^import (\{[\s\S]*?\}) from 'dmkit';$/gm, (_all, names) => `const ${names} = dmkit;`);
    for (const [, names] of code.matchAll(/^import \{([\s\S]*?)\} from 'dmkit';$/gm)) {
      for (const name of names!.split(',').map((part) => part.trim()))
        if (name !== '') expect(dmkit).toHaveProperty(name);
    }
    const printed: string[] = [];
    await new AsyncFunction('dmkit', 'console', body)(dmkit, {
      log: (...args: unknown[]) => printed.push(format(args)),
    });
    // What is printed by a callback comes a turn later.
    await new Promise((resolve) => setTimeout(resolve, 5));
    const promised = [...code.matchAll(/console\.log\(.*?\/\/ (.*)$|^ *\/\/ prints: (.*)$/gm)].map((m) => m[1] ?? m[2]);
    expect(printed.join('\n')).toContain(promised.join('\n'));
  });
});
