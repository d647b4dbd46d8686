// The mark in a store's first sector: its encoding, and that nothing which happens to a store touches it but the two
// writes of the header.
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { defaultLimits } from '../../src/block/limits.ts';
import { MemoryDevice } from '../../src/devices/memory.ts';
import {
  decodeMark,
  encodeMark,
  MARK_BYTE_OFFSET,
  MAX_MARK_KEY_BYTE_LENGTH,
  MAX_MARK_KIND_BYTE_LENGTH,
  MAX_MARK_LABEL_BYTE_LENGTH,
  makeStoreHeader,
  type StoreMark,
} from '../../src/targets/snapshot/mark.ts';
import { World } from './support.ts';

const MARK: StoreMark = {
  storeId: '000102030405060708090a0b0c0d0e0f',
  origin: { kind: 'file', key: 'dev=8:1 ino=1234', label: '/images/golden.img', sectorCount: 2_097_152 },
  originVersion: '1764244800123456789',
};

/** The four bytes of MARK's CRC-32, as Python's zlib.crc32 gives it. */
const CRC_OF_MARK = 'b03e6c5a';

const text = (maxByteLength: number) =>
  fc
    .string({ unit: 'grapheme', maxLength: maxByteLength })
    .filter((value) => Buffer.byteLength(value) <= maxByteLength);

const anyMark: fc.Arbitrary<StoreMark> = fc.record({
  storeId: fc.uint8Array({ minLength: 16, maxLength: 16 }).map((bytes) => Buffer.from(bytes).toString('hex')),
  origin: fc.record({
    kind: text(MAX_MARK_KIND_BYTE_LENGTH),
    key: text(MAX_MARK_KEY_BYTE_LENGTH),
    label: text(MAX_MARK_LABEL_BYTE_LENGTH),
    sectorCount: fc.maxSafeNat(),
  }),
  originVersion: fc.option(fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }).map(String), { nil: null }),
});

describe('the encoding', () => {
  test('every mark is decoded as it was encoded, alone and in its sector', () => {
    fc.assert(
      fc.property(anyMark, fc.constantFrom(1, 8, 128), (mark, chunkSectorCount) => {
        expect(decodeMark(encodeMark(mark))).toEqual(mark);
        expect(decodeMark(makeStoreHeader(mark, chunkSectorCount))).toEqual(mark);
        expect(decodeMark(makeStoreHeader(mark, chunkSectorCount, 4096))).toEqual(mark);
      }),
    );
  });

  test('the bytes of one mark are these', () => {
    const digits = Buffer.from(encodeMark(MARK)).toString('hex');
    const crc = digits.slice(16, 24);
    expect(digits).toBe(
      `${'646d6b4d01000000'}${crc}${'01041012'}${MARK.storeId}${'0000200000000000'}${'154d30604cdb7b18'}` +
        `${Buffer.from('file').toString('hex').padEnd(16, '0')}` +
        `${Buffer.from(MARK.origin.key).toString('hex').padEnd(192, '0')}` +
        `${Buffer.from(MARK.origin.label).toString('hex').padEnd(160, '0')}${''.padEnd(48, '0')}`,
    );
    expect(crc).toBe(CRC_OF_MARK);
  });

  test('a store without a mark has none, and a sector of zeroes neither', () => {
    expect(decodeMark(makeStoreHeader(null, 8))).toBeNull();
    expect(decodeMark(new Uint8Array(512))).toBeNull();
    expect(decodeMark(new Uint8Array(256))).toBeNull();
  });

  test('a mark with any one bit flipped is damaged, never another mark and never none', () => {
    const bytes = encodeMark(MARK);
    for (let bit = 0; bit < bytes.byteLength * 8; bit++) {
      const flipped = bytes.slice();
      flipped[bit >> 3] = flipped[bit >> 3]! ^ (1 << (bit & 7));
      expect(decodeMark(flipped)).toBe('damaged');
    }
  });

  test('any bytes that are no mark are damaged', () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 256, maxLength: 256 }), (bytes) => {
        expect(decodeMark(bytes)).toBe(bytes.some((byte) => byte !== 0) ? 'damaged' : null);
      }),
    );
  });

  test('a label that is too long loses its beginning, never half a character', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'grapheme', minLength: 81, maxLength: 300 }), (label) => {
        const mark = decodeMark(encodeMark({ ...MARK, origin: { ...MARK.origin, label } })) as StoreMark;
        expect(mark.origin.label).toMatch(/^…/);
        expect(label.endsWith(mark.origin.label.slice(1))).toBe(true);
        expect(Buffer.byteLength(mark.origin.label)).toBeGreaterThan(MAX_MARK_LABEL_BYTE_LENGTH - 4);
      }),
    );
  });

  test.each([
    [{ ...MARK, storeId: 'xyz' }, /32 hexadecimal digits, not "xyz"/],
    [{ ...MARK, storeId: MARK.storeId.toUpperCase() }, /32 hexadecimal digits/],
    [{ ...MARK, originVersion: '1e3' }, /decimal number of 64 bits, not "1e3"/],
    [{ ...MARK, originVersion: '007' }, /decimal number/],
    [{ ...MARK, originVersion: String(2n ** 63n) }, /decimal number/],
    [{ ...MARK, origin: { ...MARK.origin, kind: 'much-too-long' } }, /kind takes 13 bytes; a mark has room for 8/],
    [{ ...MARK, origin: { ...MARK.origin, key: 'é'.repeat(49) } }, /key takes 98 bytes; a mark has room for 96/],
    [{ ...MARK, origin: { ...MARK.origin, sectorCount: -1 } }, /can't have -1 sectors/],
    [{ ...MARK, origin: { ...MARK.origin, sectorCount: 1.5 } }, /can't have 1.5 sectors/],
  ])('what does not fit is refused (%#)', (mark, message) => {
    expect(() => encodeMark(mark)).toThrow(message);
  });

  test('a buffer that is too short is refused', () => {
    expect(() => decodeMark(new Uint8Array(300))).toThrow(/300 bytes can't hold a mark/);
  });
});

function contents(device: MemoryDevice): Buffer {
  return Buffer.from(device.peek(0, device.sectorCount));
}

/** An origin, a store with a mark made by plain writes, and a world over them. */
function marked(chunk: number, blockSize: number, storeChunkCount = 400) {
  const limits = { ...defaultLimits(), logicalBlockSize: blockSize };
  const origin = new MemoryDevice('o', 300 * chunk, { limits });
  const store = new MemoryDevice('c', storeChunkCount * chunk, { limits });
  store.poke(0, makeStoreHeader(MARK, chunk, Math.max(blockSize, 512)));
  return { origin, store, world: new World(origin, store) };
}

const markOf = (store: MemoryDevice) => decodeMark(contents(store).subarray(0, 512));

describe.each([
  [1, 512],
  [8, 512],
  [8, 4096],
  [32, 4096],
])('a store with chunks of %i sectors on blocks of %i bytes', (chunk, blockSize) => {
  test('made by plain writes it is, but for the mark, what the target makes of a blank device', () => {
    const { world, origin, store } = marked(chunk, blockSize);
    const blank = new MemoryDevice('b', store.sectorCount, { limits: store.limits });
    world.resolver.devices.set('b', blank);
    world.activate('made', `0 ${origin.sectorCount} snapshot o b P ${chunk}`);
    const expected = contents(blank);
    expected.set(encodeMark(MARK), MARK_BYTE_OFFSET);
    expect(contents(store).equals(expected)).toBe(true);
  });

  test.each(['P', 'PO', 'P lazy'])('the mark outlives load, writes through several areas, and a merge (%s)', (word) => {
    const { world, origin, store } = marked(chunk, blockSize);
    const [letters, lazy] = word.split(' ');
    const table = `0 ${origin.sectorCount} snapshot o c ${letters} ${chunk}${lazy === undefined ? '' : ' 1 lazy_commit'}`;
    let snapshot = world.activate('s', table);
    for (let index = 0; index < 299; index++) {
      const unit = blockSize / 512;
      expect(world.write(snapshot, index * chunk, unit, index & 0xff)).toBe(0);
    }
    expect(world.io(snapshot, 'flush')).toBe(0);
    world.remove(snapshot);
    expect(markOf(store)).toEqual(MARK);
    snapshot = world.activate('s', table);
    expect(world.read(snapshot, 298 * chunk, 1)).toEqual([298 & 0xff]);
    world.remove(snapshot);
    const merge = world.activate('m', `0 ${origin.sectorCount} snapshot-merge o c P ${chunk}`);
    world.reactor.runUntilIdle();
    expect(merge.lines('info').join()).toContain(`snapshot-merge ${2 * chunk}/${store.sectorCount} ${2 * chunk}`);
    world.remove(merge);
    expect(markOf(store)).toEqual(MARK);
    snapshot = world.activate('s', table);
    expect(world.write(snapshot, 0, blockSize / 512, 7)).toBe(0);
    world.remove(snapshot);
    expect(markOf(store)).toEqual(MARK);
  });

  test('a snapshot that becomes invalid clears the mark, as Linux does', () => {
    const { world, origin, store } = marked(chunk, blockSize, 4);
    const base = world.activate('og', `0 ${origin.sectorCount} snapshot-origin o`);
    const snapshot = world.activate('s', `0 ${origin.sectorCount} snapshot o c P ${chunk}`);
    for (let index = 0; index < 4; index++) world.write(base, index * chunk, blockSize / 512, 1);
    expect(snapshot.lines('info').join()).toContain('Invalid');
    expect(markOf(store)).toBeNull();
  });
});
