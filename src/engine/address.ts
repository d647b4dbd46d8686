// Which memory may go to a system call, and where it is. The kernel writes to addresses: memory that can be taken away
// from under a call (resizable, WebAssembly's, detached) is refused before anything is sent.
import * as workerThreads from 'node:worker_threads';
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';

/** What is known about one ArrayBuffer. */
export interface MemoryRegion {
  /** Address of its first byte; 0 until an engine asked for it. */
  address: number;
  /** It was marked, so that it can't be transferred away any more (see {@link PINS_HOLD}). */
  pinned: boolean;
  /** Code outside dmkit doesn't have its ArrayBuffer: nothing transfers it. */
  own: boolean;
}

/**
 * True where a mark keeps memory from being transferred. Node.js 20 has no ArrayBuffer.prototype.transfer, and from 24 on it
 * heeds the mark; in between it takes the memory all the same, frees or moves it, and a system call under way would write
 * to what is another's by then. Nothing else holds it there: V8 has no public way, and node:fs holds the view alone. So
 * requests that outlast submit() are copied through an engine's own buffers on those versions. A copy is little beside a
 * call on another thread; most requests end inside submit(), and dmkit's own memory is never copied.
 */
export const PINS_HOLD: boolean = doPinsHold();

function doPinsHold(): boolean {
  const buffer = new ArrayBuffer(1) as ArrayBuffer & { transfer?: () => ArrayBuffer };
  workerThreads.markAsUntransferable(buffer);
  try {
    buffer.transfer?.();
  } catch {
    return true;
  }
  return buffer.byteLength === 1;
}

const regions = new WeakMap<ArrayBufferLike, MemoryRegion>();

const WEBASSEMBLY_PAGE_BYTE_LENGTH = 65536;
const refusesToBeCloned = (): void => {};
/** Node 21 and later. */
const isMarkedAsUntransferable = (
  workerThreads as unknown as { isMarkedAsUntransferable?: (object: object) => boolean }
).isMarkedAsUntransferable;

/**
 * WebAssembly's memory is moved by memory.grow() and no predicate tells it from other memory, but it can't be
 * transferred. A transfer is tried that must fail either way: the list names the buffer twice, and where it is
 * transferable this is what is complained about; otherwise it is skipped or refused first. Costs some 15 us, once for
 * a buffer, and only for whole WebAssembly pages.
 */
function isTransferable(buffer: ArrayBuffer): boolean {
  try {
    structuredClone(refusesToBeCloned, { transfer: [buffer, buffer] });
  } catch (error) {
    return error instanceof Error && error.message.includes('duplicate');
  }
  return false;
}

function isWebAssemblyMemory(buffer: ArrayBufferLike): boolean {
  if (!(buffer instanceof ArrayBuffer)) return false;
  if (buffer.byteLength === 0 || buffer.byteLength % WEBASSEMBLY_PAGE_BYTE_LENGTH !== 0) return false;
  if (isMarkedAsUntransferable?.(buffer)) return false;
  return !isTransferable(buffer);
}

function refused(reason: string): DmError {
  return new DmError(Errno.EFAULT, `memory that an engine can't use: ${reason}`);
}

/**
 * What is known about `buffer`, after the checks of its first use.
 *
 * @throws DmError EFAULT for memory that may move or vanish: resizable, growable, WebAssembly's
 */
export function regionOf(buffer: ArrayBufferLike): MemoryRegion {
  const known = regions.get(buffer);
  if (known !== undefined) return known;
  const growing = buffer as { resizable?: boolean; growable?: boolean };
  if (growing.resizable || growing.growable) throw refused('its buffer is resizable; copy it into one of fixed size');
  if (isWebAssemblyMemory(buffer)) {
    throw refused("it is WebAssembly's (or marked as untransferable, on Node 20); copy it into a plain Uint8Array");
  }
  const region: MemoryRegion = { address: 0, pinned: false, own: false };
  regions.set(buffer, region);
  return region;
}

/** Says that `buffer` stays where it is and at its size, though it can't be transferred (memory out of koffi.view). */
export function trustMemory(buffer: ArrayBufferLike, address = 0): void {
  regions.set(buffer, { address, pinned: true, own: true });
}

/** Says that code outside dmkit doesn't have the memory of `view`: it needs no mark and no copy. @returns `view` */
export function ownMemory<View extends Uint8Array>(view: View): View {
  regions.set(view.buffer, { address: 0, pinned: true, own: true });
  return view;
}

/** Takes {@link ownMemory} back, for memory that goes to a caller. Nothing of dmkit may use it any more. */
export function giveMemoryAway<View extends Uint8Array>(view: View): View {
  regions.delete(view.buffer);
  return view;
}

/**
 * Checks `byteLength` bytes of `view` from `offset`: to be called at the edge, where an exception reaches the caller.
 * Below, the same memory fails its bio with EFAULT.
 *
 * @throws DmError EFAULT for memory that may move, vanish or has gone, EINVAL for a range outside `view`
 */
export function checkMemory(view: Uint8Array, offset = 0, byteLength: number = view.byteLength - offset): void {
  if (isDetached(view.buffer)) throw refused('it was transferred away');
  if (!rangeIsInside(view, offset, byteLength)) {
    const range = `bytes ${offset} to ${offset + byteLength}`;
    throw new DmError(Errno.EINVAL, `${range} asked of memory that is ${view.byteLength} bytes long`);
  }
  regionOf(view.buffer);
}

function isDetached(buffer: ArrayBufferLike): boolean {
  if (buffer.byteLength > 0) return false;
  try {
    new Uint8Array(buffer);
    return false;
  } catch {
    return true;
  }
}

/** True where `byteLength` bytes from `offset` are in `view` now; a detached one is empty. */
export function rangeIsInside(view: Uint8Array, offset: number, byteLength: number): boolean {
  return offset >= 0 && byteLength >= 0 && offset + byteLength <= view.byteLength;
}

/**
 * Keeps `buffer` in this thread from now on, where {@link PINS_HOLD}: a transfer would take memory away that a call on
 * another thread uses.
 *
 * @returns whether it stays even where a mark does not hold
 * @throws DmError as {@link regionOf}
 */
export function pinMemory(buffer: ArrayBufferLike): boolean {
  const region = regionOf(buffer);
  if (!region.pinned && buffer instanceof ArrayBuffer) workerThreads.markAsUntransferable(buffer);
  region.pinned = true;
  return region.own || !(buffer instanceof ArrayBuffer);
}

/** As {@link pinMemory}: whether `view` may be used until a later turn. False where it has to be copied. */
export function canHold(view: Uint8Array): boolean {
  try {
    return pinMemory(view.buffer) || PINS_HOLD;
  } catch {
    return false;
  }
}
