// Threads of a server that do not start, do not stop, and servers beside and after each other.
import { readdirSync, readlinkSync } from 'node:fs';
import { join } from 'node:path';
import type * as workerThreads from 'node:worker_threads';
import type { WorkerOptions } from 'node:worker_threads';
import { afterEach, expect, test, vi } from 'vitest';
import { DeviceMapper } from '../../src/api/device-mapper.ts';
import { connectNbd, serveNbd } from '../../src/nbd/index.ts';
import { rangeLockOf } from '../../src/nbd/server/range-lock.ts';
import { run } from '../support/process.ts';
import { makeImage, tempDir } from '../support/tmp.ts';

type Module = typeof workerThreads;

/** What becomes of each `new Worker`: a script to run, or an error to throw. */
const workers = vi.hoisted(() => ({ scripts: [] as (URL | Error | null)[] }));

vi.mock('node:worker_threads', async (original) => {
  const real = (await original()) as Module;
  class TestWorker extends real.Worker {
    constructor(url: URL, options: WorkerOptions) {
      const script = workers.scripts.shift() ?? url;
      if (script instanceof Error) throw script;
      super(script, options);
    }
  }
  // Older Node.js has none, and what a mock does not name can't be asked for.
  return { isMarkedAsUntransferable: undefined, ...real, Worker: TestWorker };
});

const built = new URL('../../dist/nbd/thread.js', import.meta.url);
const stuck = new URL('./stuck-thread.mjs', import.meta.url);
const silent = new URL('data:text/javascript,setInterval(() => {}, 1000)');
const missing = new URL('./no-such-thread.mjs', import.meta.url);

afterEach(() => {
  workers.scripts = [];
  vi.useRealTimers();
});

const SECTORS = 64;

async function diskMapper() {
  const folder = tempDir('life');
  const image = join(folder, 'a.img');
  const content = makeImage(image, SECTORS, 1);
  const dm = new DeviceMapper();
  const table = `0 ${SECTORS} linear ${image} 0`;
  (await dm.create('disk', table)).close();
  let count = 0;
  const serve = (threads: number) => serveNbd(dm, { listen: `unix:${join(folder, `${count++}.sock`)}`, threads });
  return { dm, table, content, serve, device: dm.mapper.get('disk') };
}

async function readOnce(uri: string): Promise<Buffer> {
  const connection = await connectNbd(uri);
  try {
    return await connection.read(0, SECTORS * 512);
  } finally {
    await connection.close();
  }
}

/** Time for workers to fail in. */
const failing = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 400));

test.each<[string, (URL | Error)[]]>([
  ['their script is missing', [missing, missing]],
  ['the system gives none', [new Error('no thread')]],
  ['the system gives one', [missing, new Error('no thread')]],
])('serves by itself when threads do not start: %s', async (_, scripts) => {
  const { dm, table, content, serve, device } = await diskMapper();
  workers.scripts = [...scripts];
  const service = await serve(3);
  await failing();
  expect((await readOnce(service.uri('disk'))).equals(content)).toBe(true);
  expect(device.pinned).not.toBe(null);
  await service.close();
  expect(device.pinned).toBe(null);
  await dm.load('disk', table);
  await dm.close();
});

test('clients that come as soon as it listens find the threads ready', async () => {
  const { dm } = await diskMapper();
  workers.scripts = [built, built];
  const listen = `unix:${join(tempDir('life'), 's')}` as const;
  const service = await serveNbd(dm, { listen, threads: 3, threadWaitMilliseconds: 20_000 });
  const clients = await Promise.all(Array.from({ length: 6 }, () => connectNbd(service.uri('disk'))));
  expect(service.server.statistics.connectionCount).toBe(2);
  await Promise.all(clients.map((client) => client.close()));
  await service.close();
  await dm.close();
});

test.each([
  ['never there', silent, 50],
  ['never wanted', built, 0],
])('it listens all the same when they are %s', async (_, script, threadWaitMilliseconds) => {
  const { dm, content } = await diskMapper();
  workers.scripts = [script];
  const listen = `unix:${join(tempDir('life'), 's')}` as const;
  const service = await serveNbd(dm, { listen, threads: 2, threadWaitMilliseconds });
  const clients = await Promise.all(Array.from({ length: 3 }, () => connectNbd(service.uri('disk'))));
  expect(service.server.statistics.connectionCount).toBe(3);
  for (const client of clients) expect((await client.read(0, SECTORS * 512)).equals(content)).toBe(true);
  await Promise.all(clients.map((client) => client.close()));
  await service.close();
  await dm.close();
});

test.each([
  ['does not answer', false, 'a thread did not stop'],
  ['says that it has something open still', true, 'its requests take too long'],
])('a thread that %s keeps its devices open and as they are', async (_, answer, reason) => {
  const { dm, table, serve, device } = await diskMapper();
  workers.scripts = [stuck];
  vi.stubEnv('STUCK_ANSWER', answer ? '1' : '0');
  const service = await serve(2);
  await failing();
  if (!answer) vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
  const closing = expect(service.close()).rejects.toMatchObject({
    code: 'EIO',
    message: `stopping the NBD server: ${reason}`,
  });
  if (!answer) {
    // This thread's own part ends in its time.
    await new Promise<void>((resolve) => {
      const timer = setInterval(() => {
        clearInterval(timer);
        resolve();
      }, 3000);
    });
    await vi.advanceTimersByTimeAsync(13_000);
    vi.useRealTimers();
  }
  await closing;
  expect([device.pinned === null, device.openCount]).toEqual([false, 1]);
  await expect(dm.load('disk', table)).rejects.toMatchObject({ code: 'EBUSY' });
  await expect(dm.close()).rejects.toMatchObject({ code: 'EBUSY' });
  vi.unstubAllEnvs();
});

test('the command ends with one message and 1 when a thread does not stop', async () => {
  const folder = tempDir('life');
  makeImage(join(folder, 'a.img'), SECTORS, 1);
  const preload = `import { createRequire, syncBuiltinESMExports } from 'node:module';
    const threads = createRequire(import.meta.url)('node:worker_threads');
    const { Worker } = threads;
    if (threads.isMainThread) {
      threads.Worker = class extends Worker {
        constructor(url, options) { super(new URL(${JSON.stringify(stuck.href)}), options); }
      };
      syncBuiltinESMExports();
    }`;
  const main = new URL('../../dist/cli/main.js', import.meta.url).pathname;
  const table = `0 ${SECTORS} linear ${join(folder, 'a.img')} 0`;
  const options = [
    '--import',
    `data:text/javascript,${encodeURIComponent(preload.replaceAll('import.meta.url', "'file:///'"))}`,
  ];
  const result = await run(
    process.execPath,
    [...options, main, 'serve', 'disk', '--table', table, '--threads', '2', '--run', 'sleep 0.5'],
    {
      env: { ...process.env, STUCK_ANSWER: '1' },
      timeoutSeconds: 240,
    },
  );
  expect([result.code, result.stderr]).toEqual([1, 'dmkit: stopping the NBD server: its requests take too long\n']);
});

test('a server is closed once: whoever asks gets the same answer', async () => {
  const { dm, serve } = await diskMapper();
  const service = await serve(1);
  const connection = await connectNbd(service.uri('disk'));
  await connection.write(0, Buffer.alloc(512, 7));
  const [first, second] = [service.close(), service.close()];
  await Promise.all([first, second, service.close()]);
  await connection.close().catch(() => {});
  await service.close();
  await dm.close();
});

/** Descriptors of this process by what they lead to. */
function descriptorsOf(text: string): number {
  return readdirSync('/proc/self/fd').filter((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`).includes(text);
    } catch {
      return false;
    }
  }).length;
}

test('a device is served by threads again and again, and nothing of them stays', async () => {
  const { dm, content, serve, device } = await diskMapper();
  const polls: number[] = [];
  for (let round = 0; round < 4; round++) {
    workers.scripts = [built, built];
    const service = await serve(3);
    expect(device.pinned, `round ${round}`).not.toBe(null);
    await failing();
    const clients = await Promise.all(Array.from({ length: 6 }, () => connectNbd(service.uri('disk'))));
    for (const client of clients) expect((await client.read(0, SECTORS * 512)).equals(content)).toBe(true);
    await Promise.all(clients.map((client) => client.write(100, Buffer.from(content.subarray(100, 103)))));
    await Promise.all(clients.map((client) => client.close()));
    await service.close();
    expect(device.pinned).toBe(null);
    expect(rangeLockOf(device).canShare).toBe(true);
    polls.push(descriptorsOf('eventpoll'));
  }
  expect(polls).toEqual(Array.from({ length: 4 }, () => polls[0]));
  await dm.close();
});

test('a second server beside one with threads has one, heeds theirs, and leaves them what they hold', async () => {
  const { dm, table, content, serve, device } = await diskMapper();
  workers.scripts = [built];
  const first = await serve(2);
  await failing();
  workers.scripts = [new Error('no thread is wanted')];
  const second = await serve(2);
  expect(workers.scripts).toHaveLength(1);
  expect((await readOnce(second.uri('disk'))).equals(content)).toBe(true);
  const clients = await Promise.all([first, first, first, second].map((service) => connectNbd(service.uri('disk'))));
  const model = Buffer.from(content);
  for (let round = 0; round < 50; round++) {
    await Promise.all(
      clients.map((client, index) => {
        const at = index + 4 * ((round * 7) % 100);
        model[at] = round;
        return client.write(at, Buffer.of(round));
      }),
    );
  }
  for (const client of clients) expect((await client.read(0, SECTORS * 512)).equals(model)).toBe(true);
  await clients[3]!.close();
  await second.close();
  expect(device.pinned).not.toBe(null);
  await expect(dm.load('disk', table)).rejects.toMatchObject({ code: 'EBUSY' });
  await Promise.all(clients.slice(0, 3).map((client) => client.close()));
  await first.close();
  expect(device.pinned).toBe(null);
  await dm.close();
});

test('an address that is taken: the devices are free again', async () => {
  const { dm, table, serve } = await diskMapper();
  workers.scripts = [built];
  const service = await serve(2);
  await service.close();
  workers.scripts = [built];
  await expect(serveNbd(dm, { listen: 'unix:/nowhere/at/all.sock', threads: 2 })).rejects.toMatchObject({
    code: 'ENOENT',
  });
  await dm.load('disk', table);
  await dm.close();
});
