// What a table line of snapshots says of itself to programs: `status` in fields, and the counters.
import type { BlockDevice } from '../../block/block-device.ts';
import { SECTOR_SIZE } from '../../block/sector.ts';
import type { AnyTarget } from '../../block/target.ts';
import { snapshotOrigin } from './index.ts';
import { Merge } from './merge.ts';
import { Snapshot } from './snapshot.ts';

/**
 * `Handed over`: another line has the store (its merge, or a table that replaces this one). `Merged`: everything is home.
 * The others are the words of `status`, with `Active` and `Merging` in the place of numbers.
 */
export type SnapshotCondition =
  | 'Active'
  | 'Invalid'
  | 'Overflow'
  | 'Handed over'
  | 'Merging'
  | 'Merged'
  | 'Merge failed';

/** How much was done since the store was opened. */
export interface SnapshotCounters {
  /** Chunks that got a place in the store: first writes, and copies for writes to the origin. */
  exceptionCount: number;
  /** Of these, those for which the origin was read, and how much that was. */
  copyCount: number;
  copiedByteLength: number;
  /** Writes of records, each for one exception or many. */
  commitCount: number;
  /** Exceptions in memory now, old ones too, and the bytes that they take. */
  exceptionsInMemoryCount: number;
  memoryByteLength: number;
}

/** A line of type snapshot or snapshot-merge. */
export interface SnapshotReport {
  type: 'snapshot' | 'snapshot-merge';
  /** The line's place on its device. */
  sector: number;
  sectorCount: number;
  /** As tables print them. */
  origin: string;
  cow: string;
  store: 'P' | 'PO' | 'N';
  lazyCommit: boolean;
  /** 0 where the store was handed over; so are the numbers of chunks. */
  chunkSectorCount: number;
  /** Of the store: chunks that are taken, metadata among them; all that there are; those of metadata. */
  usedChunkCount: number;
  totalChunkCount: number;
  metadataChunkCount: number;
  condition: SnapshotCondition;
  counters: SnapshotCounters;
}

const NO_COUNTERS: Readonly<SnapshotCounters> = {
  exceptionCount: 0,
  copyCount: 0,
  copiedByteLength: 0,
  commitCount: 0,
  exceptionsInMemoryCount: 0,
  memoryByteLength: 0,
};

/** The snapshot of a line; null for a line of another type. */
export function snapshotOf({ context }: AnyTarget): Snapshot | null {
  if (context instanceof Snapshot) return context;
  return context instanceof Merge ? context.snapshot : null;
}

/** The device below a snapshot-origin; null for a line of another type. */
export function mappedOriginOf(target: AnyTarget): BlockDevice | null {
  return target.type === snapshotOrigin ? (target.context as BlockDevice) : null;
}

function conditionOf(target: AnyTarget, snapshot: Snapshot): SnapshotCondition {
  const { state } = snapshot;
  if (state === null) return 'Handed over';
  if (!state.valid) return 'Invalid';
  if (snapshot.mergeFailed) return 'Merge failed';
  if (target.context instanceof Merge) {
    const { allocatedSectorCount, metadataSectorCount } = state.store.usage();
    return target.context.running || allocatedSectorCount > metadataSectorCount ? 'Merging' : 'Merged';
  }
  return state.overflowed ? 'Overflow' : 'Active';
}

function countersOf({ state }: Snapshot): SnapshotCounters {
  if (state === null) return NO_COUNTERS;
  const { exceptionCount, copyCount, copiedSectorCount } = state.work;
  return {
    exceptionCount,
    copyCount,
    copiedByteLength: copiedSectorCount * SECTOR_SIZE,
    commitCount: state.store.commitCount,
    exceptionsInMemoryCount: state.exceptions.size,
    memoryByteLength: state.exceptions.byteLength,
  };
}

/** Null for a line of another type. */
export function reportOf(target: AnyTarget): SnapshotReport | null {
  const snapshot = snapshotOf(target);
  if (snapshot === null) return null;
  const { chunkSectorCount } = snapshot;
  const usage = snapshot.state?.store.usage();
  const chunks = (count: number | undefined): number =>
    count === undefined || chunkSectorCount === 0 ? 0 : Math.floor(count / chunkSectorCount);
  return {
    type: snapshot.isMerge ? 'snapshot-merge' : 'snapshot',
    sector: target.begin,
    sectorCount: target.sectorCount,
    origin: snapshot.origin.device.name,
    cow: snapshot.cow.name,
    store: snapshot.storeWord,
    lazyCommit: snapshot.features.lazyCommit,
    chunkSectorCount,
    usedChunkCount: chunks(usage?.allocatedSectorCount),
    totalChunkCount: chunks(usage?.totalSectorCount),
    metadataChunkCount: chunks(usage?.metadataSectorCount),
    condition: conditionOf(target, snapshot),
    counters: countersOf(snapshot),
  };
}
