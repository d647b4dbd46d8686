// The bounds of dmkit copy. At each of them work waits.

export const MAX_DESTINATION_COUNT = 64;
/** Sectors that are read and written at a time: 1 MiB. */
export const BLOCK_SECTOR_COUNT = 2048;
/** Sectors that are copied from file to file at a time, 4 MiB: a call for each costs more than what it returns early for. */
export const FILE_PIECE_SECTOR_COUNT = 8192;
/**
 * Such pieces that one destination has under way. The kernel writes one file for one caller at a time; the others would
 * spin, on threads that other destinations could use. A single destination gains by two: one reads ahead.
 */
export const SINGLE_FILE_PIECE_COUNT = 2;
export const SHARED_FILE_PIECE_COUNT = 1;
/** Blocks that one destination has under way. */
export const MAX_WINDOW_BLOCK_COUNT = 8;
/** Blocks in memory, all destinations together: 128 MiB. */
export const MAX_BLOCK_COUNT = 128;
/** Of those, blocks that destinations have under way at the most; the others are kept for the ones behind. */
export const MAX_BUSY_BLOCK_COUNT = 96;
/** After so many blocks in a row of which nothing could be written, a destination is taken for dead. */
export const MAX_DEAD_BLOCK_COUNT = 16;
/** Written data is made durable, and the mapfile brought up to date, so often. */
export const CHECKPOINT_MILLISECONDS = 10_000;
/** Ranges of failed sectors that a result names. */
export const MAX_TOLD_RANGE_COUNT = 10;
/** Zeroes are written in requests of at most so many sectors: 64 MiB, so that progress is seen. */
export const MAX_ZERO_SECTOR_COUNT = 131_072;
