// When a device mapper says that something is removed or closed, nothing of it is open any more.
import { expect, test } from 'vitest';
import { DeviceMapper } from '../../src/api/device-mapper.ts';
import { Errno } from '../../src/block/errno.ts';
import { MemoryDevice } from '../../src/devices/index.ts';
import { HoldingDevice } from '../../src/testing/index.ts';

/** Several turns of the loop: what does not wait for anything is over then. */
async function turns(): Promise<void> {
  for (let turn = 0; turn < 20; turn++) await new Promise((resolve) => setImmediate(resolve));
}

/** Tells whether `work` is over. */
function watched(work: Promise<void>): { over: boolean; work: Promise<void> } {
  const state = { over: false, work };
  void work.then(() => {
    state.over = true;
  });
  return state;
}

function heldDevices(name: string) {
  const dm = new DeviceMapper();
  const device = new HoldingDevice(new MemoryDevice(name, 1024));
  device.holding = false;
  const log: string[] = [];
  dm.devices.register(name, device, () => log.push('unused'));
  return { dm, device, log };
}

test('closing waits for a removal that somebody began, and takes down what that had in use', async () => {
  const { dm, device, log } = heldDevices('c');
  dm.devices.register('o', new MemoryDevice('o', 64));
  const base = await dm.create('base', '0 1024 linear c 0');
  const origin = await dm.create('og', '0 64 snapshot-origin o');
  await dm.create('s', '0 64 snapshot o /dev/mapper/base P 8');
  base.close();
  device.holding = true;
  const write = origin.write(0, Buffer.alloc(512, 1));
  await turns();
  const removal = watched(dm.remove('s'));
  await turns();
  expect([removal.over, dm.mapper.has('s'), dm.mapper.get('base').openCount]).toEqual([false, false, 1]);
  const closing = watched(dm.close());
  await turns();
  expect([closing.over, log]).toEqual([false, []]);
  device.open();
  await Promise.all([write, removal.work, closing.work]);
  expect([dm.mapper.list(), log]).toEqual([[], ['unused']]);
});

test('closing waits for the requests of a disk that is no mapped device', async () => {
  const { dm, device, log } = heldDevices('x');
  const disk = await dm.open('x');
  device.holding = true;
  const read = disk.read(0, 1);
  const closing = watched(dm.close());
  await turns();
  expect([closing.over, log]).toEqual([false, []]);
  await expect(disk.read(0, 1)).rejects.toMatchObject({ errno: Errno.EBADF });
  device.open();
  expect((await read).byteLength).toBe(512);
  await closing.work;
  expect(log).toEqual(['unused']);
});

test('closing waits for a device that goes with its last user', async () => {
  const { dm, device, log } = heldDevices('x');
  await dm.create('low', '0 1024 linear x 0');
  await dm.create('top', '0 1024 linear dm:low 0');
  device.holding = true;
  const low = dm.mapper.get('low');
  const disk = await dm.open('/dev/mapper/low');
  const read = disk.read(0, 1);
  dm.mapper.remove(low, { deferred: true });
  const closing = watched(dm.close());
  await turns();
  expect([closing.over, log]).toEqual([false, []]);
  device.open();
  await read;
  await closing.work;
  expect([dm.mapper.list(), log]).toEqual([[], ['unused']]);
});

test('a suspended device is removed with what it holds back for a disk that is closed', async () => {
  const { dm } = heldDevices('x');
  const disk = await dm.create('d', '0 1024 linear x 0');
  await dm.suspend('d');
  const read = disk.read(0, 1);
  await turns();
  await dm.remove('d');
  await expect(read).rejects.toMatchObject({ errno: Errno.EIO });
  await dm.close();
});

test('a removal that is refused leaves the device as it was, with requests in flight too', async () => {
  const { dm, device } = heldDevices('x');
  const low = await dm.create('low', '0 1024 linear x 0');
  const top = await dm.create('top', '0 1024 linear dm:low 0');
  low.close();
  device.holding = true;
  const read = top.read(0, 1);
  await expect(dm.remove('low')).rejects.toMatchObject({ code: 'EBUSY' });
  expect(dm.mapper.get('low').suspended).toBe(false);
  device.open();
  expect((await read).byteLength).toBe(512);
  expect((await top.read(0, 1)).byteLength).toBe(512);
  await dm.close();
});
