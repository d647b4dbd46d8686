// Connections over real sockets, which the server reads and writes by itself: any requests, cut anywhere, against a
// model; and what they may keep of the server's memory and of its turns.
import fc from 'fast-check';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { Errno } from '../../src/block/errno.ts';
import { MemoryDevice } from '../../src/devices/memory.ts';
import { makeRandom, runs } from '../support/seed.ts';
import { HeldDevice, pattern } from './support.ts';
import { loopTurn, type ReplyKind, type SocketKind, socketLibrary, WireClient, WireServer } from './wire-client.ts';

const [READ, WRITE, DISC, FLUSH, TRIM, ZEROES] = [0, 1, 2, 3, 4, 6];
const MIB = 1 << 20;
const SIZE = 12 * MIB;

afterEach(() => {
  vi.restoreAllMocks();
});

/** Ends what it has in any order, some of it in each turn of the loop. */
class LateDevice extends HeldDevice {
  readonly #random: () => number;
  #isAwake = false;

  constructor(sectorCount: number, start: number) {
    super(sectorCount, { maxDiscardSectorCount: 2 ** 32 - 1, maxWriteZeroesSectorCount: 2 ** 32 - 1 });
    this.#random = makeRandom(start);
  }

  override submit(bio: Parameters<HeldDevice['submit']>[0]): void {
    super.submit(bio);
    if (this.#isAwake) return;
    this.#isAwake = true;
    setImmediate(this.#turn);
  }

  readonly #turn = (): void => {
    let count = Math.floor(this.#random() * 4);
    while (count-- > 0 && this.bios.length > 0) this.finish(Math.floor(this.#random() * this.bios.length));
    this.#isAwake = this.bios.length > 0;
    if (this.#isAwake) setImmediate(this.#turn);
  };
}

interface Step {
  command: 'read' | 'write' | 'refused' | 'trim' | 'zeroes' | 'flush';
  gap: number;
  byteLength: number;
  isAligned: boolean;
  fua: boolean;
  order: number;
}

const byteLengths = fc.oneof(
  { weight: 4, arbitrary: fc.integer({ min: 1, max: 1200 }) },
  { weight: 4, arbitrary: fc.integer({ min: 1, max: 16_000 }) },
  { weight: 2, arbitrary: fc.integer({ min: 30_000, max: 300_000 }) },
  { weight: 1, arbitrary: fc.integer({ min: MIB - 700, max: 3 * MIB }) },
);

const steps: fc.Arbitrary<Step> = fc.record({
  command: fc.constantFrom('read', 'read', 'write', 'write', 'write', 'refused', 'trim', 'zeroes', 'flush'),
  gap: fc.integer({ min: 0, max: 3000 }),
  byteLength: byteLengths,
  isAligned: fc.boolean(),
  fua: fc.boolean(),
  order: fc.nat(1000),
});

/** How a round's bytes are cut: lengths, and after which of them the client waits for how many turns. */
const cuts = fc.array(
  fc.record({
    byteLength: fc.oneof(
      fc.integer({ min: 1, max: 40 }),
      fc.integer({ min: 1, max: 3000 }),
      fc.integer({ min: 1, max: MIB }),
    ),
    turnCount: fc.nat(3),
  }),
  { maxLength: 40 },
);

const scripts = fc.record({
  socket: fc.constantFrom<SocketKind>('unix', 'tcp'),
  replies: fc.constantFrom<ReplyKind>('simple', 'structured', 'extended'),
  isLate: fc.boolean(),
  start: fc.nat(),
  rounds: fc.array(fc.record({ steps: fc.array(steps, { minLength: 1, maxLength: 24 }), cuts }), {
    minLength: 1,
    maxLength: 4,
  }),
  /** Small, so that requests wait for memory and for one another. */
  maxConnectionByteLength: fc.constantFrom(1, 100_000, 2 * MIB, 64 * MIB),
  maxConnectionRequestCount: fc.constantFrom(1, 3, 256),
  goodbye: fc.constantFrom('disc', 'end', 'destroy'),
});

type Script = typeof scripts extends fc.Arbitrary<infer T> ? T : never;

interface Asked {
  command: Step['command'];
  offset: number;
  byteLength: number;
  data: Uint8Array | null;
  fua: boolean;
  order: number;
}

/** The ranges of one round's requests don't touch each other's bytes: they may be done in any order. */
function placeSteps(list: readonly Step[], start: number): Asked[] {
  const asked: Asked[] = [];
  let at = 0;
  for (const [index, step] of list.entries()) {
    let offset = at + step.gap;
    let { byteLength } = step;
    if (step.isAligned) {
      offset = (offset + 511) & ~511;
      byteLength = (byteLength + 511) & ~511;
    }
    if (offset + byteLength > SIZE) break;
    const isRefused = step.command === 'refused';
    const data = step.command === 'write' || isRefused ? pattern(byteLength, start + index) : null;
    asked.push({
      ...step,
      offset: isRefused ? SIZE - 1 : offset,
      byteLength: isRefused ? byteLength + 1 : byteLength,
      data,
    });
    if (isRefused) asked[asked.length - 1]!.data = pattern(byteLength + 1, start + index);
    if (!isRefused && step.command !== 'flush') at = offset + byteLength;
  }
  return asked.sort((a, b) => a.order - b.order);
}

const COMMANDS = { read: READ, write: WRITE, refused: WRITE, trim: TRIM, zeroes: ZEROES, flush: FLUSH };

async function sendCut(client: WireClient, bytes: Buffer, list: Script['rounds'][number]['cuts']): Promise<void> {
  let offset = 0;
  for (const { byteLength, turnCount } of list) {
    if (offset >= bytes.byteLength) return;
    client.socket.write(bytes.subarray(offset, offset + byteLength));
    offset += byteLength;
    for (let i = 0; i < turnCount; i++) await loopTurn();
  }
  if (offset < bytes.byteLength) client.socket.write(bytes.subarray(offset));
}

async function runRound(
  client: WireClient,
  model: Buffer,
  round: Script['rounds'][number],
  start: number,
): Promise<void> {
  const asked = placeSteps(round.steps, start);
  const expected = new Map<number, { offset: number; readLength: number }>();
  const messages = asked.map((one, cookie) => {
    const { command, offset, byteLength, data, fua } = one;
    expected.set(cookie, { offset, readLength: command === 'read' ? byteLength : -1 });
    const length = command === 'flush' ? 0 : byteLength;
    return client.encode({
      type: COMMANDS[command],
      flags: fua ? 1 : 0,
      cookie,
      offset: command === 'flush' ? 0 : offset,
      ...(data === null ? { length } : { data }),
    });
  });
  const sent = sendCut(client, Buffer.concat(messages), round.cuts);
  const replies = await client.readReplies(expected);
  await sent;
  for (const [cookie, { command, offset, byteLength, data }] of asked.entries()) {
    const { error, data: got } = replies[cookie]!;
    expect([command, error]).toEqual([command, command === 'refused' ? Errno.ENOSPC : 0]);
    const end = offset + byteLength;
    if (command === 'read') expect(model.subarray(offset, end).equals(got!)).toBe(true);
    if (command === 'write') model.set(data!, offset);
    if (command === 'zeroes') model.fill(0, offset, end);
    if (command === 'trim') await afterTrim(client, model, offset, byteLength);
  }
}

/** Each byte is what it was, or zero. */
async function afterTrim(client: WireClient, model: Buffer, offset: number, byteLength: number): Promise<void> {
  const { data } = await client.ask({ type: READ, offset, length: byteLength });
  expect(data!.every((byte, i) => byte === 0 || byte === model[offset + i])).toBe(true);
  model.set(data!, offset);
}

async function runScript(script: Script): Promise<void> {
  try {
    await tryScript(script);
  } catch (error) {
    process.stderr.write(`${(error as Error).stack}\n`);
    throw error;
  }
}

async function tryScript(script: Script): Promise<void> {
  const device = script.isLate ? new LateDevice(SIZE / 512, script.start) : new MemoryDevice('disk', SIZE / 512);
  const { maxConnectionByteLength, maxConnectionRequestCount } = script;
  const wire = await WireServer.start(device, script.socket, { maxConnectionByteLength, maxConnectionRequestCount });
  const client = await WireClient.open(wire, script.replies);
  const model = Buffer.alloc(SIZE);
  for (const [index, round] of script.rounds.entries())
    await runRound(client, model, round, script.start + index * 100);
  for (let offset = 0; offset < SIZE; offset += 4 * MIB) {
    const { data } = await client.ask({ type: READ, offset, length: 4 * MIB });
    expect(model.subarray(offset, offset + 4 * MIB).equals(data!)).toBe(true);
  }
  expect(client.unreadByteLength).toBe(0);
  if (script.goodbye === 'disc') client.socket.end(client.encode({ type: DISC }));
  else if (script.goodbye === 'end') client.socket.end();
  else client.socket.destroy();
  await wire.expectEmpty();
  expect(wire.errors).toEqual([]);
}

describe('any requests, cut anywhere', () => {
  it('over sockets that the server reads by itself', async () => {
    const library = socketLibrary();
    const receive = vi.spyOn(library, 'receive');
    await fc.assert(
      fc.asyncProperty(scripts, async (script) => {
        const before = receive.mock.calls.length;
        await runScript(script);
        expect(receive.mock.calls.length).toBeGreaterThan(before);
      }),
      { numRuns: runs(40), endOnFailure: true },
    );
  });

  it("over Node's streams, where no descriptor is left", async () => {
    await fc.assert(
      fc.asyncProperty(scripts, async (script) => {
        vi.spyOn(socketLibrary(), 'duplicate').mockReturnValue(-Errno.EMFILE);
        await runScript(script);
      }),
      { numRuns: runs(15), endOnFailure: true },
    );
  });
});
