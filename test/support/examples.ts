// The examples in docstrings and documents, and how one is run.
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { inspect } from 'node:util';
import { expect } from 'vitest';

export const root = fileURLToPath(new URL('../../', import.meta.url));

/** Name and code of each example in a file below the project's folder. */
export function examplesOf(file: string): [string, string][] {
  const text = readFileSync(root + file, 'utf8').replaceAll(/^ *\* ?/gm, file.endsWith('.ts') ? '' : '$&');
  const blocks = [...text.matchAll(/```ts\n([\s\S]*?)```/g)];
  return blocks.map((match, i) => [`${file}, ${i + 1}`, match[1]!]);
}

function format(args: unknown[]): string {
  return args.map((arg) => (typeof arg === 'string' ? arg : inspect(arg))).join(' ');
}

type Run = (names: object, console: unknown) => Promise<void>;
const AsyncFunction = (async () => {}).constructor as new (...parts: string[]) => Run;

/** Runs `code` with `dmkit` as the package of that name. @returns what it has printed, and goes on to print */
export async function runExample(code: string, dmkit: object): Promise<string[]> {
  const body = code.replaceAll(/^import (\{[\s\S]*?\}) from 'dmkit';$/gm, (_all, names) => `const ${names} = dmkit;`);
  for (const [, names] of code.matchAll(/^import \{([\s\S]*?)\} from 'dmkit';$/gm)) {
    for (const name of names!.split(',').map((part) => part.trim()))
      if (name !== '') expect(dmkit).toHaveProperty(name);
  }
  const printed: string[] = [];
  await new AsyncFunction('dmkit', 'console', body)(dmkit, {
    log: (...args: unknown[]) => printed.push(format(args)),
  });
  return printed;
}
