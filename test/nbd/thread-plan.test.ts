// Which devices can be served by several threads, and why not; what must not happen to them while they are.
import { renameSync } from 'node:fs';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { DeviceMapper } from '../../src/api/device-mapper.ts';
import { MemoryDevice } from '../../src/devices/index.ts';
import { graphOf, planDevice } from '../../src/nbd/thread-plan.ts';
import { HoldingDevice } from '../../src/testing/index.ts';
import { makeImage, tempDir } from '../support/tmp.ts';

const SECTORS = 64;

/** A device mapper with `disk` over an image. */
async function diskMapper(): Promise<{ dm: DeviceMapper; folder: string; image: string; table: string }> {
  const folder = tempDir('plan');
  const image = join(folder, 'a.img');
  makeImage(image, SECTORS, 1);
  const dm = new DeviceMapper();
  onTestFinished(async () => {
    for (const device of dm.mapper.list()) device.pinned = null;
    await dm.close();
  });
  const table = `0 ${SECTORS} linear ${image} 0`;
  (await dm.create('disk', table)).close();
  return { dm, folder, image, table };
}

test('a stack is planned from the bottom up, each device and each file once', async () => {
  const { dm, image, table } = await diskMapper();
  (await dm.create('top', '0 32 linear /dev/mapper/disk 0\n32 8 zero\n40 8 error\n48 16 linear dm:disk 8')).close();
  const graph = graphOf(dm, ['top', 'disk']);
  if (typeof graph === 'string') throw new Error(graph);
  expect(graph.files).toMatchObject([{ name: image, kind: 'file' }]);
  expect(graph.devices.map(planDevice)).toEqual([
    { name: 'disk', minor: 0, lines: [table], readOnly: false },
    {
      name: 'top',
      minor: 1,
      lines: [
        `0 32 linear ${dm.mapper.get('disk').name} 0`,
        '32 8 zero ',
        '40 8 error ',
        `48 16 linear ${dm.mapper.get('disk').name} 8`,
      ],
      readOnly: false,
    },
  ]);
});

test('a line that keeps a state, a device of this thread, too many lines: one thread', async () => {
  const { dm } = await diskMapper();
  dm.devices.register('memory', new MemoryDevice('memory', SECTORS));
  (await dm.create('origin', `0 ${SECTORS} snapshot-origin /dev/mapper/disk`)).close();
  (await dm.create('ram', `0 ${SECTORS} linear memory 0`)).close();
  const lines = Array.from({ length: 65_537 }, (_, i) => `${i} 1 zero`);
  (await dm.create('long', lines.join('\n'))).close();
  expect(graphOf(dm, ['origin'])).toMatch(/^origin \(\d+:1\) has a snapshot-origin line$/);
  expect(graphOf(dm, ['disk', 'ram'])).toBe('memory is a device of this thread alone');
  expect(graphOf(dm, ['long'])).toBe('there are more than 65536 lines');
  expect(() => graphOf(dm, ['nobody'])).toThrow('no mapped device is named nobody');
});

test('no table, suspended, another table that waits, a change under way: one thread', async () => {
  const { dm, table } = await diskMapper();
  dm.mapper.create('bare');
  expect(graphOf(dm, ['bare'])).toMatch(/^bare .* is suspended or has no table$/);
  await dm.load('disk', table);
  expect(graphOf(dm, ['disk'])).toMatch(/^disk .* has a table that waits for a resume$/);
  await dm.resume('disk');
  await dm.suspend('disk');
  expect(graphOf(dm, ['disk'])).toMatch(/^disk .* is suspended or has no table$/);
  await dm.resume('disk');
  expect(graphOf(dm, ['disk'])).toMatchObject({ files: [{}] });

  const held = new HoldingDevice(new MemoryDevice('held', SECTORS));
  dm.devices.register('held', held);
  held.holding = false;
  const slow = await dm.create('slow', `0 ${SECTORS} linear held 0`);
  held.holding = true;
  const read = slow.read(0, 1);
  const suspending = dm.suspend('slow');
  expect(graphOf(dm, ['slow'])).toMatch(/^slow .* is being suspended, resumed or removed$/);
  held.open();
  await Promise.all([read, suspending]);
  await dm.resume('slow');
});

test('two files of one name, which threads could not tell apart: one thread', async () => {
  const { dm, folder, image, table } = await diskMapper();
  renameSync(image, join(folder, 'moved.img'));
  makeImage(image, SECTORS, 2);
  (await dm.create('other', table)).close();
  expect(graphOf(dm, ['disk', 'other'])).toBe(`two files are named ${image}`);
  expect(graphOf(dm, ['other'])).toMatchObject({ files: [{ name: image }] });
});

test('what has to stay as it is can be neither replaced, suspended, resumed nor removed, and nothing is closed', async () => {
  const { dm, table } = await diskMapper();
  const disk = await dm.open('/dev/mapper/disk');
  const device = dm.mapper.get('disk');
  device.pinned = 'others rely on it';
  const busy = { code: 'EBUSY', message: 'disk: others rely on it' };
  await expect(dm.load('disk', table)).rejects.toMatchObject(busy);
  await expect(dm.suspend('disk')).rejects.toMatchObject(busy);
  await expect(dm.resume('disk')).rejects.toMatchObject(busy);
  await expect(dm.remove('disk')).rejects.toMatchObject(busy);
  await expect(dm.close()).rejects.toMatchObject(busy);
  expect((await disk.read(0, 1)).byteLength).toBe(512);
  disk.close();
  expect(() => dm.mapper.remove(device)).toThrow('others rely on it');
  expect(dm.mapper.removeAll()).toEqual([device]);
  expect(graphOf(dm, ['disk'])).toMatch(/^disk .*: others rely on it$/);
  device.pinned = null;
  await dm.remove('disk');
});
