// Every example in kcopyd's docstrings and document runs, and prints what its comments say.
import { readdirSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { inspect } from 'node:util';
import { describe, expect, it } from 'vitest';
import * as dmkit from '../../src/index.ts';

const root = fileURLToPath(new URL('../../', import.meta.url));
const files = [
  ...readdirSync(`${root}src/kcopyd`).map((name) => `src/kcopyd/${name}`),
  'src/reactor/kcopyd-promise.ts',
  'docs/kcopyd.md',
];

function examplesOf(file: string): [string, string][] {
  const text = readFileSync(root + file, 'utf8').replaceAll(/^ *\* ?/gm, file.endsWith('.ts') ? '' : '$&');
  const blocks = [...text.matchAll(/```ts\n([\s\S]*?)```/g)];
  return blocks.map((match, i) => [`${file}, ${i + 1}`, match[1]!]);
}

function format(args: unknown[]): string {
  return args.map((arg) => (typeof arg === 'string' ? arg : inspect(arg))).join(' ');
}

type Run = (names: unknown, console: unknown) => Promise<void>;
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
    const promised = [...code.matchAll(/console\.log\([^`\n]*?\/\/ (.*)$|^ *\/\/ prints: (.*)$/gm)].map(
      (m) => m[1] ?? m[2],
    );
    // What a callback prints comes a turn later.
    await expect.poll(() => printed.join('\n')).toContain(promised.map((line) => line!.split(', ')[0]).join('\n'));
  });
});
