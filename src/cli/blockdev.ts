// dmkit blockdev: what scripts ask of devices, answered for images, block devices of this host and dmkit's own.
import { closeSync, fsyncSync, openSync, readFileSync, type Stats, statSync } from 'node:fs';
import { type CutEnd, cutEndText } from '../block/cut-end.ts';
import { DmError } from '../block/errors.ts';
import { rawName } from '../block/file-name.ts';
import { printableLines } from '../block/printable.ts';
import { SECTOR_SIZE } from '../block/sector.ts';
import { ClientControl } from '../client/connect.ts';
import type { DeviceStatus } from '../control/types.ts';
import { canonicalNbdUri, isNbdUri } from '../devices/nbd-uri.ts';
import { workingFolder } from '../files/working-folder.ts';
import { chooseName, shownName } from './device-names.ts';
import { reportFailure } from './failure.ts';
import { isHostDevice, mapDevice } from './process-io.ts';

const EXIT_FAILURE = 1;
const MAPPER_PREFIX = '/dev/mapper/';
const DEFAULT_READ_AHEAD = 256;
const PAGE_BYTE_LENGTH = 4096;

/** What can be asked. */
interface Answers {
  sectorCount: number;
  /** The bytes at the end of an image or export that no sector has. */
  cutEnd?: CutEnd;
  logicalBlockSize: number;
  physicalBlockSize: number;
  readOnly: boolean;
  readAhead: number;
  flush(): void | Promise<void>;
}

type Query = (answers: Answers) => number | string | Promise<void> | void;

const QUERIES: Readonly<Record<string, Query>> = {
  '--getsize': (answers) => answers.sectorCount,
  '--getsz': (answers) => answers.sectorCount,
  '--getsize64': (answers) => String(BigInt(answers.sectorCount) * BigInt(SECTOR_SIZE)),
  '--getss': (answers) => answers.logicalBlockSize,
  '--getpbsz': (answers) => answers.physicalBlockSize,
  '--getbsz': softBlockSize,
  '--getro': (answers) => Number(answers.readOnly),
  '--getra': (answers) => answers.readAhead,
  '--flushbufs': (answers) => answers.flush(),
};

/** Their answers leave out bytes behind the last whole sector. */
const SIZE_QUERIES: readonly string[] = ['--getsize', '--getsz', '--getsize64'];

/** The largest block up to a page that divides the device. */
function softBlockSize({ sectorCount, logicalBlockSize }: Answers): number {
  let size = logicalBlockSize;
  while (size < PAGE_BYTE_LENGTH && sectorCount % ((size * 2) / SECTOR_SIZE) === 0) size *= 2;
  return size;
}

function cutEnd(name: string, byteLength: number): Pick<Answers, 'cutEnd'> {
  const cutByteLength = byteLength % SECTOR_SIZE;
  return cutByteLength === 0 ? {} : { cutEnd: { name, byteLength, cutByteLength } };
}

function ofImage(path: string, stat: Stats): Answers {
  return {
    sectorCount: Math.floor(stat.size / SECTOR_SIZE),
    ...cutEnd(path, stat.size),
    logicalBlockSize: SECTOR_SIZE,
    physicalBlockSize: SECTOR_SIZE,
    readOnly: (stat.mode & 0o222) === 0,
    readAhead: DEFAULT_READ_AHEAD,
    flush: () => syncFile(path),
  };
}

function syncFile(path: string): void {
  const fd = openSync(rawName(path), 'r');
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

function ofBlockDevice(path: string, stat: Stats): Answers {
  const major = Math.floor(stat.rdev / 256) & 0xfff;
  const minor = (stat.rdev & 0xff) | (Math.floor(stat.rdev / 4096) & ~0xff);
  const folder = `/sys/dev/block/${major}:${minor}`;
  const number = (name: string): number => Number(readFileSync(`${folder}/${name}`, 'utf8'));
  // A partition has the queue of its disk.
  const queue = (name: string, fallback: number): number => {
    for (const place of ['queue', '../queue']) {
      try {
        return number(`${place}/${name}`);
      } catch {
        // The next.
      }
    }
    return fallback;
  };
  return {
    sectorCount: number('size'),
    logicalBlockSize: queue('logical_block_size', SECTOR_SIZE),
    physicalBlockSize: queue('physical_block_size', SECTOR_SIZE),
    readOnly: number('ro') !== 0,
    readAhead: queue('read_ahead_kb', DEFAULT_READ_AHEAD / 2) * 2,
    flush: () => syncFile(path),
  };
}

function ofMapped(status: DeviceStatus, control: ClientControl): Answers {
  return {
    ...status,
    readAhead: status.readAhead ?? 0,
    flush: async () => {
      const { connectNbd } = await import('../nbd/connect.ts');
      const { nbdSocket } = await control.call('daemon', {});
      const client = await connectNbd({ socket: nbdSocket, exportName: status.name });
      await client.flush();
      await client.close();
    },
  };
}

/** A remote disk, asked anew for each question. */
async function ofRemote(uri: string): Promise<Answers> {
  const { connectNbd } = await import('../nbd/connect.ts');
  const disk = await connectNbd(uri);
  const { byteLength, readOnly, details } = disk;
  await disk.close();
  const logicalBlockSize = Math.max(SECTOR_SIZE, details.blockSizes?.minimum ?? 0);
  return {
    sectorCount: Math.floor(byteLength / SECTOR_SIZE),
    ...cutEnd(uri, byteLength),
    logicalBlockSize,
    physicalBlockSize: Math.max(logicalBlockSize, details.blockSizes?.preferred ?? 0),
    readOnly,
    readAhead: DEFAULT_READ_AHEAD,
    flush: async () => {
      const again = await connectNbd(uri);
      await again.flush();
      await again.close();
    },
  };
}

async function findMapped(path: string, control: ClientControl): Promise<DeviceStatus | undefined> {
  const isNamed = path.startsWith('dm:') || path.startsWith(MAPPER_PREFIX);
  const minor = /^\/dev\/dm-(\d+)$/.exec(path)?.[1];
  if (!isNamed && minor === undefined) return undefined;
  const all = await control.call('list', {});
  const name = isNamed
    ? chooseName(
        path,
        all.map((status) => status.name),
      )
    : null;
  const found = all.find((status) => (name === null ? status.minor === Number(minor) : status.name === name));
  if (found !== undefined && !path.startsWith('dm:') && isHostDevice(path)) {
    throw new DmError(
      0,
      `${path} is a device of this host, and one of dmkit's: say dm:${shownName(found.name)} for dmkit's`,
    );
  }
  return found;
}

async function answersFor(path: string, control: ClientControl): Promise<Answers> {
  if (isNbdUri(path)) return ofRemote(canonicalNbdUri(path, workingFolder()));
  const mapped = await findMapped(path, control);
  if (mapped !== undefined) return ofMapped(mapped, control);
  let stat: Stats;
  try {
    stat = statSync(rawName(path));
  } catch {
    throw new DmError(0, `cannot open ${path}: No such file or directory`);
  }
  if (stat.isFile()) return ofImage(path, stat);
  if (stat.isBlockDevice()) return ofBlockDevice(path, stat);
  throw new DmError(0, `${path} is no image and no block device`);
}

/** Each option is a question, everything else a device. @returns the exit code */
export async function runBlockdev(argv: readonly string[]): Promise<number> {
  const queries = argv.filter((word) => word.startsWith('-') && word !== '-q' && word !== '-v');
  const devices = argv.filter((word) => !word.startsWith('-'));
  const unknown = queries.find((word) => !Object.hasOwn(QUERIES, word));
  if (unknown !== undefined || queries.length === 0 || devices.length === 0) {
    const problem = unknown === undefined ? 'a question and a device are needed' : `unknown question ${unknown}`;
    process.stderr.write(rawName(`blockdev: ${problem}; dmkit answers ${Object.keys(QUERIES).join(' ')}\n`));
    return EXIT_FAILURE;
  }
  const control = new ClientControl();
  const told = new Set<string>();
  const sizeAsked = queries.some((query) => SIZE_QUERIES.includes(query));
  try {
    for (const device of devices) {
      const answers = await answersFor(mapDevice(device), control);
      if (sizeAsked && answers.cutEnd !== undefined && !told.has(answers.cutEnd.name)) {
        told.add(answers.cutEnd.name);
        process.stderr.write(`${printableLines(`blockdev: ${cutEndText(answers.cutEnd)}`)}\n`);
      }
      for (const query of queries) {
        const answer = await QUERIES[query]!(answers);
        if (answer !== undefined) process.stdout.write(`${answer}\n`);
      }
    }
    return 0;
  } catch (error) {
    reportFailure(error);
    return EXIT_FAILURE;
  } finally {
    await control.close();
  }
}
