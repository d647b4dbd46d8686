// snapshot.
import { snapshotArgumentCases } from './snapshot-arguments.ts';
import { snapshotDamageCases } from './snapshot-damage.ts';
import { drawSnapshotCases } from './snapshot-drawn.ts';
import { snapshotMarkCases } from './snapshot-mark.ts';
import { snapshotReloadCases } from './snapshot-reload.ts';
import type { CaseText, TargetCases } from './target.ts';

const PERSISTENT_SIZES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048];

/** Writes at the chunks' edges, to both devices, with the store on the other side in between. */
function chunkSizeCase(chunk: number, word: string): CaseText {
  const size = 3 * chunk + (chunk >> 1) + 7;
  const line = `0 ${size} snapshot @a @c ${word} ${chunk}`;
  const last = Math.floor((size - 1) / chunk) * chunk;
  const steps = [
    `create o :: 0 ${size} snapshot-origin @a`,
    `create s :: ${line}`,
    'table s',
    'status s',
    `write s ${chunk - 1}+2 from=0`,
    'status s',
    `write o ${2 * chunk + (chunk >> 1)}+1 from=100`,
    `write s ${size - 1}+1 from=200 fua`,
    `write o 0+${chunk} from=300`,
    `write s 0+${chunk} from=3000`,
    `write o ${last}+1 from=500`,
    'status s',
    `read s 0+${size}`,
    `read o 0+${size}`,
    'flush s',
  ];
  if (word !== 'N') {
    const written = `write s ${2 * chunk}+${chunk} from=6000`;
    steps.push('handover', `create s :: ${line}`, 'status s', `read s 0+${size}`, written, `read s 0+${size}`);
  }
  // Blank is a store whose first word is; what else stands there is nobody's.
  return {
    name: `chunks of ${chunk}, ${word}`,
    disks: [`a ${size} seed=1`, `c ${9 * chunk + 3} seed=2`],
    steps: ['poke c 0 :: 00000000', ...steps],
  };
}

const several: CaseText[] = [
  {
    name: 'three of one origin, each with its own chunks',
    disks: ['a 128 seed=1', 'b 200 zero', 'c 200 zero', 'd 300 zero'],
    steps: [
      'create o :: 0 128 snapshot-origin @a',
      'suspend o',
      'create s1 :: 0 128 snapshot @a @b P 1',
      'create s8 :: 0 128 snapshot @a @c PO 8',
      'create s32 :: 0 128 snapshot @a @d N 32',
      'resume o',
      'write o 40+32 from=0',
      'statuses',
      'write s8 41+3 from=100',
      'write s1 41+3 from=200',
      'write o 41+3 from=300',
      'read s1 0+128',
      'read s8 0+128',
      'read s32 0+128',
      'deps s8',
      'statuses',
      'write o 0+128 from=600',
      'statuses',
    ],
  },
  {
    name: 'two with the same chunks, and one that comes later',
    disks: ['a 64 seed=1', 'b 128 zero', 'c 128 zero', 'd 128 zero'],
    steps: [
      'create o :: 0 64 snapshot-origin @a',
      'create s1 :: 0 64 snapshot @a @b P 4',
      'create s2 :: 0 64 snapshot @a @c P 4',
      'suspend o',
      'resume o',
      'write o 3+2 from=0',
      'suspend o',
      'create s3 :: 0 64 snapshot @a @d P 4',
      'resume o',
      'write o 3+9 from=50',
      'remove s1',
      'write o 20+1 from=70',
      'statuses',
      'create s1 :: 0 64 snapshot @a @b P 4',
      'read s1 0+64',
      'read s2 0+64',
      'read s3 0+64',
    ],
  },
  {
    name: 'one that is shorter than its origin',
    disks: ['a 64 seed=1', 'b 128 zero'],
    steps: [
      'create o :: 0 64 snapshot-origin @a',
      'create s :: 0 20 snapshot @a @b P 8',
      'suspend o',
      'resume o',
      'write o 40+8 from=0',
      'status s',
      'write o 20+4 from=20',
      'status s',
      'write o 16+8 from=40',
      'status s',
      'read s 0+20',
      'write s 19+1 from=9',
      'read s 0+20',
    ],
  },
  {
    name: 'a line that does not start at zero',
    disks: ['a 64 seed=1', 'b 128 zero'],
    steps: [
      'create s :: 0 16 zero\n16 40 snapshot @a @b P 8',
      'read s 0+56',
      'write s 15+10 from=0',
      'read s 0+56',
      'table s',
      'status s',
    ],
  },
  {
    name: 'a write past the origin shows, and is not kept',
    disks: ['a 64 seed=1', 'b 128 zero'],
    steps: [
      'create o :: 0 64 snapshot-origin @a',
      'create s :: 0 64 snapshot @a @b P 8',
      'create l :: 0 64 linear @a 0',
      'write l 8+8 from=0',
      'read s 0+64',
      'status s',
    ],
  },
  {
    name: 'a snapshot before it is resumed keeps nothing',
    disks: ['a 64 seed=1', 'b 128 zero'],
    steps: [
      'create o :: 0 64 snapshot-origin @a',
      'create s',
      'load s :: 0 64 snapshot @a @b P 8',
      'write o 0+8 from=0',
      'table s inactive',
      'status s inactive',
      'resume s',
      'status s',
      'write o 8+8 from=9',
      'status s',
      'suspend s',
      'write o 16+8 from=20',
      'status s',
      'resume s',
      'read s 0+64',
    ],
  },
  {
    name: 'a snapshot of a snapshot',
    disks: ['a 64 seed=1', 'b 128 zero', 'c 128 zero'],
    steps: [
      'create low :: 0 64 snapshot @a @b P 8',
      'create o :: 0 64 snapshot-origin /dev/mapper/low',
      'create top :: 0 64 snapshot /dev/mapper/low @c P 4',
      'suspend o',
      'resume o',
      'write o 6+6 from=0',
      'write top 8+2 from=50',
      'read top 0+64',
      'read low 0+64',
      'tables',
      'statuses',
    ],
  },
  {
    name: 'a sparse device of ten terabytes',
    disks: ['c 4096 zero'],
    steps: [
      'create z :: 0 21474836480 zero',
      'create s :: 0 21474836480 snapshot /dev/mapper/z @c P 128',
      'status s',
      'write s 21474836000+8 from=0',
      'write s 10737418240+16 from=50',
      'write s 21474836479+1 from=90',
      'status s',
      'read s 21474835990+490',
      'read s 10737418112+300',
      'read s 5000000000+100',
      'handover',
      'create z :: 0 21474836480 zero',
      'create s :: 0 21474836480 snapshot /dev/mapper/z @c P 128',
      'read s 21474835990+490',
      'read s 10737418112+300',
      'write s 0+1 from=7',
      'status s',
    ],
  },
];

/** Steps that need more room than there is; the store has room for four chunks of 8. */
function overflowCase(word: string, on: 's' | 'o'): CaseText {
  const room = word === 'N' ? 32 : 48;
  const line = `0 64 snapshot @a @c ${word} 8`;
  const again = ['handover', `create s :: ${line}`, 'status s', 'read s 0+64', 'write s 0+8 from=70', 'status s'];
  return {
    name: `the store is full for a write to the ${on === 's' ? 'snapshot' : 'origin'}, ${word}`,
    disks: ['a 64 seed=1', `c ${room} zero`],
    steps: [
      'create o :: 0 64 snapshot-origin @a',
      `create s :: ${line}`,
      'suspend o',
      'resume o',
      `write ${on} 0+8 from=0`,
      'write s 9+1 from=10',
      'write o 17+1 from=20',
      'write s 24+8 from=30',
      'status s',
      'read s 0+64',
      `write ${on} 32+8 from=40`,
      'status s',
      'info s',
      'table s',
      'read s 0+8',
      'read s 40+8',
      'write s 0+8 from=50',
      'flush s',
      `write ${on} 40+8 from=55`,
      'write o 0+64 from=60',
      'status s',
      'info s',
      ...(word === 'N' ? [] : again),
    ],
  };
}

/** The last data chunk that fits may fill an area for which there is no next one. */
function edgeCase(sectorCount: number): CaseText {
  return {
    name: `a store of ${sectorCount} chunks of one sector`,
    disks: ['a 64 seed=1', `c ${sectorCount} seed=3`],
    steps: [
      'poke c 0 :: 00000000',
      'create s :: 0 64 snapshot @a @c P 1',
      'write s 0+31 from=0',
      'status s',
      'write s 40+1 from=40',
      'status s',
      'write s 41+1 from=41',
      'status s',
      'write s 42+1 from=42',
      'status s',
      'handover',
      'create s :: 0 64 snapshot @a @c P 1',
      'status s',
      'read s 0+64',
    ],
  };
}

const full: CaseText[] = [
  ...['P', 'PO', 'N'].flatMap((word) => [overflowCase(word, 's'), overflowCase(word, 'o')]),
  ...[34, 35, 36, 67, 68].map(edgeCase),
  {
    name: 'one of two is full',
    disks: ['a 64 seed=1', 'b 24 zero', 'c 128 zero'],
    steps: [
      'create o :: 0 64 snapshot-origin @a',
      'create s1 :: 0 64 snapshot @a @b P 8',
      'create s2 :: 0 64 snapshot @a @c P 8',
      'suspend o',
      'resume o',
      'write o 0+8 from=0',
      'statuses',
      'write o 8+8 from=20',
      'statuses',
      'info s1',
      'info s2',
      'read s2 0+64',
      'read o 0+64',
    ],
  },
  {
    name: 'a full store grows',
    disks: ['a 64 seed=1', 'd 200 zero'],
    steps: [
      'create c :: 0 24 linear @d 0',
      'create s :: 0 64 snapshot @a /dev/mapper/c PO 8',
      'write s 0+8 from=0',
      'write s 8+8 from=10',
      'status s',
      'suspend s',
      'load c :: 0 100 linear @d 0',
      'suspend c',
      'resume c',
      'resume s',
      'status s',
      'load s :: 0 64 snapshot @a /dev/mapper/c PO 8',
      'resume s',
      'status s',
      'write s 8+8 from=10',
      'status s',
      'read s 0+64',
    ],
  },
  {
    name: 'messages',
    disks: ['a 64 seed=1', 'c 64 zero'],
    steps: [
      'create o :: 0 64 snapshot-origin @a',
      'create s :: 0 64 snapshot @a @c P 8',
      'fails message s 0 :: merge',
      'fails message o 0 :: x',
      'status s',
    ],
  },
];

function discardCase(name: string, features: string, more: readonly string[]): CaseText {
  return {
    name,
    disks: ['a 64 seed=1', 'c 160 seed=2', 'd 160 zero'],
    steps: [
      'poke c 0 :: 00000000',
      'create o :: 0 64 snapshot-origin @a',
      'suspend o',
      `create s :: 0 64 snapshot @a @c P 8${features}`,
      'create t :: 0 64 snapshot @a @d P 8',
      'resume o',
      'table s',
      'write s 0+24 from=0',
      'write s 33+2 from=40',
      ...more,
      'statuses',
      'read s 0+64',
      'read t 0+64',
      'read o 0+64',
    ],
  };
}

const discards: CaseText[] = [
  discardCase('discards without the feature', '', ['discard s 0+8', 'write-zeroes s 0+8', 'zero-out s 8+8']),
  discardCase('discards of whole chunks', ' 1 discard_zeroes_cow', [
    'discard s 8+8',
    'discard s 48+8',
    'discard s 32+8',
  ]),
  discardCase('discards of parts of chunks', ' 1 discard_zeroes_cow', [
    'discard s 9+2',
    'discard s 35+3',
    'discard s 50+1',
  ]),
  discardCase('discards across chunks', ' 1 DISCARD_zeroes_COW', [
    'discard s 4+16',
    'discard s 30+30',
    'zero-out s 3+2',
  ]),
  discardCase('discards of everything', ' 1 discard_zeroes_cow', ['discard s 0+64', 'write s 1+1 from=90']),
  discardCase('discards that go to the origin', ' 2 discard_passdown_origin discard_zeroes_cow', [
    'discard s 8+8',
    'discard s 48+8',
    'discard s 18+2',
  ]),
  discardCase('discards across chunks that go to the origin', ' 2 discard_zeroes_cow discard_passdown_origin', [
    'discard s 4+40',
  ]),
];

export const snapshot: TargetCases = {
  name: 'snapshot',
  cases: [
    ...PERSISTENT_SIZES.map((chunk) => chunkSizeCase(chunk, 'P')),
    ...[1, 8, 64, 2048].map((chunk) => chunkSizeCase(chunk, 'PO')),
    ...[1, 8, 64, 2048].map((chunk) => chunkSizeCase(chunk, 'N')),
    ...several,
    ...full,
    ...discards,
    ...snapshotReloadCases,
    ...snapshotMarkCases,
    ...snapshotArgumentCases,
    ...snapshotDamageCases,
  ],
  drawCases: drawSnapshotCases,
};
