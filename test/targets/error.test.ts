import { expect, test } from 'vitest';
import { REQ_OP_DISCARD, REQ_OP_FLUSH, REQ_OP_READ, REQ_OP_WRITE } from '../../src/block/bio.ts';
import { Errno } from '../../src/block/errno.ts';
import { activate, mapperOver, numbered, RecordingDevice, submit } from '../support/stack.ts';

test('reads and writes fail, a flush succeeds, a discard is not supported', () => {
  const disk = activate(mapperOver().mapper, 'e', '0 64 error');
  expect(submit(disk, REQ_OP_READ, 3, 1)).toMatchObject({ status: Errno.EIO, errorSector: 3 });
  expect(submit(disk, REQ_OP_WRITE, 60, 4)).toMatchObject({ status: Errno.EIO, errorSector: 60 });
  expect(submit(disk, REQ_OP_FLUSH, 0, 0).status).toBe(0);
  expect(submit(disk, REQ_OP_DISCARD, 0, 8).status).toBe(Errno.EOPNOTSUPP);
});

test('a write over linear, error, linear fails, names the first bad sector, and both good parts are written', () => {
  const a = new RecordingDevice('a', 64);
  const disk = activate(mapperOver(a).mapper, 'd', '0 8 linear a 0\n8 8 error\n16 8 linear a 16');
  const bio = submit(disk, REQ_OP_WRITE, 0, 24, { data: numbered(24) });
  expect(bio).toMatchObject({ status: Errno.EIO, errorSector: 8 });
  expect(a.log).toEqual(['write 0+8', 'write 16+8']);
  expect(a.bytes.subarray(16 * 512, 24 * 512)).toEqual(numbered(8, 17));
});
