// Stores that nobody would write: cut off, with another header, with records that lead nowhere.
import { header, records } from './store-bytes.ts';
import type { CaseText } from './target.ts';

const CHUNK = 8;
const AREA = CHUNK * 512;

/** Noise where the chunks are, so that it shows which one is read. */
const BLANK = 'c 160 zero';
const DATA = ['create l :: 0 144 linear @c 16', 'write l 0+144 from=900', 'remove l'];

/** A store of `pokes` is opened, read and written. */
function damaged(name: string, pokes: readonly (readonly [number, string])[], store = BLANK): CaseText {
  return {
    name,
    disks: ['a 64 seed=1', store],
    steps: [
      ...(store === BLANK ? DATA : []),
      ...pokes.filter(([, hex]) => hex !== '').map(([at, hex]) => `poke c ${at} :: ${hex}`),
      'create o :: 0 64 snapshot-origin @a',
      'create s :: 0 64 snapshot @a @c P 8',
      'table s',
      'status s',
      'read s 0+8',
      'read s 0+64',
      'write s 1+2 from=0',
      'write o 30+1 from=10',
      'status s',
      'read s 0+64',
    ],
  };
}

const good = header({ chunk: CHUNK });

function onHeader(name: string, words: Parameters<typeof header>[0]): CaseText {
  return damaged(name, [
    [0, header(words)],
    [AREA, records([0, 2], [5, 3])],
  ]);
}

function onRecords(name: string, ...pairs: readonly (readonly [number, number])[]): CaseText {
  return damaged(name, [
    [0, good],
    [AREA, records(...pairs)],
  ]);
}

/** An area of one sector, full. */
const fullArea = (from: number, first: number): string =>
  records(...Array.from({ length: 32 }, (_, index) => [from + index, first + index] as const));

export const snapshotDamageCases: readonly CaseText[] = [
  onHeader('a store as it should be', {}),
  onHeader('a blank first word', { magic: 0 }),
  onHeader('another magic number', { magic: 0x70416e54 }),
  onHeader('a magic number the other way round', { magic: 0x536e4170 }),
  onHeader('a header that is not valid', { valid: 0 }),
  onHeader('a header that is valid twice', { valid: 2 }),
  onHeader('version 0', { version: 0 }),
  onHeader('version 2', { version: 2 }),
  onHeader('not valid, and of another version', { valid: 0, version: 2 }),
  onHeader('a chunk size of 0 in the header', { chunk: 0 }),
  onHeader('a chunk size of 7 in the header', { chunk: 7 }),
  onHeader('a chunk size of 4194304 in the header', { chunk: 4194304 }),
  onHeader('a chunk size of 2147483648 in the header', { chunk: 2147483648 }),
  onHeader('a chunk size in the header that is larger than the store', { chunk: 256 }),
  damaged('a chunk size in the header that is smaller than the table says', [
    [0, header({ chunk: 4 })],
    [4 * 512, records([0, 2], [9, 3])],
  ]),
  damaged(
    'a chunk size in the header that is larger than the table says',
    [
      [0, header({ chunk: 16 })],
      [16 * 512, records([0, 2], [3, 3])],
    ],
    'c 170 zero',
  ),
  onRecords('no records'),
  onRecords('a record behind the end of the store', [0, 2], [1, 500]),
  onRecords('a record across the end of the store', [0, 2], [1, 19], [2, 20]),
  onRecords('a record of a chunk behind the origin', [0, 2], [500, 3]),
  onRecords('two records for one chunk', [0, 2], [0, 3]),
  onRecords('two chunks in one place', [0, 2], [1, 2]),
  onRecords('records that descend', [5, 4], [0, 3], [2, 2]),
  onRecords('a record that leads to the header', [0, 2], [1, 0], [2, 3]),
  onRecords('a record that leads to an area', [0, 2], [1, 1]),
  onRecords('the largest numbers', [0, 2], [2 ** 40, 2 ** 40]),
  damaged('something behind the last record', [
    [0, good],
    [AREA, records([0, 2], [5, 3], [0, 0], [6, 4])],
  ]),
  damaged('an area of noise', [[0, good]], 'c 160 seed=4'),
  damaged(
    'a full area, and an empty one',
    [
      [0, header({ chunk: 1 })],
      [512, fullArea(0, 2)],
      [34 * 512, records().padEnd(1024, '0')],
    ],
    'c 80 seed=4',
  ),
  damaged(
    'a full area, and no room for the next one',
    [
      [0, header({ chunk: 1 })],
      [512, fullArea(0, 2)],
    ],
    'c 34 seed=4',
  ),
  damaged('a store without its area', [[0, good]], 'c 8 seed=4'),
  damaged(
    'a store that ends in its area',
    [
      [0, good],
      [AREA, records([0, 2])],
    ],
    'c 12 seed=4',
  ),
  damaged(
    'a store that ends before its data',
    [
      [0, good],
      [AREA, records([0, 2], [1, 3], [2, 4])],
    ],
    'c 24 seed=4',
  ),
  {
    name: 'a store that lost its end',
    disks: ['a 64 seed=1', 'd 160 zero'],
    steps: [
      'create c :: 0 160 linear @d 0',
      'create s :: 0 64 snapshot @a /dev/mapper/c P 8',
      'write s 0+8 from=0',
      'write s 20+30 from=20',
      'remove s',
      'remove c',
      'create c :: 0 36 linear @d 0',
      'create s :: 0 64 snapshot @a /dev/mapper/c P 8',
      'status s',
      'read s 0+8',
      'read s 40+8',
      'write s 40+8 from=1',
      'write s 56+8 from=9',
      'status s',
    ],
  },
  {
    name: 'reads from the store fail',
    disks: ['a 64 seed=1', 'd 160 zero'],
    steps: [
      'create c :: 0 160 linear @d 0',
      'create s :: 0 64 snapshot @a /dev/mapper/c P 8',
      'write s 0+16 from=0',
      'suspend s',
      'load c :: 0 24 linear @d 0\n24 8 error\n32 128 linear @d 32',
      'suspend c',
      'resume c',
      'resume s',
      'read s 0+8',
      'read s 8+8',
      'write s 8+8 from=50',
      'write s 32+8 from=60',
      'status s',
      'read s 0+8',
    ],
  },
  {
    name: 'writes of data to the store fail',
    disks: ['a 64 seed=1', 'd 160 zero'],
    steps: [
      'create c :: 0 24 linear @d 0\n24 8 error\n32 128 linear @d 32',
      'create o :: 0 64 snapshot-origin @a',
      'create s :: 0 64 snapshot @a /dev/mapper/c P 8',
      'write s 0+8 from=0',
      'status s',
      'write s 8+8 from=50',
      'status s',
      'info s',
      'read s 0+8',
      'write o 0+8 from=9',
      'remove s',
      'create s :: 0 64 snapshot @a /dev/mapper/c P 8',
      'status s',
    ],
  },
  {
    name: 'copies for the origin fail',
    disks: ['a 64 seed=1', 'd 160 zero'],
    steps: [
      'create c :: 0 24 linear @d 0\n24 8 error\n32 128 linear @d 32',
      'create o :: 0 64 snapshot-origin @a',
      'create s :: 0 64 snapshot @a /dev/mapper/c PO 8',
      'suspend o',
      'resume o',
      'write o 0+8 from=0',
      'status s',
      'write o 9+3 from=50',
      'status s',
      'info s',
      'read s 0+8',
      'read o 0+64',
    ],
  },
  {
    name: 'the origin cannot be read',
    disks: ['a 64 seed=1', 'c 160 zero'],
    steps: [
      'create b :: 0 16 linear @a 0\n16 8 error\n24 40 linear @a 24',
      'create s :: 0 64 snapshot /dev/mapper/b @c P 8',
      'write s 16+8 from=0',
      'read s 16+8',
      'status s',
      'read s 0+64',
      'write s 8+1 from=30',
      'status s',
    ],
  },
  {
    name: 'a chunk that is to be copied cannot be read',
    disks: ['a 64 seed=1', 'c 160 zero'],
    steps: [
      'create b :: 0 16 linear @a 0\n16 8 error\n24 40 linear @a 24',
      'create s :: 0 64 snapshot /dev/mapper/b @c PO 8',
      'write s 8+1 from=30',
      'write s 17+1 from=0',
      'status s',
      'info s',
      'read s 8+1',
    ],
  },
  {
    name: 'a store that cannot be read',
    disks: ['a 64 seed=1', 'd 160 zero'],
    steps: [
      'create c :: 0 8 error\n8 152 linear @d 8',
      'fails create s :: 0 64 snapshot @a /dev/mapper/c P 8',
      'create e :: 0 8 linear @d 0\n8 8 error\n16 144 linear @d 16',
      'fails create s :: 0 64 snapshot @a /dev/mapper/e P 8',
    ],
  },
];
