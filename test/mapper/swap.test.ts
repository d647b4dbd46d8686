// Tables are swapped under running requests: none is lost, none is done twice, and requests to one sector keep their order.
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { type Bio, REQ_OP_READ, REQ_OP_WRITE } from '../../src/block/bio.ts';
import type { MappedDevice, StateChange } from '../../src/mapper/mapped-device.ts';
import { activate, mapperOver, RecordingDevice, submit } from '../support/stack.ts';

const SECTORS = 16;
/** All tables below put a sector at the same place, so that swapping them must not show. */
const TABLES = [
  '0 16 linear a 0',
  '0 4 linear a 0\n4 12 linear a 4',
  '0 8 linear a 0\n8 8 linear /dev/mapper/low 8',
  '0 16 linear /dev/mapper/low 0',
];

type Step =
  | { kind: 'write' | 'read'; sector: number; count: number }
  | { kind: 'suspend'; noflush: boolean }
  | { kind: 'load'; table: number }
  | { kind: 'finish'; pick: number }
  | { kind: 'resume' | 'cancel' | 'suspend low' | 'resume low' | 'clear' };

const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      kind: fc.constantFrom('write' as const, 'read' as const),
      sector: fc.nat(SECTORS - 1),
      count: fc.integer({ min: 1, max: 6 }),
    }),
  },
  { weight: 5, arbitrary: fc.record({ kind: fc.constant('finish' as const), pick: fc.nat(20) }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('load' as const), table: fc.nat(TABLES.length - 1) }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('suspend' as const), noflush: fc.boolean() }) },
  {
    weight: 4,
    arbitrary: fc.record({
      kind: fc.constantFrom(
        'resume' as const,
        'resume' as const,
        'cancel' as const,
        'suspend low' as const,
        'resume low' as const,
        'clear' as const,
      ),
    }),
  },
);

interface Issued {
  bio: Bio & { ended: boolean };
  endCount: number;
  data: Uint8Array;
  step: { sector: number; count: number; kind: string };
}

class Run {
  readonly a = new RecordingDevice('a', SECTORS);
  readonly issued: Issued[] = [];
  readonly changes: StateChange[] = [];
  readonly device: MappedDevice;
  readonly low: MappedDevice;
  readonly #mapper = mapperOver(this.a).mapper;
  /** Sectors that a request which has not ended touches: a second one there would have no order. */
  readonly #busy = new Set<number>();
  readonly #model = new Uint8Array(SECTORS);
  #writes = 0;

  constructor() {
    this.low = activate(this.#mapper, 'low', '0 16 linear a 0');
    this.device = activate(this.#mapper, 'd', TABLES[0]!);
    this.a.hold = true;
  }

  do(next: Step): void {
    if ('sector' in next) this.#issue(next.kind, next.sector, Math.min(next.count, SECTORS - next.sector));
    else if (next.kind === 'finish') this.#finish(next.pick);
    else if (next.kind === 'load') this.#mapper.load(this.device, TABLES[next.table]!);
    else if (next.kind === 'suspend') this.changes.push(this.device.suspend({ noflush: next.noflush }, () => {}));
    else if (next.kind === 'resume') this.changes.push(this.device.resume({}, () => {}));
    else if (next.kind === 'cancel') this.changes.pop()?.cancel();
    else if (next.kind === 'clear') this.device.clear();
    else if (next.kind === 'suspend low') this.low.suspend({}, () => {});
    else this.low.resume({}, () => {});
  }

  #issue(kind: string, sector: number, count: number): void {
    for (let at = sector; at < sector + count; at++) if (this.#busy.has(at)) return;
    for (let at = sector; at < sector + count; at++) this.#busy.add(at);
    const data = new Uint8Array(count * 512);
    if (kind === 'write') {
      this.#writes = (this.#writes % 255) + 1;
      data.fill(this.#writes);
      this.#model.fill(this.#writes, sector, sector + count);
    }
    const issued: Issued = { bio: null as never, endCount: 0, data, step: { sector, count, kind } };
    this.issued.push(issued);
    issued.bio = submit(this.device, kind === 'write' ? REQ_OP_WRITE : REQ_OP_READ, sector, count, { data });
    // The bottom device holds everything, so it has not ended yet.
    issued.bio.onEnd = (bio) => this.#ended(issued, bio);
  }

  #ended(issued: Issued, bio: Bio): void {
    issued.endCount++;
    const { sector, count, kind } = issued.step;
    expect(bio.status).toBe(0);
    for (let at = 0; at < count; at++) {
      this.#busy.delete(sector + at);
      if (kind === 'read') expect(issued.data[at * 512]).toBe(this.#model[sector + at]);
    }
  }

  #finish(pick: number): void {
    const [bio] = this.a.held.splice(pick % Math.max(1, this.a.held.length), 1);
    if (bio !== undefined) this.a.finish(bio);
  }

  /** Lets everything through, and looks whether everything came. */
  end(): void {
    for (let round = 0; round < 100; round++) {
      this.low.resume({}, () => {});
      this.device.resume({}, () => {});
      this.a.release();
    }
    for (const { endCount, step: what } of this.issued) expect([endCount, what]).toEqual([1, what]);
    expect([this.device.inFlightCount, this.device.suspended]).toEqual([0, false]);
    expect([...this.#model]).toEqual(Array.from({ length: SECTORS }, (_, sector) => this.a.bytes[sector * 512]));
  }
}

test('any mix of requests, suspends, loads, resumes and interruptions: each request ends once, with the right data', () => {
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
      const run = new Run();
      for (const next of steps) run.do(next);
      run.end();
    }),
    { numRuns: 500 },
  );
});
