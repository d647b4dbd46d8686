// The C library's calls through koffi, loaded when the first device is opened and not before: a program that only
// reads tables needs no native code. Addresses are plain numbers (user space ends below 2^48).
import fs from 'node:fs';
import { createRequire } from 'node:module';
import { endianness } from 'node:os';
import { isMainThread } from 'node:worker_threads';
import type { SocketLibrary } from './socket-calls.ts';
import type { UringCalls } from './uring.ts';

/** What a call on another thread ends with: its result, and errno where that is negative. */
export type LibcCallback = (result: number, errno: number) => void;

/** The calls that engines and devices make. A negative result: see errno(). Byte offsets past 2^53 come as BigInt. */
export interface Libc {
  pread(fd: number, address: number, byteLength: number, offset: number | bigint): number;
  pwrite(fd: number, address: number, byteLength: number, offset: number | bigint): number;
  preadv(fd: number, iovec: number, count: number, offset: number | bigint): number;
  pwritev(fd: number, iovec: number, count: number, offset: number | bigint): number;
  preadv2(fd: number, iovec: number, count: number, offset: number | bigint, flags: number): number;
  fallocate(fd: number, mode: number, offset: number | bigint, byteLength: number | bigint): number;
  fallocateOnThread(
    fd: number,
    mode: number,
    offset: number | bigint,
    byteLength: number | bigint,
    done: LibcCallback,
  ): void;
  lseek(fd: number, offset: number | bigint, whence: number): number | bigint;
  ioctl(fd: number, request: number, address: number): number;
  ioctlOnThread(fd: number, request: number, address: number, done: LibcCallback): void;
  fcntl(fd: number, command: number, address: number): number;
  /** How often this thread has gone to sleep by itself, waiting for something; not how often others took its processor. */
  sleepCount(): number;
  /** Ends the process at once; native code has no say in it any more. */
  exitNow(status: number): void;
  /** Null where the C library has none. */
  readonly statx: ((fd: number, path: number, flags: number, mask: number, result: number) => number) | null;
  /** The calls of rings, looked up at the first use; null where koffi can't watch a descriptor. */
  uring(): UringCalls | null;
  /** The calls of sockets, likewise. */
  sockets(): SocketLibrary | null;
  /** Ends the process without any clean-up: no thread of it runs on. */
  exitAtOnce(code: number): void;
  /** Of the last call above that was negative. */
  errno(): number;
  /** Address of the first byte of `buffer`, which the caller keeps alive. */
  addressOf(buffer: ArrayBufferLike): number;
}

interface KoffiFunction {
  (...args: unknown[]): number;
  async(...args: unknown[]): void;
}

interface Koffi {
  load(path: string | null): { func(definition: string): KoffiFunction };
  address(value: unknown): bigint;
  view?: (address: number, byteLength: number) => ArrayBuffer;
  errno(): number;
  node?: { poll?: (fd: number, callback: () => void) => { ref(): void; unref(): void; close(): void } };
}

/** The library, or why there is none. */
export type LibcLoad = { libc: Libc; reason: null } | { libc: null; reason: string };

// off_t is 64 bits here whatever the name, and variadic calls pass their arguments as others do.
const KNOWN_ARCHITECTURES = new Set(['x64', 'arm64', 'riscv64', 'loong64']);

let loaded: LibcLoad | null = null;

/** Loads the C library, once for this thread. Never throws: without it there is still node:fs. */
export function loadLibc(): LibcLoad {
  loaded ??= tryToLoad();
  return loaded;
}

/** The library where this thread has loaded it, else null. */
export function loadedLibc(): Libc | null {
  return loaded?.libc ?? null;
}

function tryToLoad(): LibcLoad {
  if (process.platform !== 'linux') return { libc: null, reason: `it needs Linux, and this is ${process.platform}` };
  if (!KNOWN_ARCHITECTURES.has(process.arch) || endianness() !== 'LE') {
    return { libc: null, reason: `it does not know this processor (${process.arch})` };
  }
  try {
    const koffi = createRequire(import.meta.url)('koffi') as Koffi;
    if (typeof koffi.view !== 'function') return { libc: null, reason: 'this koffi is too old: it has no view()' };
    return { libc: bind(koffi), reason: null };
  } catch (error) {
    const text = error instanceof Error ? error.message.split('\n', 1)[0] : String(error);
    return { libc: null, reason: `koffi can't be loaded: ${text}` };
  }
}

// The same numbers on every processor above.
const SYS_IO_URING_SETUP = 425;
const SYS_IO_URING_ENTER = 426;
const PROT_READ_WRITE = 3;
const MAP_SHARED_POPULATE = 0x8001;

const RTLD_LAZY_NOLOAD_NODELETE = 0x1005;

/**
 * Keeps koffi's native part in memory. A worker's end unloads it where no other thread has it, and a watch that is open
 * then is closed a little later, by code that would be gone: the process would die of it.
 *
 * @returns false where it can't be found
 */
function keepLoaded(koffi: Koffi): boolean {
  let path: string | undefined;
  try {
    path = /\s(\/.*koffi[^/]*\.node)$/m.exec(fs.readFileSync('/proc/self/maps', 'utf8'))?.[1];
  } catch {
    // No /proc.
  }
  if (path === undefined) return false;
  const dlopen = koffi.load(null).func('uintptr_t dlopen(const char *path, int flags)');
  return Number(dlopen(path, RTLD_LAZY_NOLOAD_NODELETE)) !== 0;
}

/** Whether koffi's watches can be used in this thread. */
function canWatch(koffi: Koffi): boolean {
  return koffi.node?.poll !== undefined && (isMainThread || keepLoaded(koffi));
}

const RUSAGE_THREAD = 1;
// struct rusage: two times of 16 bytes, then 14 words of 8, of which ru_nvcsw is the last but one.
const RUSAGE_WORD_COUNT = 36;
const RUSAGE_SLEEP_COUNT_WORD = 32;

const F_DUPFD_CLOEXEC = 1030;
const SOL_SOCKET = 1;
const SO_SNDBUF = 7;
const EPOLL_CLOEXEC = 0o2000000;
const MSG_DONTWAIT_NOSIGNAL = 0x4040;

function bindSockets(koffi: Koffi): SocketLibrary | null {
  if (!canWatch(koffi)) return null;
  const library = koffi.load(null);
  const fcntl = library.func('int fcntl(int fd, int command, uintptr_t argument)');
  const recv = library.func('int64_t recv(int fd, uintptr_t buffer, size_t length, int flags)');
  const readv = library.func('int64_t readv(int fd, uintptr_t iovec, int count)');
  const send = library.func('int64_t send(int fd, uintptr_t buffer, size_t length, int flags)');
  const setsockopt = library.func('int setsockopt(int fd, int level, int name, uintptr_t value, unsigned int length)');
  const epollCreate = library.func('int epoll_create1(int flags)');
  const epollControl = library.func('int epoll_ctl(int poll, int operation, int fd, uintptr_t event)');
  const epollWait = library.func('int epoll_wait(int poll, uintptr_t events, int count, int timeout)');
  const close = library.func('int close(int fd)');
  const orErrno = (result: number): number => (result < 0 ? -koffi.errno() : result);
  return {
    duplicate: (fd) => orErrno(fcntl(fd, F_DUPFD_CLOEXEC, 3)),
    receive: (fd, address, byteLength) => orErrno(recv(fd, address, byteLength, MSG_DONTWAIT_NOSIGNAL)),
    receiveVector: (fd, iovec, count) => orErrno(readv(fd, iovec, count)),
    send: (fd, address, byteLength) => orErrno(send(fd, address, byteLength, MSG_DONTWAIT_NOSIGNAL)),
    setSendBufferByteLength(fd, byteLength) {
      const value = new Int32Array([byteLength]);
      const result = orErrno(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, Number(koffi.address(value)), 4));
      // Read here as well, so that the memory is alive during the call.
      return value.byteLength === 4 ? result : 0;
    },
    makePoll: () => orErrno(epollCreate(EPOLL_CLOEXEC)),
    controlPoll: (poll, operation, fd, event) => orErrno(epollControl(poll, operation, fd, event)),
    waitPoll: (poll, events, count, timeout) => orErrno(epollWait(poll, events, count, timeout)),
    watch: (fd, callback) => koffi.node!.poll!(fd, callback),
    close: (fd) => {
      close(fd);
    },
  };
}

function bindUring(koffi: Koffi): UringCalls | null {
  const poll = koffi.node?.poll;
  if (poll === undefined || koffi.view === undefined) return null;
  if (!canWatch(koffi)) return null;
  const view = koffi.view;
  const library = koffi.load(null);
  const setup = library.func('long syscall(long number, unsigned int entries, uintptr_t parameters)');
  const enter = library.func(
    'long syscall(long number, int fd, unsigned int submit, unsigned int complete, unsigned int flags, ' +
      'uintptr_t argument, size_t length)',
  );
  const mmap = library.func('uintptr_t mmap(uintptr_t at, size_t length, int prot, int flags, int fd, int64_t offset)');
  const munmap = library.func('int munmap(uintptr_t at, size_t length)');
  const close = library.func('int close(int fd)');
  const orErrno = (result: number): number => (result < 0 ? -koffi.errno() : result);
  return {
    setup: (entryCount, parameters) => orErrno(setup(SYS_IO_URING_SETUP, entryCount, parameters)),
    enter: (fd, submitCount, minComplete, flags, argument, argumentByteLength) =>
      orErrno(enter(SYS_IO_URING_ENTER, fd, submitCount, minComplete, flags, argument, argumentByteLength)),
    map(fd, offset, byteLength) {
      const address = mmap(0, byteLength, PROT_READ_WRITE, MAP_SHARED_POPULATE, fd, offset);
      // MAP_FAILED is the highest address, which is no exact number.
      return address > Number.MAX_SAFE_INTEGER ? null : { address, memory: view(address, byteLength) };
    },
    unmap: ({ address, memory }) => {
      munmap(address, memory.byteLength);
    },
    watch: (fd, callback) => poll(fd, callback),
    close: (fd) => {
      close(fd);
    },
    addressOf: (buffer) => Number(koffi.address(new Uint8Array(buffer))),
  };
}

/** A call that an older C library lacks. */
function optionally(library: { func(definition: string): KoffiFunction }, definition: string): KoffiFunction | null {
  try {
    return library.func(definition);
  } catch {
    return null;
  }
}

function bind(koffi: Koffi): Libc {
  // null: this program's own symbols, which have the C library's among them, whichever it is (glibc, musl).
  const library = koffi.load(null);
  const fallocate = library.func('int fallocate(int fd, int mode, int64_t offset, int64_t length)');
  const ioctl = library.func('int ioctl(int fd, unsigned long request, uintptr_t argument)');
  let uring: UringCalls | null | undefined;
  let sockets: SocketLibrary | null | undefined;
  const getrusage = library.func('int getrusage(int who, uintptr_t usage)');
  const usage = new Uint32Array(RUSAGE_WORD_COUNT);
  const usageAddress = Number(koffi.address(usage));
  const onThread = (done: LibcCallback) => (error: unknown, result: number) =>
    done(error === null ? result : -1, error === null ? koffi.errno() : 5);
  return {
    pread: library.func('int64_t pread(int fd, uintptr_t buffer, size_t length, int64_t offset)'),
    pwrite: library.func('int64_t pwrite(int fd, uintptr_t buffer, size_t length, int64_t offset)'),
    preadv: library.func('int64_t preadv(int fd, uintptr_t iovec, int count, int64_t offset)'),
    pwritev: library.func('int64_t pwritev(int fd, uintptr_t iovec, int count, int64_t offset)'),
    preadv2: library.func('int64_t preadv2(int fd, uintptr_t iovec, int count, int64_t offset, int flags)'),
    fallocate,
    fallocateOnThread: (fd, mode, offset, byteLength, done) =>
      fallocate.async(fd, mode, offset, byteLength, onThread(done)),
    lseek: library.func('int64_t lseek(int fd, int64_t offset, int whence)'),
    ioctl,
    ioctlOnThread: (fd, request, address, done) => ioctl.async(fd, request, address, onThread(done)),
    fcntl: library.func('int fcntl(int fd, int command, uintptr_t argument)'),
    sleepCount: () => {
      getrusage(RUSAGE_THREAD, usageAddress);
      return usage[RUSAGE_SLEEP_COUNT_WORD]!;
    },
    exitNow: library.func('void _exit(int status)'),
    statx: optionally(library, 'int statx(int fd, uintptr_t path, int flags, unsigned int mask, uintptr_t result)'),
    uring: () => {
      if (uring === undefined) uring = bindUring(koffi);
      return uring;
    },
    sockets: () => {
      if (sockets === undefined) sockets = bindSockets(koffi);
      return sockets;
    },
    exitAtOnce: (code) => {
      library.func('void _exit(int code)')(code);
    },
    errno: () => koffi.errno(),
    addressOf: (buffer) => Number(koffi.address(new Uint8Array(buffer))),
  };
}
