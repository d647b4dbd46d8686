// The helpers themselves: a test suite that trusts its tools must have seen them fail.
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { startFileLimit } from './file-limit.ts';
import { find } from './peers.ts';
import { run, start } from './process.ts';
import { makeRandom, runs, seed } from './seed.ts';
import { makeImage, randomBytes, sha256, tempDir } from './tmp.ts';

const node = process.execPath;
const root = fileURLToPath(new URL('../../', import.meta.url));

async function isGone(pid: number): Promise<boolean> {
  for (let i = 0; i < 100; i += 1) {
    // A zombie without a parent that reaps it is as good as gone.
    const stat = existsSync(`/proc/${pid}/stat`) ? readFileSync(`/proc/${pid}/stat`, 'utf8') : '';
    if (stat === '' || / Z /.test(stat)) return true;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  return false;
}

/**
 * Runs vitest on one test file made of `text`, in a folder that is removed, and gives its output. The file's name is one
 * that no other run of the tests would take up.
 */
async function runVitestOn(text: string, env: Record<string, string | undefined>) {
  const folder = mkdtempSync(join(root, 'test', 'support', 'made-'));
  const config = join(folder, 'vitest.config.ts');
  try {
    writeFileSync(join(folder, 'made.fixture.ts'), text);
    writeFileSync(
      config,
      `import base from '../../../vitest.config.ts';
      const test = { ...base.test, projects: undefined, include: ['**/made.fixture.ts'] };
      export default { ...base, root: ${JSON.stringify(root)}, test };`,
    );
    const vitest = join(root, 'node_modules', 'vitest', 'vitest.mjs');
    const args = [vitest, 'run', '--config', config, folder];
    const result = await run(node, args, { cwd: root, env: { NO_COLOR: '1', ...env } });
    return { code: result.code, output: result.stdout + result.stderr };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

describe('run', () => {
  it('gives code, output and input', async () => {
    const script =
      "process.stdin.on('data', (d) => process.stdout.write(d)); process.stderr.write('e'); process.exitCode = 3";
    const result = await run(node, ['-e', script], { input: 'hello' });
    expect(result).toMatchObject({ code: 3, stdout: 'hello', stderr: 'e', timedOut: false });
  });

  it('kills a group that ignores SIGTERM', async () => {
    const script = 'trap "" TERM; sh -c \'trap "" TERM; echo $$; sleep 60\' & wait; sleep 60';
    const result = await run('sh', ['-c', script], { timeoutSeconds: 0.5 });
    expect(result.timedOut).toBe(true);
    expect(result.code).toBeNull();
    expect(result.stderr).toContain('killed after 0.5 s');
    expect(await isGone(Number(result.stdout))).toBe(true);
  });

  it('ends on abort', async () => {
    const result = await run('sleep', ['60'], { signal: AbortSignal.timeout(100) });
    expect(result).toMatchObject({ code: null, timedOut: false });
  });

  it('rejects for a program that is not there', async () => {
    await expect(run('dmkit-no-such-program')).rejects.toThrow('ENOENT');
  });
});

describe('start', () => {
  it('waits for the ready line and stops', async () => {
    const server = await start('sh', ['-c', 'echo ready on 7; sleep 60'], { ready: /ready on (\d)/ });
    expect(server.match?.[1]).toBe('7');
    await server.stop();
    expect(await isGone(server.pid)).toBe(true);
  });

  it('tells what a server printed that ended before it was ready', async () => {
    await expect(start('sh', ['-c', 'echo no disk >&2; exit 4'], { ready: /ready/ })).rejects.toThrow(
      /with 4.*\nno disk/,
    );
    await expect(start('sleep', ['60'], { ready: /ready/, readySeconds: 0.1 })).rejects.toThrow('not ready');
  });
});

describe('a temporary folder', () => {
  let last = '';

  it('is there in its test', () => {
    last = tempDir('support');
    expect(existsSync(last)).toBe(true);
  });

  it('is gone after it', () => {
    expect(existsSync(last)).toBe(false);
  });
});

describe('an image', () => {
  it('has the content that it returns, the same for the same seed', () => {
    const path = join(tempDir('image'), 'a.img');
    const content = makeImage(path, 100, 7);
    expect(content.length).toBe(51200);
    expect(readFileSync(path).equals(content)).toBe(true);
    expect(randomBytes(51200, 7).equals(content)).toBe(true);
    expect(randomBytes(51200, 8).equals(content)).toBe(false);
    expect(new Set(content.subarray(0, 4096)).size).toBeGreaterThan(200);
  });

  it('has a sum', () => {
    const path = join(tempDir('sum'), 'a');
    writeFileSync(path, 'abc');
    expect(sha256(path)).toBe('ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad');
  });
});

describe('the seed', () => {
  it("is fast-check's, and scales its runs", () => {
    expect(fc.readConfigureGlobal()).toMatchObject({ seed, numRuns: runs(100) });
    expect(makeRandom(5)()).toBe(makeRandom(5)());
  });

  it('is printed by a property that fails, and repeats it', async () => {
    const text = `
      import fc from 'fast-check';
      import { expect, it } from 'vitest';
      it('fails', () => fc.assert(fc.property(fc.integer(), (n) => { expect(n).toBeLessThan(1000); })));
    `;
    const first = await runVitestOn(text, { DMKIT_SEED: undefined });
    expect(first.code).toBe(1);
    const printed = first.output.match(/DMKIT_SEED=(-?\d+)/)?.[1];
    expect(printed).toBeDefined();
    const again = await runVitestOn(text, { DMKIT_SEED: printed });
    const counterexample = /Counterexample: (.*)/;
    expect(again.output.match(counterexample)?.[1]).toBe(first.output.match(counterexample)?.[1]);
  });
});

describe('peers', () => {
  const text = `
    import { expect, it } from 'vitest';
    import { describePeer, itPeer, peer } from '../peers.ts';
    describePeer(['nbdinfo'], 'whole suite', () => { it('inside', () => { throw new Error('must not run'); }); });
    itPeer(['nbdinfo'], 'one test', () => { throw new Error('must not run'); });
    it('asks for one', () => { peer('nbdinfo'); throw new Error('must not run'); });
  `;
  const nowhere = join(tmpdir(), 'dmkit-no-such-folder');

  it('that are missing are skipped and recorded', async (context) => {
    if (find('nbdinfo')?.includes('sbin')) context.skip('nbdinfo is where no PATH can hide it');
    const skips = join(tempDir('skips'), 'skips');
    const result = await runVitestOn(text, { PATH: nowhere, DMKIT_SKIPS_FILE: skips, CI: '' });
    expect(result.output).toContain('3 skipped');
    expect(result.code).toBe(0);
    const records = readFileSync(skips, 'utf8')
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line));
    expect(records.map((entry) => entry.test).sort()).toEqual(['asks for one', 'one test', 'whole suite']);
    expect(records[0]).toMatchObject({ what: 'nbdinfo', how: 'scripts/install-peers (Debian package libnbd-bin)' });
  });

  it('that are missing fail in CI', async (context) => {
    if (find('nbdinfo')?.includes('sbin')) context.skip('nbdinfo is where no PATH can hide it');
    const result = await runVitestOn(text, { PATH: nowhere, CI: 'true' });
    expect(result.output).toContain('3 failed');
    expect(result.output).toContain('nbdinfo is missing: scripts/install-peers');
  });
});

describe('the time limit of a file', () => {
  it('kills a process that spins, and its children', async () => {
    const script = "console.log(require('child_process').spawn('sleep', ['60']).pid); while (true);";
    const server = await start(node, ['-e', script], { ready: /(\d+)\n/ });
    startFileLimit(0.2, server.pid);
    expect(await server.exited).toBeNull();
    expect(await isGone(Number(server.match?.[1]))).toBe(true);
  });
});
