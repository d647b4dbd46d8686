// What the documentation shows must run as it stands.
import { existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join, normalize } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { builtinTargets } from '../../src/targets/index.ts';
import { run } from '../support/process.ts';
import { tempDir } from '../support/tmp.ts';

const root = fileURLToPath(new URL('../..', import.meta.url));

/** A folder in which `import 'dmkit'` finds this package as it is built. */
function userFolder(): string {
  const folder = tempDir('readme');
  mkdirSync(join(folder, 'node_modules'));
  symlinkSync(root, join(folder, 'node_modules', 'dmkit'));
  return folder;
}

test('the example of README.md runs, in 12 lines', async () => {
  const code = /```js\n([\s\S]*?)```/.exec(readFileSync(join(root, 'README.md'), 'utf8'))![1]!;
  expect(code.split('\n').filter((line) => line.trim() !== '' && !line.startsWith('import'))).toHaveLength(9);
  const folder = userFolder();
  writeFileSync(join(folder, 'example.mjs'), code);
  const result = await run(process.execPath, ['example.mjs'], { cwd: folder });
  expect([result.code, result.stderr]).toEqual([0, '']);
  expect(result.stdout).toBe(`4096 sectors at nbd+unix:///joined?socket=${join(folder, 'joined.sock')}\n`);
  expect(readFileSync(join(folder, 'a.img')).subarray(-512)).toEqual(Buffer.alloc(512, 'x'));
  expect(readFileSync(join(folder, 'b.img')).subarray(0, 1024)).toEqual(
    Buffer.concat([Buffer.alloc(512, 'x'), Buffer.alloc(512)]),
  );
});

test('every target has its page', () => {
  expect(readdirSync(join(root, 'docs', 'targets')).sort()).toEqual(
    builtinTargets.map((type) => `${type.name}.md`).sort(),
  );
});

test('links between pages lead somewhere', () => {
  const pages = [
    'README.md',
    'CHANGELOG.md',
    'CONTRIBUTING.md',
    'SECURITY.md',
    ...readdirSync(join(root, 'docs'), { recursive: true }).map((name) => `docs/${name}`),
  ];
  const dead = pages
    .filter((page) => page.endsWith('.md'))
    .flatMap((page) =>
      Array.from(readFileSync(join(root, page), 'utf8').matchAll(/\]\(([^)#:]+)(?:#[^)]*)?\)/g), ([, link]) => ({
        page,
        link: link!,
      })),
    )
    .filter(({ page, link }) => !existsSync(join(root, normalize(join(dirname(page), link)))));
  expect(dead).toEqual([]);
});

test('the demo plays every act and ends by itself', async () => {
  const folder = userFolder();
  const result = await run(process.execPath, [join(root, 'dist', 'demo', 'main.js')], { cwd: folder });
  expect([result.code, result.stderr]).toEqual([0, '']);
  expect(result.stdout).toContain('Two images become one disk');
  expect(result.stdout.match(/by hand: /g)).toHaveLength(5);
  expect(result.stdout).toContain('error bits 0b010');
});
