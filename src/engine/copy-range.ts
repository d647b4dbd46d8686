// copy_file_range on another thread: the kernel moves bytes from file to file without this process seeing them.
import { createRequire } from 'node:module';
import { loadLibc } from './libc.ts';

interface CopyFunction {
  async(
    fdIn: number,
    offsetIn: number,
    fdOut: number,
    offsetOut: number,
    length: number,
    flags: number,
    done: (error: unknown, result: number) => void,
  ): void;
}

/** Calls at one time: there are few threads, and others want them, too. More wait. */
const MAX_CALL_COUNT = 8;

let callCount = 0;
const waiting: (() => void)[] = [];
let call: CopyFunction | null | undefined;

function load(): CopyFunction | null {
  if (loadLibc().libc === null) return null;
  try {
    const koffi = createRequire(import.meta.url)('koffi') as {
      load(path: null): { func(definition: string): CopyFunction };
    };
    return koffi
      .load(null)
      .func(
        'int64_t copy_file_range(int fd_in, uintptr_t offset_in, int fd_out, uintptr_t offset_out, size_t length, unsigned int flags)',
      );
  } catch {
    // An older C library.
    return null;
  }
}

/** Whether there is such a call here. */
export function hasCopyRange(): boolean {
  if (call === undefined) call = load();
  return call !== null;
}

/**
 * Copies up to `byteLength` bytes. `done` gets how many it were: fewer than asked for is no error, 0 is the end of the
 * source, negative a failure. It does not say which sector failed: whoever needs to know reads and writes instead.
 */
export function copyRangeOnThread(
  fdIn: number,
  offsetIn: bigint,
  fdOut: number,
  offsetOut: bigint,
  byteLength: number,
  done: (byteLength: number) => void,
): void {
  const { libc } = loadLibc();
  if (!hasCopyRange() || libc === null) {
    done(-1);
    return;
  }
  if (callCount >= MAX_CALL_COUNT) {
    waiting.push(() => copyRangeOnThread(fdIn, offsetIn, fdOut, offsetOut, byteLength, done));
    return;
  }
  callCount++;
  // Memory of its own: that of a small typed array moves. The callback keeps it alive.
  const offsets = new BigInt64Array(new ArrayBuffer(16));
  offsets[0] = offsetIn;
  offsets[1] = offsetOut;
  const address = libc.addressOf(offsets.buffer);
  call!.async(fdIn, address, fdOut, address + 8, byteLength, 0, (error, result) => {
    callCount--;
    waiting.shift()?.();
    const isWhole = error === null && offsets[0] === offsetIn + BigInt(result);
    done(isWhole ? Number(result) : -1);
  });
}
