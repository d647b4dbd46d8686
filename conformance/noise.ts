// Content: every sector of noise is different from every other one and begins with its number, so that a hash tells
// whether everything is in its place, and a look at the bytes tells what is where.
import { createHash } from 'node:crypto';
import type { DiskSpec } from './case.ts';

const SECTOR_SIZE = 512;
const WORD_COUNT = SECTOR_SIZE / 4;

/** Sectors of noise that writes may take their data from: `from=0` to here. */
export const PAYLOAD_SECTOR_COUNT = 16384;

/** Disks take theirs from behind that, each seed from a stretch of its own. */
const DISK_STRETCH = 65536;

/** `sectorCount` sectors of noise, from sector number `first` of it on. */
export function noise(first: number, sectorCount: number): Uint8Array {
  const words = new Uint32Array(sectorCount * WORD_COUNT);
  for (let sector = 0; sector < sectorCount; sector++) {
    const start = sector * WORD_COUNT;
    let x = Math.imul(first + sector + 1, 0x9e3779b1) | 1;
    words[start] = first + sector;
    for (let i = 1; i < WORD_COUNT; i++) {
      x ^= x << 13;
      x ^= x >>> 17;
      x ^= x << 5;
      words[start + i] = x;
    }
  }
  return new Uint8Array(words.buffer);
}

/** What a disk holds before the first step. */
export function diskContent(disk: DiskSpec): Uint8Array {
  if (disk.seed === null) return new Uint8Array(disk.sectorCount * SECTOR_SIZE);
  return noise((disk.seed + 1) * DISK_STRETCH, disk.sectorCount);
}

/** How answers name content: the first digits of its SHA-256. */
export function shortHash(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex').slice(0, 12);
}

/**
 * A disk's content in few characters: runs of sectors, `n65536+8` for noise, `z3` for zeros, `=` and base64 for anything
 * else. What a target wrote of its own (metadata) is small, the rest is noise in a new order.
 */
export function packContent(bytes: Uint8Array): string {
  const runs: string[] = [];
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const sectorCount = bytes.byteLength / SECTOR_SIZE;
  for (let at = 0; at < sectorCount; ) {
    const run = runAt(buffer, at, sectorCount);
    runs.push(run.text);
    at += run.sectorCount;
  }
  return runs.join(' ');
}

function sectorAt(buffer: Buffer, sector: number): Buffer {
  return buffer.subarray(sector * SECTOR_SIZE, (sector + 1) * SECTOR_SIZE);
}

function runAt(buffer: Buffer, at: number, sectorCount: number): { text: string; sectorCount: number } {
  const sector = sectorAt(buffer, at);
  let count = 1;
  if (sector.every((byte) => byte === 0)) {
    while (at + count < sectorCount && sectorAt(buffer, at + count).equals(sector)) count++;
    return { text: `z${count}`, sectorCount: count };
  }
  const number = sector.readUInt32LE(0);
  if (!sector.equals(noise(number, 1))) return { text: `=${withoutEnd(sector).toString('base64')}`, sectorCount: 1 };
  while (at + count < sectorCount && sectorAt(buffer, at + count).equals(noise(number + count, 1))) count++;
  return { text: `n${number}+${count}`, sectorCount: count };
}

/** Zeroes at the end are left out. */
function withoutEnd(sector: Buffer): Buffer {
  return sector.subarray(0, sector.findLastIndex((byte) => byte !== 0) + 1);
}

/** The content behind {@link packContent}'s text. */
export function unpackContent(text: string): Uint8Array {
  return Buffer.concat(text.split(' ').map(unpackRun));
}

function unpackRun(run: string): Uint8Array {
  const rest = run.slice(1);
  if (run[0] === '=') return Buffer.concat([Buffer.from(rest, 'base64'), Buffer.alloc(SECTOR_SIZE)], SECTOR_SIZE);
  if (run[0] === 'z') return new Uint8Array(Number(rest) * SECTOR_SIZE);
  const [first, count] = rest.split('+').map(Number);
  return noise(first!, count!);
}
