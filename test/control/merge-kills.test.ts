// SIGKILL at random moments in merges, again and again in the same one, while a client writes to the origin's device and
// another reads a second overlay of the same origin. The next daemon's restore goes on with the merge. At each moment the
// origin's device shows the merged content and what the client wrote, and the second overlay no byte of either.
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, onTestFinished, test } from 'vitest';
import type { DaemonClient } from '../../src/client/index.ts';
import { connectNbd, type NbdConnection } from '../../src/nbd/index.ts';
import { makeRandom, printSeedOnFailure, runs, seed } from '../support/seed.ts';
import { randomBytes } from '../support/tmp.ts';
import { restoreAll, World } from './kill-support.ts';

const SECTOR_BYTES = 512;
const CHUNK_BYTES = 4096;
const SECTORS = 16_384;
const BYTES = SECTORS * SECTOR_BYTES;
const PIECE_BYTES = 1 << 19;
const MAX_KILL_MILLISECONDS = 400;
const KILL_COUNT = runs(3);

const random = makeRandom();
const below = (end: number): number => Math.floor(random() * end);

/** Sectors of a device, some of which may hold one of several contents: a write that was not flushed is old or new. */
class Expected {
  readonly bytes: Buffer;
  readonly #unsure = new Map<number, Buffer[]>();

  constructor(bytes: Buffer) {
    this.bytes = Buffer.from(bytes);
  }

  writing(sector: number, data: Buffer): void {
    this.#unsure.set(sector, [...(this.#unsure.get(sector) ?? []), data]);
  }

  /** The last content of each sector is flushed. */
  flushed(sectors: Iterable<number>): void {
    for (const sector of sectors) {
      this.#unsure
        .get(sector)
        ?.at(-1)
        ?.copy(this.bytes, sector * SECTOR_BYTES);
      this.#unsure.delete(sector);
    }
  }

  /** How many bytes of `found` are wrong; what it shows in unsure sectors is what they hold from now on. */
  wrongByteCount(found: Buffer, offset = 0): number {
    const expected = this.bytes.subarray(offset, offset + found.byteLength);
    if (found.equals(expected)) return 0;
    let count = 0;
    for (let at = 0; at < found.byteLength; at += SECTOR_BYTES) {
      const sector = found.subarray(at, at + SECTOR_BYTES);
      const right = expected.subarray(at, at + SECTOR_BYTES);
      if (sector.equals(right)) continue;
      const other = this.#unsure.get((offset + at) / SECTOR_BYTES)?.find((one) => one.equals(sector));
      if (other === undefined) count += sector.reduce((sum, byte, index) => sum + (byte === right[index] ? 0 : 1), 0);
    }
    return count;
  }

  /** Nothing that was under way can arrive any more: what is there stays. @returns how many bytes are wrong */
  settle(found: Buffer): number {
    const count = this.wrongByteCount(found);
    for (const sector of this.#unsure.keys()) {
      const at = sector * SECTOR_BYTES;
      if (count === 0) found.copy(this.bytes, at, at, at + SECTOR_BYTES);
    }
    if (count === 0) this.#unsure.clear();
    return count;
  }
}

/** A sector that tells its place and the number of its write. */
function numbered(sector: number, number: number): Buffer {
  const data = Buffer.alloc(SECTOR_BYTES);
  for (let at = 0; at < SECTOR_BYTES; at += 8) {
    data.writeUInt32LE(sector, at);
    data.writeUInt32LE(number, at + 4);
  }
  return data;
}

async function opened<T>(client: DaemonClient, name: string, use: (disk: NbdConnection) => Promise<T>): Promise<T> {
  const disk = await connectNbd(await client.uri(name));
  try {
    return await use(disk);
  } finally {
    await disk.close();
  }
}

/** Writes random content to every second chunk of an overlay, or to a few: each is an extent of its own in a merge. */
async function fill(client: DaemonClient, name: string, into: Buffer, step: number): Promise<void> {
  const data = randomBytes(CHUNK_BYTES, seed + below(1 << 20));
  await opened(client, name, async (disk) => {
    const writes: Promise<void>[] = [];
    for (let at = 0; at < BYTES; at += step * CHUNK_BYTES) {
      data.writeUInt32LE(at, 0);
      data.copy(into, at);
      writes.push(disk.write(at, Buffer.from(data)));
    }
    await Promise.all(writes);
    await disk.flush();
  });
}

/** Two overlays of one image, and what its devices must show. */
class Merge {
  readonly world = new World(['a'], SECTORS);
  readonly origin: Expected;
  readonly other: Expected;
  /** Counted and not thrown: what is thrown beside a kill may be the kill's. */
  wrongByteCount = 0;
  readonly #mapped: boolean;
  #number = 0;

  constructor(mapped: boolean) {
    this.#mapped = mapped;
    const image = readFileSync(this.world.image('a'));
    this.origin = new Expected(image);
    this.other = new Expected(image);
  }

  async prepare(client: DaemonClient): Promise<void> {
    const { world } = this;
    if (this.#mapped) await client.create('o', `0 ${SECTORS} snapshot-origin ${world.image('a')}`);
    for (const name of ['other', 'v']) {
      await client.snapshots.create({ origin: world.image('a'), name, chunkSectorCount: CHUNK_BYTES / SECTOR_BYTES });
    }
    await fill(client, 'v', this.origin.bytes, 2);
    await fill(client, 'other', this.other.bytes, 37);
    await expect.poll(async () => (await client.info('v')).openCount).toBe(0);
  }

  /** Clients' work until `isOver`. Fails with what a client is told when the daemon dies. */
  async use(client: DaemonClient, isOver: () => boolean): Promise<void> {
    const work = [opened(client, 'other', (disk) => this.#read(disk, isOver))];
    if (this.#mapped) work.push(opened(client, 'o', (disk) => this.#write(disk, isOver)));
    const results = await Promise.allSettled(work);
    for (const result of results) if (result.status === 'rejected') throw result.reason;
  }

  async #read(disk: NbdConnection, isOver: () => boolean): Promise<void> {
    for (let at = below(BYTES / PIECE_BYTES) * PIECE_BYTES; !isOver(); at = (at + PIECE_BYTES) % BYTES) {
      const found = await disk.read(at, PIECE_BYTES);
      this.wrongByteCount += this.other.wrongByteCount(found, at);
    }
  }

  async #write(disk: NbdConnection, isOver: () => boolean): Promise<void> {
    const found = await disk.read(0, BYTES);
    this.wrongByteCount += this.origin.settle(found);
    while (!isOver()) {
      const sectors = new Set(Array.from({ length: 8 }, () => below(SECTORS)));
      const writes = Array.from(sectors, (sector) => {
        const data = numbered(sector, ++this.#number);
        this.origin.writing(sector, data);
        return disk.write(sector * SECTOR_BYTES, data);
      });
      for (const result of await Promise.allSettled(writes)) if (result.status === 'rejected') throw result.reason;
      await disk.flush();
      this.origin.flushed(sectors);
    }
  }

  /** Everything, when the merge has come to its end. */
  async check(client: DaemonClient): Promise<void> {
    const { world } = this;
    expect((await client.list()).map(({ name }) => name)).toEqual(this.#mapped ? ['o', 'other'] : ['other']);
    if (this.#mapped) {
      const [line] = await client.table('o');
      expect(line!.type).toBe('snapshot-origin');
      const found = await opened(client, 'o', (disk) => disk.read(0, BYTES));
      this.wrongByteCount += this.origin.settle(found);
    }
    const other = await opened(client, 'other', (disk) => disk.read(0, BYTES));
    this.wrongByteCount += this.other.wrongByteCount(other);
    this.wrongByteCount += this.origin.wrongByteCount(readFileSync(world.image('a')));
    expect(world.leftovers()).toEqual([]);
  }
}

/** One merge to its end, killed at random moments. @returns how many kills came before the end */
async function killedMerge(mapped: boolean, maxKillCount: number): Promise<number> {
  const merge = new Merge(mapped);
  for (let killCount = 0, round = 0; ; round++) {
    const daemon = await merge.world.daemonProcess();
    const { client } = daemon;
    if (round === 0) await merge.prepare(client);
    let isKilled = false;
    let isOver = false;
    const gone = (error: unknown): null => {
      if (!isKilled) throw error;
      return null;
    };
    const work = async (): Promise<'ended' | null> => {
      if (round > 0) {
        const failed = (await restoreAll(client)).filter(({ error }) => error !== null);
        if (!isKilled) expect(failed).toEqual([]);
      }
      const ended = client.snapshots.merge('v').then(
        () => 'ended' as const,
        (error: { code?: string }) => {
          // Restored, it went on by itself, and has come to its end meanwhile.
          if (round > 0 && error.code === 'ENXIO') return 'ended' as const;
          return gone(error);
        },
      );
      const using = merge.use(client, () => isOver).catch(gone);
      // A client that fails without a kill is told at once.
      const first = await Promise.race([ended, using.then(() => ended)]);
      isOver = true;
      await using;
      return first;
    };
    const working = work().catch(gone);
    if (killCount < maxKillCount) {
      const moment = sleep(below(MAX_KILL_MILLISECONDS));
      const early = await Promise.race([moment, working]);
      if (early !== 'ended') {
        isKilled = true;
        await daemon.kill();
        // Where it ended in the same moment the next daemon shows so.
        if ((await working) === null) killCount++;
        expect(merge.wrongByteCount).toBe(0);
        continue;
      }
    }
    expect(await working).toBe('ended');
    await merge.check(client);
    expect(merge.wrongByteCount).toBe(0);
    await daemon.kill();
    return killCount;
  }
}

describe('a merge beside a second overlay, whose daemon is killed at random moments, loses nothing and shows it nothing', () => {
  for (const mapped of [true, false]) {
    test(mapped ? 'in the device of the origin, under a writer' : 'by itself', async () => {
      printSeedOnFailure();
      let killCount = 0;
      let mergeCount = 0;
      onTestFinished(() => console.log(`${killCount} kills in ${mergeCount} merges, seed ${seed}`));
      while (killCount < KILL_COUNT) {
        killCount += await killedMerge(mapped, Math.min(1 + below(20), KILL_COUNT - killCount));
        mergeCount++;
      }
    });
  }
});
