import { describe, expect, test } from 'vitest';
import { REQ_FUA } from '../../src/block/bio.ts';
import { Errno } from '../../src/block/errno.ts';
import { TableError } from '../../src/block/errors.ts';
import { HoldingDevice, issue } from '../../src/testing/index.ts';
import { pattern, World } from '../snapshot/support.ts';
import { RecordingDevice } from '../support/stack.ts';

/** An origin of 64 sectors with a pattern, and a blank store. */
function setup(storeSectorCount = 800, originSectorCount = 64) {
  const origin = new RecordingDevice('o', originSectorCount);
  origin.bytes.set(pattern(originSectorCount, 1));
  const cow = new RecordingDevice('c', storeSectorCount);
  const world = new World(origin, cow);
  const clear = (): void => {
    origin.log.length = 0;
    cow.log.length = 0;
  };
  return { origin, cow, world, clear };
}

/** Records of area 0: `old>new`. */
function records(cow: RecordingDevice, chunkSectorCount: number): string[] {
  const view = new DataView(cow.bytes.buffer, chunkSectorCount * 512, chunkSectorCount * 512);
  const found: string[] = [];
  for (let at = 0; at < view.byteLength && view.getUint32(at + 8, true) !== 0; at += 16) {
    found.push(`${view.getUint32(at, true)}>${view.getUint32(at + 8, true)}`);
  }
  return found;
}

function header(cow: RecordingDevice, words: readonly number[]): void {
  const view = new DataView(cow.bytes.buffer);
  for (const [index, word] of words.entries()) view.setUint32(4 * index, word, true);
}

function putRecords(
  cow: RecordingDevice,
  chunkSectorCount: number,
  pairs: readonly (readonly [number, number])[],
): void {
  const view = new DataView(cow.bytes.buffer, chunkSectorCount * 512);
  for (const [index, [oldChunk, newChunk]] of pairs.entries()) {
    view.setUint32(16 * index, oldChunk, true);
    view.setUint32(16 * index + 8, newChunk, true);
  }
}

const MAGIC = 0x70416e53;

describe('the constructor refuses with the words of the kernel', () => {
  test.each([
    ['', 'requires 4 or more arguments'],
    ['o c P', 'requires 4 or more arguments'],
    ['o o P 8', 'COW device cannot be the same as origin device'],
    ['nosuch c P 8', 'Cannot get origin device', 'ENODEV'],
    ['o nosuch P 8', 'Cannot get COW device', 'ENODEV'],
    ['o c X 8', "Couldn't create exception store"],
    ['o c Pxyz 8', "Couldn't create exception store"],
    ['o c persistent 8', "Couldn't create exception store"],
    ['o c P 7', "Couldn't create exception store"],
    ['o c P 0x8', "Couldn't create exception store"],
    ['o c P 4194304', "Couldn't create exception store"],
    ['o c N 0', 'Chunk size not set'],
    ['o c P 8 1', 'Invalid number of feature arguments'],
    ['o c P 8 1 foo', 'Unrecognised feature requested'],
    ['o c P 8 3 a b c', 'Invalid number of feature arguments'],
    ['o c P 8 x', 'Invalid number of feature arguments'],
    ['o c P 8 1 discard_passdown_origin', 'discard_passdown_origin feature depends on discard_zeroes_cow'],
  ])('%s', (words, text, errno = 'EINVAL') => {
    const { world } = setup();
    let error: unknown;
    try {
      world.activate('s', `0 64 snapshot ${words}`);
    } catch (thrown) {
      error = thrown;
    }
    expect(error).toBeInstanceOf(TableError);
    expect((error as TableError).reason).toBe(`snapshot: ${text} (-${errno})`);
    expect(world.resolver.totalOpenCount).toBe(0);
  });

  test.each([
    ['o c P 8', 'o c P 8'],
    ['o c p +8', 'o c P 8'],
    ['o c poverflow 8', 'o c PO 8'],
    ['o c Nfoo 8', 'o c N 8'],
    ['o c P 0', 'o c P 32'],
    ['o c P 8 0 junk', 'o c P 8'],
    [
      'o c P 8 2 DISCARD_ZEROES_COW discard_passdown_origin junk',
      'o c P 8 2 discard_zeroes_cow discard_passdown_origin',
    ],
    ['o c P 8 1 lazy_commit', 'o c P 8 1 lazy_commit'],
  ])('and accepts what it accepts: %s', (words, printed) => {
    const { world } = setup();
    const device = world.activate('s', `0 64 snapshot ${words}`);
    expect(device.lines('table')).toEqual([`0 64 snapshot ${printed}`]);
  });
});

describe('a first write', () => {
  test('of a whole chunk copies nothing; of a part takes the rest along in one write', () => {
    const { origin, cow, world, clear } = setup();
    const device = world.activate('s', '0 64 snapshot o c P 8');
    clear();
    expect(world.write(device, 16, 8, 0xaa)).toBe(0);
    expect([origin.log, cow.log]).toEqual([[], ['write 16+8', 'write 8+8']]);
    clear();
    expect(world.write(device, 9, 2, 0xbb)).toBe(0);
    expect([origin.log, cow.log]).toEqual([['read 8+8'], ['write 24+8', 'write 8+8']]);
    expect(world.write(device, 32, 3, 0xcc)).toBe(0);
    expect(origin.log).toContain('read 35+5');
    expect(world.read(device, 8, 8)).toEqual([9, 0xbb, 0xbb, 12, 13, 14, 15, 16]);
    expect(world.read(device, 32, 8)).toEqual([0xcc, 0xcc, 0xcc, 36, 37, 38, 39, 40]);
    expect(records(cow, 8)).toEqual(['2>2', '1>3', '4>4']);
    expect(Buffer.compare(origin.bytes, pattern(64, 1))).toBe(0);
  });

  test('those that arrive together share a commit', () => {
    const { cow, world, clear } = setup();
    const device = world.activate('s', '0 64 snapshot o c P 8');
    clear();
    const requests = Array.from({ length: 8 }, (_, chunk) =>
      issue(device, 'write', { sector: chunk * 8 + 1, data: new Uint8Array(512).fill(chunk) }),
    );
    world.reactor.runUntilIdle();
    expect(requests.map((request) => request.errno)).toEqual(Array(8).fill(0));
    expect(cow.log.filter((line) => line === 'write 8+8')).toHaveLength(1);
    expect(device.lines('info')).toEqual(['0 64 snapshot 80/800 16']);
  });

  test('a rewrite touches no metadata, and others wait for the copy of their chunk', () => {
    const { origin, cow, world, clear } = setup();
    const device = world.activate('s', '0 64 snapshot o c P 8');
    clear();
    const writes = [1, 4, 6].map((sector) => issue(device, 'write', { sector, data: new Uint8Array(512).fill(0xe0) }));
    world.reactor.runUntilIdle();
    expect(writes.map((write) => write.errno)).toEqual([0, 0, 0]);
    expect(origin.log).toEqual(['read 0+8']);
    expect(cow.log).toEqual(['write 16+8', 'write 8+8', 'write 20+1', 'write 22+1']);
    clear();
    expect(world.write(device, 0, 8, 0xee)).toBe(0);
    expect(cow.log).toEqual(['write 16+8']);
  });

  test('the last chunk ends where the origin ends', () => {
    const { origin, cow, world, clear } = setup(800, 61);
    cow.bytes.fill(0xdd, 8192);
    const device = world.activate('s', '0 61 snapshot o c P 8');
    clear();
    expect(world.write(device, 58, 1, 0xaa)).toBe(0);
    expect([origin.log, cow.log[0]]).toEqual([['read 56+5'], 'write 16+5']);
    expect(world.read(device, 56, 5)).toEqual([57, 58, 0xaa, 60, 61]);
    expect(cow.bytes[21 * 512]).toBe(0xdd);
    clear();
    world.resolver.devices.set('c2', new RecordingDevice('c2', 800));
    expect(world.write(world.activate('n', '0 61 snapshot o c2 N 8'), 56, 5, 1)).toBe(0);
    expect(origin.log).toEqual([]);
  });

  test('on a transient store nothing but data is written, and a write with FUA keeps it', () => {
    const { cow, world } = setup();
    const flags: number[] = [];
    cow.fail = (bio) => {
      flags.push(bio.flags & REQ_FUA);
      return 0;
    };
    const device = world.activate('s', '0 64 snapshot o c N 8');
    expect(cow.log).toEqual([]);
    expect(world.write(device, 3, 1, 1, REQ_FUA)).toBe(0);
    expect(world.write(device, 8, 8, 1)).toBe(0);
    expect(cow.log).toEqual(['write 0+8', 'write 8+8']);
    expect(flags).toEqual([REQ_FUA, 0]);
    expect(device.lines('info')).toEqual(['0 64 snapshot 16/800 0']);
  });

  test('a chunk larger than a buffer is copied in segments', () => {
    const { origin, cow, world, clear } = setup(3 * 4096, 4096);
    const device = world.activate('s', '0 4096 snapshot o c P 2048');
    clear();
    expect(world.write(device, 1000, 100, 0xaa)).toBe(0);
    expect(origin.log).toEqual(['read 0+1000', 'read 1100+948']);
    expect(cow.log.slice(0, 2)).toEqual(['write 4096+1024', 'write 5120+1024']);
    const expected = pattern(4096, 1);
    expected.fill(0xaa, 1000 * 512, 1100 * 512);
    const read = issue(device, 'read', { sector: 0, sectorCount: 4096 });
    expect(Buffer.compare(read.data, expected)).toBe(0);
  });
});

test('the line’s start is no offset into the origin', () => {
  const { world, cow } = setup();
  const device = world.activate('s', '0 8 zero\n8 32 snapshot o c P 8');
  expect(world.read(device, 8, 2)).toEqual([9, 10]);
  expect(world.write(device, 16, 1, 0x5a)).toBe(0);
  expect(records(cow, 8)).toEqual(['2>2']);
  expect(() => world.activate('t', '0 4 zero\n4 32 snapshot o c P 8')).toThrow();
});

test('a flush goes to the store alone', () => {
  const { origin, cow, world, clear } = setup();
  const device = world.activate('s', '0 64 snapshot o c P 8');
  clear();
  expect(world.io(device, 'flush')).toBe(0);
  expect([origin.log, cow.log]).toEqual([[], ['flush 0+0']]);
});

test('the origin is opened for reading alone', () => {
  const { origin, world } = setup();
  const modes: boolean[] = [];
  const open = world.resolver.open.bind(world.resolver);
  world.resolver.open = (argument: string, readOnly?: boolean) => {
    if (argument === 'o') modes.push(readOnly ?? false);
    return open(argument);
  };
  world.activate('s', '0 64 snapshot o c P 8');
  expect(modes).toEqual([true]);
  expect(origin.readOnly).toBe(false);
});

describe('the numbers of the status line, at one sector a chunk', () => {
  function fill(storeSectorCount: number, count: number): string[] {
    const { world } = setup(storeSectorCount);
    const device = world.activate('s', '0 64 snapshot o c P 1');
    for (let sector = 0; sector < count; sector++) world.write(device, sector, 1, 0xaa);
    return device.lines('info').map((line) => line.replace('0 64 snapshot ', ''));
  }

  test.each([
    [800, 0, '2/800 2'],
    [800, 31, '33/800 2'],
    [800, 32, '35/800 3'],
    [800, 33, '36/800 3'],
    [34, 31, '33/34 2'],
    [34, 32, 'Invalid'],
    [35, 32, '35/35 3'],
    [36, 33, '36/36 3'],
    [36, 34, 'Invalid'],
  ])('a store of %i sectors, %i writes', (storeSectorCount, count, expected) => {
    expect(fill(storeSectorCount, count)).toEqual([expected]);
  });
});

describe('a store that is full', () => {
  function full(word: string) {
    const made = setup(32);
    const device = made.world.activate('s', `0 64 snapshot o c ${word} 8`);
    expect([made.world.write(device, 0, 1, 0xaa), made.world.write(device, 8, 1, 0xab)]).toEqual([0, 0]);
    return { ...made, device };
  }

  test('P: the write fails, and the snapshot is invalid for ever', () => {
    const { world, device, cow, origin } = full('P');
    expect(device.lines('info')).toEqual(['0 64 snapshot 32/32 16']);
    expect(world.write(device, 16, 1, 0xac)).toBe(Errno.EIO);
    expect(device.lines('info')).toEqual(['0 64 snapshot Invalid']);
    expect(device.eventNumber).toBe(1);
    expect(issue(device, 'read', { sectorCount: 1 }).errno).toBe(Errno.EIO);
    expect(world.io(device, 'flush')).toBe(0);
    expect([...cow.bytes.subarray(0, 8)]).toEqual([0x53, 0x6e, 0x41, 0x70, 0, 0, 0, 0]);
    expect(Buffer.compare(origin.bytes, pattern(64, 1))).toBe(0);
    world.remove(device);
    const again = world.activate('s', '0 64 snapshot o c P 8');
    expect(again.lines('info')).toEqual(['0 64 snapshot Invalid']);
    expect(world.write(again, 0, 1, 1)).toBe(Errno.EIO);
  });

  test('PO: the write and all later ones fail, reads go on, and after a reload mapped chunks are writable', () => {
    const { world, device, cow } = full('PO');
    expect(world.write(device, 16, 1, 0xac)).toBe(Errno.EIO);
    expect(device.lines('info')).toEqual(['0 64 snapshot Overflow']);
    expect(device.eventNumber).toBe(0);
    expect(world.write(device, 0, 1, 0xad)).toBe(Errno.EIO);
    expect(world.read(device, 0, 2)).toEqual([0xaa, 2]);
    expect(cow.bytes[4]).toBe(1);
    world.remove(device);
    const again = world.activate('s', '0 64 snapshot o c PO 8');
    expect(again.lines('info')).toEqual(['0 64 snapshot 32/32 16']);
    expect(world.write(again, 0, 1, 0xae)).toBe(0);
  });

  test.each(['P', 'PO', 'N'])('%s: a write to the origin succeeds, and the snapshot is invalid', (word) => {
    const { world, device } = full(word);
    const origin = world.activate('og', '0 64 snapshot-origin o');
    if (word === 'N') for (const sector of [16, 24]) expect(world.write(origin, sector, 1, 0xbb)).toBe(0);
    expect(world.write(origin, 40, 1, 0xbb)).toBe(0);
    expect(world.read(origin, 40, 2)).toEqual([0xbb, 42]);
    expect(device.lines('info')).toEqual(['0 64 snapshot Invalid']);
  });
});

describe('what fails below', () => {
  test.each([
    ['a read of the origin', 'o'],
    ['a write of the store', 'c'],
  ])('%s ends the snapshot, not the origin', (_what, name) => {
    const { origin, cow, world } = setup();
    const device = world.activate('s', '0 64 snapshot o c P 8');
    const failing = name === 'o' ? origin : cow;
    failing.fail = (bio) => (bio.sector >= 16 ? Errno.EIO : 0);
    expect(world.write(device, 17, 1, 1)).toBe(Errno.EIO);
    expect(device.lines('info')).toEqual(['0 64 snapshot Invalid']);
    expect(cow.bytes[4]).toBe(0);
  });

  test('no room below a new chunk fails that write and nothing else', () => {
    const { cow, world } = setup();
    const device = world.activate('s', '0 64 snapshot o c P 8');
    expect(world.write(device, 0, 8, 1)).toBe(0);
    cow.fail = (bio) => (bio.sector >= 24 ? Errno.ENOSPC : 0);
    expect(world.write(device, 8, 8, 2)).toBe(Errno.ENOSPC);
    cow.fail = () => 0;
    expect(device.lines('info')).toEqual(['0 64 snapshot 24/800 16']);
    expect(world.write(device, 16, 8, 3)).toBe(0);
    expect(records(cow, 8)).toEqual(['0>2', '2>3']);
    expect(world.read(device, 8, 1)).toEqual([9]);
  });

  test('no room below a record fails the writes that wait for it', () => {
    const { cow, world } = setup();
    const device = world.activate('s', '0 64 snapshot o c P 8');
    cow.fail = (bio) => (bio.sector === 8 ? Errno.ENOSPC : 0);
    expect(world.write(device, 8, 8, 2)).toBe(Errno.ENOSPC);
    cow.fail = () => 0;
    expect(world.write(device, 16, 8, 3)).toBe(0);
    expect(records(cow, 8)).toEqual(['2>3']);
    expect(world.read(device, 8, 1)).toEqual([9]);
  });
});

describe('a store that is opened', () => {
  test('has what was written, whatever the chunk size that the table says', () => {
    const { world } = setup();
    const device = world.activate('s', '0 64 snapshot o c P 4');
    for (const sector of [0, 20, 61]) world.write(device, sector, 2, 0xa0 + sector);
    world.remove(device);
    const again = world.activate('s', '0 64 snapshot o c P 16');
    expect(again.lines('table')).toEqual(['0 64 snapshot o c P 4']);
    expect(again.lines('info')).toEqual(['0 64 snapshot 20/800 8']);
    expect(world.read(again, 0, 4)).toEqual([0xa0, 0xa0, 3, 4]);
    expect(world.read(again, 61, 2)).toEqual([0xdd, 0xdd]);
    expect(world.write(again, 8, 4, 7)).toBe(0);
    expect(again.lines('info')).toEqual(['0 64 snapshot 24/800 8']);
  });

  test.each([
    ['another magic', [0x12345678, 1, 1, 8], 'Failed to read snapshot metadata (-ENXIO)'],
    ['another version', [MAGIC, 1, 2, 8], 'Failed to read snapshot metadata (-EINVAL)'],
    ['no power of two', [MAGIC, 1, 1, 7], 'Failed to read snapshot metadata (-EINVAL)'],
    ['a chunk size of 0', [MAGIC, 1, 1, 0], 'Failed to read snapshot metadata (-EINVAL)'],
    ['a huge chunk size', [MAGIC, 1, 1, 0x80000000], 'Failed to read snapshot metadata (-EINVAL)'],
    ['a chunk size past its end', [MAGIC, 1, 1, 1024], 'Failed to read snapshot metadata (-EIO)'],
  ])('%s is refused', (_what, words, text) => {
    const { world, cow } = setup();
    header(cow, words);
    const before = Uint8Array.from(cow.bytes);
    expect(() => world.activate('s', '0 64 snapshot o c P 8')).toThrow(`snapshot: ${text}`);
    expect(Buffer.compare(cow.bytes, before)).toBe(0);
    expect(world.resolver.totalOpenCount).toBe(0);
  });

  test.each([
    [8, 8],
    [15, 8],
    [7, 8],
    [1, 1],
  ])('a device of %i sectors has no room for a header and an area of %i', (size, chunk) => {
    const { world } = setup(size);
    expect(() => world.activate('s', `0 64 snapshot o c P ${chunk}`)).toThrow('metadata (-EIO)');
  });

  test('valid = 0 loads as invalid', () => {
    const { world, cow } = setup();
    header(cow, [MAGIC, 0, 1, 8]);
    const device = world.activate('s', '0 64 snapshot o c P 8');
    expect(device.lines('info')).toEqual(['0 64 snapshot Invalid']);
    expect(world.write(device, 0, 1, 1)).toBe(Errno.EIO);
  });

  test.each([
    ['a record of metadata', [[1, 1]]],
    [
      'two records for a chunk',
      [
        [1, 2],
        [1, 3],
      ],
    ],
    [
      'two records of a chunk',
      [
        [1, 3],
        [2, 2],
        [3, 3],
      ],
    ],
  ] as [string, [number, number][]][])('%s is refused', (_what, pairs) => {
    const { world, cow } = setup();
    header(cow, [MAGIC, 1, 1, 8]);
    putRecords(cow, 8, pairs);
    expect(() => world.activate('s', '0 64 snapshot o c P 8')).toThrow('Failed to read snapshot metadata (-EINVAL)');
  });

  test('records out of range do what they do in the kernel', () => {
    const { world, cow } = setup();
    header(cow, [MAGIC, 1, 1, 8]);
    putRecords(cow, 8, [
      [1, 250],
      [200, 3],
    ]);
    const device = world.activate('s', '0 64 snapshot o c P 8');
    expect(device.lines('info')).toEqual(['0 64 snapshot 2008/800 16']);
    expect(world.read(device, 0, 1)).toEqual([1]);
    expect(issue(device, 'read', { sector: 8, sectorCount: 1 }).errno).toBe(Errno.EIO);
  });

  test('what stands behind the last record never becomes one', () => {
    const { world, cow } = setup();
    header(cow, [MAGIC, 1, 1, 8]);
    putRecords(cow, 8, [
      [1, 2],
      [0, 0],
      [3, 5],
    ]);
    const device = world.activate('s', '0 64 snapshot o c P 8');
    expect(world.write(device, 16, 8, 0x77)).toBe(0);
    world.remove(device);
    const again = world.activate('s', '0 64 snapshot o c P 8');
    expect(world.read(again, 24, 1)).toEqual([25]);
    expect(records(cow, 8)).toEqual(['1>2', '2>3']);
  });

  test('records are read over several areas, and in any order', () => {
    const { world, cow } = setup(800, 200);
    const device = world.activate('s', '0 200 snapshot o c P 1');
    const order = Array.from({ length: 150 }, (_, index) => (index * 37) % 200);
    for (const sector of order) expect(world.write(device, sector, 1, sector ^ 0x55)).toBe(0);
    world.remove(device);
    const again = world.activate('s', '0 200 snapshot o c P 8');
    for (let sector = 0; sector < 200; sector++) {
      const expected = order.includes(sector) ? sector ^ 0x55 : (sector + 1) & 0xff;
      expect(world.read(again, sector, 1)).toEqual([expected]);
    }
    world.remove(again);
    // Out of order: as valid.
    const first = cow.bytes.slice(512, 528);
    cow.bytes.copyWithin(512, 528, 544);
    cow.bytes.set(first, 528);
    expect(world.activate('s', '0 200 snapshot o c P 1').lines('info')[0]).toMatch(/156\/800 6$/);
  });

  test('a blank store is not written where it is blank, and cleared where it is not', () => {
    const { world, cow } = setup();
    world.activate('s', '0 64 snapshot o c P 8');
    expect(cow.log).toEqual(['read 0+8', 'read 8+8', 'write 0+8']);
    const other = setup();
    other.cow.bytes.fill(0xff, 4);
    const device = other.world.activate('s', '0 64 snapshot o c P 8');
    expect(other.cow.log).toEqual(['read 0+8', 'read 8+8', 'write-zeroes 8+8', 'write 0+8']);
    expect(other.world.read(device, 0, 1)).toEqual([1]);
  });
});

describe('discards', () => {
  function discarding(features: string) {
    const made = setup();
    const device = made.world.activate('s', `0 64 snapshot o c P 8 ${features}`);
    made.world.write(device, 8, 16, 0xaa);
    made.clear();
    return { ...made, device };
  }

  test('are refused without the feature', () => {
    const { world, device } = discarding('0');
    expect(world.io(device, 'discard', { sector: 8, sectorCount: 8 })).toBe(Errno.EOPNOTSUPP);
  });

  test('zero whole chunks, pass parts on, and leave what has no exception', () => {
    const { world, device, cow, origin } = discarding('1 discard_zeroes_cow');
    expect(world.io(device, 'discard', { sector: 0, sectorCount: 20 })).toBe(0);
    expect(cow.log).toEqual(['write-zeroes 16+8', 'discard 24+4']);
    expect(origin.log).toEqual([]);
    expect(world.read(device, 0, 1)).toEqual([1]);
    expect(world.read(device, 8, 1)).toEqual([0]);
    expect(device.lines('info')).toEqual(['0 64 snapshot 32/800 16']);
  });

  test('go to the origin too, without copies', () => {
    const { world, device, cow, origin } = discarding('2 discard_zeroes_cow discard_passdown_origin');
    expect(world.io(device, 'discard', { sector: 0, sectorCount: 16 })).toBe(0);
    expect([origin.log, cow.log]).toEqual([['discard 0+16'], ['write-zeroes 16+8']]);
  });
});

describe('the store passes from table to table', () => {
  test('on a reload of the same line, with everything in it', () => {
    const { world, cow } = setup();
    const device = world.activate('s', '0 64 snapshot o c P 8');
    world.write(device, 8, 1, 0xaa);
    world.load(device, '0 64 snapshot o c P 8');
    expect(device.lines('table', true)).toEqual(['0 64 snapshot o c P 0']);
    expect(() => world.activate('t', '0 64 snapshot o c P 8')).toThrow(
      'Snapshot cow pairing for exception table handover failed',
    );
    world.resume(device);
    expect(device.lines('table')).toEqual(['0 64 snapshot o c P 8']);
    expect(device.lines('info')).toEqual(['0 64 snapshot 24/800 16']);
    expect(world.read(device, 8, 2)).toEqual([0xaa, 10]);
    expect(world.write(device, 16, 1, 0xbb)).toBe(0);
    expect(records(cow, 8)).toEqual(['1>2', '2>3']);
    world.remove(device);
    expect(world.resolver.totalOpenCount).toBe(0);
  });

  test('between two devices, once the source is suspended', () => {
    const { world } = setup();
    const source = world.activate('s', '0 64 snapshot o c P 8');
    world.write(source, 8, 1, 0xaa);
    const destination = world.mapper.create('d');
    world.load(destination, '0 64 snapshot o c P 8');
    expect(() => world.resume(destination)).toThrow('Unable to perform snapshot handover until source is suspended.');
    world.suspend(source);
    expect(() => world.resume(source)).toThrow('Unable to resume snapshot source until handover completes.');
    world.resume(destination);
    expect(world.read(destination, 8, 1)).toEqual([0xaa]);
    expect(source.lines('table')).toEqual(['0 64 snapshot o c P 0']);
    expect(source.lines('info')).toEqual(['0 64 snapshot Invalid']);
  });

  test('a source that goes takes the hope of its destination along', () => {
    const { world } = setup();
    const source = world.activate('s', '0 64 snapshot o c P 8');
    const destination = world.mapper.create('d');
    world.load(destination, '0 64 snapshot o c P 8');
    world.remove(source);
    world.resume(destination);
    expect(destination.lines('info')).toEqual(['0 64 snapshot Invalid']);
    expect(world.write(destination, 0, 1, 1)).toBe(Errno.EIO);
  });
});

describe('requests in flight', () => {
  function held() {
    const made = setup();
    const holding = new HoldingDevice(made.cow);
    holding.holding = false;
    made.world.resolver.devices.set('h', holding);
    const device = made.world.activate('s', '0 64 snapshot o h P 8');
    holding.holding = true;
    return { ...made, holding, device };
  }

  test('copies that end out of order are recorded in the order they were started', () => {
    const { world, holding, device, cow } = held();
    const first = issue(device, 'write', { sector: 8, data: new Uint8Array(4096) });
    const second = issue(device, 'write', { sector: 16, data: new Uint8Array(4096) });
    holding.release(holding.held[1]);
    world.reactor.runUntilIdle();
    expect(holding.heldRequests).toEqual(['write 16+8']);
    holding.release();
    world.reactor.runUntilIdle();
    expect(holding.heldRequests).toEqual(['write 8+8 preflush fua']);
    expect([first.ended, second.ended]).toEqual([false, false]);
    holding.open();
    expect([first.errno, second.errno]).toEqual([0, 0]);
    expect(records(cow, 8)).toEqual(['1>2', '2>3']);
  });

  test('what is completed while a commit is under way makes the next one', () => {
    const { world, holding, device } = held();
    issue(device, 'write', { sector: 8, data: new Uint8Array(4096) });
    holding.release();
    world.reactor.runUntilIdle();
    const commit = holding.held[0]!;
    const late = [16, 24].map((sector) => issue(device, 'write', { sector, data: new Uint8Array(4096) }));
    for (const bio of holding.held.slice(1)) holding.release(bio);
    world.reactor.runUntilIdle();
    expect(holding.heldRequests).toEqual(['write 8+8 preflush fua']);
    holding.release(commit);
    world.reactor.runUntilIdle();
    expect(holding.heldRequests).toEqual(['write 8+8 preflush fua']);
    expect(late.map((write) => write.ended)).toEqual([false, false]);
    holding.release();
    expect(late.map((write) => write.errno)).toEqual([0, 0]);
  });

  test('a synchronous call above commits at once', () => {
    const { world, device } = setupDevice();
    world.services.engines.blocking = true;
    const write = issue(device, 'write', { sector: 9, data: new Uint8Array(512) });
    expect(write.errno).toBe(0);
  });

  test('a synchronous call that meets a copy under way takes it along', () => {
    const { world, device } = setupDevice();
    const first = issue(device, 'write', { sector: 9, data: new Uint8Array(512) });
    expect(first.ended).toBe(false);
    world.services.engines.blocking = true;
    const second = issue(device, 'write', { sector: 12, data: new Uint8Array(512) });
    expect([first.errno, second.errno]).toEqual([0, 0]);
  });

  function setupDevice() {
    const made = setup();
    return { ...made, device: made.world.activate('s', '0 64 snapshot o c P 8') };
  }
});

describe('lazy commit', () => {
  function lazy() {
    const made = setup();
    const device = made.world.activate('s', '0 64 snapshot o c P 8 1 lazy_commit');
    made.clear();
    return { ...made, device };
  }

  test('records wait for a flush', () => {
    const { world, device, cow } = lazy();
    expect(world.write(device, 8, 8, 0xaa)).toBe(0);
    expect(world.write(device, 17, 1, 0xbb)).toBe(0);
    expect(records(cow, 8)).toEqual([]);
    expect(world.read(device, 8, 1)).toEqual([0xaa]);
    expect(world.io(device, 'flush')).toBe(0);
    expect(cow.log.slice(-2)).toEqual(['write 8+8', 'flush 0+0']);
    expect(records(cow, 8)).toEqual(['1>2', '2>3']);
  });

  test('a write with FUA brings its record along, on a new chunk and on an old one', () => {
    const { world, device, cow } = lazy();
    world.write(device, 8, 8, 0xaa);
    expect(world.write(device, 9, 1, 0xab, REQ_FUA)).toBe(0);
    expect(records(cow, 8)).toEqual(['1>2']);
    expect(world.write(device, 16, 8, 0xab, REQ_FUA)).toBe(0);
    expect(records(cow, 8)).toEqual(['1>2', '2>3']);
  });

  test('a write to the origin waits for the record', () => {
    const { world, device, cow, origin } = lazy();
    const og = world.activate('og', '0 64 snapshot-origin o');
    world.write(device, 8, 8, 0xaa);
    const order: string[] = [];
    const note = (text: string): number => order.push(text) * 0;
    cow.fail = (bio) => note(`cow ${bio.sector}`);
    origin.fail = (bio) => note(`origin ${bio.op} ${bio.sector}`);
    expect(world.write(og, 8, 1, 0xcc)).toBe(0);
    expect(order).toEqual(['cow 8', 'origin 1 8']);
    order.length = 0;
    expect(world.write(og, 33, 1, 0xcc)).toBe(0);
    expect(order).toEqual(['origin 0 32', 'cow 24', 'cow 8', 'origin 1 33']);
  });

  test('a suspend and the end of the table write what waits', () => {
    const { world, device, cow } = lazy();
    world.write(device, 8, 8, 0xaa);
    world.suspend(device);
    expect(records(cow, 8)).toEqual(['1>2']);
    world.resume(device);
    world.write(device, 16, 8, 0xaa);
    expect(records(cow, 8)).toEqual(['1>2']);
    world.remove(device);
    expect(records(cow, 8)).toEqual(['1>2', '2>3']);
    expect(world.resolver.totalOpenCount).toBe(0);
  });
});
