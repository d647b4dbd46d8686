// Cases drawn from a seed: stacks of devices with I/O on all of them, and wrong tables by the dozen.
import { Draw } from './draw.ts';
import { targets } from './targets/index.ts';
import { type Below, type CaseText, type DrawnLine, ERROR_PLACE, ZERO_PLACE } from './targets/target.ts';

/** Sector `s` of disk number `d` is `d * DISK_PITCH + s`. */
const DISK_PITCH = 1_000_000;
const MAX_DEPTH = 3;
const PAYLOAD_RANGE = 15000;

/** A device of a drawn case. */
interface Drawn extends Below {
  /** Its name in a step. */
  name: string;
  depth: number;
  /** Sectors at which a line begins. */
  seams: number[];
}

/** Each as often as its weight says. */
const lineTargets = targets.flatMap(({ drawLine, weight = 1 }) =>
  drawLine === undefined ? [] : Array.from({ length: weight }, () => drawLine),
);

class StackDraw {
  readonly disks: string[] = [];
  readonly steps: string[] = [];
  readonly #draw: Draw;
  readonly #all: Drawn[] = [];
  readonly #mapped: Drawn[] = [];

  constructor(draw: Draw) {
    this.#draw = draw;
    const diskCount = draw.integer(1, 3);
    for (let index = 0; index < diskCount; index++) this.#addDisk(index);
  }

  run(): void {
    const draw = this.#draw;
    const deviceCount = draw.integer(1, 4);
    for (let index = 0; index < deviceCount; index++) {
      this.#addDevice(`d${index}`);
      if (this.#mapped.length > 0) for (let count = draw.integer(1, 4); count > 0; count--) this.#request();
    }
    if (this.#mapped.length > 0 && draw.chance(0.5)) this.#reload();
  }

  #addDisk(index: number): void {
    const draw = this.#draw;
    const name = 'abc'[index]!;
    const large = draw.chance(0.15);
    const sectorCount = large ? draw.integer(2, 40) * 8 : draw.integer(16, 330);
    this.disks.push(`${name} ${sectorCount} seed=${draw.integer(0, 99)}${large ? ' block=4096' : ''}`);
    const places = Int32Array.from({ length: sectorCount }, (_, sector) => (index + 1) * DISK_PITCH + sector);
    this.#all.push({ name, argument: `@${name}`, places, unit: large ? 8 : 1, depth: 0, seams: [] });
  }

  /** Lines that fit on what there is; of depth `deepest` at the most. */
  #drawTable(deepest: number): { text: string; device: Omit<Drawn, 'name' | 'argument'> } | null {
    const draw = this.#draw;
    const below = this.#all.filter((device) => device.depth <= deepest);
    // One large block decides for all lines, else most such tables would be refused.
    const unit = Math.max(...below.map((device) => device.unit));
    const lines: DrawnLine[] = draw
      .times(1, 5, () => draw.item(lineTargets)(draw, below, unit))
      .filter((line) => line !== null);
    if (lines.length === 0) return null;
    const seams: number[] = [];
    let at = 0;
    const text = lines.map((line) => {
      seams.push(at);
      const start = at;
      at += line.places.length;
      return `${start} ${line.text}`;
    });
    const places = new Int32Array(at);
    for (const [index, line] of lines.entries()) places.set(line.places, seams[index]!);
    const depth = 1 + Math.max(...below.map((device) => device.depth));
    return {
      text: text.join('\n'),
      device: { places, unit: Math.max(...lines.map((line) => line.unit)), depth, seams },
    };
  }

  #addDevice(name: string): void {
    const table = this.#drawTable(MAX_DEPTH - 1);
    if (table === null) return;
    const readOnly = this.#draw.chance(0.06) ? ' ro' : '';
    this.steps.push(`create ${name}${readOnly} :: ${table.text}`);
    const device = { ...table.device, name, argument: `/dev/mapper/${name}` };
    // Nothing lies on a read-only device: that is among the differences, and what follows would differ, too.
    if (readOnly === '') this.#all.push(device);
    this.#mapped.push(device);
  }

  /** Another table for the device made last, which nothing lies on. */
  #reload(): void {
    const draw = this.#draw;
    const device = this.#mapped.at(-1)!;
    const at = this.#all.indexOf(device);
    if (at >= 0) this.#all.splice(at, 1);
    const table = this.#drawTable(MAX_DEPTH - 1);
    if (table === null) return;
    if (draw.chance(0.5)) this.steps.push(`suspend ${device.name}`);
    this.steps.push(`load ${device.name}${draw.chance(0.1) ? ' ro' : ''} :: ${table.text}`);
    this.steps.push(
      draw.item([`table ${device.name} inactive`, `info ${device.name}`, `deps ${device.name} inactive`]),
    );
    this.steps.push(`resume ${device.name}`);
    Object.assign(device, table.device);
    for (let count = draw.integer(1, 3); count > 0; count--) this.#request();
  }

  #request(): void {
    const draw = this.#draw;
    const device = draw.chance(0.85) ? draw.item(this.#mapped) : this.#mapped.at(-1)!;
    const kind = draw.item([
      'read',
      'read',
      'write',
      'write',
      'write',
      'discard',
      'write-zeroes',
      'zero-out',
      'query',
      'flush',
    ]);
    if (kind === 'query') this.steps.push(`${draw.item(['table', 'status', 'deps', 'info'])} ${device.name}`);
    else if (kind === 'flush') this.steps.push(`flush ${device.name}`);
    else this.#rangeRequest(device, kind);
  }

  #rangeRequest(device: Drawn, kind: string): void {
    const draw = this.#draw;
    const { unit } = device;
    const size = Math.floor(device.places.length / unit);
    if (size === 0) return;
    // Around a seam is where mistakes show.
    const seam = Math.floor(draw.item(device.seams) / unit);
    const from = draw.chance(0.6) ? Math.max(0, seam - draw.integer(0, 4)) : draw.integer(0, size - 1);
    const count = draw.chance(0.5) ? draw.integer(1, 12) : draw.integer(1, size);
    const sector = Math.min(from, size - 1) * unit;
    const sectorCount = Math.min(count * unit, size * unit - sector);
    const touched = device.places.subarray(sector, sector + sectorCount);
    const range = `${device.name} ${sector}+${sectorCount}`;
    // The order among the pieces of one request is nobody's promise.
    if (kind === 'read' || meetsItself(touched)) this.steps.push(`read ${range}`);
    else if (kind !== 'write') this.steps.push(`${kind} ${range}`);
    else this.steps.push(`write ${range} from=${draw.integer(0, PAYLOAD_RANGE)}${draw.chance(0.2) ? ' fua' : ''}`);
  }
}

/** True where a request reaches one sector of a disk twice. */
function meetsItself(places: Int32Array): boolean {
  const real = places.filter((place) => place !== ZERO_PLACE && place !== ERROR_PLACE);
  return new Set(real).size !== real.length;
}

function drawStack(draw: Draw): { disks: string[]; steps: string[] } {
  for (;;) {
    const stack = new StackDraw(draw);
    stack.run();
    if (stack.steps.length > 0) return stack;
  }
}

const WRONG_LOADS = 6;

const wrongLines = targets.flatMap(({ drawWrongLine, weight = 1 }) =>
  drawWrongLine === undefined ? [] : Array.from({ length: weight }, () => drawWrongLine),
);

/** `@a` has 100 sectors; the wrong line is the first, or comes behind good ones. */
function drawWrongTable(draw: Draw): string {
  const before = draw.chance(0.4)
    ? draw.item(['0 8 zero\n8 ', '0 10 linear @a 0\n10 ', '0 4 error\n4 4 zero\n8 '])
    : '0 ';
  const seam = draw.chance(0.1) ? before.replace(/[0-9]+ $/, `${draw.integer(0, 12)} `) : before;
  const line = draw.item(wrongLines)(draw);
  const lengthWord = draw.chance(0.05) ? draw.item(['0', '-8', '+8', '0x8', '18446744073709551615', '008']) : null;
  const behind = draw.chance(0.15) ? `\n${draw.integer(8, 26)} 8 zero` : '';
  return seam + (lengthWord === null ? line : line.replace(/^[0-9]+/, lengthWord)) + behind;
}

function drawWrong(draw: Draw): { disks: string[]; steps: string[] } {
  const steps: string[] = [];
  const isFirstLoad = draw.chance(0.7);
  for (let index = 0; index < WRONG_LOADS; index++) {
    const name = `w${index}`;
    const readOnly = draw.chance(0.1) ? ' ro' : '';
    // A device that had a table is checked later: what the load lets through shows at the resume.
    if (isFirstLoad) steps.push(`create ${name}${readOnly} :: ${drawWrongTable(draw)}`);
    else {
      if (index === 0) steps.push('create w :: 0 8 zero');
      steps.push(`load w${readOnly} :: ${drawWrongTable(draw)}`, 'resume w', 'table w');
    }
  }
  return { disks: ['a 100 seed=1'], steps };
}

/** Cases number `from` to `from + count` of `seed`: two stacks for each dozen of wrong tables, the groups by turns. */
export function drawnCases(seed: number, count: number): { group: string; text: CaseText }[] {
  return Array.from({ length: count }, (_, index) => {
    const draw = new Draw(seed, index);
    const isWrong = index % 5 === 4;
    const drawn = isWrong ? drawWrong(draw) : drawStack(draw);
    return { group: isWrong ? 'wrong' : 'stacks', text: { name: `${seed}-${index}`, ...drawn } };
  });
}
