// A program that awaits requests of cached data one after the other: its timers and sockets go on.
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { DeviceMapper, type Disk, DmIoClient, dmIoPromise, MemoryDevice, REQ_OP_READ } from '../../src/index.ts';
import { makeImage, tempDir } from '../support/tmp.ts';

/** Turns of the event loop that pass while `count` requests are awaited one after the other. */
async function turnsDuring(count: number, request: (index: number) => Promise<unknown>): Promise<number> {
  let turns = 0;
  let isOver = false;
  const turn = (): void => {
    turns++;
    if (!isOver) setImmediate(turn);
  };
  setImmediate(turn);
  for (let index = 0; index < count; index++) await request(index);
  isOver = true;
  return turns;
}

async function disk(): Promise<Disk> {
  const path = join(tempDir('turns'), 'a.img');
  makeImage(path, 8192);
  const dm = new DeviceMapper();
  onTestFinished(() => dm.close());
  const opened = await dm.create('x', `0 8192 linear ${path} 0`);
  onTestFinished(() => opened.close());
  await opened.read(0, 8192);
  return opened;
}

test.each(['read', 'write', 'extents'])('the event loop turns while a program awaits %s', async (what) => {
  const opened = await disk();
  const buffer = Buffer.alloc(4096);
  const turns = await turnsDuring(4096, async (index) => {
    const sector = (index * 8) % 8192;
    if (what === 'read') await opened.readInto(sector, buffer);
    else if (what === 'write') await opened.write(sector, buffer);
    else for await (const _extent of opened.extents(sector, 8));
  });
  expect(turns).toBeGreaterThanOrEqual(15);
});

test('long requests end a turn earlier than short ones', async () => {
  const opened = await disk();
  const buffer = Buffer.alloc(1 << 20);
  expect(await turnsDuring(128, () => opened.readInto(0, buffer))).toBeGreaterThanOrEqual(8);
});

test('the event loop turns while a program awaits dmIoPromise', async () => {
  const dm = new DeviceMapper();
  onTestFinished(() => dm.close());
  const client = new DmIoClient({ reactor: dm.loop, engines: dm.devices.engines });
  const bdev = new MemoryDevice('memory', 64);
  const buffer = Buffer.alloc(4096);
  const turns = await turnsDuring(4096, () =>
    dmIoPromise({ op: REQ_OP_READ, memory: { type: 'buffer', buffer }, client }, [{ bdev, sector: 0, count: 8 }]),
  );
  expect(turns).toBeGreaterThanOrEqual(15);
});
