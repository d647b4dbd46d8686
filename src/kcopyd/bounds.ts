// The bounds of kcopyd. At each of them work waits.

/** Destinations of one job (DM_KCOPYD_MAX_REGIONS). */
export const MAX_KCOPYD_REGION_COUNT = 8;
/** Sectors that one sub-job reads and writes, unless a client is told otherwise: 512 KiB. */
export const DEFAULT_SUB_JOB_SECTOR_COUNT = 1024;
/** The largest that a client can be told: 1 MiB. */
export const MAX_SUB_JOB_SECTOR_COUNT = 2048;
/** Sub-jobs of one job that are under way at a time (SPLIT_COUNT), unless a client is told otherwise. */
export const DEFAULT_SPLIT_COUNT = 8;
/** The largest that a client can be told. */
export const MAX_SPLIT_COUNT = 256;
/** A throttled client looks again after so long … */
export const THROTTLE_SLEEP_MILLISECONDS = 100;
/** … and starts its next request after so many looks, whatever the throttle says. */
export const MAX_THROTTLE_SLEEP_COUNT = 10;
/** How far back a throttle looks. */
export const THROTTLE_PERIOD_MILLISECONDS = 1000;
