import { expect, test } from 'vitest';
import { REQ_OP_DISCARD, REQ_OP_FLUSH, REQ_OP_READ, REQ_OP_WRITE, REQ_OP_WRITE_ZEROES } from '../../src/block/bio.ts';
import { Errno } from '../../src/block/errno.ts';
import { activate, mapperOver, numbered, RecordingDevice, submit } from '../support/stack.ts';

function joined() {
  const a = new RecordingDevice('a', 100);
  const b = new RecordingDevice('b', 100);
  const { mapper } = mapperOver(a, b);
  return { a, b, mapper, disk: activate(mapper, 'd', '0 10 linear a 5\n10 10 linear b 7') };
}

test('every operation goes to the shifted sectors of its line', () => {
  const { a, b, disk } = joined();
  submit(disk, REQ_OP_WRITE, 8, 4, { data: numbered(4) });
  submit(disk, REQ_OP_READ, 0, 20);
  submit(disk, REQ_OP_DISCARD, 9, 2);
  submit(disk, REQ_OP_WRITE_ZEROES, 0, 10);
  submit(disk, REQ_OP_FLUSH, 0, 0);
  expect(a.log).toEqual(['write 13+2', 'read 5+10', 'discard 14+1', 'write-zeroes 5+10', 'flush 0+0']);
  expect(b.log).toEqual(['write 7+2', 'read 7+10', 'discard 7+1', 'flush 0+0']);
});

test('a read gives back what a write over the boundary put there', () => {
  const { disk } = joined();
  submit(disk, REQ_OP_WRITE, 3, 15, { data: numbered(15, 40) });
  const data = new Uint8Array(15 * 512);
  expect(submit(disk, REQ_OP_READ, 3, 15, { data }).status).toBe(0);
  expect(data).toEqual(numbered(15, 40));
});

test('a lower failure is told at the sector of the mapped device, with the device and sector below', () => {
  const { b, disk } = joined();
  b.fail = (bio) => (bio.sector <= 9 && 9 < bio.sector + bio.sectorCount ? Errno.ENODATA : 0);
  const bio = submit(disk, REQ_OP_READ, 0, 20);
  expect(bio).toMatchObject({ status: Errno.ENODATA, errorSector: 10, errorDeviceSector: 7 });
  expect(bio.toError(disk).message).toBe('read on d (253:0) failed at sector 10: No data available (from b, sector 7)');
});

test('one flush reaches a device that many lines use', () => {
  const a = new RecordingDevice('a', 100);
  const { mapper } = mapperOver(a);
  const disk = activate(mapper, 'd', '0 1 linear a 0\n1 1 linear a 1\n2 1 zero');
  expect(submit(disk, REQ_OP_FLUSH, 0, 0).status).toBe(0);
  expect(a.log).toEqual(['flush 0+0']);
});
