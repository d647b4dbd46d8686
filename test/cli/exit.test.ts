// A process with requests in flight ends when it is told to, whichever way, on every engine.
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { ENGINES } from '../engine/harness.ts';
import { itPeer, run } from '../support/peers.ts';
import { start } from '../support/process.ts';
import { makeImage, tempDir } from '../support/tmp.ts';

const dist = fileURLToPath(new URL('../../dist/index.js', import.meta.url));
/** Generous: the point is that nothing waits for ever. */
const LIMIT_SECONDS = 10;

/** Keeps 256 requests of every kind in flight for ever, and says when it has begun. */
function busyProgram(image: string, ending: string): string {
  return `
    import { DeviceMapper } from ${JSON.stringify(dist)};
    const dm = new DeviceMapper();
    const disk = await dm.create('busy', '0 8192 linear ${image} 0');
    let done = 0;
    async function lane(i) {
      const buffer = Buffer.alloc(65536);
      for (;;) {
        await disk.write((i * 128) % 8064, buffer, { fua: true });
        await disk.readInto((i * 128) % 8064, buffer);
        if (++done === 64) console.log('busy');
        if (done === 256) { ${ending} }
      }
    }
    for (let i = 0; i < 256; i++) lane(i);
  `;
}

describe.each(ENGINES)('on the %s engine', (engine) => {
  test.each([
    ['process.exit', 'process.exit(3)', 3],
    ['an exception nobody catches', "setImmediate(() => { throw new Error('on purpose'); })", 1],
    ['an exit code and a signal to itself', "process.kill(process.pid, 'SIGTERM')", null],
  ])('%s', async (_name, ending, code) => {
    const folder = tempDir('exit');
    makeImage(join(folder, 'a.img'), 8192);
    writeFileSync(join(folder, 'busy.mjs'), busyProgram(join(folder, 'a.img'), ending));
    const child = await start(process.execPath, [join(folder, 'busy.mjs')], {
      ready: /busy/,
      env: { DMKIT_ENGINE: engine },
      timeoutSeconds: LIMIT_SECONDS + 20,
    });
    const ended = await Promise.race([
      child.exited,
      new Promise((resolve) => setTimeout(resolve, LIMIT_SECONDS * 1000, 'still running').unref()),
    ]);
    expect(ended).toBe(code);
  });
});

itPeer(['strace'], 'a command whose output can not be synced ends with its own exit code', async () => {
  const folder = tempDir('exit');
  makeImage(join(folder, 'a.img'), 64);
  const main = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));
  // Sent to files: what is on a disk can fail to be synced.
  const script = 'exec strace -f -qq -o /dev/null -e trace=fsync -e inject=fsync:error=EIO "$@" > out 2> err';
  const words = (name: string): string[] => ['-c', script, 'sh', process.execPath, main, 'copy', 'a.img', name];
  for (const [name, code] of [
    ['b.img', 0],
    ['nosuch/b.img', 1],
  ] as const) {
    const ended = await run('sh', words(name), { cwd: folder, timeoutSeconds: 60 });
    expect([name, ended.code, ended.timedOut]).toEqual([name, code, false]);
  }
});
