// Eight clients write and verify while the tables below them are reloaded, suspended, resumed and renamed at random.
// DMKIT_RUNS makes it longer. After it the daemon's memory and open files are where they began.
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, onTestFinished, test } from 'vitest';
import type { DaemonClient } from '../../src/client/index.ts';
import { DaemonFolder } from '../../src/daemon/folder.ts';
import { connectNbd } from '../../src/nbd/index.ts';
import { itPeer, peer } from '../support/peers.ts';
import { run, start } from '../support/process.ts';
import { makeRandom, printSeedOnFailure, runs, seed } from '../support/seed.ts';
import { makeImage, tempDir } from '../support/tmp.ts';
import { clientOf } from './support.ts';

const main = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));
const CLIENTS = 8;
const CLIENT_SECTORS = 256;
const SECTORS = CLIENTS * CLIENT_SECTORS;
const SECONDS = runs(8);
const LIMIT_MS = SECONDS * 1000 + 100_000;

/** A daemon of its own, so that it has a processor of its own. */
async function daemon(): Promise<{ pid: number; client: DaemonClient; image: string }> {
  const base = tempDir('s');
  const image = join(base, 'a.img');
  makeImage(image, SECTORS);
  const folder = new DaemonFolder(join(base, 'd'));
  const options = { env: { DMKIT_DIR: folder.path }, ready: /listening/, timeoutSeconds: LIMIT_MS / 1000 };
  const started = await start(process.execPath, ['--expose-gc', main, 'daemon'], options);
  onTestFinished(async () => void (await started.stop()));
  return { pid: started.pid, client: clientOf(folder), image };
}

/** Tables that put every sector at the same place. */
function tables(image: string): string[] {
  const half = SECTORS / 2;
  return [
    `0 ${SECTORS} linear ${image} 0`,
    `0 ${half} linear ${image} 0\n${half} ${half} linear ${image} ${half}`,
    `0 ${SECTORS} linear dm:low 0`,
    `0 8 linear ${image} 0\n8 ${SECTORS - 8} linear dm:low 8`,
  ];
}

/** Changes the device under its clients until `isOver`. @returns its name at the end */
async function churn(
  client: DaemonClient,
  image: string,
  random: () => number,
  isOver: () => boolean,
): Promise<string> {
  const all = tables(image);
  let name = 'd';
  for (let step = 0; !isOver(); step++) {
    const action = Math.floor(random() * 5);
    if (action === 0) await client.load(name, all[Math.floor(random() * all.length)]!);
    else if (action === 1) {
      await client.suspend(name, { noflush: random() < 0.5 });
      await client.resume(name);
    } else if (action === 2) await client.resume(name);
    else if (action === 3) {
      await client.rename(name, `d${step}`);
      name = `d${step}`;
    } else {
      await client.suspend('low');
      await client.load('low', all[Math.floor(random() * 2)]!);
      await client.resume('low');
    }
    await new Promise((resolve) => setTimeout(resolve, random() * 20));
  }
  return name;
}

/** One client in its own sectors: everything it reads is what it wrote last. @returns how many requests it made */
async function writeAndVerify(uri: string, index: number, isOver: () => boolean): Promise<number> {
  const random = makeRandom(seed + index);
  const disk = await connectNbd(uri);
  const versions = new Uint8Array(CLIENT_SECTORS);
  const first = index * CLIENT_SECTORS;
  let count = 0;
  const write = async (sector: number): Promise<void> => {
    versions[sector] = 1 + (versions[sector]! % 255);
    await disk.write((first + sector) * 512, Buffer.alloc(512, versions[sector]!));
  };
  for (let sector = 0; sector < CLIENT_SECTORS; sector++) await write(sector);
  while (!isOver() || count === 0) {
    // Eight different sectors at one time, some written, some read.
    const start = Math.floor(random() * (CLIENT_SECTORS - 8));
    await Promise.all(
      Array.from({ length: 8 }, async (_, offset) => {
        const sector = start + offset;
        if (random() < 0.5) return write(sector);
        const bytes = await disk.read((first + sector) * 512, 512);
        if (bytes[0] !== versions[sector] || bytes[511] !== versions[sector]) {
          throw new Error(`client ${index}, sector ${sector}: ${bytes[0]} instead of ${versions[sector]}`);
        }
      }),
    );
    count += 8;
  }
  for (let sector = 0; sector < CLIENT_SECTORS; sector++) {
    expect((await disk.read((first + sector) * 512, 512))[0]).toBe(versions[sector]);
  }
  await disk.close();
  return count;
}

const openFiles = (pid: number): number => readdirSync(`/proc/${pid}/fd`).length;
const memory = (pid: number): number =>
  Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))![1]) / 1024;

async function prepare(client: DaemonClient, image: string): Promise<void> {
  await client.create('low', `0 ${SECTORS} linear ${image} 0`);
  await client.create('d', tables(image)[0]!);
}

test(
  'nothing is lost or reordered, and nothing is left over',
  async () => {
    printSeedOnFailure();
    const { pid, client, image } = await daemon();
    await prepare(client, image);
    // Everything that is made once has been made.
    await writeAndVerify(await client.uri('d'), 0, () => true);
    const filesBefore = openFiles(pid);
    const memoryBefore = memory(pid);

    const end = performance.now() + SECONDS * 1000;
    const isOver = (): boolean => performance.now() > end;
    const uri = await client.uri('d');
    const clients = Array.from({ length: CLIENTS }, (_, index) => writeAndVerify(uri, index, isOver));
    // Renamed from now on: the clients have to be in by then.
    while ((await client.info('d')).openCount < CLIENTS) await new Promise((resolve) => setTimeout(resolve, 10));
    let clientsAreOver = false;
    const churning = churn(client, image, makeRandom(), () => clientsAreOver);
    const counts = await Promise.all(clients).finally(() => {
      clientsAreOver = true;
    });
    const name = await churning;
    expect(Math.min(...counts)).toBeGreaterThan(0);

    await client.resume(name);
    await client.clear(name);
    while ((await client.info(name)).openCount > 0) await new Promise((resolve) => setTimeout(resolve, 10));
    expect((await client.info(name)).inFlightCount).toBe(0);
    await client.removeAll();
    await prepare(client, image);
    // Fewer is no leak: a connection may have been on its way out when they were counted.
    expect(openFiles(pid)).toBeLessThanOrEqual(filesBefore);
    expect(memory(pid) - memoryBefore).toBeLessThan(150);
  },
  LIMIT_MS,
);

itPeer(
  ['fio'],
  'fio verifies what it writes while tables change below it',
  async () => {
    printSeedOnFailure();
    const { client, image } = await daemon();
    await prepare(client, image);
    let isOver = false;
    const fio = run(
      peer('fio'),
      [
        '--name=swarm',
        '--ioengine=nbd',
        `--uri=${await client.uri('d')}`,
        '--rw=randwrite',
        '--bs=4k',
        `--numjobs=${CLIENTS}`,
        `--size=${CLIENT_SECTORS * 512}`,
        `--offset_increment=${CLIENT_SECTORS * 512}`,
        '--iodepth=8',
        '--verify=crc32c',
        '--verify_fatal=1',
        '--verify_backlog=16',
        '--time_based',
        `--runtime=${SECONDS}`,
        '--group_reporting',
      ],
      { timeoutSeconds: SECONDS + 60, cwd: tempDir('fio') },
    );
    // fio looks at the export first and comes back: it is renamed when all of them are in.
    while ((await client.info('d')).openCount < CLIENTS) await new Promise((resolve) => setTimeout(resolve, 10));
    const churning = churn(client, image, makeRandom(), () => isOver);
    const result = await fio.finally(() => {
      isOver = true;
    });
    await churning;
    expect([result.code, result.stderr]).toEqual([0, expect.not.stringMatching(/verify|err=/)]);
  },
  LIMIT_MS,
);
