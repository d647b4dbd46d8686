// A mapped device: two table slots, a live one that serves and an inactive one that waits for a resume; suspended or not
// (drivers/md/dm.c, dm-ioctl.c). It is itself a block device, so that it can lie below another.
import type { Bio } from '../block/bio.ts';
import type { BlockDevice, ExtentCallback } from '../block/block-device.ts';
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { defaultLimits, type QueueLimits } from '../block/limits.ts';
import { type AnyTarget, TargetError } from '../block/target.ts';
import { calculateLimits } from '../table/limits.ts';
import type { Table } from '../table/table.ts';
import { Request, type RequestOwner } from './request.ts';
import { mapWhole } from './single.ts';

export interface SuspendOptions {
  /** Targets may give back what they hold, to be mapped again after the resume. */
  noflush?: boolean;
}

/** One mapped device. Made, named and removed by the {@link Mapper}; here is what happens to its tables and its I/O. */
export class MappedDevice implements RequestOwner {
  readonly major: number;
  readonly minor: number;
  /** The name it was given. */
  dmName: string;
  uuid: string;
  /** Users: stacked devices, NBD clients, handles. */
  openCount = 0;
  eventNumber = 0;
  limits: QueueLimits = defaultLimits();
  sectorCount = 0;
  readOnly = false;

  #live: Table | null = null;
  /** Those of the live table that can keep a synchronous call from ending. */
  #obstacleTargets: readonly AnyTarget[] = [];
  #inactive: Table | null = null;
  #everLoaded = false;
  #suspended = false;
  #noflush = false;
  #inFlight = 0;
  // Bios that wait for the resume, oldest first.
  #deferredHead: Bio | null = null;
  #deferredTail: Bio | null = null;
  // Suspends that wait for the last bio in flight.
  #waiting: (() => void)[] = [];

  constructor(dmName: string, uuid: string, major: number, minor: number) {
    this.dmName = dmName;
    this.uuid = uuid;
    this.major = major;
    this.minor = minor;
  }

  /** `major:minor`, as tables print it. */
  get name(): string {
    return `${this.major}:${this.minor}`;
  }

  /** For messages: `joined (253:0)`. */
  get label(): string {
    return `${this.dmName} (${this.name})`;
  }

  get suspended(): boolean {
    return this.#suspended;
  }

  get inFlightCount(): number {
    return this.#inFlight;
  }

  get table(): Table | null {
    return this.#live;
  }

  get inactiveTable(): Table | null {
    return this.#inactive;
  }

  /** Live and inactive: a cycle must not be closed by a resume either. */
  *lowerDevices(): Generator<BlockDevice> {
    if (this.#live !== null) yield* this.#live.devices;
    if (this.#inactive !== null) yield* this.#inactive.devices;
  }

  // I/O

  submit(bio: Bio): void {
    if (this.#suspended) {
      this.#defer(bio);
      return;
    }
    const table = this.#live;
    if (table === null) {
      bio.fail(Errno.EIO, this);
      return;
    }
    this.#inFlight++;
    if (!mapWhole(this, table, bio)) Request.start(this, table, bio);
  }

  requestDone(bio: Bio, errno: number, requeue: boolean): void {
    if (requeue && this.#noflush && this.#suspended) this.#defer(bio);
    else bio.endIo(errno);
    if (--this.#inFlight === 0 && this.#waiting.length > 0) {
      const waiting = this.#waiting;
      this.#waiting = [];
      for (const callback of waiting) callback();
    }
  }

  queryExtent(sector: number, sectorCount: number, done: ExtentCallback): void {
    const target = this.#live?.find(sector);
    if (target === undefined) {
      done(Errno.EIO, 0, 0);
      return;
    }
    const count = Math.min(sectorCount, target.begin + target.sectorCount - sector);
    if (target.type.queryExtent === undefined) done(0, count, 0);
    else target.type.queryExtent(target, sector, count, done);
  }

  syncObstacle(): string | null {
    if (this.#suspended) return `${this.dmName} is suspended, and only a resume lets requests through`;
    for (const target of this.#obstacleTargets) {
      const reason = target.type.syncObstacle?.(target) ?? null;
      if (reason !== null) return `${this.dmName}, ${target.type.name} at sector ${target.begin}: ${reason}`;
    }
    for (const device of this.#live?.devices ?? []) {
      const reason = device.syncObstacle?.() ?? null;
      if (reason !== null) return reason;
    }
    return null;
  }

  #defer(bio: Bio): void {
    bio.next = null;
    if (this.#deferredTail === null) this.#deferredHead = bio;
    else this.#deferredTail.next = bio;
    this.#deferredTail = bio;
  }

  /** What was held back goes out in the order it came, by the table that is live now. */
  #releaseDeferred(): void {
    let bio = this.#deferredHead;
    this.#deferredHead = null;
    this.#deferredTail = null;
    while (bio !== null) {
      const next = bio.next;
      bio.next = null;
      // The table may have shrunk below a bio that fitted when it came.
      if (bio.hasData && bio.sector + bio.sectorCount > this.sectorCount) bio.fail(Errno.EIO, this);
      else this.submit(bio);
      bio = next;
    }
  }

  // Tables

  /**
   * Puts `table` into the inactive slot; the one that was there is destroyed. It serves from the next resume on.
   * At a device's very first load the table is checked against its devices now, later only at the resume.
   *
   * @throws TableError from that first check: `table` is destroyed, the slot unchanged
   */
  load(table: Table): void {
    if (!this.#everLoaded) {
      try {
        calculateLimits(table);
      } catch (error) {
        table.destroy();
        throw error;
      }
      this.#everLoaded = true;
    }
    this.#inactive?.destroy();
    this.#inactive = table;
  }

  /** Empties the inactive slot. */
  clear(): void {
    this.#inactive?.destroy();
    this.#inactive = null;
  }

  /** Holds new requests back and waits for those in flight. Calls `done` once, at once where nothing is in flight. */
  suspend(options: SuspendOptions, done: () => void): void {
    if (this.#suspended) {
      this.#whenIdle(done);
      return;
    }
    this.#noflush = options.noflush ?? false;
    for (const target of this.#live?.targets ?? []) target.type.presuspend?.(target);
    this.#suspended = true;
    this.#whenIdle(() => {
      for (const target of this.#live?.targets ?? []) target.type.postsuspend?.(target);
      done();
    });
  }

  #whenIdle(done: () => void): void {
    if (this.#inFlight === 0) done();
    else this.#waiting.push(done);
  }

  /**
   * Makes the inactive table live, if there is one, and lets requests through. Calls `done` once, with the reason when
   * it fails: the device is then suspended, and an inactive table that did not fit is gone.
   */
  resume(options: SuspendOptions, done: (error: DmError | null) => void): void {
    if (this.#inactive === null) {
      if (this.#suspended && this.#live === null) {
        done(new DmError(Errno.EINVAL, `${this.dmName} has no table to resume: load one first`));
        return;
      }
      done(this.#wakeUp());
      return;
    }
    this.suspend(options, () => {
      const error = this.#swap();
      done(error ?? this.#wakeUp());
    });
  }

  /** The inactive table becomes the live one; the old one is destroyed. */
  #swap(): DmError | null {
    const next = this.#inactive;
    // A second resume or a clear may have come in between.
    if (next === null) return null;
    this.#inactive = null;
    let limits: QueueLimits;
    try {
      limits = calculateLimits(next);
    } catch (error) {
      next.destroy();
      return error as DmError;
    }
    const previous = this.#live;
    this.#live = next;
    this.#obstacleTargets = next.targets.filter((target) => target.type.syncObstacle !== undefined);
    this.limits = limits;
    this.sectorCount = next.sectorCount;
    this.readOnly = next.readOnly;
    previous?.destroy();
    return null;
  }

  #wakeUp(): DmError | null {
    if (!this.#suspended) return null;
    const targets = this.#live?.targets ?? [];
    try {
      for (const target of targets) target.type.preresume?.(target);
    } catch (error) {
      if (!(error instanceof TargetError)) throw error;
      return new DmError(error.errno, error.text);
    }
    this.#suspended = false;
    this.#noflush = false;
    for (const target of targets) target.type.resume?.(target);
    this.#releaseDeferred();
    return null;
  }

  /** Ends the device: both tables are destroyed, what was held back fails. Only when nothing uses it. */
  destroy(): void {
    const live = this.#live;
    for (const target of this.#suspended ? [] : (live?.targets ?? [])) target.type.presuspend?.(target);
    for (const target of this.#suspended ? [] : (live?.targets ?? [])) target.type.postsuspend?.(target);
    this.clear();
    this.#live = null;
    this.#obstacleTargets = [];
    this.sectorCount = 0;
    this.#suspended = false;
    let bio = this.#deferredHead;
    this.#deferredHead = null;
    this.#deferredTail = null;
    while (bio !== null) {
      const next = bio.next;
      bio.fail(Errno.EIO, this);
      bio = next;
    }
    live?.destroy();
  }

  /** Status of the live table (or the inactive one): the lines without newline, none without a table. */
  lines(type: 'table' | 'info', inactive = false): string[] {
    return (inactive ? this.#inactive : this.#live)?.lines(type) ?? [];
  }
}
