// The one table of requests: for each its arguments, its reply, the code that does it, and the answer where no daemon runs.
// Types, checks, the methods of clients and docs/control-protocol.md are made of it. A command loads this file before it
// asks: it imports no code that does the work.
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import type { ChangesPage } from '../overlays/changes.ts';
import type { DroppedOverlay, OverlayPlan } from '../overlays/options.ts';
import type { RequestContext } from './core/host.ts';
import type { Operations } from './operations.ts';
import {
  type ArgsOf,
  count,
  countOrNull,
  device,
  fields,
  flag,
  listOf,
  oneOf,
  optional,
  type Shapes,
  table,
  text,
  texts,
} from './schema.ts';
import type {
  DaemonInfo,
  Dependency,
  DeviceStatus,
  LoadReply,
  LostReply,
  Restored,
  SnapshotStatus,
  TableReply,
  TargetVersion,
} from './types.ts';

export interface Request<S extends Shapes, Reply> {
  /** One sentence for people. */
  readonly title: string;
  readonly args: S;
  /** The reply, in words. */
  readonly reply: string;
  /** It makes devices: a daemon is started for it. */
  readonly starts?: true;
  /** Its reply has lines that may be many: they travel behind the message. */
  readonly linesField?: 'lines';
  run(on: Operations, args: ArgsOf<S>, context: RequestContext): Promise<Reply> | Reply;
  /** The answer where no daemon runs. @throws DmError */
  readonly withoutDaemon: () => Promise<Reply> | Reply;
}

function request<S extends Shapes, Reply>(declared: Request<S, Reply>): Request<S, Reply> {
  return declared;
}

function noDevice(): never {
  throw new DmError(Errno.ENXIO, 'there is no such device: no daemon is running');
}

function noDaemon(): never {
  throw new DmError(0, 'no daemon is running', 'DM_NO_DAEMON');
}

const ONE = { device: device() };
const STATUS = 'the device as it stands';

const OVERLAY = {
  origin: text(),
  name: text(),
  cow: optional(text()),
  cowFolder: optional(text()),
  cowByteLength: optional(count()),
  chunkSectorCount: optional(count()),
  store: optional(oneOf('persistent', 'overflow', 'transient')),
  lazyCommit: optional(flag()),
  originName: optional(text()),
  /** Where relative paths start: absolute. */
  folder: text(),
  force: optional(flag()),
};

/** Arguments of an overlay that is to be made. */
export type OverlayArgs = ArgsOf<typeof OVERLAY>;

/** How a table's device arguments are read. */
const HOW = {
  /** Where relative paths start. */
  folder: optional(text()),
  /** /dev/mapper/NAME is the host's, not dmkit's. */
  host: optional(flag()),
  /** Go on with a store of another origin. */
  force: optional(flag()),
};

const CREATE = {
  name: text(),
  uuid: optional(text()),
  major: optional(count()),
  minor: optional(count()),
  table: optional(table()),
  readOnly: optional(flag()),
  readAhead: optional(fields({ sectorCount: countOrNull(), atLeast: optional(flag()) })),
  ...HOW,
};

const LOAD = { ...ONE, table: table(), readOnly: optional(flag()), ...HOW };

/** Steps that a batch can have: the names of requests. */
export const BATCH_STEPS = [
  'create',
  'load',
  'clear',
  'suspend',
  'resume',
  'remove',
  'rename',
  'setUuid',
  'overlayCreate',
  'overlayDrop',
] as const;

export type BatchStep = (typeof BATCH_STEPS)[number];

export const REQUESTS = {
  daemon: request({
    title: 'Says which daemon answers.',
    args: {},
    reply: '{version, pid, major, nbdSocket, logFile}',
    run: (on): DaemonInfo => on.daemon().info(),
    withoutDaemon: noDaemon,
  }),
  targets: request({
    title: 'Lists the target types.',
    args: {},
    reply: 'a list of {name, version}',
    run: (on): TargetVersion[] => on.devices.targets(),
    withoutDaemon: async (): Promise<TargetVersion[]> => {
      const { builtinTargets } = await import('../targets/index.ts');
      return builtinTargets.map(({ name, version }) => ({ name, version }));
    },
  }),
  list: request({
    title: 'Lists the devices in the order of their names.',
    args: {},
    reply: 'a list of devices',
    run: (on): DeviceStatus[] => on.devices.list(),
    withoutDaemon: () => [],
  }),
  info: request({
    title: 'Tells how a device stands.',
    args: { ...ONE, inactive: optional(flag()) },
    reply: STATUS,
    run: (on, args): DeviceStatus => on.devices.info(args.device, args.inactive),
    withoutDaemon: noDevice,
  }),
  create: request({
    title: 'Makes a device; with a table it is loaded and resumed too. Whole or not at all.',
    args: CREATE,
    reply: STATUS,
    starts: true,
    run: (on, args, context): Promise<DeviceStatus> => on.devices.create(args, context),
    withoutDaemon: noDaemon,
  }),
  load: request({
    title: 'Puts a table into the inactive slot.',
    args: LOAD,
    reply: `${STATUS}, and notices`,
    run: (on, args, context): Promise<LoadReply> => on.devices.load(args, context),
    withoutDaemon: noDevice,
  }),
  clear: request({
    title: 'Empties the inactive slot.',
    args: ONE,
    reply: STATUS,
    run: (on, args, context): Promise<DeviceStatus> => on.devices.clear(args, context),
    withoutDaemon: noDevice,
  }),
  suspend: request({
    title: 'Holds new requests of a device back and waits for those under way.',
    args: { ...ONE, noflush: optional(flag()) },
    reply: STATUS,
    run: (on, args, context): Promise<DeviceStatus> => on.devices.suspend(args, context),
    withoutDaemon: noDevice,
  }),
  resume: request({
    title: 'Makes the inactive table live, where there is one, and lets requests through.',
    args: { ...ONE, noflush: optional(flag()) },
    reply: STATUS,
    run: (on, args, context): Promise<DeviceStatus> => on.devices.resume(args, context),
    withoutDaemon: noDevice,
  }),
  remove: request({
    title: 'Removes a device; deferred, it goes when its last user does.',
    args: { ...ONE, deferred: optional(flag()) },
    reply: 'null',
    run: async (on, args, context): Promise<null> => {
      await on.devices.remove(args, context);
      return null;
    },
    withoutDaemon: noDevice,
  }),
  removeAll: request({
    title: 'Removes every device that nothing uses, from the top of each stack down.',
    args: { deferred: optional(flag()) },
    reply: 'the names of devices that are left',
    run: (on, args, context): Promise<string[]> => on.devices.removeAll(args.deferred ?? false, context),
    withoutDaemon: () => [],
  }),
  rename: request({
    title: 'Gives a device another name.',
    args: { name: text(), newName: text() },
    reply: STATUS,
    run: (on, args, context): Promise<DeviceStatus> => on.devices.rename(args, context),
    withoutDaemon: noDevice,
  }),
  setUuid: request({
    title: 'Gives a uuid to a device that has none.',
    args: { name: text(), uuid: text() },
    reply: STATUS,
    run: (on, args, context): Promise<DeviceStatus> => on.devices.setUuid(args, context),
    withoutDaemon: noDevice,
  }),
  table: request({
    title: 'Gives the lines of a table, or the status of its targets.',
    args: { ...ONE, type: oneOf('table', 'info'), inactive: optional(flag()) },
    reply: '{status, lines}, each line {sector, sectorCount, type, params}',
    linesField: 'lines',
    run: (on, args): Promise<TableReply> => on.devices.table(args),
    withoutDaemon: noDevice,
  }),
  deps: request({
    title: 'Lists the devices below a table.',
    args: { ...ONE, inactive: optional(flag()) },
    reply: 'a list of {name, major?, minor?}',
    run: (on, args): Dependency[] => on.devices.deps(args.device, args.inactive),
    withoutDaemon: noDevice,
  }),
  wait: request({
    title: 'Waits while the event number is eventNumber. The name in the reply is the one at the start.',
    args: { ...ONE, eventNumber: count() },
    reply: STATUS,
    run: (on, args, context): Promise<DeviceStatus> => on.devices.wait(args, context),
    withoutDaemon: noDevice,
  }),
  message: request({
    title: 'Gives a message to the target that owns a sector, or to the device itself (@…).',
    args: { ...ONE, sector: count(), text: text() },
    reply: 'the target’s answer, or null',
    run: (on, args): string | null => on.devices.message(args.device, args.sector, args.text),
    withoutDaemon: noDevice,
  }),
  setReadAhead: request({
    title: 'Sets the read-ahead: atLeast only where it is larger than the device’s own; null for the device’s own.',
    args: { ...ONE, sectorCount: countOrNull(), atLeast: optional(flag()) },
    reply: STATUS,
    run: (on, args): DeviceStatus => on.devices.setReadAhead(args.device, args.sectorCount, args.atLeast),
    withoutDaemon: noDevice,
  }),
  refresh: request({
    title: 'Takes over the sizes that the files and disks below a device have now.',
    args: ONE,
    reply: 'a list of {name, sectorCount} of those that changed',
    run: (on, args): { name: string; sectorCount: number }[] => on.devices.refresh(args.device),
    withoutDaemon: noDevice,
  }),
  batch: request({
    title: `Does several requests (${BATCH_STEPS.join(', ')}) as one: all, or none.`,
    args: { steps: listOf(fields({ name: oneOf(...BATCH_STEPS), args: batchArgs() })) },
    reply: 'a list of the steps’ replies',
    starts: true,
    run: (on, args, context): Promise<unknown[]> => on.batch(args.steps, context),
    withoutDaemon: noDaemon,
  }),
  overlays: request({
    title: 'Lists the snapshot lines of one device, or of all.',
    args: { device: optional(device()) },
    reply: 'a list of snapshot lines with their counters',
    run: (on, args): SnapshotStatus[] => on.overlays.list(args.device),
    withoutDaemon: () => [],
  }),
  overlayChanges: request({
    title: 'Tells where an overlay differs from its origin, from a sector on.',
    args: { ...ONE, sector: count() },
    reply: '{extents, nextSector}',
    run: (on, args): ChangesPage => on.overlays.changes(args.device, args.sector),
    withoutDaemon: noDevice,
  }),
  overlayPlan: request({
    title: 'Tells what overlayCreate would do.',
    args: { overlays: listOf(fields(OVERLAY)) },
    reply: 'a list of plans',
    run: (on, args): Promise<OverlayPlan[]> => on.overlays.plan(args.overlays),
    withoutDaemon: noDaemon,
  }),
  overlayCreate: request({
    title:
      'Makes overlays and their stores. All origins stand still before the first overlay begins. Whole or not at all.',
    args: { overlays: listOf(fields(OVERLAY)) },
    reply: 'a list of plans, as they were carried out',
    starts: true,
    run: (on, args, context): Promise<OverlayPlan[]> => on.overlays.create(args.overlays, context),
    withoutDaemon: noDaemon,
  }),
  overlayMerge: request({
    title: 'Merges an overlay into its origin and waits for the end; the merge goes on where the client does not.',
    args: { name: text(), deleteCow: optional(flag()) },
    reply: '{name, cow, deleted, stale}; progress {leftChunkCount, totalChunkCount, chunkSectorCount} meanwhile',
    run: (on, args, context): Promise<DroppedOverlay> => on.overlays.merge(args.name, args.deleteCow ?? false, context),
    withoutDaemon: noDevice,
  }),
  overlayDrop: request({
    title: 'Takes overlays away; their stores stay unless deleteCow is given. Whole or not at all.',
    args: { names: texts(), deleteCow: optional(flag()) },
    reply: 'a list of {name, cow, deleted, stale}',
    run: (on, args, context): Promise<DroppedOverlay[]> => on.overlays.drop(args, context),
    withoutDaemon: noDevice,
  }),
  restore: request({
    title: 'Makes lost devices again: all, or those named. force accepts disks that are not the same.',
    args: { names: optional(texts()), force: optional(flag()) },
    reply: 'a list of {name, error, notices}',
    starts: true,
    run: (on, args, context): Promise<Restored[]> =>
      on.recovery().restore(args.names ?? null, args.force ?? false, context),
    withoutDaemon: noDaemon,
  }),
  lost: request({
    title: 'Lists lost devices, and damage of the journal.',
    args: {},
    reply: '{devices, damage}',
    run: (on): LostReply => on.recovery().list(),
    withoutDaemon: (): LostReply => ({ devices: [], damage: [] }),
  }),
  adopt: request({
    title: 'Accepts the disks that the names in a lost device’s tables lead to now as its own.',
    args: { names: texts() },
    reply: 'a list of sentences: each disk that is another one now',
    starts: true,
    run: (on, args, context): Promise<string[]> => on.recovery().adopt(args.names, context),
    withoutDaemon: noDaemon,
  }),
  forget: request({
    title: 'Forgets lost devices.',
    args: { names: texts() },
    reply: 'null',
    starts: true,
    run: async (on, args, context): Promise<null> => {
      await on.recovery().forget(args.names, context);
      return null;
    },
    withoutDaemon: noDaemon,
  }),
  shutdown: request({
    title: 'Ends the daemon and its devices; without force only where no NBD client uses one.',
    args: { force: optional(flag()) },
    reply: 'null',
    run: async (on, args): Promise<null> => {
      await on.daemon().shutdown(args.force ?? false);
      return null;
    },
    withoutDaemon: noDaemon,
  }),
};

/** The arguments of a step: those of its request, checked by its own shapes when the batch runs. */
function batchArgs() {
  return {
    describe: 'the arguments of that request',
    isOptional: false,
    isText: false,
    check: (value: unknown) => typeof value === 'object' && value !== null,
  } as { describe: string; isOptional: boolean; isText: boolean; check(value: unknown): boolean; value?: object };
}

type Table = typeof REQUESTS;
export type RequestName = keyof Table;
export type RequestArgs<Name extends RequestName> = ArgsOf<Table[Name]['args']>;
export type Reply<Name extends RequestName> = Awaited<ReturnType<Table[Name]['run']>>;

/**
 * Devices that can be asked, in this process or in another.
 *
 * Rejects with DmError, TableError where a table is refused: the same whether the devices are in this process or not.
 */
export interface Control {
  /** @param context `signal` interrupts a request that waits: it is undone. `onProgress` hears of long ones */
  call<Name extends RequestName>(
    name: Name,
    args: RequestArgs<Name>,
    context?: Omit<RequestContext, 'client'>,
  ): Promise<Reply<Name>>;
}

/** Each request as a method. */
export type RequestMethods = {
  [Name in RequestName]: (args: RequestArgs<Name>, context?: Omit<RequestContext, 'client'>) => Promise<Reply<Name>>;
};

export function isRequestName(name: string): name is RequestName {
  return Object.hasOwn(REQUESTS, name);
}

/** Methods made of the table: one for each request. */
export function methodsOf(control: Control): RequestMethods {
  const names = Object.keys(REQUESTS) as RequestName[];
  return Object.fromEntries(
    names.map((name) => [name, (args: never, context?: RequestContext) => control.call(name, args, context)]),
  ) as unknown as RequestMethods;
}
