// A target: the kind of a table line, as the kernel has it (include/linux/device-mapper.h, struct target_type and struct
// dm_target). A target's file gives one descriptor of type TargetType; what it leaves out passes through or is refused
// as the comment at each member says. Capabilities are data on the line's Target, set by the constructor.
import type { Bio } from './bio.ts';
import type { BlockDevice, ExtentCallback } from './block-device.ts';
import { Errno } from './errno.ts';
import type { QueueLimits } from './limits.ts';
import type { Reactor } from './reactor.ts';

/** map() took the bio and will end it. */
export const DM_MAPIO_SUBMITTED = 0;
/** map() changed the bio's device and sector: the core submits it. */
export const DM_MAPIO_REMAPPED = 1;
/** Try again after the resume (only during a noflush suspend; an EIO otherwise). */
export const DM_MAPIO_REQUEUE = 2;
/** The core ends the bio with EIO. */
export const DM_MAPIO_KILL = 4;

export type MapResult =
  | typeof DM_MAPIO_SUBMITTED
  | typeof DM_MAPIO_REMAPPED
  | typeof DM_MAPIO_REQUEUE
  | typeof DM_MAPIO_KILL;

/** A constructor's refusal: `text` is what the kernel logs for it. */
export class TargetError extends Error {
  readonly text: string;
  readonly errno: number;

  constructor(text: string, errno: number = Errno.EINVAL, options?: ErrorOptions) {
    super(text, options);
    this.name = 'TargetError';
    this.text = text;
    this.errno = errno;
  }
}

/** What a target that does more than forward needs: where it runs. May be kept while the target lives. */
export interface TargetServices {
  readonly reactor: Reactor;
  /**
   * The engines of the devices below (dm-io's SyncEngines), for what a constructor reads. While they are blocking somebody
   * waits in a synchronous call: nothing may be put off to a later turn. Without them every request ends inside submit().
   */
  readonly engines?: { blocking: boolean; poll(): boolean };
}

/** What a constructor may ask of the table that is being built. */
export interface TargetSetup {
  /** The table is read-only. */
  readonly readOnly: boolean;
  /**
   * The device an argument names, opened for this table (once, however many lines name it) and closed with it. With
   * `readOnly` it is opened for reading alone, unless another argument of the table asks for more.
   *
   * @throws DmError with the kernel's errno; a constructor that catches it says "Device lookup failed" or its own text
   */
  getDevice(argument: string, readOnly?: boolean): BlockDevice;
  /**
   * The same for a device that the target writes to on its own account: opened for writing also for a read-only table, which
   * restricts the users of the mapped device and not the target.
   *
   * @param orReadOnly where the table is read-only and the device may not be written (EACCES, EPERM, EROFS), it is opened for
   *   reading alone
   * @throws DmError as getDevice
   */
  getOwnDevice(argument: string, orReadOnly: boolean): BlockDevice;
  /**
   * Keeps the table's devices open, also past its end, until as many calls of `release`: for requests of the target's own
   * that nobody above waits for.
   */
  hold(): void;
  release(): void;
  /** Work of the target's own that a suspend waits for, as it does for requests; ended by {@link endWork}. */
  beginWork(): void;
  endWork(): void;
  /** @throws Error where the mapper was made without any */
  readonly services: TargetServices;
  /** Counts an event of the mapped device and wakes who waits for one. May be kept and called while the target lives. */
  raiseEvent(): void;
}

/** One line of a table, live. `Context` is what its constructor returned. */
export class Target<Context = unknown> {
  readonly type: TargetType<Context>;
  /** First sector of the line on the mapped device. */
  readonly begin: number;
  readonly sectorCount: number;
  context!: Context;
  /** Requests are cut at its multiples, counted from `begin`; 0: only at the target's end. */
  maxIoSectorCount = 0;
  /** Copies of an empty flush that go to this target. */
  flushBioCount = 0;
  discardBioCount = 0;
  writeZeroesBioCount = 0;
  /** The flush of every lower device does the same as the flush copies: each device needs one, whatever the lines. */
  flushBypassesMap = false;
  /** Needs flushes whatever its devices say. */
  flushSupported = false;
  /** Takes discards whatever its devices say. */
  discardsSupported = false;

  constructor(type: TargetType<Context>, begin: number, sectorCount: number) {
    this.type = type;
    this.begin = begin;
    this.sectorCount = sectorCount;
  }
}

export type StatusType = 'info' | 'table';

/** Called for each range of a lower device that a target uses. */
export type DeviceVisitor = (device: BlockDevice, sector: number, sectorCount: number) => void;

export interface TargetType<Context = unknown> {
  /** At most 15 characters. */
  readonly name: string;
  readonly version: readonly [number, number, number];
  /** Must be the only line of its table. */
  readonly singleton?: boolean;
  /** Refused in a read-only table. */
  readonly alwaysWriteable?: boolean;
  /** Once in a live table, only a table of the same type may replace it. */
  readonly immutable?: boolean;
  /**
   * Where data goes follows from the table alone: the same line may be live in several threads at once. Its limits follow
   * from the line and its devices' limits alone: they are not asked for again while those stay as they are.
   */
  readonly stateless?: boolean;

  /** Reads the arguments, opens devices, sets the capabilities. @throws TargetError */
  construct(target: Target<Context>, args: readonly string[], setup: TargetSetup): Context;
  /** Undoes what the constructor did, devices aside (the table closes those). */
  destruct?(target: Target<Context>): void;
  /** `bio.sector` is a sector of the mapped device; the whole bio is inside this target. */
  map(target: Target<Context>, bio: Bio): MapResult;
  /** Sees a bio that map() sent down end, before the layers above; may change `bio.status`. */
  endIo?(target: Target<Context>, bio: Bio): void;
  /** The words after the type in a status or table line; none where it is left out. */
  status?(target: Target<Context>, type: StatusType): string;
  /** @returns the reply, or nothing. @throws TargetError. Left out: EINVAL. */
  message?(target: Target<Context>, args: readonly string[]): string | undefined;
  /** Every range of lower devices this line uses, in the order they were given. */
  iterateDevices?(target: Target<Context>, visit: DeviceVisitor): void;
  /** Last word on the limits, after those of the lower devices were stacked. */
  ioHints?(target: Target<Context>, limits: QueueLimits): void;
  /** The allocation behind `sector` (of the mapped device; the range is inside this target). Left out: data. */
  queryExtent?(target: Target<Context>, sector: number, sectorCount: number, done: ExtentCallback): void;

  /**
   * As BlockDevice.syncObstacle, for what the target itself does: it waits for a timer, a peer, a thread. Its devices
   * are asked by the core. Left out: never.
   */
  syncObstacle?(target: Target<Context>): string | null;

  presuspend?(target: Target<Context>): void;
  presuspendUndo?(target: Target<Context>): void;
  postsuspend?(target: Target<Context>): void;
  /** @throws TargetError to leave the device suspended */
  preresume?(target: Target<Context>): void;
  resume?(target: Target<Context>): void;
}

// A list of types holds targets of every context; each type only ever sees its own.
// biome-ignore lint/suspicious/noExplicitAny: the context is private to each type
export type AnyTargetType = TargetType<any>;
// biome-ignore lint/suspicious/noExplicitAny: the context is private to each type
export type AnyTarget = Target<any>;

/** The types that tables may name. */
export interface TargetRegistry {
  find(name: string): AnyTargetType | undefined;
  /** In the order they were registered. */
  list(): readonly AnyTargetType[];
}
