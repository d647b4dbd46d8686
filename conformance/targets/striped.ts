// striped.
import type { Draw } from '../draw.ts';
import { type Below, type DrawnLine, ODD_DEVICES, ODD_NUMBERS, type TargetCases } from './target.ts';

interface Leg {
  device: Below;
  offset: number;
}

function drawLegs(draw: Draw, below: readonly Below[], count: number, width: number, own: number): Leg[] | null {
  const legs: Leg[] = [];
  for (let index = 0; index < count; index++) {
    const device = draw.item(below);
    const room = Math.floor((device.places.length - width) / own);
    if (room < 0) return null;
    legs.push({ device, offset: draw.integer(0, room) * own });
  }
  return legs;
}

function drawLine(draw: Draw, below: readonly Below[], unit: number): DrawnLine | null {
  const count = draw.integer(1, 4);
  const own = Math.max(unit, ...below.map((device) => device.unit));
  const chunk = draw.integer(1, own === 1 ? 9 : 2) * own;
  const width = chunk * draw.integer(1, 5);
  const legs = drawLegs(draw, below, count, width, own);
  if (legs === null) return null;
  const places = new Int32Array(width * count);
  for (let sector = 0; sector < places.length; sector++) {
    const at = Math.floor(sector / chunk);
    const { device, offset } = legs[at % count]!;
    places[sector] = device.places[offset + Math.floor(at / count) * chunk + (sector % chunk)]!;
  }
  const words = legs.map(({ device, offset }) => `${device.argument} ${offset}`).join(' ');
  const text = `${places.length} striped ${count} ${chunk} ${words}`;
  return { text, places, unit: Math.max(...legs.map(({ device }) => device.unit)) };
}

function drawWrongLine(draw: Draw): string {
  const offset = draw.integer(0, 40);
  switch (draw.integer(0, 9)) {
    case 0:
      return `16 striped ${draw.item(ODD_NUMBERS)} 4 @a 0 @a 20`;
    case 1:
      return `16 striped 2 ${draw.item(ODD_NUMBERS)} @a 0 @a 20`;
    case 2:
      return `16 striped 2 4 @a ${draw.item(ODD_NUMBERS)} @a 20`;
    case 3:
      return `16 striped 2 4 @a ${offset} ${draw.item(ODD_DEVICES)} 20`;
    case 4:
      return `${draw.integer(1, 40)} striped ${draw.integer(0, 4)} ${draw.integer(0, 9)} @a 0 @a 20`;
    case 5:
      return `16 striped${draw.item(['', ' 2', ' 2 4', ' 2 4 @a', ' 2 4 @a 0', ' 2 4 @a 0 @a', ' 2 4 @a 0 @a 1 @a 2', ' 2 4 @a 0 @a 9 x'])}`;
    case 6:
      return `16 striped 2 4 @a ${draw.integer(85, 110)} @a ${draw.integer(85, 110)}`;
    case 7:
      return `16 striped 1 ${draw.item(['16', '8', '1', '3', '32'])} @a ${offset}`;
    case 8:
      return `24 striped ${draw.item(['+3', '3', '03', '0x3', '3 '])} ${draw.item(['+4', '8', '08', '2'])} @a 0 @a 10 @a 20`;
    default:
      return `16 striped 2 4 ${draw.item(ODD_DEVICES)} ${draw.item(ODD_NUMBERS)} ${draw.item(ODD_DEVICES)} 0`;
  }
}

const ERRORS = Array.from({ length: 9 }, (_, index) => `read s ${index * 8}+8`);

export const striped: TargetCases = {
  name: 'striped',
  drawLine,
  weight: 4,
  drawWrongLine,
  cases: [
    {
      name: 'three stripes of five sectors',
      disks: ['a 200 seed=1', 'b 200 seed=2', 'c 1200 seed=3'],
      steps: [
        'create s :: 0 150 striped 3 5 @a 7 @b 100 @c 1000',
        'read s 0+150',
        'write s 3+40 from=0',
        'discard s 7+30',
        'discard s 12+1',
        'write-zeroes s 50+23',
        'zero-out s 149+1',
        'read s 0+150',
        'table s',
        'status s',
        'deps s',
      ],
    },
    {
      name: 'range operations at every edge of a chunk',
      disks: ['a 64 seed=1', 'b 64 seed=2', 'c 64 seed=3'],
      steps: [
        'create s :: 0 72 striped 3 4 @a 1 @b 2 @c 3',
        ...[3, 4, 5, 11, 12, 13].flatMap((from, index) => [
          `write s 0+72 from=${index * 100}`,
          `discard s ${from}+${[1, 4, 8, 12, 13, 25][index]}`,
          `write-zeroes s ${60 - from}+${[1, 3, 4, 5, 9, 20][index]}`,
          'read s 0+72',
        ]),
      ],
    },
    {
      name: 'one device as every stripe',
      disks: ['a 64 seed=1'],
      steps: [
        'create s :: 0 48 striped 4 3 @a 0 @a 12 @a 24 @a 36',
        'write s 0+48 from=0',
        'discard s 5+22',
        'status s',
        'deps s',
      ],
    },
    {
      name: 'a failing stripe: letters and events',
      disks: ['a 100 seed=1', 'b 100 seed=2'],
      steps: [
        'create bad :: 0 20 linear @b 0\n20 10 error\n30 70 linear @b 30',
        'create s :: 0 160 striped 2 8 @a 0 /dev/mapper/bad 0',
        'status s',
        'read s 0+16',
        'info s',
        'write s 40+8 from=5',
        'status s',
        'info s',
        'read s 40+8',
        'suspend s',
        'resume s',
        'status s',
        'load s :: 0 160 striped 2 8 @a 0 /dev/mapper/bad 0',
        'status s inactive',
        'resume s',
        'status s',
        'info s',
      ],
    },
    {
      name: 'two stripes on one failing device',
      disks: ['a 100 seed=1'],
      steps: [
        'create bad :: 0 64 error',
        'create s :: 0 96 striped 3 8 /dev/mapper/bad 0 @a 0 /dev/mapper/bad 32',
        'read s 8+8',
        'status s',
        'read s 0+8',
        'until s :: DAD',
        'info s',
      ],
    },
    {
      name: 'two pieces of one request fail',
      disks: ['a 100 seed=1'],
      steps: [
        'create bad :: 0 20 linear @a 0\n20 10 error\n30 34 linear @a 20',
        'create s :: 0 80 striped 2 8 @a 60 /dev/mapper/bad 0',
        'write s 32+32 from=5',
        'status s',
        'info s',
      ],
    },
    {
      name: 'no more than fourteen events',
      disks: ['a 100 seed=1'],
      steps: [
        'create bad :: 0 80 error',
        'create s :: 0 80 striped 1 8 /dev/mapper/bad 0',
        ...ERRORS,
        'info s',
        ...ERRORS,
        'info s',
        'write s 0+80 from=0',
        'info s',
      ],
    },
    {
      name: 'stripes of stripes',
      disks: ['a 100 seed=1', 'b 100 seed=2', 'c 100 seed=3'],
      steps: [
        'create low :: 0 90 striped 2 3 @a 4 @b 9',
        'create top :: 0 120 striped 2 5 /dev/mapper/low 10 @c 0',
        'write top 13+77 from=0',
        'discard top 33+44',
        'write-zeroes top 1+7',
        'read low 0+90',
        'deps top',
        'status top',
      ],
    },
    {
      name: 'chunks on blocks of 4096',
      disks: ['a 96 seed=1 block=4096', 'b 96 seed=2'],
      steps: [
        'create s :: 0 96 striped 2 8 @a 0 @b 3',
        'write s 16+32 from=0',
        'discard s 8+24',
        'fails create t :: 0 24 striped 2 3 @a 0 @a 16',
        'create t :: 0 48 striped 2 3 @a 0 @a 24',
        'read s 0+96',
      ],
    },
    {
      name: 'the other side goes on with the disks',
      disks: ['a 100 seed=1', 'b 100 zero'],
      steps: [
        'create s :: 0 120 striped 2 5 @a 3 @b 9',
        'write s 1+100 from=0',
        'discard s 17+40',
        'handover',
        'create s :: 0 120 striped 2 5 @a 3 @b 9',
        'read s 0+120',
        'write s 60+60 from=500',
      ],
    },
  ],
};
