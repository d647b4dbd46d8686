// What goes wrong with rings: processes and workers that can't end, sleepers nobody wakes, memory that goes away under the
// kernel. Each in a process of its own, with reads in flight that would hang for ever.
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { describe, expect, it, TestRunner } from 'vitest';
import { itPeer, peer } from '../support/peers.ts';
import { run, start } from '../support/process.ts';
import { tempDir } from '../support/tmp.ts';
import { ENGINES } from './harness.ts';

const dist = fileURLToPath(new URL('../../dist/', import.meta.url));
const env = { DMKIT_DIST: pathToFileURL(dist).href };
const child = (name: string) => fileURLToPath(new URL(`ring-children/${name}.mjs`, import.meta.url));

function pipe(): string {
  const path = join(tempDir('ring'), 'pipe');
  execFileSync('mkfifo', [path]);
  return path;
}

describe.runIf(ENGINES.includes('ring') && existsSync(dist))('with reads in flight on a ring', () => {
  it.each([
    ['exit', 3],
    ['throw', 1],
    ['signal', null],
    ['handler', 5],
    ['exit of a worker', 6],
  ])('a process ends without waiting for them: %s', async (ending, code) => {
    const process_ = await start(process.execPath, [child('endings'), pipe(), ending], { ready: /busy/, env });
    // Nothing is ever written into the pipe: a process that waited would be killed in the end.
    expect(await process_.exited).toBe(code);
  });

  it('worker.terminate waits for reads of files, and nothing writes to memory that it has freed', async () => {
    const image = join(tempDir('ring'), 'image');
    writeFileSync(image, Buffer.alloc(16 << 20));
    const args = [child('terminate-files'), image, 'always', '20'];
    const result = await run(process.execPath, args, { timeoutSeconds: 240, env: { ...env, DMKIT_ENGINE: 'auto' } });
    expect(result).toMatchObject({ code: 0, stdout: 'ended\n', stderr: '' });
  });

  it('a worker of the program is refused a ring by name, because it may be terminated', async () => {
    const image = join(tempDir('ring'), 'image');
    writeFileSync(image, Buffer.alloc(16 << 20));
    const args = [child('terminate-files'), image, 'always', '1'];
    const result = await run(process.execPath, args, { timeoutSeconds: 240, env: { ...env, DMKIT_ENGINE: 'ring' } });
    expect(result.stderr).toContain(
      "the ring engine can't be used here: this is a worker, and nothing would wait for its requests when it is terminated",
    );
    expect([result.code, result.stdout]).toEqual([1, '']);
  });

  it.each([
    ['exit', 'always', 9],
    ['exit', 'never', 9],
    ['throw', 'always', 1],
  ])('a process with busy threads of a server ends with its own code: %s, O_DIRECT %s', async (how, directIo, code) => {
    const folder = tempDir('ring');
    writeFileSync(join(folder, 'image'), Buffer.alloc(16 << 20));
    for (let round = 0; round < 3; round++) {
      const args = [child('exit-beside-threads'), folder, directIo, how];
      const result = await run(process.execPath, args, { timeoutSeconds: 240, env: { ...env, DMKIT_ENGINE: 'auto' } });
      expect(result).toMatchObject({ code, stdout: 'busy\n' });
      if (how === 'exit') expect(result.stderr).toBe('');
    }
  });

  it('a process with a thread that does not hold still ends with its own code', async () => {
    const folder = tempDir('ring');
    writeFileSync(join(folder, 'image'), Buffer.alloc(16 << 20));
    const args = [child('exit-beside-threads'), folder, 'never', 'deaf'];
    const result = await run(process.execPath, args, { timeoutSeconds: 240, env });
    expect(result).toMatchObject({ code: 9, stdout: 'busy\n', stderr: '' });
  });

  itPeer(['nbdkit', 'nbdfuse', 'fuse'], 'so it does for a file whose reads take long', async () => {
    const folder = tempDir('ring');
    const script = [
      `${peer('nbdfuse')} image "$uri" & pid=$!`,
      'for i in $(seq 100); do [ -s image ] && break; sleep 0.1; done',
      `"${process.execPath}" "${child('terminate-files')}" "$PWD/image" never 1; code=$?`,
      'kill $pid; wait $pid; exit $code',
    ].join('\n');
    writeFileSync(join(folder, 'image'), '');
    const args = ['-U', '-', '--filter=delay', 'memory', '16M', 'rdelay=1', '--run', script];
    const options = { cwd: folder, timeoutSeconds: 60, env: { ...env, DMKIT_ENGINE: 'auto' } };
    const result = await run(peer('nbdkit'), args, options);
    expect(result).toMatchObject({ code: 0, stdout: 'ended\n' });
  });

  it('memory that is dropped, transferred or collected stays where it is', async () => {
    const args = ['--expose-gc', child('memory'), pipe()];
    const result = await run(process.execPath, args, { timeoutSeconds: 240, env });
    expect(result.stderr).toBe('');
    expect(result.stdout).toMatch(/^intact (refused|copied)$/m);
    expect(result.code).toBe(0);
  });

  it('fs.promises work, a busy pool stops nothing, and the process ends by itself', async () => {
    const result = await run(process.execPath, [child('pool'), pipe()], { timeoutSeconds: 240, env });
    expect(result.stderr).toBe('');
    expect(result.stdout).toMatch(/fs\.promises work\nread beside a busy pool in \d+ ms/);
    expect(result.code).toBe(0);
  });
});

describe.runIf(existsSync(dist))('where a seccomp filter refuses io_uring', () => {
  it.each([
    ['EPERM', 1, 'io_uring is not permitted here'],
    ['ENOSYS', 38, 'this kernel has no io_uring'],
  ])('with %s, direct calls and threads serve', async (_name, errno, reason) => {
    const filter = fileURLToPath(new URL('ring-children/without-ring.py', import.meta.url));
    const probe = spawnSync('python3', [filter, String(errno), 'true'], { encoding: 'utf8' });
    if (probe.status !== 0) {
      const why = `no python3 that can set a seccomp filter: ${probe.error?.message ?? probe.stderr}`;
      console.warn(why);
      TestRunner.getCurrentTest()?.context.skip(why);
    }
    const image = join(tempDir('ring'), 'image');
    writeFileSync(image, Buffer.alloc(1 << 20));
    const args = [filter, String(errno), process.execPath, child('fallback'), image];
    const result = await run('python3', args, { timeoutSeconds: 240, env: { ...env, DMKIT_ENGINE: 'auto' } });
    expect(result.stderr).toBe('');
    expect(result.stdout).toMatch(/^cached direct 0 0\ndirect I\/O direct 0 0\n/);
    expect(result.stdout).toContain(reason);
  });
});
