// scripts/build.mjs and the build before the tests, on a small tree with the real compiler: no test may run old code.
import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
// @ts-expect-error a script without types
import { hashSources, isFresh as isFreshIn } from '../../scripts/sources.mjs';
import { run, start } from './process.ts';
import { tempDir } from './tmp.ts';

const root = fileURLToPath(new URL('../../', import.meta.url));
const FROM_HERE = ['scripts/build.mjs', 'scripts/sources.mjs', 'test/support/fresh-build.ts'];
const CONFIGS = ['package.json', 'tsconfig.json', 'tsconfig.build.json'];

/** A project whose command prints a word. */
class Tree {
  readonly folder = tempDir('build');
  readonly source = join(this.folder, 'src', 'cli', 'main.ts');
  readonly dist = join(this.folder, 'dist');

  constructor() {
    for (const name of [...FROM_HERE, ...CONFIGS]) cpSync(join(root, name), join(this.folder, name));
    symlinkSync(join(root, 'node_modules'), join(this.folder, 'node_modules'));
    mkdirSync(join(this.folder, 'src', 'cli'), { recursive: true });
    this.write('one');
  }

  write(word: string): void {
    writeFileSync(this.source, `process.stdout.write('${word}');\n`);
  }

  get isFresh(): boolean {
    return isFreshIn(this.folder);
  }

  /** The folder that builds replace: a build gives it another number. */
  get distNumber(): number {
    return statSync(this.dist).ino;
  }

  async build(...options: string[]) {
    const { code, stdout, stderr } = await run(process.execPath, [
      join(this.folder, 'scripts', 'build.mjs'),
      ...options,
    ]);
    return { code, output: stdout + stderr };
  }

  async says(): Promise<string> {
    return (await run(process.execPath, [join(this.dist, 'cli', 'main.js')])).stdout;
  }

  /** What builds have left beside dist/. */
  get leftovers(): string[] {
    return readdirSync(this.folder).filter((name) => name.startsWith('dist-'));
  }
}

describe('a build', () => {
  it('is stale after each change of a source, whatever the times of files say', async () => {
    const tree = new Tree();
    expect(tree.isFresh).toBe(false);
    expect((await tree.build()).code).toBe(0);
    expect(tree.isFresh).toBe(true);

    const changes: (() => void)[] = [
      () => writeFileSync(join(tree.folder, 'src', 'more.ts'), 'export {};\n'),
      () => renameSync(join(tree.folder, 'src', 'more.ts'), join(tree.folder, 'src', 'cli', 'more.ts')),
      () =>
        writeFileSync(join(tree.folder, 'tsconfig.build.json'), `${readFileSync(join(root, 'tsconfig.build.json'))}\n`),
      () => tree.write('two'),
    ];
    const stamp = join(tree.dist, '.sources');
    for (const change of changes) {
      const before = readFileSync(stamp, 'utf8');
      change();
      utimesSync(tree.source, 1, 1);
      expect(tree.isFresh, change.toString()).toBe(false);
      // The hash that a build would leave.
      writeFileSync(stamp, hashSources(tree.folder));
      expect(tree.isFresh, change.toString()).toBe(true);
      writeFileSync(stamp, before);
    }
    expect((await tree.build('--if-stale')).code).toBe(0);
    expect(tree.isFresh).toBe(true);
    expect(await tree.says()).toBe('two');

    const before = tree.distNumber;
    utimesSync(tree.source, new Date(), new Date());
    expect((await tree.build('--if-stale')).code).toBe(0);
    expect(tree.distNumber).toBe(before);
    expect(tree.leftovers).toEqual([]);
  });

  it('that fails leaves the last good one, which is still stale', async () => {
    const tree = new Tree();
    await tree.build();
    writeFileSync(tree.source, "const word: number = 'two';\nprocess.stdout.write(word);\n");
    const { code, output } = await tree.build('--if-stale');
    expect(code).not.toBe(0);
    expect(output).toContain('main.ts');
    expect(await tree.says()).toBe('one');
    expect(tree.isFresh).toBe(false);
    expect(tree.leftovers).toEqual([]);
  });

  it('is made once by several that find the same stale one', async () => {
    const tree = new Tree();
    await tree.build();
    tree.write('two');
    // A build that is under way, and waits for the compiler's disk as long as it likes.
    writeFileSync(join(tree.folder, 'dist-lock'), String(process.pid));
    const before = tree.distNumber;
    const builds = [1, 2, 3].map(() => tree.build('--if-stale'));
    await new Promise((resolve) => setTimeout(resolve, 500));
    expect(tree.distNumber).toBe(before);
    // As that build would end.
    tree.write('one');
    rmSync(join(tree.folder, 'dist-lock'));
    for (const { code } of await Promise.all(builds)) expect(code).toBe(0);
    expect(tree.distNumber).toBe(before);

    tree.write('three');
    for (const { code } of await Promise.all([1, 2, 3].map(() => tree.build('--if-stale')))) expect(code).toBe(0);
    expect(await tree.says()).toBe('three');
    expect(tree.leftovers).toEqual([]);
  });

  it('goes on after one that was killed, and takes away its folders', async () => {
    const tree = new Tree();
    const gone = await start(process.execPath, ['-e', 'console.log(process.pid)'], { ready: /(\d+)/ });
    await gone.exited;
    writeFileSync(join(tree.folder, 'dist-lock'), gone.match![1]!);
    for (const name of [`dist-new-${gone.match![1]}`, `dist-old-${gone.match![1]}`]) mkdirSync(join(tree.folder, name));
    expect((await tree.build()).code).toBe(0);
    expect(await tree.says()).toBe('one');
    expect(tree.leftovers).toEqual([]);
  });

  it('refuses an option that it does not know', async () => {
    const { code, output } = await new Tree().build('--watsch');
    expect(code).toBe(2);
    expect(output).toBe('usage: node scripts/build.mjs [--if-stale | --watch]\n');
  });
});

describe('npm run watch', () => {
  it('builds after each change, and says so', async () => {
    const tree = new Tree();
    const script = join(tree.folder, 'scripts', 'build.mjs');
    const watching = await start(process.execPath, [script, '--watch'], { ready: /dist\/ is built/ });
    try {
      expect(await tree.says()).toBe('one');
      tree.write('two');
      await expect.poll(() => tree.isFresh).toBe(true);
      expect(await tree.says()).toBe('two');
    } finally {
      await watching.stop();
    }
    expect(tree.leftovers).toEqual([]);
  });
});

describe('a run of vitest', () => {
  const vitest = join(root, 'node_modules', 'vitest', 'vitest.mjs');

  function addTest(tree: Tree): void {
    writeFileSync(
      join(tree.folder, 'vitest.config.ts'),
      "export default { test: { include: ['test/*.test.ts'], globalSetup: ['test/support/fresh-build.ts'] } };\n",
    );
    writeFileSync(
      join(tree.folder, 'test', 'word.test.ts'),
      `import { execFileSync } from 'node:child_process';
      import { expect, it } from 'vitest';
      it('says two', () => expect(String(execFileSync(process.execPath, ['dist/cli/main.js']))).toBe('two'));`,
    );
  }

  it('builds first where dist/ is of older sources, and tests the new ones', async () => {
    const tree = new Tree();
    addTest(tree);
    await tree.build();
    tree.write('two');
    const { code, stdout, stderr } = await run(process.execPath, [vitest, 'run'], { cwd: tree.folder });
    expect(stdout + stderr).toContain('dist/ is not that of src/ as it is: building');
    expect(code, stdout + stderr).toBe(0);
    const before = tree.distNumber;
    const again = await run(process.execPath, [vitest, 'run'], { cwd: tree.folder });
    expect(again.stdout + again.stderr).not.toContain('building');
    expect(again.code).toBe(0);
    expect(tree.distNumber).toBe(before);
  });

  it('runs no test where the sources do not compile', async () => {
    const tree = new Tree();
    addTest(tree);
    tree.write('two');
    await tree.build();
    writeFileSync(tree.source, 'const word: number = "two";\nprocess.stdout.write(word);\n');
    const { code, stdout, stderr } = await run(process.execPath, [vitest, 'run'], { cwd: tree.folder });
    expect(code).not.toBe(0);
    expect(stdout + stderr).toContain('the tests would run old code');
    expect(stdout + stderr).not.toContain('1 passed');
    expect(existsSync(tree.dist)).toBe(true);
  });
});
