// linear.
import type { Draw } from '../draw.ts';
import { type Below, type DrawnLine, ODD_DEVICES, ODD_NUMBERS, type TargetCases } from './target.ts';

function drawLine(draw: Draw, below: readonly Below[], unit: number): DrawnLine | null {
  const device = draw.item(below);
  const own = Math.max(unit, device.unit);
  const room = Math.floor(device.places.length / own);
  if (room === 0) return null;
  const length = draw.integer(1, Math.min(room, 80)) * own;
  const offset = draw.integer(0, room - length / own) * own;
  const places = device.places.slice(offset, offset + length);
  return { text: `${length} linear ${device.argument} ${offset}`, places, unit: device.unit };
}

function drawWrongLine(draw: Draw): string {
  switch (draw.integer(0, 5)) {
    case 0:
      return `8 linear @a ${draw.item(ODD_NUMBERS)}`;
    case 1:
      return `8 linear ${draw.item(ODD_DEVICES)} ${draw.integer(0, 90)}`;
    case 2:
      return `8 linear${draw.item(['', ' ', ' @a', ' @a 0 0', ' @a 0 extra', ' 0', ' 0 @a', ' @a\t0', '\t@a  0 '])}`;
    case 3:
      return `${draw.integer(90, 120)} linear @a ${draw.integer(0, 20)}`;
    case 4:
      return `${draw.integer(1, 8)} linear @a ${draw.integer(92, 110)}`;
    default:
      return `8 ${draw.item(['Linear', 'LINEAR', 'linea', 'linearr', 'linear#', 'linear,'])} @a 0`;
  }
}

export const linear: TargetCases = {
  name: 'linear',
  drawLine,
  weight: 4,
  drawWrongLine,
  cases: [
    {
      name: 'one disk, from its middle',
      disks: ['a 100 seed=1'],
      steps: [
        'create x :: 0 60 linear @a 17',
        'read x 0+60',
        'write x 0+60 from=0',
        'write x 59+1 from=99',
        'write x 7+13 from=300 fua',
        'read a 0+100',
        'flush x',
        'deps x',
        'info x',
      ],
    },
    {
      name: 'two disks joined',
      disks: ['a 33 seed=1', 'b 57 seed=2'],
      steps: [
        'create x :: 0 33 linear @a 0\n33 57 linear @b 0',
        'write x 30+6 from=10',
        'discard x 20+40',
        'write-zeroes x 31+3',
        'zero-out x 1+3',
        'read x 0+90',
        'deps x',
      ],
    },
    {
      name: 'pieces in another order, one sector each',
      disks: ['a 16 seed=3'],
      steps: [
        `create x :: ${Array.from({ length: 16 }, (_, i) => `${i} 1 linear @a ${15 - i}`).join('\n')}`,
        'read x 0+16',
        'write x 3+9 from=40',
        'discard x 2+3',
        'table x',
      ],
    },
    {
      name: 'the last sector and one past it',
      disks: ['a 100 seed=1'],
      steps: [
        'create x :: 0 1 linear @a 99',
        'write x 0+1 from=5',
        'fails create y :: 0 1 linear @a 100',
        'fails create y :: 0 2 linear @a 99',
        'fails create y :: 0 101 linear @a 0',
        'create y :: 0 100 linear @a 0',
      ],
    },
    {
      name: 'an offset past 2^64 wraps',
      disks: ['a 100 seed=1'],
      steps: [
        'create x :: 0 8 linear @a 18446744073709551621',
        'table x',
        'write x 0+8 from=64',
        'create y :: 0 8 linear @a 000000000000000000000000000000000007',
        'table y',
      ],
    },
    {
      name: 'three levels',
      disks: ['a 100 seed=1', 'b 100 seed=2'],
      steps: [
        'create low :: 0 50 linear @a 10\n50 50 linear @b 10',
        'create mid :: 0 80 linear /dev/mapper/low 11',
        'create top :: 0 40 linear /dev/mapper/mid 33\n40 5 linear 253:0 0',
        'write top 0+45 from=100',
        'read low 0+100',
        'deps top',
        'deps mid',
        'info low',
        'info mid',
        'fails remove low',
        'fails remove mid',
        'discard top 3+9',
        'zero-out top 39+3',
      ],
    },
    {
      name: 'the other side goes on with the disks',
      disks: ['a 200 seed=1', 'b 200 zero'],
      steps: [
        'create x :: 0 90 linear @a 7\n90 100 linear @b 3',
        'write x 80+30 from=0',
        'discard x 5+10',
        'handover',
        'create y :: 0 200 linear @b 0\n200 200 linear @a 0',
        'read y 0+400',
        'write y 195+10 from=700',
        'handover',
        'create z :: 0 190 linear @a 0',
        'read z 0+190',
        'write-zeroes z 9+9',
      ],
    },
    {
      name: 'a line on blocks of 4096',
      disks: ['b 96 seed=2 block=4096'],
      steps: [
        'create x :: 0 80 linear @b 16',
        'write x 8+16 from=0',
        'discard x 16+8',
        'write-zeroes x 40+8',
        'read x 0+80',
        'fails create y :: 0 8 linear @b 1',
        'fails create y :: 0 7 linear @b 0',
        'fails create y :: 0 8 linear @b 96',
      ],
    },
  ],
};
