// What submitBio refuses by itself, and in which order.
import { expect, test } from 'vitest';
import { REQ_OP_DISCARD, REQ_OP_WRITE, REQ_OP_WRITE_ZEROES } from '../../src/block/bio.ts';
import { Errno } from '../../src/block/errno.ts';
import { RecordingDevice, submit } from '../support/stack.ts';

test('a range operation that a read-only device cannot do is not supported, one that it could do is not permitted', () => {
  const device = new RecordingDevice('a', 8, { maxDiscardSectorCount: 0, maxWriteZeroesSectorCount: 0 });
  device.readOnly = true;
  expect(submit(device, REQ_OP_DISCARD, 0, 1).status).toBe(Errno.EOPNOTSUPP);
  expect(submit(device, REQ_OP_WRITE_ZEROES, 0, 1).status).toBe(Errno.EOPNOTSUPP);
  expect(submit(device, REQ_OP_WRITE, 0, 1).status).toBe(Errno.EPERM);
  device.limits.maxDiscardSectorCount = 8;
  device.limits.maxWriteZeroesSectorCount = 8;
  expect(submit(device, REQ_OP_DISCARD, 0, 1).status).toBe(Errno.EPERM);
  expect(submit(device, REQ_OP_WRITE_ZEROES, 0, 1).status).toBe(Errno.EPERM);
  expect(device.log).toEqual([]);
});
