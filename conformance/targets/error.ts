// error.
import { ERROR_PLACE, plainLine, type TargetCases } from './target.ts';

export const error: TargetCases = {
  name: 'error',
  drawLine: plainLine('error', ERROR_PLACE),
  drawWrongLine: (draw) =>
    `8 error${draw.item([' 0', ' x y z', ' @a 0', ' /dev/nosuch 0', '\t', ' @a nonsense', '#', '\\', ' @a 999999'])}`,
  cases: [
    {
      name: 'everything fails but a flush',
      disks: ['a 8 seed=1'],
      steps: [
        'create e :: 0 40 error',
        'read e 0+40',
        'write e 3+20 from=0',
        'write e 3+20 from=0 fua',
        'discard e 0+8',
        'write-zeroes e 0+8',
        'zero-out e 0+8',
        'flush e',
        'deps e',
        'table e',
        'status e',
        'fails message e 0 :: hello',
      ],
    },
    {
      name: 'arguments mean nothing',
      disks: ['a 8 seed=1'],
      steps: ['create e :: 0 8 error any thing at all', 'table e', 'create f :: 0 8 error @a 0', 'table f', 'deps f'],
    },
    {
      name: 'the pieces around it are done',
      disks: ['a 64 seed=1', 'b 64 seed=2'],
      steps: [
        'create e :: 0 20 linear @a 0\n20 9 error\n29 20 linear @b 20',
        'write e 15+20 from=0',
        'read e 0+20',
        'read e 0+21',
        'read e 28+2',
        'read e 29+20',
        'zero-out e 18+13',
        'discard e 0+8',
      ],
    },
  ],
};
