// What the children share: requests to a pipe that nobody writes to, so that a read through the ring hangs for ever
// unless the kernel cancels it. (io_uring waits for a pipe; a read of a file would end too soon to be caught in flight.)
import fs from 'node:fs';
import { isMainThread } from 'node:worker_threads';

const dist = new URL(process.env.DMKIT_DIST);
const { EngineSet, allowRing } = await import(new URL('engine/index.js', dist).href);
const { NodeLoop } = await import(new URL('reactor/node-loop.js', dist).href);
const { Bio, REQ_OP_READ } = await import(new URL('block/bio.js', dist).href);

// These workers end by themselves: their exit handler cancels what is under way.
if (!isMainThread) allowRing();

export const BYTE_LENGTH = 4096;

export class Pipe {
  constructor(path) {
    this.engines = new EngineSet({ reactor: new NodeLoop(), engine: 'ring' });
    this.file = this.engines.open(fs.openSync(path, fs.constants.O_RDWR), 'file', path);
    this.device = { name: path, submit: (bio) => this.file.engine.submit(this.file, bio) };
  }

  /** Reads a block into `page`; `onEnd` gets the errno. */
  read(page = new Uint8Array(BYTE_LENGTH), onEnd = () => {}) {
    const bio = new Bio();
    bio.reset(REQ_OP_READ, 0, this.device, 0, BYTE_LENGTH / 512);
    bio.vecs = [{ page, offset: 0, byteLength: BYTE_LENGTH }];
    bio.onEnd = ({ status }) => onEnd(status);
    this.device.submit(bio);
  }

  /** Fills one block of what readers wait for. */
  feed(byte) {
    fs.writeSync(this.file.fd, Buffer.alloc(BYTE_LENGTH, byte));
  }
}

/** Resolves when the ring's operations have left. */
export const sent = () => new Promise((resolve) => setTimeout(resolve, 20));
