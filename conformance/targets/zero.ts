// zero.
import { plainLine, type TargetCases, ZERO_PLACE } from './target.ts';

export const zero: TargetCases = {
  name: 'zero',
  drawLine: plainLine('zero', ZERO_PLACE),
  drawWrongLine: (draw) =>
    `8 zero${draw.item([' 0', ' x', ' @a 0', '\t', '  ', '#', ' #c', ' "', " ''", ' \\', ' \\ '])}`,
  cases: [
    {
      name: 'reads, writes and ranges',
      disks: ['a 8 seed=1'],
      steps: [
        'create z :: 0 40 zero',
        'read z 0+40',
        'write z 3+20 from=0',
        'read z 0+40',
        'discard z 0+8',
        'write-zeroes z 0+8',
        'zero-out z 0+8',
        'flush z',
        'deps z',
        'table z',
        'status z',
        'fails message z 0 :: hello',
      ],
    },
    {
      name: 'between two stretches of a disk',
      disks: ['a 64 seed=1'],
      steps: [
        'create z :: 0 20 linear @a 0\n20 9 zero\n29 20 linear @a 20',
        'write z 15+20 from=0',
        'read z 0+49',
        'discard z 0+49',
        'discard z 0+8',
        'zero-out z 18+13',
        'write-zeroes z 0+4',
      ],
    },
    {
      name: 'as large as a device gets',
      disks: ['a 8 seed=1'],
      steps: [
        'create z :: 0 9007199254740991 zero',
        'read z 9007199254740990+1',
        'read z 4503599627370490+16',
        'write z 9007199254740980+11 from=0',
        'fails create y :: 0 18014398509481984 zero',
        'fails create y :: 18014398509481983 1 zero',
        'fails create y :: 0 18446744073709551615 zero',
        'table z',
      ],
    },
    {
      name: 'larger than a device gets here',
      disks: ['a 8 seed=1'],
      steps: ['create z :: 0 9007199254740992 zero', 'create y :: 0 18014398509481983 zero'],
    },
  ],
};
