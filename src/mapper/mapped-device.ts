// A mapped device: two table slots, a live one that serves and an inactive one that waits for a resume; suspended or not
// (drivers/md/dm.c, dm-ioctl.c). It is itself a block device, so that it can lie below another.
import { type Bio, REQ_OP_FLUSH, REQ_RAHEAD } from '../block/bio.ts';
import type { BlockDevice, ExtentCallback } from '../block/block-device.ts';
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { defaultLimits, type QueueLimits } from '../block/limits.ts';
import { type AnyTarget, TargetError } from '../block/target.ts';
import type { TableBuilder } from '../table/builder.ts';
import { calculateLimits, limitSteps } from '../table/limits.ts';
import { runSteps, type Steps } from '../table/steps.ts';
import type { Table } from '../table/table.ts';
import { EventCounter } from './events.ts';
import { IoGate } from './io-gate.ts';
import { Loads } from './loads.ts';
import { sendMessage } from './message.ts';
import { Request, type RequestOwner } from './request.ts';
import { mapWhole } from './single.ts';
import type { StateChange } from './state-change.ts';
import { Turns } from './turns.ts';

export interface SuspendOptions {
  /** Targets may give back what they hold, to be mapped again after the resume. */
  noflush?: boolean;
}

export type { StateChange } from './state-change.ts';

/** One mapped device. Made, named and removed by the {@link Mapper}; here is what happens to its tables and its I/O. */
export class MappedDevice implements RequestOwner {
  readonly major: number;
  readonly minor: number;
  /** The name it was given. */
  dmName: string;
  uuid: string;
  /** Users: stacked devices, NBD clients, handles. The {@link Mapper} counts. */
  openCount = 0;
  /** It goes when the last user does. */
  deferredRemove = false;
  limits: QueueLimits = defaultLimits();
  sectorCount = 0;
  readOnly = false;

  #live: Table | null = null;
  /** Those of the live table that can keep a synchronous call from ending. */
  #obstacleTargets: readonly AnyTarget[] = [];
  #inactive: Table | null = null;
  /** On its way from the inactive slot to the live one, while a resume waits for what is in flight. */
  #next: Table | null = null;
  #everLoaded = false;
  #suspended = false;
  #noflush = false;
  readonly #events = new EventCounter();
  readonly #turns = new Turns();
  readonly #gate = new IoGate({ passDeferred: (bio) => this.#passDeferred(bio) });

  /** The tables that are being built for it: what they have open lies below it already. */
  readonly building = new Set<TableBuilder>();
  readonly loads = new Loads();

  /**
   * Why its table must stay as it is, and live, and what it has open must stay so; null where they need not. The
   * {@link Mapper} refuses what would change that.
   */
  pinned: string | null = null;

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

  /** Suspended and nothing in flight. */
  get suspended(): boolean {
    return this.#suspended;
  }

  /** A suspend, a resume or the removal is under way. */
  get isChanging(): boolean {
    return this.#turns.isBusy;
  }

  get inFlightCount(): number {
    return this.#gate.inFlightCount;
  }

  get table(): Table | null {
    return this.#live;
  }

  get inactiveTable(): Table | null {
    return this.#inactive;
  }

  /** A load has succeeded at some time: from then on the kernel has a block node for it. */
  get everLoaded(): boolean {
    return this.#everLoaded;
  }

  get eventNumber(): number {
    return this.#events.number;
  }

  /** Live, inactive, on its way from one to the other, being built: a cycle must not be closed by a resume either. */
  *lowerDevices(): Generator<BlockDevice> {
    if (this.#live !== null) yield* this.#live.devices;
    if (this.#next !== null) yield* this.#next.devices;
    if (this.#inactive !== null) yield* this.#inactive.devices;
    for (const builder of this.building) yield* builder.devices;
  }

  // Events

  /** Counts an event and lets go whoever waits for one. */
  raiseEvent(): void {
    this.#events.raise();
  }

  /** Calls `done` when the event number is not `known` (any more). @returns stops waiting without calling `done` */
  waitForEvent(known: number, done: () => void): () => void {
    return this.#events.wait(known, done);
  }

  // I/O

  /** A target's own work: in flight like a request. */
  beginWork(): void {
    this.#gate.enter();
  }

  endWork(): void {
    this.#gate.leave();
  }

  submit(bio: Bio): void {
    if (this.#gate.holdsBack) {
      // Read-ahead has no reason to wait for a resume.
      if (bio.flags & REQ_RAHEAD) bio.fail(Errno.EIO, this);
      else this.#gate.defer(bio);
      return;
    }
    this.#map(bio);
  }

  #map(bio: Bio): void {
    const table = this.#live;
    if (table === null) {
      bio.fail(Errno.EIO, this);
      return;
    }
    this.#gate.enter();
    if (!mapWhole(this, table, bio)) Request.start(this, table, bio);
  }

  requestDone(bio: Bio, errno: number, requeue: boolean): void {
    if (requeue && this.#noflush && this.#gate.isShut) this.#gate.defer(bio);
    else bio.endIo(errno);
    this.#gate.leave();
  }

  /** Held back, and now to be mapped by the table that is live now. */
  #passDeferred(bio: Bio): void {
    // The table may have shrunk below a bio that fitted when it came.
    if (bio.op !== REQ_OP_FLUSH && bio.sector + bio.sectorCount > this.sectorCount) bio.fail(Errno.EIO, this);
    else this.#map(bio);
  }

  queryExtent(sector: number, sectorCount: number, done: ExtentCallback): void {
    if (this.#gate.isShut) {
      this.#gate.deferQuery(() => this.queryExtent(sector, sectorCount, done));
      return;
    }
    const target = this.#live?.find(sector);
    if (target === undefined) {
      done(Errno.EIO, 0, 0);
      return;
    }
    const count = Math.min(sectorCount, target.begin + target.sectorCount - sector);
    if (target.type.queryExtent === undefined) {
      done(0, count, 0);
      return;
    }
    // In flight like a request: its devices must not be closed below it.
    this.#gate.enter();
    target.type.queryExtent(target, sector, count, (errno, extentCount, flags, depth) => {
      done(errno, extentCount, flags, depth);
      this.#gate.leave();
    });
  }

  syncObstacle(): string | null {
    if (this.#gate.isShut) return `${this.dmName} is suspended, and only a resume lets requests through`;
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

  // Tables

  /** {@link loadSteps} in one go. */
  load(table: Table): void {
    runSteps(this.loadSteps(table));
  }

  /**
   * Puts `table` into the inactive slot; the one that was there is destroyed. It serves from the next resume on.
   * At a device's very first load the table is checked against its devices now, later only at the resume. Where it is
   * refused, or given up between two steps, `table` is destroyed and the slot unchanged.
   *
   * @param mayTake the last word, after everything that takes time; throws to refuse
   * @param keepPrevious takes the table that was in the slot, instead of its end
   * @throws TableError from that first check, DmError EINVAL where an immutable target would be replaced by another type
   */
  *loadSteps(table: Table, mayTake: () => void = () => {}, keepPrevious?: (previous: Table | null) => void): Steps {
    let isTaken = false;
    try {
      this.#checkImmutable(table);
      yield* this.#checkLimits(table);
      // Whoever wants to give it up can do so for the last time: what comes now is one moment.
      yield;
      mayTake();
      this.#checkImmutable(table);
      isTaken = true;
    } finally {
      if (!isTaken) table.destroy();
    }
    this.#everLoaded = true;
    if (keepPrevious === undefined) this.#inactive?.destroy();
    else keepPrevious(this.#inactive);
    this.#inactive = table;
  }

  /**
   * Undoes a load: the slot's table is destroyed, and `previous` stands there again.
   *
   * @param everLoaded as it was before
   */
  unload(previous: Table | null, everLoaded: boolean): void {
    this.#inactive?.destroy();
    this.#inactive = previous;
    this.#everLoaded = everLoaded;
  }

  /** Takes the live table away, for an undo of its first resume. Calls `done` when nothing is in flight any more. */
  dropLive(done: () => void): void {
    this.#change((finish) => {
      const end = (): void => {
        const live = this.#live;
        this.#live = null;
        this.#obstacleTargets = [];
        this.sectorCount = 0;
        this.#suspended = false;
        this.#gate.open();
        finish(() => (live === null ? done() : live.destroy(done)));
      };
      if (this.#suspended) end();
      else this.#quiesce(false, end);
      return () => {};
    });
  }

  *#checkLimits(table: Table): Steps {
    // Prepared for the resume where they can be kept. There a line that does not fit is refused.
    if (this.#everLoaded && !table.isStateless) return;
    try {
      yield* limitSteps(table);
    } catch (error) {
      if (!this.#everLoaded) throw error;
    }
  }

  #checkImmutable(table: Table): void {
    const type = this.#live?.targets[0]?.type;
    if (!type?.immutable || table.targets[0]?.type === type) return;
    throw new DmError(Errno.EINVAL, `can't replace immutable target type ${type.name}`);
  }

  /** Empties the inactive slot. @param keepPrevious as at {@link load} */
  clear(keepPrevious?: (previous: Table | null) => void): void {
    if (keepPrevious === undefined) this.#inactive?.destroy();
    else keepPrevious(this.#inactive);
    this.#inactive = null;
  }

  /**
   * Holds new requests back and waits for those in flight. Calls `done` once: at once where nothing is in flight, or
   * where it is suspended already.
   */
  suspend(options: SuspendOptions, done: () => void): StateChange {
    return this.#change((finish) => {
      if (this.#suspended) {
        finish(done);
        return () => {};
      }
      return this.#quiesce(options.noflush ?? false, () => finish(done));
    });
  }

  /**
   * Makes the inactive table live, if there is one, and lets requests through. Calls `done` once, with the reason when
   * it fails: the device is then suspended, and an inactive table that did not fit is gone. Where another table was live,
   * what that one had open is closed first.
   */
  resume(options: SuspendOptions, done: (error: DmError | null) => void): StateChange {
    return this.#change((finish) => {
      const next = this.#inactive;
      if (next === null) {
        const error = this.#resumeLive();
        finish(() => done(error));
        return () => {};
      }
      this.#inactive = null;
      if (this.#suspended) {
        this.#goLive(next, finish, done);
        return () => {};
      }
      this.#next = next;
      const undo = this.#quiesce(options.noflush ?? false, () => {
        this.#next = null;
        this.#goLive(next, finish, done);
      });
      return () => {
        undo();
        this.#next = null;
        next.destroy();
      };
    });
  }

  /** Does `work` in its turn. `work` calls `finish` once, unless what it returns was called to undo it. */
  #change(work: (finish: (tell: () => void) => void) => () => void): StateChange {
    let undo: (() => void) | null = null;
    let release = (): void => {};
    let over = false;
    const withdraw = this.#turns.take((releaseTurn) => {
      release = releaseTurn;
      const undoWork = work((tell) => {
        over = true;
        // Told first: the next in turn must not be done before this one's caller knows.
        try {
          tell();
        } finally {
          releaseTurn();
        }
      });
      if (!over) undo = undoWork;
    });
    return {
      cancel: () => {
        if (over) return;
        over = true;
        if (withdraw() || undo === null) return;
        undo();
        release();
      },
    };
  }

  /** Shuts the gate and waits. @returns undoes it, where it still waits */
  #quiesce(noflush: boolean, idle: () => void): () => void {
    const targets = this.#live?.hookedTargets ?? [];
    this.#noflush = noflush;
    for (const target of targets) target.type.presuspend?.(target);
    const stopWaiting = this.#gate.shut(() => {
      this.#suspended = true;
      for (const target of targets) target.type.postsuspend?.(target);
      idle();
    });
    return () => {
      stopWaiting();
      for (const target of targets) target.type.presuspendUndo?.(target);
      this.#noflush = false;
      this.#gate.open();
    };
  }

  #resumeLive(): DmError | null {
    if (!this.#suspended) return null;
    if (this.#live === null) {
      return new DmError(Errno.EINVAL, `${this.dmName} has no table to resume: load one first`);
    }
    return this.#wakeUp();
  }

  /** The old table goes when the new one has woken up, so that its targets can hand over what they have. */
  #goLive(next: Table, finish: (tell: () => void) => void, done: (error: DmError | null) => void): void {
    const previous = this.#live;
    const refusal = this.#swap(next);
    const error = refusal ?? this.#wakeUp();
    finish(() => {
      if (refusal !== null || previous === null) done(error);
      else previous.destroy(() => done(error));
    });
  }

  /** `next` becomes the live table. Where it does not fit its devices it is destroyed. */
  #swap(next: Table): DmError | null {
    let limits: QueueLimits;
    try {
      limits = calculateLimits(next);
    } catch (error) {
      next.destroy();
      return error as DmError;
    }
    this.#live = next;
    this.#obstacleTargets = next.hookedTargets.filter((target) => target.type.syncObstacle !== undefined);
    this.limits = limits;
    this.sectorCount = next.sectorCount;
    this.readOnly = next.readOnly;
    return null;
  }

  #wakeUp(): DmError | null {
    const targets = this.#live?.hookedTargets ?? [];
    try {
      for (const target of targets) target.type.preresume?.(target);
    } catch (error) {
      if (!(error instanceof TargetError)) throw error;
      return new DmError(error.errno, error.text);
    }
    this.#suspended = false;
    this.#noflush = false;
    for (const target of targets) target.type.resume?.(target);
    this.#gate.open();
    return null;
  }

  /**
   * Ends the device when its turn comes and nothing is in flight: both tables are destroyed, what was held back fails
   * with EIO, whoever waits for an event is let go. Calls `done` once, when everything that it had open is closed.
   */
  destroy(done: () => void = () => {}): void {
    this.#change((finish) => {
      const end = (): void => finish(() => this.#destroyTables(done));
      if (this.#suspended) end();
      else this.#quiesce(false, end);
      return () => {};
    });
  }

  #destroyTables(done: () => void): void {
    // One that was never live has begun nothing.
    this.clear();
    const live = this.#live;
    this.#live = null;
    this.#obstacleTargets = [];
    this.sectorCount = 0;
    this.#suspended = false;
    const { bios, queries } = this.#gate.drain();
    // What comes from now on meets a device without a table.
    this.#gate.open();
    for (const bio of bios) bio.fail(Errno.EIO, this);
    for (const query of queries) query();
    this.raiseEvent();
    if (live === null) done();
    else live.destroy(done);
  }

  // What it says

  /** Status of the live table (or the inactive one): the lines without newline, none without a table. */
  lines(type: 'table' | 'info', inactive = false): string[] {
    return (inactive ? this.#inactive : this.#live)?.lines(type) ?? [];
  }

  /**
   * Gives `text` to the device (`@…`) or to the target that owns `sector`.
   *
   * @returns the reply, or nothing
   * @throws DmError EINVAL where nobody takes it; TargetError's errno
   */
  message(sector: number, text: string): string | undefined {
    return sendMessage(this, sector, text);
  }
}
