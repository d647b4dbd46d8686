// dmkit read and write: a device's sectors to standard output, and standard input to its sectors.
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { SECTOR_SIZE } from '../block/sector.ts';
import { connect } from '../client/index.ts';
import { connectNbd, type NbdConnection } from '../nbd/connect.ts';
import { keptName } from './device-names.ts';
import { printed } from './output.ts';

const CHUNK_BYTE_LENGTH = 1024 * 1024;

export interface TransferOptions {
  sector?: string;
  count?: string;
}

function sectors(text: string, option: string): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || !Number.isSafeInteger(value)) {
    throw new DmError(Errno.EINVAL, `--${option} ${text}: a number of sectors is needed`);
  }
  return value;
}

/** The bytes that are meant, of a device of `byteLength` bytes. @throws DmError where they are not all on it */
function rangeOf(options: TransferOptions, byteLength: number): { start: number; end: number } {
  const start = sectors(options.sector ?? '0', 'sector') * SECTOR_SIZE;
  const end = options.count === undefined ? byteLength : start + sectors(options.count, 'count') * SECTOR_SIZE;
  if (start > byteLength || end > byteLength) {
    const sectorCount = byteLength / SECTOR_SIZE;
    throw new DmError(
      Errno.ENOSPC,
      `sectors ${start / SECTOR_SIZE} to ${end / SECTOR_SIZE}: the device has ${sectorCount}`,
    );
  }
  return { start, end };
}

async function withDevice(name: string, work: (disk: NbdConnection) => Promise<void>): Promise<void> {
  const client = connect();
  try {
    const disk = await connectNbd(await client.uri(await keptName(client, name)));
    try {
      await work(disk);
    } finally {
      await disk.close();
    }
  } finally {
    await client.close();
  }
}

/** Writes sectors to standard output. */
export function readDevice(name: string, options: TransferOptions): Promise<void> {
  return withDevice(name, async (disk) => {
    const { start, end } = rangeOf(options, disk.byteLength);
    for (let at = start; at < end; at += CHUNK_BYTE_LENGTH) {
      const bytes = await disk.read(at, Math.min(CHUNK_BYTE_LENGTH, end - at));
      if (!(await printed(bytes))) return;
    }
  });
}

/** Pieces of standard input, each but the last of a whole chunk. */
async function* chunks(): AsyncGenerator<Buffer> {
  let pending: Buffer[] = [];
  let byteLength = 0;
  for await (const piece of process.stdin as AsyncIterable<Buffer>) {
    pending.push(piece);
    byteLength += piece.byteLength;
    while (byteLength >= CHUNK_BYTE_LENGTH) {
      const all = Buffer.concat(pending);
      yield all.subarray(0, CHUNK_BYTE_LENGTH);
      pending = [all.subarray(CHUNK_BYTE_LENGTH)];
      byteLength -= CHUNK_BYTE_LENGTH;
    }
  }
  if (byteLength > 0) yield Buffer.concat(pending);
}

/** Writes standard input to sectors, and makes it durable. What comes after the range is refused. */
export function writeDevice(name: string, options: TransferOptions): Promise<void> {
  return withDevice(name, async (disk) => {
    const { start, end } = rangeOf(options, disk.byteLength);
    let at = start;
    for await (const chunk of chunks()) {
      if (chunk.byteLength % SECTOR_SIZE !== 0) {
        throw new DmError(
          Errno.EINVAL,
          `the input is no whole number of ${SECTOR_SIZE}-byte sectors: nothing of its last ${chunk.byteLength} bytes was written`,
        );
      }
      if (at + chunk.byteLength > end) {
        throw new DmError(
          Errno.ENOSPC,
          `the input is longer than the ${(end - start) / SECTOR_SIZE} sectors it goes to`,
        );
      }
      await disk.write(at, chunk);
      at += chunk.byteLength;
    }
    await disk.flush();
  });
}
