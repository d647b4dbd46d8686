// What this machine and one file offer, and which way is taken for it. Asked when a file is opened, and only as far as
// the answer matters: a ring is not tried for a file that does without.
import fs from 'node:fs';
import { type DirectIo, PAGE_BYTE_LENGTH } from './bounce.ts';
import type { EngineKind, FileKind } from './engine.ts';
import type { Libc } from './libc.ts';

/** An engine, or the best that each file can have. */
export type EngineChoice = EngineKind | 'auto';

const AT_EMPTY_PATH = 0x1000;
const STATX_DIOALIGN = 0x2000;
const STATX_BYTE_LENGTH = 256;
// Places in struct statx, in words.
const STX_MASK = 0;
const STX_DIO_MEM_ALIGN = 38;
const STX_DIO_OFFSET_ALIGN = 39;
const SMALLEST_BLOCK_BYTE_LENGTH = 512;

/**
 * What requests to a descriptor with O_DIRECT have to keep to. Where the system does not say, whole pages at whole
 * pages, which every device takes.
 */
export function directIoOf(libc: Libc, fd: number): DirectIo {
  const stated = statedAlignment(libc, fd);
  const block = Math.max(SMALLEST_BLOCK_BYTE_LENGTH, stated?.block ?? diskBlockSize(fd));
  return { blockByteLength: block, memoryAlignment: stated?.memory ?? block };
}

/** Linux 6.1 and later, on file systems that know. */
function statedAlignment(libc: Libc, fd: number): { block: number; memory: number } | null {
  if (libc.statx === null) return null;
  // The path is the empty string: the last byte, which is 0.
  const memory = new Uint32Array(STATX_BYTE_LENGTH / 4 + 1);
  const address = libc.addressOf(memory.buffer);
  if (libc.statx(fd, address + STATX_BYTE_LENGTH, AT_EMPTY_PATH, STATX_DIOALIGN, address) !== 0) return null;
  if ((memory[STX_MASK]! & STATX_DIOALIGN) === 0 || memory[STX_DIO_OFFSET_ALIGN] === 0) return null;
  return { block: memory[STX_DIO_OFFSET_ALIGN]!, memory: memory[STX_DIO_MEM_ALIGN]! };
}

/** The logical block of a block device, or of the disk that a file's file system is on. */
function diskBlockSize(fd: number): number {
  const stat = fs.fstatSync(fd, { bigint: true });
  const dev = stat.isBlockDevice() ? stat.rdev : stat.dev;
  const major = ((dev >> 8n) & 0xfffn) | ((dev >> 32n) & ~0xfffn);
  const minor = (dev & 0xffn) | ((dev >> 12n) & ~0xffn);
  for (const folder of [`/sys/dev/block/${major}:${minor}`, `/sys/dev/block/${major}:${minor}/..`]) {
    try {
      const size = Number(fs.readFileSync(`${folder}/queue/logical_block_size`, 'utf8'));
      if (size >= SMALLEST_BLOCK_BYTE_LENGTH) return size;
    } catch {
      // A partition's queue is its disk's; a file system of many disks or none has no such folder.
    }
  }
  return PAGE_BYTE_LENGTH;
}

/**
 * Whether the ring serves a file best, where there is one; otherwise it only takes what direct calls miss or are slow at.
 * Measured on Linux 6.18, 4 KiB at random, 32 in flight, as ratios of ring to direct calls (with threads): files in the
 * page cache 0.2 to 1.0, one in flight 0.03 to 0.6; block devices 2.6 (reads) and 4 (writes, which are throttled);
 * O_DIRECT 1.6 to 3.
 */
export function isRingBest(kind: FileKind, directIo: DirectIo | null): boolean {
  return directIo !== null || kind === 'block';
}
