// Requests that end inside submit() may submit the next one from their endIo: a chain of such requests would grow the
// stack without end. Like the kernel's current->bio_list: past a depth, a request is queued and started by the outermost
// frame. One count for the thread, since chains cross devices and engines.
import type { Bio } from '../block/bio.ts';
import { MAX_INLINE_NESTING_DEPTH } from '../block/bounds.ts';

let depth = 0;
let head: Bio | null = null;
let tail: Bio | null = null;

/**
 * To be called at the head of a device's or engine's submit(). True: go on, and call {@link leaveSubmit} in a `finally`.
 * False: the bio is queued, return; its device's submit() will be called again with it.
 */
export function enterSubmit(bio: Bio): boolean {
  if (depth >= MAX_INLINE_NESTING_DEPTH) {
    bio.next = null;
    if (tail === null) head = bio;
    else tail.next = bio;
    tail = bio;
    return false;
  }
  depth++;
  return true;
}

/** The other end of an {@link enterSubmit} that said true. The outermost one starts what was queued meanwhile. */
export function leaveSubmit(): void {
  depth--;
  if (depth === 0 && head !== null) startQueuedBios();
}

/**
 * Starts the bios that wait for the outermost frame, now: for a synchronous call that was made deep inside the stack and
 * waits for one of them. True when there was one.
 */
export function startQueuedBios(): boolean {
  if (head === null) return false;
  const outerDepth = depth;
  let failed = false;
  let failure: unknown;
  while (head !== null) {
    const bio: Bio = head;
    head = bio.next;
    if (head === null) tail = null;
    bio.next = null;
    // The frames below this one are not grown by what runs here: it counts from 1 again, or it would be queued at once
    // for the very frame that waits. 1 and not 0: the queue is emptied by this loop, not from within it.
    depth = 1;
    try {
      bio.device!.submit(bio);
    } catch (error) {
      // An endIo threw. The others still wait for their turn; the first exception goes on afterwards.
      if (!failed) failure = error;
      failed = true;
    } finally {
      depth = outerDepth;
    }
  }
  if (failed) throw failure;
  return true;
}
