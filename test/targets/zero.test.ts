import { expect, test } from 'vitest';
import {
  REQ_OP_DISCARD,
  REQ_OP_FLUSH,
  REQ_OP_READ,
  REQ_OP_WRITE,
  REQ_OP_WRITE_ZEROES,
  REQ_RAHEAD,
} from '../../src/block/bio.ts';
import { queryExtent } from '../../src/block/block-device.ts';
import { Errno } from '../../src/block/errno.ts';
import { activate, mapperOver, numbered, submit } from '../support/stack.ts';

function zeroDisk() {
  return activate(mapperOver().mapper, 'z', '0 64 zero');
}

test('reads give zeros over whatever the memory held, writes are dropped', () => {
  const disk = zeroDisk();
  expect(submit(disk, REQ_OP_WRITE, 3, 4, { data: numbered(4) }).status).toBe(0);
  const data = numbered(4);
  expect(submit(disk, REQ_OP_READ, 3, 4, { data }).status).toBe(0);
  expect(data).toEqual(new Uint8Array(4 * 512));
});

test('only the range asked for is zeroed', () => {
  const data = numbered(4);
  expect(submit(zeroDisk(), REQ_OP_READ, 0, 2, { data }).status).toBe(0);
  expect(data.subarray(1024)).toEqual(numbered(4).subarray(1024));
});

test('read-ahead is killed, flush succeeds, range operations are refused as in Linux 6.1', () => {
  const disk = zeroDisk();
  expect(submit(disk, REQ_OP_READ, 0, 1, { flags: REQ_RAHEAD }).status).toBe(Errno.EIO);
  expect(submit(disk, REQ_OP_FLUSH, 0, 0).status).toBe(0);
  expect(submit(disk, REQ_OP_DISCARD, 0, 8).status).toBe(Errno.EOPNOTSUPP);
  expect(submit(disk, REQ_OP_WRITE_ZEROES, 0, 8).status).toBe(Errno.EOPNOTSUPP);
});

test('it is one hole of zeros', () => {
  let answer: number[] = [];
  queryExtent(zeroDisk(), 5, 20, (errno, count, flags) => {
    answer = [errno, count, flags];
  });
  expect(answer).toEqual([0, 20, 3]);
});
