import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { REQ_OP_DISCARD, REQ_OP_FLUSH, REQ_OP_READ, REQ_OP_WRITE } from '../../src/block/bio.ts';
import { Errno } from '../../src/block/errno.ts';
import { activate, mapperOver, numbered, RecordingDevice, submit } from '../support/stack.ts';

function legs(count: number, sectorCount = 2000): RecordingDevice[] {
  return Array.from({ length: count }, (_, i) => new RecordingDevice(`leg${i}`, sectorCount));
}

function stripe(devices: RecordingDevice[], chunk: number, offsets: number[], sectorCount: number) {
  const words = devices.map((device, i) => `${device.name} ${offsets[i]}`).join(' ');
  const { mapper } = mapperOver(...devices);
  return activate(mapper, 's', `0 ${sectorCount} striped ${devices.length} ${chunk} ${words}`);
}

test('chunks go round over three legs, cut at each chunk, as the kernel maps them', () => {
  const devices = legs(3);
  const disk = stripe(devices, 5, [7, 100, 1000], 300);
  submit(disk, REQ_OP_WRITE, 3, 20, { data: numbered(20) });
  expect(devices.map((d) => d.log)).toEqual([
    ['write 10+2', 'write 12+5'],
    ['write 100+5', 'write 105+3'],
    ['write 1000+5'],
  ]);
});

describe('a range operation is one contiguous range on each leg', () => {
  test.each([
    [7, 30, ['discard 5+10', 'discard 2+10', 'discard 0+10']],
    [12, 1, [undefined, undefined, 'discard 2+1']],
    [0, 15, ['discard 0+5', 'discard 0+5', 'discard 0+5']],
    [0, 5, ['discard 0+5', undefined, undefined]],
  ])('discard %i+%i', (sector, count, expected) => {
    const devices = legs(3);
    const disk = stripe(devices, 5, [0, 0, 0], 300);
    expect(submit(disk, REQ_OP_DISCARD, sector, count).status).toBe(0);
    expect(devices.map((d) => d.log[0])).toEqual(expected);
    expect(devices.every((d) => d.log.length <= 1)).toBe(true);
  });

  test('it covers exactly the sectors that single writes would', () => {
    const shape = fc.record({
      legs: fc.integer({ min: 1, max: 5 }),
      chunk: fc.integer({ min: 1, max: 9 }),
      rows: fc.integer({ min: 1, max: 6 }),
      from: fc.nat(),
      count: fc.nat(),
    });
    fc.assert(
      fc.property(shape, (s) => {
        const devices = legs(s.legs, 64);
        const length = s.legs * s.chunk * s.rows;
        const disk = stripe(devices, s.chunk, Array(s.legs).fill(3), length);
        const from = s.from % length;
        const count = 1 + (s.count % (length - from));
        submit(disk, REQ_OP_WRITE, 0, length, { data: numbered(length) });
        expect(submit(disk, REQ_OP_DISCARD, from, count).status).toBe(0);
        const data = new Uint8Array(length * 512);
        submit(disk, REQ_OP_READ, 0, length, { data });
        const expected = numbered(length);
        expected.fill(0, from * 512, (from + count) * 512);
        expect(Buffer.compare(data, expected)).toBe(0);
      }),
    );
  });
});

test('a flush reaches every leg', () => {
  const devices = legs(3);
  submit(stripe(devices, 5, [0, 0, 0], 300), REQ_OP_FLUSH, 0, 0);
  expect(devices.map((d) => d.log)).toEqual([['flush 0+0'], ['flush 0+0'], ['flush 0+0']]);
});

describe('a failing leg', () => {
  function failing() {
    const devices = legs(2);
    devices[1]!.fail = () => Errno.EIO;
    const { mapper } = mapperOver(...devices);
    const disk = activate(mapper, 's', '0 60 striped 3 5 leg0 0 leg1 0 leg1 100');
    return { disk, devices };
  }

  test('every stripe on the device that failed turns D, and 14 events are raised at the most', () => {
    const { disk } = failing();
    expect(disk.lines('info')).toEqual(['0 60 striped 3 leg0 leg1 leg1 1 AAA']);
    for (let i = 0; i < 30; i++) expect(submit(disk, REQ_OP_READ, 5, 1).status).toBe(Errno.EIO);
    expect(disk.lines('info')).toEqual(['0 60 striped 3 leg0 leg1 leg1 1 ADD']);
    expect(disk.eventNumber).toBe(14);
  });

  test('a failing flush counts too', () => {
    const { disk } = failing();
    expect(submit(disk, REQ_OP_FLUSH, 0, 0).status).toBe(Errno.EIO);
    expect(disk.lines('info')).toEqual(['0 60 striped 3 leg0 leg1 leg1 1 ADD']);
  });

  test('"not supported" does not count', () => {
    const { disk, devices } = failing();
    devices[1]!.fail = () => Errno.EOPNOTSUPP;
    submit(disk, REQ_OP_DISCARD, 0, 60);
    expect(disk.lines('info')).toEqual(['0 60 striped 3 leg0 leg1 leg1 1 AAA']);
  });

  test('the other legs are written all the same', () => {
    const { disk, devices } = failing();
    const bio = submit(disk, REQ_OP_WRITE, 0, 30, { data: numbered(30) });
    expect(bio).toMatchObject({ status: Errno.EIO, errorSector: 5, errorDeviceSector: 0 });
    expect(devices[0]!.log).toEqual(['write 0+5', 'write 5+5']);
  });
});
