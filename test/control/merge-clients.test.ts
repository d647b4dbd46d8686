// A real NBD client has the overlay open when its merge comes to its end: the client goes on, nothing of either is lost, and
// the overlay goes when the client has gone.

import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { describe, expect, onTestFinished } from 'vitest';
import type { DaemonClient } from '../../src/client/index.ts';
import { itPeer, peer } from '../support/peers.ts';
import { makeRandom, printSeedOnFailure } from '../support/seed.ts';
import { randomBytes } from '../support/tmp.ts';
import { eventually, restoreAll, World } from './kill-support.ts';

const SECTORS = 4096;
const SECTOR_BYTES = 512;
const CHUNK_BYTES = 4096;

const random = makeRandom();

// Takes lines: `read SECTOR`, `write SECTOR BYTE`, `quit`. Answers each with a line.
const CLIENT = `
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
print("open", flush=True)
for line in sys.stdin:
    words = line.split()
    try:
        if words[0] == "read":
            print(h.pread(512, int(words[1]) * 512).hex(), flush=True)
        elif words[0] == "write":
            h.pwrite(bytes([int(words[2])]) * 512, int(words[1]) * 512)
            h.flush()
            print("written", flush=True)
        else:
            h.shutdown()
            break
    except nbd.Error as error:
        print(error.errno, flush=True)
`;

/** libnbd, connected to a device, in a process of its own. */
class LibnbdClient {
  readonly #process;
  readonly #lines: AsyncIterator<string>;

  constructor(uri: string) {
    this.#process = spawn(peer('python3-libnbd'), ['-c', CLIENT, uri], { stdio: ['pipe', 'pipe', 'inherit'] });
    this.#lines = createInterface({ input: this.#process.stdout! })[Symbol.asyncIterator]();
    onTestFinished(() => void this.#process.kill('SIGKILL'));
  }

  async line(): Promise<string> {
    return (await this.#lines.next()).value as string;
  }

  ask(words: string): Promise<string> {
    this.#process.stdin!.write(`${words}\n`);
    return this.line();
  }

  async quit(): Promise<void> {
    this.#process.stdin!.write('quit\n');
    await new Promise((resolve) => this.#process.once('close', resolve));
  }
}

async function opened(client: DaemonClient, name: string): Promise<LibnbdClient> {
  const disk = new LibnbdClient(await client.uri(name));
  expect(await disk.line()).toBe('open');
  return disk;
}

/** An overlay with so many extents that its merge takes a while. @returns what its origin holds when it is merged */
async function filled(client: DaemonClient, world: World): Promise<Buffer> {
  const merged = readFileSync(world.image('a'));
  await client.snapshots.create({ origin: world.image('a'), name: 'v', chunkSectorCount: CHUNK_BYTES / SECTOR_BYTES });
  const { connectNbd } = await import('../../src/nbd/index.ts');
  const disk = await connectNbd(await client.uri('v'));
  const data = randomBytes(CHUNK_BYTES, 7);
  const writes: Promise<void>[] = [];
  for (let at = 0; at < merged.byteLength; at += 2 * CHUNK_BYTES) {
    writes.push(disk.write(at, data));
    data.copy(merged, at);
  }
  await Promise.all(writes);
  await disk.close();
  await eventually(async () => (await client.info('v')).openCount === 0);
  return merged;
}

const sectorOf = (bytes: Buffer, sector: number): string =>
  bytes.subarray(sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES).toString('hex');

describe('a client that opens the overlay while it is merged, and is there at the end', () => {
  for (const ending of ['leaves', 'is cut off by a kill of the daemon'] as const) {
    itPeer(
      ['python3-libnbd'],
      `reads and writes on; when it ${ending} the merge is over, with its writes`,
      async () => {
        printSeedOnFailure();
        const world = new World(['a'], SECTORS);
        const { client, kill } = await world.daemonProcess();
        const merged = await filled(client, world);
        const merging = client.snapshots.merge('v', { deleteCow: true }).then(
          (dropped) => dropped,
          (error: Error) => error,
        );
        await eventually(async () => (await client.table('v'))[0]!.type === 'snapshot-merge');
        const disk = await opened(client, 'v');
        const write = async (): Promise<void> => {
          const sector = Math.floor(random() * SECTORS);
          expect(await disk.ask(`write ${sector} 165`)).toBe('written');
          merged.fill(165, sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES);
        };
        const read = async (): Promise<void> => {
          const sector = Math.floor(random() * SECTORS);
          expect(await disk.ask(`read ${sector}`)).toBe(sectorOf(merged, sector));
        };
        const isMerged = async (): Promise<boolean> => (await client.snapshots.list())[0]?.condition === 'Merged';
        while (!(await isMerged())) {
          await write();
          await read();
        }
        for (let count = 0; count < 20; count++) {
          await write();
          await read();
        }
        expect((await client.list()).map(({ name, openCount }) => [name, openCount])).toEqual([['v', 1]]);
        if (ending === 'leaves') {
          await disk.quit();
          expect(await merging).toMatchObject({ name: 'v', deleted: true });
          expect(await client.list()).toEqual([]);
        } else {
          await kill();
          await merging;
          const next = await world.daemonProcess();
          expect((await restoreAll(next.client)).filter(({ error }) => error !== null)).toEqual([]);
          await expect.poll(() => next.client.list()).toEqual([]);
        }
        await expect.poll(() => Object.keys(world.files())).toEqual(['a.img']);
        expect(readFileSync(world.image('a')).equals(merged)).toBe(true);
      },
    );
  }
});

itPeer(
  ['python3-libnbd'],
  'a client of an overlay that another device merges is told, and the merge ends when it leaves',
  async () => {
    printSeedOnFailure();
    const world = new World(['a'], SECTORS);
    const { client } = await world.daemonProcess();
    await client.create('o', `0 ${SECTORS} snapshot-origin ${world.image('a')}`);
    const merged = await filled(client, world);
    const disk = await opened(client, 'v');
    // By hand: `snapshot merge` would refuse an overlay in use.
    await client.suspend('v');
    await client.load('o', `0 ${SECTORS} snapshot-merge ${world.image('a')} ${world.cow('v')} P 8`);
    await client.resume('o');
    const merging = client.snapshots.merge('v', { deleteCow: true }).then(
      (dropped) => dropped,
      (error: Error) => error,
    );
    await expect
      .poll(async () => (await client.snapshots.list()).map(({ condition }) => condition))
      .toContain('Merged');
    expect((await client.list()).map(({ name }) => name).sort()).toEqual(['o', 'v']);
    await disk.quit();
    expect(await merging).toMatchObject({ name: 'v', deleted: true });
    expect((await client.list()).map(({ name }) => name)).toEqual(['o']);
    expect((await client.table('o'))[0]!.type).toBe('snapshot-origin');
    expect(readFileSync(world.image('a')).equals(merged)).toBe(true);
  },
);
