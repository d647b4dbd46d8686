import { describe, expect, test } from 'vitest';
import { REQ_FUA, REQ_OP_DISCARD, REQ_OP_FLUSH, REQ_OP_READ, REQ_OP_WRITE, REQ_PREFLUSH } from '../../src/block/bio.ts';
import { Errno } from '../../src/block/errno.ts';
import { activate, mapperOver, numbered, RecordingDevice, resume, submit } from '../support/stack.ts';

function one(table = '0 64 linear a 0') {
  const a = new RecordingDevice('a', 100);
  const b = new RecordingDevice('b', 100);
  const { mapper, resolver } = mapperOver(a, b);
  return { a, b, mapper, resolver, disk: activate(mapper, 'd', table) };
}

describe('requests', () => {
  test('one past the end fails whole with EIO', () => {
    const { a, disk } = one();
    expect(submit(disk, REQ_OP_WRITE, 60, 5)).toMatchObject({ status: Errno.EIO, errorSector: 64 });
    expect(submit(disk, REQ_OP_READ, 2 ** 53 - 2, 1).status).toBe(Errno.EIO);
    expect(a.log).toEqual([]);
  });

  test('a device without a table has no sectors and fails what reaches it', () => {
    const { mapper } = mapperOver();
    const disk = mapper.create('empty');
    expect(disk.sectorCount).toBe(0);
    expect(submit(disk, REQ_OP_READ, 0, 1).status).toBe(Errno.EIO);
  });

  test('a write with a flush in front flushes every leg, then writes without that flag but with FUA', () => {
    const { a, b, disk } = one('0 8 linear a 0\n8 8 linear b 0');
    const bio = submit(disk, REQ_OP_WRITE, 0, 8, { data: numbered(8), flags: REQ_PREFLUSH | REQ_FUA });
    expect(bio.status).toBe(0);
    expect([a.log, b.log]).toEqual([['flush 0+0', 'write 0+8'], ['flush 0+0']]);
  });

  test('when that flush fails the data is not written', () => {
    const { a, disk } = one();
    a.fail = (bio) => (bio.op === REQ_OP_FLUSH ? Errno.EIO : 0);
    expect(submit(disk, REQ_OP_WRITE, 0, 8, { flags: REQ_PREFLUSH }).status).toBe(Errno.EIO);
    expect(a.log).toEqual(['flush 0+0']);
  });

  test('a read-only table refuses writes and discards with EPERM', () => {
    const a = new RecordingDevice('a', 100);
    const disk = activate(mapperOver(a).mapper, 'd', '0 64 linear a 0', { readOnly: true });
    expect(submit(disk, REQ_OP_WRITE, 0, 1).status).toBe(Errno.EPERM);
    expect(submit(disk, REQ_OP_DISCARD, 0, 1).status).toBe(Errno.EPERM);
    expect(submit(disk, REQ_OP_READ, 0, 1).status).toBe(0);
  });

  test('pieces that end in any order end the request once, when the last has ended', () => {
    const { a, b, disk } = one('0 8 linear a 0\n8 8 linear b 0\n16 8 linear a 8');
    a.hold = true;
    b.hold = true;
    const bio = submit(disk, REQ_OP_READ, 0, 24);
    b.release();
    a.finish(a.held.pop()!);
    expect(bio.ended).toBe(false);
    a.release();
    expect(bio.ended).toBe(true);
  });

  test('failing the Nth lower request, for every N: the right sector, nothing lost, nothing left in flight', () => {
    for (let n = 0; n < 6; n++) {
      const { a, disk } = one('0 60 striped 2 10 a 0 a 40');
      let count = 0;
      a.fail = () => (count++ === n ? Errno.EIO : 0);
      const bio = submit(disk, REQ_OP_WRITE, 0, 60, { data: numbered(60) });
      expect(bio).toMatchObject({ ended: true, status: Errno.EIO, errorSector: n * 10 });
      expect(a.log.length).toBe(6);
      expect(disk.inFlightCount).toBe(0);
    }
  });

  test('a hundred stacked devices carry a request through', () => {
    const { mapper, a } = one();
    let top = activate(mapper, 's0', '0 64 linear a 0');
    for (let i = 1; i <= 100; i++) top = activate(mapper, `s${i}`, `0 64 linear /dev/mapper/s${i - 1} 0`);
    expect(submit(top, REQ_OP_WRITE, 1, 4, { data: numbered(4) }).status).toBe(0);
    expect(a.bytes.subarray(512, 512 * 5)).toEqual(numbered(4));
  });
});

describe('tables', () => {
  test('a load changes nothing until the resume swaps it in', () => {
    const { a, b, mapper, disk } = one();
    mapper.load(disk, '0 32 linear b 0');
    expect(disk.lines('table')).toEqual(['0 64 linear a 0']);
    expect(disk.lines('table', true)).toEqual(['0 32 linear b 0']);
    resume(disk);
    expect([disk.sectorCount, disk.lines('table'), disk.lines('table', true)]).toEqual([32, ['0 32 linear b 0'], []]);
    submit(disk, REQ_OP_WRITE, 0, 1);
    expect([a.log, b.log]).toEqual([[], ['write 0+1']]);
  });

  test('the first load is checked against its devices at once and leaves nothing open', () => {
    const { mapper, resolver } = one();
    const disk = mapper.create('new');
    expect(() => mapper.load(disk, '0 500 linear b 0')).toThrow(
      'b too small for target: start=0, len=500, dev_size=100',
    );
    expect(resolver.openCount(resolver.devices.get('b')!)).toBe(0);
    expect(() => mapper.load(disk, '0 50 linear b 0')).not.toThrow();
  });

  test('a later load is checked at the resume: it fails, the table is gone, the device suspended with the old one', () => {
    const { mapper, resolver, disk, a } = one();
    mapper.load(disk, '0 500 linear b 0');
    expect(() => resume(disk)).toThrow('b too small');
    expect([disk.suspended, disk.inactiveTable, disk.lines('table')]).toEqual([true, null, ['0 64 linear a 0']]);
    expect(resolver.openCount(resolver.devices.get('b')!)).toBe(0);
    const bio = submit(disk, REQ_OP_READ, 0, 1);
    expect(bio.ended).toBe(false);
    resume(disk);
    expect([bio.ended, disk.suspended, a.log]).toEqual([true, false, ['read 0+1']]);
  });

  test('a failed load keeps the inactive table of before, a good one replaces it', () => {
    const { mapper, disk, resolver, b } = one();
    mapper.load(disk, '0 32 linear b 0');
    expect(() => mapper.load(disk, '0 32 linear nosuch 0')).toThrow('Device lookup failed');
    expect(disk.lines('table', true)).toEqual(['0 32 linear b 0']);
    mapper.load(disk, '0 16 zero');
    expect(resolver.openCount(b)).toBe(0);
    disk.clear();
    disk.clear();
    expect(disk.inactiveTable).toBeNull();
  });

  test('resume without a table: nothing to do when active, EINVAL when suspended', () => {
    const { mapper } = one();
    const disk = mapper.create('new');
    resume(disk);
    disk.suspend({}, () => {});
    expect(() => resume(disk)).toThrow('has no table');
    expect(disk.suspended).toBe(true);
  });
});

describe('suspend', () => {
  test('waits for what is in flight, holds back what comes, and the new table serves it in order', () => {
    const { a, b, mapper, disk } = one();
    a.hold = true;
    const first = submit(disk, REQ_OP_READ, 0, 1);
    let suspended = false;
    disk.suspend({}, () => {
      suspended = true;
    });
    const second = submit(disk, REQ_OP_WRITE, 5, 1);
    const third = submit(disk, REQ_OP_WRITE, 6, 1);
    expect([suspended, a.log]).toEqual([false, ['read 0+1']]);
    a.release();
    expect([suspended, first.ended, second.ended]).toEqual([true, true, false]);
    mapper.load(disk, '0 64 linear b 10');
    resume(disk);
    expect([second.status, third.status, b.log]).toEqual([0, 0, ['write 15+1', 'write 16+1']]);
  });

  test('a held-back request that the new table is too short for fails with EIO', () => {
    const { mapper, disk } = one();
    disk.suspend({}, () => {});
    const bio = submit(disk, REQ_OP_READ, 40, 8);
    mapper.load(disk, '0 41 zero');
    resume(disk);
    expect(bio.status).toBe(Errno.EIO);
  });

  test('a second suspend changes nothing', () => {
    const { disk } = one();
    let calls = 0;
    disk.suspend({}, () => calls++);
    disk.suspend({}, () => calls++);
    expect([calls, disk.suspended]).toEqual([2, true]);
  });
});
