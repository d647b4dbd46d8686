// Every example of the public testing tools, and those of the page about them, runs: it is taken out of the text.
import { readdirSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';

const root = fileURLToPath(new URL('../../', import.meta.url));

const MODULES: Record<string, () => Promise<unknown>> = {
  'node:assert/strict': () => import('node:assert/strict'),
  dmkit: () => import('../../src/index.ts'),
  'dmkit/testing': () => import('../../src/testing/index.ts'),
};

interface Example {
  where: string;
  code: string;
}

/** The ts blocks of a text; in a source, those of its comments. */
function examplesOf(path: string): Example[] {
  const text = readFileSync(root + path, 'utf8').replaceAll(/^ *\* ?/gm, path.endsWith('.ts') ? '' : '$&');
  return [...text.matchAll(/^```ts\n([\s\S]*?)^```$/gm)].map((match, index) => ({
    where: `${path}, example ${index + 1}`,
    code: match[1]!,
  }));
}

/** Turns the imports into what a function body can do. The rest is JavaScript as it is. */
function bodyOf(code: string): string {
  return code
    .replaceAll(/^import (\w+) from '(.+)';$/gm, "const { default: $1 } = await load('$2');")
    .replaceAll(/^import \{([^}]*)\} from '(.+)';$/gm, "const {$1} = await load('$2');");
}

async function runExample(code: string): Promise<void> {
  const AsyncFunction = (async () => {}).constructor as new (
    ...args: string[]
  ) => (load: (name: string) => Promise<unknown>) => Promise<void>;
  await new AsyncFunction('load', bodyOf(code))((name) => {
    const module = MODULES[name];
    if (module === undefined) throw new Error(`an example imports ${name}`);
    return module();
  });
}

const sources = readdirSync(`${root}src/testing`).map((name) => `src/testing/${name}`);

describe.each(sources.filter((path) => examplesOf(path).length > 0))('%s', (path) => {
  test.each(examplesOf(path))('$where', ({ code }) => runExample(code));
});

describe('docs/testing-devices.md', () => {
  test.each(examplesOf('docs/testing-devices.md'))('$where', ({ code }) => runExample(code));
});

test('every class and function that has an interface of its own comes with an example', () => {
  const without = sources.filter((path) =>
    /^export (?:class|function|async function)/m.test(readFileSync(root + path, 'utf8')),
  );
  const bare = without.filter((path) => examplesOf(path).length === 0).map((path) => path.replace('src/testing/', ''));
  expect(bare).toEqual(['disk-model.ts', 'faults.ts', 'request-log.ts', 'wrapping-device.ts']);
});

test('an example that is wrong fails', async () => {
  await expect(runExample("import assert from 'node:assert/strict';\nassert.equal(1, 2);")).rejects.toThrow();
});
