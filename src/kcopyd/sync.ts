// The synchronous copy: the parts of a job one after the other, each with synchronous requests.
import { REQ_OP_READ, REQ_OP_WRITE, REQ_OP_WRITE_ZEROES } from '../block/bio.ts';
import { DmError } from '../block/errors.ts';
import { PAGE_SECTOR_COUNT, SECTOR_SIZE } from '../block/sector.ts';
import type { DmIoClient, DmIoResult, SyncEngines } from '../dm-io/index.ts';
import { type CopyJob, SubJob } from './job.ts';
import type { PageSlab } from './pages.ts';
import { zeroMemory } from './zeroes.ts';

export interface SyncSetting {
  readonly io: DmIoClient;
  readonly engines: SyncEngines | undefined;
  readonly slab: PageSlab;
  /** What stands in the way whatever the devices are. */
  readonly obstacle: string | null;
}

function wouldDeadlock(reason: string): DmError {
  return new DmError(0, `this synchronous copy could not end: ${reason}; make it asynchronous`, 'DM_WOULD_DEADLOCK');
}

/** Does what `job` asks. @throws DmError DM_WOULD_DEADLOCK */
export function runSync(job: CopyJob, setting: SyncSetting): void {
  checkObstacles(job, setting);
  const subJob = new SubJob(job, () => {});
  while (!job.exhausted) {
    if (job.from === null) zeroPart(job, subJob, setting.io);
    else copyPart(job, subJob, setting);
    job.finishPart(subJob.count);
  }
}

/** Before anything is read: nothing is left half done where a destination could not take it. */
function checkObstacles(job: CopyJob, { engines, obstacle }: SyncSetting): void {
  if (obstacle !== null) throw wouldDeadlock(obstacle);
  const wasBlocking = engines?.blocking ?? false;
  if (engines !== undefined) engines.blocking = true;
  try {
    for (const region of job.from === null ? job.dests : [job.from, ...job.dests]) {
      const reason = region.bdev.syncObstacle?.() ?? null;
      if (reason !== null) throw wouldDeadlock(reason);
    }
  } finally {
    if (engines !== undefined) engines.blocking = wasBlocking;
  }
}

function zeroPart(job: CopyJob, subJob: SubJob, io: DmIoClient): void {
  const allCan = job.dests.every(({ bdev }) => bdev.limits.maxWriteZeroesSectorCount > 0);
  const result: DmIoResult = { errorBits: 0n, error: null };
  job.startPart(subJob, job.nextSectorCount);
  if (allCan) io.io({ op: REQ_OP_WRITE_ZEROES }, subJob.dests, result);
  else io.io({ op: REQ_OP_WRITE, memory: zeroMemory(subJob.count * SECTOR_SIZE) }, subJob.dests, result);
  job.noteWrite(result.error);
}

function copyPart(job: CopyJob, subJob: SubJob, setting: SyncSetting): void {
  const { io, slab } = setting;
  waitForPages(setting);
  const pageCount = Math.min(slab.freeCount, Math.ceil(job.nextSectorCount / PAGE_SECTOR_COUNT));
  const pages = slab.take(pageCount);
  try {
    job.startPart(subJob, Math.min(job.nextSectorCount, pageCount * PAGE_SECTOR_COUNT));
    const memory = { type: 'bvec', vecs: pages } as const;
    const result: DmIoResult = { errorBits: 0n, error: null };
    io.io({ op: REQ_OP_READ, memory }, [subJob.from], result);
    if (!job.noteRead(result.error)) return;
    io.io({ op: REQ_OP_WRITE, memory }, subJob.dests, result);
    job.noteWrite(result.error);
  } finally {
    slab.give(pages);
  }
}

/** Other jobs may have them all; what they have under way gives some back when it ends. */
function waitForPages({ slab, engines }: SyncSetting): void {
  while (slab.freeCount === 0) {
    if (engines === undefined || !engines.poll()) {
      throw wouldDeadlock('all pages of this client are in use by other jobs, which only the event loop gets back');
    }
  }
}
