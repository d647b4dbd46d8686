// An image without a whole sector: a table over it would be a device on which every request fails.
import { truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { DeviceMapper } from '../../src/index.ts';
import { tempDir } from '../support/tmp.ts';

test.each([0, 300, 511])('an image of %i bytes is refused by a table, with its name', async (byteLength) => {
  const path = join(tempDir('empty'), 'x.img');
  writeFileSync(path, Buffer.alloc(byteLength));
  const dm = new DeviceMapper();
  onTestFinished(() => dm.close());
  for (const table of [`0 8 linear ${path} 0`, `0 16 striped 2 8 ${path} 0 ${path} 0`]) {
    const error = await dm.create('x', table).then(
      () => null,
      (reason) => reason,
    );
    expect(error?.cause?.message).toBe(`${path} has no whole sector: an image has 512 bytes at least`);
  }
  expect(dm.mapper.list()).toEqual([]);
  // Nothing of the refused tables is left open: the same path can be mapped once it has sectors.
  truncateSync(path, 4096);
  const disk = await dm.create('x', `0 8 linear ${path} 0`);
  expect((await disk.read(0, 8)).equals(Buffer.alloc(4096))).toBe(true);
  disk.close();
});
