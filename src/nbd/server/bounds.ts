// Every bound of the NBD server, with its reason. Where an option of NbdServer may set another, it says so.

/** A READ's or WRITE's data. The nbd project's own tests write 47.6 MiB at once; clients of repute stop at 32 or 64 MiB. */
export const MAX_PAYLOAD_BYTE_LENGTH = 64 * 1024 * 1024;

/** What INFO suggests for requests: a page, as most filesystems above write. */
export const PREFERRED_BLOCK_BYTE_LENGTH = 4096;

/**
 * An option's data. The longest that is of any use is GO with a name of 4096 bytes and every one of 65,535 information
 * types (135,172 bytes); above that it is an attack on memory or time, and the connection ends.
 */
export const MAX_OPTION_BYTE_LENGTH = 6 + 4096 + 2 * 65_535;

/** Replies to options that the client has not taken. Past it the next option waits. */
export const MAX_UNSENT_OPTION_BYTE_LENGTH = 256 * 1024;

/** From the first byte to the transmission phase. Long enough for a person at nbdsh, short enough to get rid of idlers. (option) */
export const HANDSHAKE_TIMEOUT_MILLISECONDS = 30_000;

/** Connections of one server at one time that have completed their handshake. (option) */
export const MAX_CONNECTION_COUNT = 256;

/**
 * Connections that are in their handshake, beside those: a client that proves nothing takes no place of one that has. When
 * they are full the oldest that has not said a word goes, or else the oldest. (option)
 */
export const MAX_HANDSHAKE_COUNT = 128;

/** Requests of one connection that the device has: twice what the deepest client here (fio, QEMU with many queues) asks for. (option) */
export const MAX_CONNECTION_REQUEST_COUNT = 256;

/**
 * Memory of one connection: data being read or written, and replies not sent. A request begins only below it, so that
 * one connection holds at most this and one request of the largest size. (option)
 */
export const MAX_CONNECTION_BYTE_LENGTH = 64 * 1024 * 1024;

/** The same, for all connections of a server. A connection that holds nothing is let through even then. (option) */
export const MAX_SERVER_BYTE_LENGTH = 512 * 1024 * 1024;

/**
 * Free buffers that the server keeps for reuse. Enough for a few busy connections; what comes back beyond it goes to the
 * garbage collector.
 */
export const MAX_FREE_BYTE_LENGTH = 64 * 1024 * 1024;

/** A piece of reply memory: 64 replies with 4 KiB each, so that one turn of a busy client stays in the processor's cache. */
export const ARENA_BYTE_LENGTH = 264 * 1024;

/**
 * Replies that wait for a client to read. Past it no request is begun: reading ahead for somebody who is slow fills
 * memory, and pushes out of the processor's cache what is sent next.
 */
export const MAX_UNSENT_BYTE_LENGTH = 256 * 1024;

/**
 * Requests of a connection that may wait for it to take replies, or for memory, while more are read: a client that sends
 * all its requests before it reads a reply would otherwise hang for ever. READs wait without memory.
 */
export const MAX_WAITING_REQUEST_COUNT = 16;

/** Requests the device may have meanwhile. None of them needs the client to end, and a part of a WRITE takes 1 MiB. */
export const MAX_AHEAD_REQUEST_COUNT = 4;

/** What one call receives at the most: 64 WRITEs of 4 KiB, for the same reason. */
export const INBOX_BYTE_LENGTH = 264 * 1024;

/**
 * Received beside the rest of a WRITE's data, or at once where the last WRITE was long: the next header and little more,
 * for the data behind it goes straight to its place.
 */
export const HEADER_AHEAD_BYTE_LENGTH = 512;

/** A WRITE whose data is long enough to be received by a call of its own, and not worth a copy. */
export const LONG_WRITE_BYTE_LENGTH = 32 * 1024;

/** Replies are handed to the socket at least this often within one turn, so that the client works while we do. */
export const MAX_BATCH_BYTE_LENGTH = 64 * 1024;

/**
 * A piece of a long WRITE: given to the device when it is there, so that 64 MiB of data need a few of these. Of a length
 * at which a piece more costs nothing.
 */
export const SEGMENT_BYTE_LENGTH = 1024 * 1024;

/** Pieces of one WRITE that the device has. One more arrives meanwhile. */
export const MAX_SEGMENT_COUNT = 4;

/** What CACHE reads at once, and what it reads at the most: the client's wish is none to fill the memory. */
export const CACHE_PIECE_BYTE_LENGTH = 256 * 1024;
export const MAX_CACHE_BYTE_LENGTH = 64 * 1024 * 1024;

/** Extents in one answer of BLOCK_STATUS: 32 KiB (64 with extended headers), well below the protocol's 2^20 extents. */
export const MAX_EXTENT_COUNT = 4096;

/** Questions to the device for one BLOCK_STATUS: neighbours that are alike count as one extent, but each is a question. */
export const MAX_EXTENT_QUERY_COUNT = 65_536;

/** Time for one request's questions before everything else gets its turn. Looked at after so many of them. */
export const MAX_TURN_MILLISECONDS = 1;
export const EXTENT_TIME_CHECK_COUNT = 32;

/**
 * A READ from this length on that gives nothing but zeroes is answered by a hole. Looking costs next to nothing where the
 * data has another byte soon, and sending zeroes costs much more. (Asking the device first is no way: to find the end of
 * an extent some file systems walk through the whole file.)
 */
export const MIN_HOLE_BYTE_LENGTH = 32 * 1024;

/** Data moved for one connection before others (and timers) get their turn. */
export const MAX_TURN_BYTE_LENGTH = 4 * 1024 * 1024;

/** What a request counts for in that besides its data: thousands of requests without any take as long. */
export const TURN_REQUEST_BYTE_LENGTH = 2048;

/**
 * What a millisecond counts for in that, of a request that moves no data: a status over many extents, or zeroes over many
 * chunks of a snapshot, take as long as they take.
 */
export const TURN_MILLISECOND_BYTE_LENGTH = 1024 * 1024;

/** Text after an error reply to an option; far below the protocol's 4096. */
export const MAX_ERROR_TEXT_BYTE_LENGTH = 512;

/** How long a shutdown waits for devices and clients. (option) */
export const SHUTDOWN_TIMEOUT_MILLISECONDS = 10_000;
