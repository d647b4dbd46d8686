// One server, several threads: the built command with --threads, and clients on many connections at once.
import { once } from 'node:events';
import { existsSync, readFileSync, renameSync, truncateSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { connectNbd, type NbdConnection } from '../../src/nbd/connect.ts';
import { dmkit, serve } from '../support/cli.ts';
import { makeRandom, printSeedOnFailure, runs } from '../support/seed.ts';
import { client, clientsOfAllThreads, connectionsByThread, patient } from '../support/threads.ts';
import { makeImage, randomBytes, tempDir } from '../support/tmp.ts';

function unix(folder: string): string[] {
  return ['--nbd', `unix:${join(folder, 'nbd.sock')}`];
}

const SECTORS = 2048;

/** An image of 64 sectors in a folder of its own, and the table that serves it. */
function oneImage() {
  const folder = tempDir('threads');
  const image = join(folder, 'a.img');
  const content = makeImage(image, 64, 1);
  return { folder, image, content, table: `0 64 linear ${image} 0` };
}

/** A server of {@link oneImage}. */
async function serveOneImage(threadCount: number) {
  const made = oneImage();
  const serving = await serve(['disk', '--table', made.table, '--threads', String(threadCount), ...unix(made.folder)]);
  return { ...made, serving };
}

/** A device of four kinds of lines over two images, and its sockets in a folder. */
function stackTables(folder: string): string[] {
  makeImage(join(folder, 'a.img'), SECTORS, 1);
  makeImage(join(folder, 'b.img'), SECTORS, 2);
  const low = `0 1024 striped 2 16 ${join(folder, 'a.img')} 0 ${join(folder, 'b.img')} 0\n1024 512 linear ${join(folder, 'a.img')} 1024`;
  return ['low', '--table', low, 'top', '--table', '0 1000 linear /dev/mapper/low 8\n1000 24 zero\n1024 8 error'];
}

test.each([1, 2, 5])('%i threads have as many connections each as the others', async (threadCount) => {
  const { serving } = await serveOneImage(threadCount);
  const clients = await clientsOfAllThreads(serving, threadCount);
  await expect
    .poll(() => connectionsByThread(serving.pid).sort(), patient)
    .toEqual(Array.from({ length: threadCount }, () => 2));
  for (const each of clients) await each.close();
  await expect.poll(() => connectionsByThread(serving.pid), patient).toEqual([]);
  expect(await serving.stop()).toBe(0);
});

test('what one connection has written every other one reads, whatever thread it is in', async () => {
  printSeedOnFailure();
  const folder = tempDir('threads');
  const tables = stackTables(folder);
  const serving = await serve([...tables, '--threads', '3', ...unix(folder)], { exports: 2 });
  const clients = await clientsOfAllThreads({ ...serving, uris: [serving.uris[1]!] }, 3);
  const model = await clients[0]!.read(0, 1024 * 512);
  const random = makeRandom();
  for (let round = 0; round < runs(300); round++) {
    const writer = clients[Math.floor(random() * clients.length)]!;
    const reader = clients[Math.floor(random() * clients.length)]!;
    const offset = Math.floor(random() * 1000 * 512);
    const data = randomBytes(1 + Math.floor(random() * Math.min(9000, 1000 * 512 - offset)), round);
    if (random() < 0.2) {
      await writer.writeZeroes(offset, data.byteLength);
      model.fill(0, offset, offset + data.byteLength);
    } else {
      await writer.write(offset, data);
      model.set(data, offset);
    }
    const from = Math.max(0, offset - Math.floor(random() * 5000));
    const length = Math.min(1024 * 512 - from, data.byteLength + 10_000);
    expect((await reader.read(from, length)).equals(model.subarray(from, from + length)), `round ${round}`).toBe(true);
  }
  for (const each of clients) await expect(each.read(1024 * 512, 512)).rejects.toThrow(/EIO/);
  await clients[1]!.flush();
});

test('parts of one block that are written at the same time all stay, whatever threads write them', async () => {
  const { serving } = await serveOneImage(3);
  const clients = await clientsOfAllThreads(serving, 3);
  // Each connection has every sixth byte of four blocks to itself; whole blocks beside them are written as well.
  const blocks = await clients[0]!.read(0, 2048);
  const writers = clients.map(async (each, index) => {
    const random = makeRandom(index);
    for (let round = 0; round < runs(120); round++) {
      const at = index + 6 * Math.floor(random() * 341);
      const value = Math.floor(random() * 256);
      blocks[at] = value;
      await Promise.all([each.write(at, Buffer.of(value)), each.write(2048 + 512 * index, randomBytes(512, round))]);
    }
  });
  await Promise.all(writers);
  expect((await clients[1]!.read(0, 2048)).equals(blocks)).toBe(true);
});

test('a partial write and whole blocks over it leave the one or the other, not a mixture', async () => {
  const { serving } = await serveOneImage(2);
  const [first, second] = await clientsOfAllThreads(serving, 2);
  for (let round = 0; round < runs(150); round++) {
    const whole = Buffer.alloc(512, 2 * (round % 100) + 1);
    const part = Buffer.alloc(100, 2 * (round % 100) + 2);
    await Promise.all([first!.write(0, whole), second!.write(50, part)]);
    const now = await first!.read(0, 512);
    const partly = Buffer.from(whole);
    partly.set(part, 50);
    expect(now.equals(whole) || now.equals(partly), `round ${round}: ${now.toString('hex')}`).toBe(true);
  }
});

test('SIGTERM with requests on every thread: what was acknowledged is in the image, and the end is clean', async () => {
  const folder = tempDir('threads');
  const image = join(folder, 'a.img');
  makeImage(image, 8192, 1);
  const serving = await serve(['disk', '--table', `0 8192 linear ${image} 0`, '--threads', '3', ...unix(folder)]);
  const clients = await clientsOfAllThreads(serving, 3);
  const acknowledged = new Map<number, number>();
  let isOver = false;
  const writers = clients.map(async (each, index) => {
    for (let round = 0; !isOver; round++) {
      const block = index + clients.length * (round % 100);
      try {
        await each.write(block * 4096, Buffer.alloc(4096, round % 251));
        acknowledged.set(block, round % 251);
      } catch {
        // It may have been written or not.
        acknowledged.delete(block);
        return;
      }
    }
  });
  await expect.poll(() => acknowledged.size, patient).toBeGreaterThan(100);
  expect(await serving.stop()).toBe(0);
  isOver = true;
  await Promise.all(writers);
  expect(serving.output().trim()).toBe(serving.uris[0]);
  const bytes = readFileSync(image);
  for (const [block, value] of acknowledged) {
    expect(bytes.subarray(block * 4096, block * 4096 + 4096).equals(Buffer.alloc(4096, value)), `block ${block}`).toBe(
      true,
    );
  }
  expect(existsSync(join(folder, 'nbd.sock'))).toBe(false);
});

test('ends in order when it is told to before its threads are there', async () => {
  const { table } = oneImage();
  for (let i = 0; i < 3; i++) {
    const args = ['disk', '--table', table, '--threads', '4'];
    expect(await dmkit(['serve', ...args, '--run', 'true'])).toMatchObject({ code: 0, stderr: '' });
  }
});

test('threads go on with the image that was opened, whatever has its name by then', async () => {
  const { folder, image, content, serving } = await serveOneImage(2);
  renameSync(image, join(folder, 'moved.img'));
  makeImage(image, 64, 99);
  const clients = await clientsOfAllThreads(serving, 2);
  await expect.poll(() => connectionsByThread(serving.pid), patient).toEqual([2, 2]);
  for (const each of clients) expect((await each.read(0, 64 * 512)).equals(content)).toBe(true);
});

test('an image that is cut fails in every thread, from where it ends', async () => {
  const { image, serving } = await serveOneImage(2);
  const clients = await clientsOfAllThreads(serving, 2);
  truncateSync(image, 32 * 512);
  for (const each of clients) {
    await expect(each.read(0, 64 * 512)).rejects.toThrow(/EIO/);
    await each.read(0, 32 * 512);
  }
});

test('a second server on the image is refused, and the first keeps its lock through the end of a thread', async () => {
  const { table, serving } = await serveOneImage(2);
  for (const each of await clientsOfAllThreads(serving, 2)) await each.close();
  const second = await dmkit(['serve', 'other', '--table', table, '--run', 'true']);
  expect(second.code).toBe(1);
  expect(second.stderr).toContain('is open for writing elsewhere');
  await serving.stop();
  expect(await dmkit(['serve', 'other', '--table', table, '--run', 'true'])).toMatchObject({ code: 0 });
});

test('a device that keeps a state is served by one thread', async () => {
  const folder = tempDir('threads');
  makeImage(join(folder, 'a.img'), SECTORS, 1);
  writeFileSync(join(folder, 'cow.img'), Buffer.alloc(2 * SECTORS * 512));
  const table = `0 ${SECTORS} snapshot ${join(folder, 'a.img')} ${join(folder, 'cow.img')} N 8`;
  const serving = await serve(['snap', '--table', table, '--threads', '3', ...unix(folder)]);
  // Long enough for threads to start, if there were any.
  await new Promise((resolve) => setTimeout(resolve, 1000));
  const clients = await Promise.all(Array.from({ length: 6 }, () => client(serving.uris[0]!)));
  await expect.poll(() => connectionsByThread(serving.pid), patient).toEqual([6]);
  await clients[0]!.write(100, Buffer.from('written'));
  expect((await clients[5]!.read(100, 7)).toString()).toBe('written');
});

test('a client that speaks nonsense is told of by whichever thread has it', async () => {
  const { folder, serving } = await serveOneImage(2);
  const clients = await clientsOfAllThreads(serving, 2);
  for (let i = 0; i < 4; i++) {
    const socket = connect(join(folder, 'nbd.sock'));
    socket.on('error', () => {});
    socket.resume();
    socket.write(Buffer.alloc(64, 0xff));
    await once(socket, 'close');
  }
  for (const each of clients) await each.read(0, 512);
  expect(await serving.stop()).toBe(0);
  expect(serving.output().match(/^dmkit: client unix:.*nbd\.sock: .+$/gm)).toHaveLength(4);
});

test('the 257th connection is closed, however many threads there are', async () => {
  const { serving } = await serveOneImage(2);
  for (const each of await clientsOfAllThreads(serving, 2)) await each.close();
  await expect.poll(() => connectionsByThread(serving.pid), patient).toEqual([]);
  const clients: NbdConnection[] = [];
  for (let i = 0; i < 256; i++) clients.push(await connectNbd(serving.uris[0]!));
  await expect.poll(() => connectionsByThread(serving.pid), patient).toEqual([128, 128]);
  await expect(connectNbd(serving.uris[0]!)).rejects.toThrow();
  await Promise.all(clients.map((each) => each.close()));
  await expect.poll(async () => (await connectNbd(serving.uris[0]!)).close(), patient).toBe(undefined);
});

test.each([
  ['0', '--threads 0: a number from 1 to 64 is needed'],
  ['65', '--threads 65: a number from 1 to 64 is needed'],
  ['two', '--threads two: a number from 1 to 64 is needed'],
])('--threads %s is refused', async (count, message) => {
  const { table } = oneImage();
  const result = await dmkit(['serve', 'disk', '--table', table, '--threads', count, '--run', 'true']);
  expect(result.code).toBe(1);
  expect(result.stderr).toContain(message);
});

test('the library: tables that threads have a copy of can be neither replaced nor suspended meanwhile, nor their devices removed', async () => {
  const folder = tempDir('threads');
  makeImage(join(folder, 'a.img'), 64, 1);
  const { DeviceMapper } = (await import(
    new URL('../../dist/index.js', import.meta.url).href
  )) as typeof import('../../src/index.ts');
  const { serveNbd } = (await import(
    new URL('../../dist/nbd/index.js', import.meta.url).href
  )) as typeof import('../../src/nbd/index.ts');
  const dm = new DeviceMapper();
  const table = `0 64 linear ${join(folder, 'a.img')} 0`;
  (await dm.create('disk', table)).close();
  const service = await serveNbd(dm, { listen: `unix:${join(folder, 'nbd.sock')}`, threads: 2 });
  await expect(dm.load('disk', table)).rejects.toMatchObject({
    code: 'EBUSY',
    message: expect.stringContaining('several threads'),
  });
  await expect(dm.suspend('disk')).rejects.toMatchObject({
    code: 'EBUSY',
    message: expect.stringContaining('several threads'),
  });
  await expect(dm.resume('disk')).rejects.toMatchObject({ code: 'EBUSY' });
  await expect(dm.remove('disk')).rejects.toMatchObject({ code: 'EBUSY' });
  await expect(dm.close()).rejects.toMatchObject({ code: 'EBUSY' });
  const connection = await client(service.uri('disk'));
  await connection.write(0, await connection.read(0, 512));
  await connection.close();
  await service.close();
  await dm.load('disk', table);
  await dm.suspend('disk');
  await dm.resume('disk');
  await expect(serveNbd(dm, { listen: `unix:${join(folder, 'nbd.sock')}`, threads: 0 })).rejects.toMatchObject({
    code: 'EINVAL',
  });
  await dm.close();
});
