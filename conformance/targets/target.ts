// What a target brings to the conformance run: one file in this folder, one line in index.ts.
import type { Draw } from '../draw.ts';

/** A case as it is written down; see docs/conformance.md for the words. */
export interface CaseText {
  /** Without the group, which is the target's name. */
  name: string;
  disks: readonly string[];
  steps: readonly string[];
}

/** No sector below: reads give zeros. */
export const ZERO_PLACE = -1;
/** No sector below: everything fails. */
export const ERROR_PLACE = -2;

/** A device that a drawn line can lie on. */
export interface Below {
  /** As a table names it. */
  argument: string;
  /** For each of its sectors the one on a disk where it ends up: two sectors with the same number are one. */
  places: Int32Array;
  /** Sectors of its logical blocks: 1 or 8. */
  unit: number;
}

/** A line that fits, as drawn: what follows START in a table. */
export interface DrawnLine {
  /** `LENGTH TYPE PARAMETERS`. */
  text: string;
  places: Int32Array;
  unit: number;
}

export interface TargetCases {
  /** The group, and the name of its recorded file. */
  name: string;
  cases: readonly CaseText[];
  /** A line for random stacks, all numbers multiples of `unit`; null where what is below is too small for it. */
  drawLine?: (draw: Draw, below: readonly Below[], unit: number) => DrawnLine | null;
  /** How often its line is drawn, against 1 for the others. */
  weight?: number;
  /** `LENGTH TYPE PARAMETERS` with something wrong, or with something odd that is right. `@a` has 100 sectors. */
  drawWrongLine?: (draw: Draw) => string;
  /** Cases of the target's own, as many as wanted. */
  drawCases?: (draw: (index: number) => Draw, count: number) => CaseText[];
}

/** {@link TargetCases.drawLine} of a target without arguments. */
export function plainLine(type: string, place: number) {
  return (draw: Draw, _below: unknown, unit: number): DrawnLine => {
    const length = draw.integer(1, unit === 1 ? 40 : 5) * unit;
    return { text: `${length} ${type}`, places: new Int32Array(length).fill(place), unit: 1 };
  };
}

/** Number words that parsers disagree about. */
export const ODD_NUMBERS: readonly string[] = [
  '-1',
  '+1',
  '+0',
  '-0',
  '--1',
  '+',
  '0x10',
  '0x0',
  '010',
  '0008',
  '1z',
  'z',
  '1.5',
  '1e3',
  '1_0',
  '1,',
  '18446744073709551615',
  '18446744073709551616',
  '18446744073709551621',
  '36893488147419103237',
  '99999999999999999999999999',
  '9223372036854775807',
  '9223372036854775808',
  '9007199254740991',
  '9007199254740992',
  '4294967295',
  '4294967296',
  '4294967297',
  '2147483648',
];

/** Words that stand where a device should and name none, or name it in an odd way. */
export const ODD_DEVICES: readonly string[] = [
  '/dev/nosuch',
  'nosuch',
  '/dev/null',
  '/dev',
  '/',
  '@a/',
  '7:99',
  '254:9999',
  '0:0',
  '999:1',
  '4096:1',
  '1:1048576',
  '99999999999:1',
  '254:',
  ':16',
  '254:9999:1',
  '254:9999x',
  '-1:0',
  '/dev/mapper/nosuch',
  '/dev/mapper/',
  '253:77',
  'dead',
];
