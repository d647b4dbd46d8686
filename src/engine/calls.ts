// The calls of node:fs that engines use, in one shape: on libuv's threads, or at once on this one. (koffi's own threads
// take four times as long for a call as libuv's, so that data goes this way in every engine.)
import fs from 'node:fs';
import { errnoFromException } from '../block/errno.ts';

/** errno, 0 for success; and the bytes that were moved. */
export type CallDone = (errno: number, byteLength: number) => void;

/** Byte positions are below 2^53: node:fs takes others for "at the current position". */
export interface FileCalls {
  read(fd: number, views: Uint8Array[], position: number, done: CallDone): void;
  write(fd: number, views: Uint8Array[], position: number, done: CallDone): void;
  dataSync(fd: number, done: CallDone): void;
}

/** Calls back later, from the event loop. */
export const threadCalls: FileCalls = {
  read(fd, views, position, done) {
    const callback = (error: unknown, length: number) => done(error ? errnoFromException(error) : 0, length);
    if (views.length === 1) fs.read(fd, views[0]!, 0, views[0]!.byteLength, position, callback);
    else fs.readv(fd, views, position, callback);
  },
  write(fd, views, position, done) {
    const callback = (error: unknown, length: number) => done(error ? errnoFromException(error) : 0, length);
    if (views.length === 1) fs.write(fd, views[0]!, 0, views[0]!.byteLength, position, callback);
    else fs.writev(fd, views, position, callback);
  },
  dataSync(fd, done) {
    fs.fdatasync(fd, (error) => done(error ? errnoFromException(error) : 0, 0));
  },
};

/** Calls back before it returns. */
export const blockingCalls: FileCalls = {
  read(fd, views, position, done) {
    answer(() => fs.readvSync(fd, views, position), done);
  },
  write(fd, views, position, done) {
    answer(() => fs.writevSync(fd, views, position), done);
  },
  dataSync(fd, done) {
    answer(() => {
      fs.fdatasyncSync(fd);
      return 0;
    }, done);
  },
};

function answer(call: () => number, done: CallDone): void {
  let errno = 0;
  let length = 0;
  try {
    length = call();
  } catch (error) {
    errno = errnoFromException(error);
  }
  done(errno, length);
}
