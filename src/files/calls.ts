// The calls to the file system that durable files are made of, in one object, so that a test can let any of them fail.
// The ones that end in `Later` take a callback and run on Node's pool of threads.
import fs, { type PathLike } from 'node:fs';

/** A callback of `fs`: an error, or null and the count of bytes. */
export type Told = (error: NodeJS.ErrnoException | null, count?: number) => void;

export interface FileCalls {
  open(path: PathLike, flags: number, mode: number): number;
  write(fd: number, bytes: Uint8Array, offset: number, length: number, position: number): number;
  fsync(fd: number): void;
  fdatasync(fd: number): void;
  ftruncate(fd: number, length: number): void;
  rename(from: PathLike, to: PathLike): void;
  link(from: PathLike, to: PathLike): void;
  unlink(path: PathLike): void;
  writeLater(fd: number, bytes: Uint8Array, offset: number, length: number, position: number, told: Told): void;
  fsyncLater(fd: number, told: Told): void;
  fdatasyncLater(fd: number, told: Told): void;
  ftruncateLater(fd: number, length: number, told: Told): void;
}

/** Node's own. Looked up at each call: a test may exchange one. */
export const fileCalls: FileCalls = {
  open: fs.openSync,
  write: fs.writeSync,
  fsync: fs.fsyncSync,
  fdatasync: fs.fdatasyncSync,
  ftruncate: fs.ftruncateSync,
  rename: fs.renameSync,
  link: fs.linkSync,
  unlink: fs.unlinkSync,
  writeLater: fs.write,
  fsyncLater: fs.fsync,
  fdatasyncLater: fs.fdatasync,
  ftruncateLater: fs.ftruncate,
};
