// Worlds for kill tests: a folder of images, a daemon in a process of its own, and the whole state of both as plain data
// that can be compared. strace kills the daemon at a system call that is named by its number.
import { createHash } from 'node:crypto';
import { mkdirSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { onTestFinished } from 'vitest';
import { ClientControl } from '../../src/client/connect.ts';
import { DaemonClient, type Restored } from '../../src/client/index.ts';
import { type Daemon, startDaemon } from '../../src/daemon/daemon.ts';
import { DaemonFolder } from '../../src/daemon/folder.ts';
import { connectNbd } from '../../src/nbd/index.ts';
import { isOverlayUuid } from '../../src/overlays/names.ts';
import { type RunResult, run, type Started, start } from '../support/process.ts';
import { runs } from '../support/seed.ts';
import { makeImage, randomBytes, tempDir } from '../support/tmp.ts';

const main = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));
const SECTOR_BYTES = 512;

/** Calls that change a file or a folder: the moments at which a daemon is killed. */
export const CHANGING_CALLS = [
  'pwrite64',
  'pwritev',
  'write',
  'ftruncate',
  'fsync',
  'fdatasync',
  'fallocate',
  'rename',
  'link',
  'unlink',
  'openat',
  'io_uring_enter',
] as const;

/** A daemon in a process of its own, with a client. */
export interface DaemonProcess {
  readonly started: Started;
  readonly client: DaemonClient;
  /** SIGKILL, unless it is gone already. */
  kill(): Promise<void>;
}

/** Images `a.img`, `b.img` … of known content in a folder, and a daemon's folder beside them. */
export class World {
  readonly path = tempDir('w');
  readonly images = join(this.path, 'i');
  readonly folder = new DaemonFolder(join(this.path, 'd'));

  constructor(imageNames: readonly string[], sectorCount = 256) {
    mkdirSync(this.images);
    for (const [index, name] of imageNames.entries()) makeImage(this.image(name), sectorCount, index + 1);
  }

  image(name: string): string {
    return join(this.images, `${name}.img`);
  }

  cow(name: string): string {
    return join(this.images, `${name}.cow`);
  }

  client(): DaemonClient {
    const client = new DaemonClient(new ClientControl({ folder: this.folder }));
    onTestFinished(() => client.close());
    return client;
  }

  get environment(): Record<string, string> {
    // One thread does the calls that Node gives away: strace counts for each thread.
    return { DMKIT_DIR: this.folder.path, UV_THREADPOOL_SIZE: '1' };
  }

  /** @param wrapper a program and its arguments that runs the daemon, such as strace */
  async daemonProcess(wrapper: readonly string[] = []): Promise<DaemonProcess> {
    const [command, ...args] = [...wrapper, process.execPath, main, 'daemon'];
    const started = await start(command!, args, {
      env: this.environment,
      ready: /^listening/m,
      readySeconds: 60,
      // Longer in a soak: it is no fault of a merge that many run beside it.
      timeoutSeconds: Math.max(240, runs(240)),
    });
    onTestFinished(async () => void (await started.stop()));
    const client = this.client();
    const kill = async (): Promise<void> => {
      try {
        // The group: under a wrapper the daemon is its child.
        process.kill(-started.pid, 'SIGKILL');
      } catch {
        // It is gone.
      }
      await started.exited;
    };
    return { started, client, kill };
  }

  /** The command as a user gives it, in the images' folder. @param wrapper as of `daemonProcess` */
  command(words: readonly string[], wrapper: readonly string[] = []): Promise<RunResult> {
    const [program, ...args] = [...wrapper, process.execPath, main, ...words];
    return run(program!, args, { env: this.environment, cwd: this.images, timeoutSeconds: 240 });
  }

  /** The same, not waited for. */
  async startCommand(words: readonly string[]): Promise<Started> {
    const options = { env: this.environment, cwd: this.images, timeoutSeconds: 240 };
    const started = await start(process.execPath, [main, ...words], options);
    onTestFinished(async () => void (await started.stop()));
    return started;
  }

  /** A daemon in this process. */
  async daemon(): Promise<{ daemon: Daemon; client: DaemonClient }> {
    const daemon = await startDaemon({ folder: this.folder });
    onTestFinished(() => daemon.stop('shutdown'));
    return { daemon, client: this.client() };
  }

  /** Devices, tables, contents and files, without what differs from run to run (numbers, random ids, times). */
  async state(client: DaemonClient): Promise<WorldState> {
    const devices: WorldState['devices'] = {};
    const list = await client.list();
    const isAnySuspended = list.some(({ suspended }) => suspended);
    const nameOf = new Map(list.map(({ name, major, minor }) => [`${major}:${minor}`, name]));
    for (const status of list) {
      const lines = await client.table(status.name);
      const waiting = status.inactive ? await client.table(status.name, { inactive: true }) : [];
      const words = (line: { sector: number; sectorCount: number; type: string; params: string }): string => {
        const params = line.params.split(' ').map((word) => nameOf.get(word) ?? word.replace(`${this.path}/`, ''));
        return [line.sector, line.sectorCount, line.type, ...params].join(' ');
      };
      devices[status.name] = {
        uuid: isOverlayUuid(status.uuid) ? 'overlay' : status.uuid,
        suspended: status.suspended,
        readOnly: status.readOnly,
        deferredRemove: status.deferredRemove,
        table: lines.map(words),
        waiting: waiting.map(words),
        // Below one that is live another may be suspended.
        content: isAnySuspended || !status.live ? 'not read' : await contentOf(client, status.name),
      };
    }
    return { devices, files: this.files() };
  }

  /** Every file of the images' folder: stores by their length, because random ids stand in them. */
  files(): Record<string, string> {
    const files: Record<string, string> = {};
    for (const name of readdirSync(this.images).sort()) {
      const path = join(this.images, name);
      const stat = statSync(path, { throwIfNoEntry: false });
      // It went since the look at the folder: the daemon is at work.
      if (stat === undefined) continue;
      files[name] = name.endsWith('.img') ? hashOf(readFileSync(path)) : `${stat.size} bytes`;
    }
    return files;
  }

  /** Deletes everything but the images. */
  clearStores(): void {
    for (const name of readdirSync(this.images)) if (!name.endsWith('.img')) rmSync(join(this.images, name));
  }

  /** Files of the daemon's folder that a killed one left behind. */
  leftovers(): string[] {
    return readdirSync(this.folder.path).filter((name) => name.includes('.new-') || name.includes('.damaged-'));
  }
}

export interface WorldState {
  devices: Record<
    string,
    {
      uuid: string;
      suspended: boolean;
      readOnly: boolean;
      deferredRemove: boolean;
      table: string[];
      waiting: string[];
      content: string;
    }
  >;
  files: Record<string, string>;
}

export function hashOf(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex').slice(0, 16);
}

export async function readAll(client: DaemonClient, name: string): Promise<Buffer> {
  const disk = await connectNbd(await client.uri(name));
  try {
    return await disk.read(0, disk.byteLength);
  } finally {
    await disk.close();
    await eventually(async () => (await client.info(name)).openCount === usersAbove(await client.list(), name));
  }
}

/** The client that has just left is no user any more: only stacked devices may be. Counted as not more than one. */
function usersAbove(list: { name: string; openCount: number }[], name: string): number {
  const { openCount } = list.find((one) => one.name === name)!;
  return Math.min(openCount, 1);
}

async function contentOf(client: DaemonClient, name: string): Promise<string> {
  try {
    return hashOf(await readAll(client, name));
  } catch (error) {
    // A device of error lines, or one on top of it.
    if ((error as NodeJS.ErrnoException).code === 'EIO') return 'EIO';
    throw error;
  }
}

/** Writes sectors of known bytes to a device. */
export async function writeSectors(
  client: DaemonClient,
  name: string,
  sectors: readonly number[],
  seed: number,
): Promise<void> {
  const before = (await client.info(name)).openCount;
  const disk = await connectNbd(await client.uri(name));
  for (const sector of sectors) await disk.write(sector * SECTOR_BYTES, randomBytes(SECTOR_BYTES, seed + sector));
  await disk.flush();
  await disk.close();
  await eventually(async () => (await client.info(name)).openCount === before);
}

export async function eventually(condition: () => Promise<boolean> | boolean): Promise<void> {
  for (let attempt = 0; attempt < 1000; attempt++) {
    if (await condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  throw new Error('it did not come to that');
}

/**
 * Restores until no file is locked any more: the kernel takes its time to give back what a ring of a killed process held.
 */
export async function restoreAll(client: DaemonClient, options: { force?: boolean } = {}): Promise<Restored[]> {
  const results = new Map<string, Restored>();
  for (let attempt = 0; ; attempt++) {
    if ((await client.lost()).devices.length === 0) break;
    const last = await client.restore(undefined, options);
    for (const one of last) results.set(one.name, one);
    const isBusy = last.some(({ error }) => error !== null && /busy|has not been restored|lock/i.test(error));
    if (!isBusy || attempt === 100) break;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  return [...results.values()];
}

export interface KillPoint {
  call: string;
  nth: number;
}

/** strace on a daemon that runs already: nothing but what comes from now on counts. */
export async function attached(pid: number, args: readonly string[]): Promise<Started> {
  const tracing = await start('strace', ['-f', '-p', String(pid), ...args], {
    ready: /attached/,
    readySeconds: 60,
    timeoutSeconds: 240,
  });
  onTestFinished(async () => void (await tracing.stop()));
  return tracing;
}

/** strace's words that kill a process at the Nth of a call. */
export function killingAt({ call, nth }: KillPoint): string[] {
  return ['-o', '/dev/null', '-e', `trace=${call}`, '-e', `inject=${call}:signal=KILL:when=${nth}`];
}

/** The points of a process that `strace -o log` followed by its first thread alone, from the line with `first` on. */
export function pointsFrom(log: string, first: string): KillPoint[] {
  const counts = new Map<string, number>();
  const points: KillPoint[] = [];
  for (const line of readFileSync(log, 'utf8').split('\n')) {
    const [, call] = /^(\w+)\(/.exec(line) ?? [];
    if (call === undefined) continue;
    const nth = (counts.get(call) ?? 0) + 1;
    counts.set(call, nth);
    if (points.length > 0 || line.includes(first)) points.push({ call, nth });
  }
  return points;
}

/** Every point that `work` passes, in its daemon. */
export async function pointsOf(pid: number, log: string, work: () => Promise<unknown>): Promise<KillPoint[]> {
  const tracing = await attached(pid, ['-o', log, '-e', `trace=${CHANGING_CALLS.join()}`]);
  await work();
  await tracing.stop();
  return pointsIn(log);
}

/** How many points of a list are tried: all of them in a soak, where DMKIT_RUNS is 10 or more. */
export function sampleSize(count: number): number {
  return runs(10) >= 100 ? Number.POSITIVE_INFINITY : runs(count);
}

/** A choice of `count` of them, without order; all where there are no more. */
export function some<T>(all: readonly T[], count: number, random: () => number): T[] {
  const rest = [...all];
  if (rest.length <= count) return rest;
  return Array.from({ length: count }, () => rest.splice(Math.floor(random() * rest.length), 1)[0]!);
}

/** The most that one thread made of each call. */
export function pointsIn(log: string): KillPoint[] {
  const counts = new Map<string, number>();
  for (const [, pid, call] of readFileSync(log, 'utf8').matchAll(/^(\d+) +(\w+)\(/gm)) {
    const key = `${pid} ${call}`;
    counts.set(key, (counts.get(key) ?? 0) + 1);
  }
  const most = new Map<string, number>();
  for (const [key, count] of counts) {
    const call = key.split(' ')[1]!;
    most.set(call, Math.max(most.get(call) ?? 0, count));
  }
  return [...most].flatMap(([call, count]) => Array.from({ length: count }, (_, index) => ({ call, nth: index + 1 })));
}

/** Runs `work` while strace waits for the point; then the daemon is dead, there or at the end. */
export async function killedAt(
  daemon: DaemonProcess,
  point: KillPoint,
  work: () => Promise<unknown>,
): Promise<boolean> {
  const tracing = await attached(daemon.started.pid, killingAt(point));
  const isKilled = await work().then(
    () => false,
    (error: { code?: string }) => {
      if (error.code === 'DM_DAEMON_GONE') return true;
      throw error;
    },
  );
  await daemon.kill();
  await tracing.stop();
  return isKilled;
}
