// Imports run one way. This keeps the layers of src/ apart, and tests on small fixtures that it would notice.
import { readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { findProblems, layerOf, type Tree } from './rules.ts';
import { parseSource } from './source.ts';

const root = fileURLToPath(new URL('../../', import.meta.url));

function readTree(folders: string[]): Tree {
  const tree: Tree = new Map();
  for (const folder of folders) {
    let names: string[];
    try {
      names = readdirSync(join(root, folder), { recursive: true }) as string[];
    } catch {
      continue;
    }
    for (const name of names) {
      const path = `${folder}/${name}`;
      if (/\.(?:ts|mjs|md|sh)$/.test(name) && statSync(join(root, path)).isFile()) {
        tree.set(path, readFileSync(join(root, path), 'utf8'));
      }
    }
  }
  return tree;
}

/** The problems of a tree of one or a few files. */
function problemsOf(files: Record<string, string>): string[] {
  return findProblems(new Map(Object.entries(files)));
}

describe('the tree', () => {
  it('keeps the rules of the house', () => {
    expect(findProblems(readTree(['src', 'docs', 'test']))).toEqual([]);
  });
});

describe('layers', () => {
  it('are found by folder', () => {
    expect(layerOf('src/index.ts')).toBe('index');
    expect(layerOf('src/block/bio.ts')).toBe('block');
    expect(layerOf('src/targets/snapshot/store.ts')).toBe('targets');
    expect(layerOf('src/nbd/protocol/codec.ts')).toBe('nbd/protocol');
    expect(layerOf('src/nbd/index.ts')).toBe('nbd');
    expect(layerOf('src/nbd/other/x.ts')).toBeUndefined();
    expect(layerOf('src/util/x.ts')).toBeUndefined();
  });

  it.each([
    ['src/block/bio.ts', '../engine/direct.ts'],
    ['src/engine/ring.ts', '../devices/file.ts'],
    ['src/dm-io/io.ts', '../kcopyd/job.ts'],
    ['src/mapper/mapped.ts', '../reactor/reactor.ts'],
    ['src/nbd/protocol/codec.ts', '../server/server.ts'],
    ['src/nbd/client/client.ts', '../../devices/file.ts'],
    ['src/targets/linear.ts', '../index.ts'],
    ['src/table/parse.ts', '../engine/direct.ts'],
    ['src/table/parse.ts', '../dm-io/io.ts'],
    ['src/targets/linear.ts', '../table/entry.ts'],
    ['src/nbd/server/server.ts', '../../mapper/mapped.ts'],
    ['src/nbd/client/client.ts', '../../files/calls.ts'],
    ['src/copy/copy.ts', '../targets/index.ts'],
    ['src/testing/fault.ts', '../devices/file.ts'],
    ['src/block/bio.ts', '../../test/support/seed.ts'],
  ])('%s may not import %s', (path, specifier) => {
    for (const statement of [
      `import { x } from '${specifier}';`,
      `import type { X } from '${specifier}';`,
      `import {\n  x,\n  type Y,\n} from "${specifier}";`,
      `import * as all from '${specifier}';`,
      `export * from '${specifier}';`,
      `export type { X } from '${specifier}';`,
      `import '${specifier}';`,
      `const x = () => import('${specifier}');`,
    ]) {
      expect(problemsOf({ [path]: statement }), statement).toHaveLength(1);
    }
  });

  it.each([
    ['src/engine/ring.ts', '../block/bio.ts'],
    ['src/nbd/client/client.ts', '../protocol/codec.ts'],
    ['src/engine/ring.ts', './probe.ts'],
    ['src/targets/snapshot/store.ts', '../linear.ts'],
    ['src/targets/linear.ts', '../kcopyd/job.ts'],
    ['src/table/parse.ts', '../block/target.ts'],
    ['src/nbd/index.ts', './server/server.ts'],
    ['src/cli/main.ts', '../reactor/reactor.ts'],
    ['src/index.ts', './cli/main.ts'],
  ])('%s may import %s', (path, specifier) => {
    expect(problemsOf({ [path]: `import { x } from '${specifier}';` })).toEqual([]);
  });

  it('want every folder in the order', () => {
    expect(problemsOf({ 'src/util/x.ts': '' })).toHaveLength(1);
  });
});

describe('what only the reactor gives', () => {
  it.each([
    "import net from 'node:net';",
    "import { connect } from 'tls';",
    "import { setTimeout as after } from 'node:timers';",
    "import { setTimeout as sleep } from 'node:timers/promises';",
    "import fs from 'node:fs';",
    "import fs from 'node:fs/promises';",
    'setTimeout(() => {}, 1);',
    'setImmediate(run);',
    'return new Promise((resolve) => resolve());',
    'export async function read() {}',
    'const value = await x;',
    'const text = `${await x}`;',
  ])('is refused below it: %s', (text) => {
    expect(problemsOf({ 'src/kcopyd/job.ts': text })).not.toEqual([]);
    expect(problemsOf({ 'src/reactor/reactor.ts': text })).toEqual([]);
  });

  it('is not seen in comments, strings, members and patterns', () => {
    const text = [
      '// await the setTimeout( of an async world',
      "const message = 'await new Promise setTimeout(';",
      '/* import x from "node:net" */ const pattern = /["\'`] await /;',
      'host.setTimeout(1);',
      'const template = `async ${message} await `;',
      'const options = { async: true };',
    ].join('\n');
    expect(problemsOf({ 'src/kcopyd/job.ts': text })).toEqual([]);
  });

  it('leaves files to files, engine and devices, and promises to the NBD client', () => {
    expect(problemsOf({ 'src/files/calls.ts': "import fs from 'node:fs';" })).toEqual([]);
    expect(problemsOf({ 'src/engine/portable.ts': "import fs from 'node:fs';" })).toEqual([]);
    expect(problemsOf({ 'src/devices/file.ts': "import fs from 'node:fs';" })).toEqual([]);
    expect(problemsOf({ 'src/nbd/client/client.ts': 'await x;' })).toEqual([]);
    expect(problemsOf({ 'src/nbd/client/client.ts': "import net from 'node:net';" })).toHaveLength(1);
  });
});

describe('koffi', () => {
  it('is loaded in engine alone, and lazily', () => {
    const lazily = "const koffi = createRequire(import.meta.url)('koffi');\nrequire('koffi');\nimport('koffi');";
    expect(problemsOf({ 'src/engine/native.ts': lazily })).toEqual([]);
    expect(problemsOf({ 'src/engine/native.ts': "import type * as Koffi from 'koffi';" })).toEqual([]);
    expect(problemsOf({ 'src/engine/native.ts': "import koffi from 'koffi';" })).toHaveLength(1);
    expect(problemsOf({ 'src/daemon/x.ts': "require('koffi');" })).toHaveLength(1);
  });
});

describe('cycles', () => {
  it('are found across files', () => {
    const problems = problemsOf({
      'src/block/a.ts': "import { b } from './b.ts';",
      'src/block/b.ts': "import { c } from './c.ts';",
      'src/block/c.ts': "export * from './a.ts';",
    });
    expect(problems).toEqual(['import cycle: src/block/a.ts -> src/block/b.ts -> src/block/c.ts -> src/block/a.ts']);
  });

  it('may be of types', () => {
    const files = {
      'src/block/a.ts': "import { b } from './b.ts';",
      'src/block/b.ts': "import type { A } from './a.ts';",
    };
    expect(problemsOf(files)).toEqual([]);
  });
});

describe('texts', () => {
  it('may not be too long', () => {
    expect(problemsOf({ 'src/block/a.ts': 'x;\n'.repeat(700) })).toEqual([]);
    expect(problemsOf({ 'src/block/a.ts': 'x;\n'.repeat(701) })).toHaveLength(1);
    expect(problemsOf({ 'test/block/a.test.ts': 'x;\n'.repeat(701) })).toEqual([]);
  });

  it('may not name a path of one machine', () => {
    for (const folder of ['work', 'tmp', 'root']) {
      expect(problemsOf({ 'docs/a.md': `see /${folder}/image.img` })).toHaveLength(1);
      expect(problemsOf({ 'docs/a.md': `see ./${folder}/image.img and src/${folder}/x` })).toEqual([]);
    }
  });

  it('may not leave notes for later', () => {
    expect(problemsOf({ 'src/block/a.ts': `// ${'TO'}DO: later` })).toHaveLength(1);
    expect(problemsOf({ 'test/a.test.ts': `// ${'FIX'}ME` })).toHaveLength(1);
  });
});

describe('the import parser', () => {
  it('tells lines, types and lazy imports', () => {
    const text =
      "// one\nimport type { A } from 'a';\nimport type from 'b';\nexport { c } from 'c';\nvoid import('d');\n";
    expect(parseSource(text).imports).toEqual([
      { specifier: 'a', line: 2, typeOnly: true, lazy: false },
      { specifier: 'b', line: 3, typeOnly: false, lazy: false },
      { specifier: 'c', line: 4, typeOnly: false, lazy: false },
      { specifier: 'd', line: 5, typeOnly: false, lazy: true },
    ]);
  });

  it('is not led astray by division, templates in templates and quotes in patterns', () => {
    const text =
      "const a = b / c / d;\nconst t = `x ${`y ${'}'} \\``} '`;\nconst r = /[/'\"]/g.test(s);\nimport x from 'x';\n";
    expect(parseSource(text).imports.map((found) => found.specifier)).toEqual(['x']);
  });
});
