// Every queue and pool of dmkit has a bound, and this is where all of them stand. At a bound, work waits: it does not
// fail and the pool does not grow.

/** iovecs in one preadv/pwritev (IOV_MAX on Linux). */
export const MAX_IOVEC_COUNT = 1024;
/** Bytes that Linux moves in one read or write call at the most. */
export const MAX_TRANSFER_BYTE_LENGTH = 0x7ffff000;
/** Lines of one table (DM_MAX_TARGETS). */
export const MAX_TARGET_COUNT = 1_048_576;
/** Objects that a free list keeps for reuse; what is given back past it is left to the garbage collector. */
export const MAX_POOLED_OBJECT_COUNT = 1024;
/** Calls of one engine that run on libuv's or koffi's threads at one time; more wait in a queue. */
export const MAX_OFFLOADED_CALL_COUNT = 128;
/** Requests that end inside submit() and submit another, one within the other; deeper ones wait for the outermost. */
export const MAX_INLINE_NESTING_DEPTH = 64;
/** Regions of one dm-io request: one for each bit of the kernel's unsigned long. */
export const MAX_DM_IO_REGION_COUNT = 64;
/** Pages, and pieces of memory, in one bio that dm-io makes (BIO_MAX_VECS): 1 MiB. */
export const MAX_DM_IO_BIO_PAGE_COUNT = 256;
/** Pages in flight of a dm-io client that was not told how many: 4 MiB. */
export const DEFAULT_DM_IO_PAGE_COUNT = 1024;
/** Bios that a dm-io client sends out before everything else in its reactor gets a turn. */
export const MAX_DM_IO_TURN_BIO_COUNT = 64;
/** Places for submissions in a ring; twice as many operations may be in flight. */
export const MAX_RING_ENTRY_COUNT = 256;
/** Submissions of one ring in one turn of the event loop, each followed by the ends of what was complete at once. */
export const MAX_RING_ROUND_COUNT = 32;
/** Buffers between O_DIRECT and memory that it can't take, and the size of each: 4 MiB of one engine. */
export const MAX_BOUNCE_BUFFER_COUNT = 64;
export const BOUNCE_BUFFER_BYTE_LENGTH = 65536;
/** Copies of chunks for snapshots: one buffer at the most, and all buffers of one snapshot. */
export const COPY_OUT_BUFFER_BYTE_LENGTH = 524_288;
export const MAX_COPY_OUT_BYTE_LENGTH = 4_194_304;
/** What a snapshot's store takes of its file system at a time, ahead of use: little at first, then a quarter of what is used. */
export const MIN_ALLOCATED_AHEAD_BYTE_LENGTH = 1 << 20;
export const MAX_ALLOCATED_AHEAD_BYTE_LENGTH = 16 << 20;
