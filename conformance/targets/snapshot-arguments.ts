// What a snapshot line is refused for, in the kernel's order.
import { type CaseText, ODD_DEVICES, ODD_NUMBERS } from './target.ts';

/** Lines that are tried one after the other; what is let through is looked at and goes again. */
function linesCase(name: string, lines: readonly string[], disks = ['a 64 seed=1', 'c 4096 zero']): CaseText {
  const steps = lines.flatMap((line, index) => {
    const [device, text] = [`w${index}`, `0 64 ${line}`];
    return [`create ${device} :: ${text}`, 'tables', 'statuses', 'remove-all'];
  });
  return { name, disks, steps };
}

// As dmsetup's table holds them: no blanks, and nothing that dmsetup itself takes apart.
const words = (list: readonly string[], line: (word: string) => string): string[] => list.map(line);

const MERGE_WORDS = ['snapshot', 'snapshot-merge'] as const;

export const snapshotArgumentCases: readonly CaseText[] = [
  linesCase('too few words', ['snapshot', 'snapshot @a', 'snapshot @a @c', 'snapshot @a @c P', 'snapshot @a @c P 8']),
  linesCase(
    'words for a store',
    words(
      ['p', 'po', 'Po', 'POverflow', 'PX', 'Persistent', 'P8', 'PP', 'n', 'NO', 'Nx', 'X', '8', '-', 'O'],
      (word) => {
        return `snapshot @a @c ${word} 8`;
      },
    ),
  ),
  linesCase(
    'chunk sizes',
    words(
      ['0', '1', '3', '7', '9', '12', '6', '1024', '2047', '4194304', '8388608', '2147483648', 'x', '8x'],
      (word) => {
        return `snapshot @a @c P ${word}`;
      },
    ),
  ),
  linesCase(
    'odd numbers for a chunk size',
    words(
      ODD_NUMBERS.filter((word) => !word.includes('2147483648')),
      (word) => `snapshot @a @c P ${word}`,
    ),
  ),
  linesCase('N without a chunk size', [
    'snapshot @a @c N 0',
    'snapshot @a @c n 00',
    'snapshot @a @c N 3',
    'snapshot @a @c N 8',
  ]),
  linesCase(
    'numbers of features',
    words(
      ['0', '1', '2', '3', '-1', 'x', '1x', '+1', '0 discard_zeroes_cow', '00'],
      (word) => `snapshot @a @c P 8 ${word}`,
    ),
  ),
  linesCase(
    'features',
    words(
      [
        '1 discard_zeroes_cow',
        '1 Discard_Zeroes_COW',
        '1 discard_passdown_origin',
        '2 discard_passdown_origin discard_zeroes_cow',
        '2 discard_zeroes_cow discard_zeroes_cow',
        '1 discard_zeroes_cow discard_passdown_origin',
        '2 discard_zeroes_cow',
        '1 nosuch',
        '2 discard_zeroes_cow nosuch',
        '3 discard_zeroes_cow discard_passdown_origin discard_zeroes_cow',
      ],
      (word) => `snapshot @a @c P 8 ${word}`,
    ),
  ),
  linesCase(
    'origins',
    words(ODD_DEVICES.slice(0, 12), (word) => `snapshot ${word} @c P 8`),
  ),
  linesCase(
    'stores',
    words(ODD_DEVICES.slice(0, 12), (word) => `snapshot @a ${word} P 8`),
  ),
  linesCase('one device for both, and an order of refusals', [
    'snapshot @a @a P 8',
    'snapshot @a @a X 7',
    'snapshot nosuch nosuch X 7',
    'snapshot @a nosuch X 7 1 nosuch',
    'snapshot @a @c X 7 1 nosuch',
    'snapshot @a @c X 7 1 discard_passdown_origin',
    'snapshot @a @c X 7',
  ]),
  linesCase(
    'an origin that is too short',
    ['snapshot @a @c P 8', 'snapshot-merge @a @c P 8'],
    ['a 63 seed=1', 'c 256 zero'],
  ),
  linesCase(
    'blocks of 4096',
    ['1', '2', '4', '8', '0'].flatMap((chunk) => [`snapshot @a @c P ${chunk}`, `snapshot @c @a P ${chunk}`]),
    ['a 160 zero', 'c 160 zero block=4096'],
  ),
  ...MERGE_WORDS.map((type) =>
    linesCase(
      `a store that is too small, ${type}`,
      ['c', 'd', 'e', 'f'].map((disk) => `${type} @a @${disk} P 8`),
      ['a 64 seed=1', 'c 7 zero', 'd 8 zero', 'e 15 zero', 'f 16 zero'],
    ),
  ),
  {
    name: 'a line that starts inside a chunk',
    disks: ['a 64 seed=1', 'c 256 zero'],
    steps: ['create s :: 0 4 zero\n4 60 snapshot @a @c P 8', 'read s 0+64', 'table s', 'status s'],
  },
  {
    name: 'dmkit has a feature of its own',
    disks: ['a 64 seed=1', 'c 256 zero'],
    steps: ['create s :: 0 64 snapshot @a @c P 8 1 lazy_commit', 'tables'],
  },
];
