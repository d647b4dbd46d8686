// Snapshots: the state of an origin at one moment, kept by copying what is about to change (drivers/md/dm-snap.c).
import { REQ_OP_WRITE } from '../../block/bio.ts';
import type { BlockDevice } from '../../block/block-device.ts';
import { queryExtent } from '../../block/block-device.ts';
import { escapeArgument } from '../../block/escape.ts';
import { DM_MAPIO_REMAPPED, DM_MAPIO_SUBMITTED, TargetError, type TargetType } from '../../block/target.ts';
import { lookUpDevice } from '../arguments.ts';
import { parseSnapshotArguments } from './arguments.ts';
import { forward } from './forward.ts';
import { Merge } from './merge.ts';
import { countMapper, originOf } from './origin.ts';
import { PersistentStore } from './persistent.ts';
import { Snapshot } from './snapshot.ts';

/** Syntax: `snapshot ORIGIN COW P|PO|N CHUNK [COUNT FEATURE...]`. */
export const snapshot: TargetType<Snapshot> = {
  name: 'snapshot',
  version: [1, 16, 0],

  construct(target, args, setup) {
    const parsed = parseSnapshotArguments(args, setup, false);
    target.flushBioCount = 1;
    if (parsed.features.discardZeroesCow) target.discardBioCount = parsed.features.discardPassdownOrigin ? 2 : 1;
    return new Snapshot(target, parsed, setup, false);
  },

  destruct: (target) => target.context.destruct(),
  map: (target, bio) => target.context.map(bio),
  endIo: (target, bio) => target.context.endIo(bio),
  status: (target, type) => (type === 'table' ? target.context.tableWords() : target.context.info()),

  iterateDevices(target, visit) {
    const { origin, cow } = target.context;
    visit(origin.device, 0, target.sectorCount);
    visit(cow, 0, cow.sectorCount);
  },

  queryExtent: (target, sector, sectorCount, done) => target.context.queryExtent(sector, sectorCount, done),
  presuspend: (target) => target.context.presuspend(),
  presuspendUndo: (target) => target.context.presuspendUndo(),
  postsuspend: (target) => target.context.postsuspend(),
  preresume: (target) => target.context.preresume(),
  resume: (target) => target.context.resume(),
};

/** Syntax: `snapshot-origin DEVICE`. */
export const snapshotOrigin: TargetType<BlockDevice> = {
  name: 'snapshot-origin',
  version: [1, 9, 0],

  construct(target, args, setup) {
    if (args.length !== 1) throw new TargetError('origin: incorrect number of arguments');
    target.flushBioCount = 1;
    const device = lookUpDevice(setup, args[0]!, 'Cannot get target device');
    countMapper(device, 1);
    return device;
  },

  destruct: (target) => countMapper(target.context, -1),

  map(target, bio) {
    const device = target.context;
    const send = (held: typeof bio): void => forward(held, device, held.sector, null);
    if (bio.op === REQ_OP_WRITE && !originOf(device).beforeWrite(bio, bio.sector, send)) return DM_MAPIO_SUBMITTED;
    bio.device = device;
    return DM_MAPIO_REMAPPED;
  },

  status: (target, type) => (type === 'table' ? escapeArgument(target.context.name) : ''),

  iterateDevices(target, visit) {
    visit(target.context, 0, target.sectorCount);
  },

  queryExtent: (target, sector, sectorCount, done) => queryExtent(target.context, sector, sectorCount, done),
};

/** Syntax: as `snapshot`, with a persistent store. */
export const snapshotMerge: TargetType<Merge> = {
  name: 'snapshot-merge',
  version: [1, 5, 0],

  construct(target, args, setup) {
    const parsed = parseSnapshotArguments(args, setup, true);
    target.flushBioCount = 2;
    if (parsed.features.discardZeroesCow) target.discardBioCount = parsed.features.discardPassdownOrigin ? 2 : 1;
    if (!(parsed.store instanceof PersistentStore)) {
      throw new TargetError('Snapshot exception store does not support snapshot-merge.');
    }
    return new Merge(new Snapshot(target, parsed, setup, true));
  },

  destruct: (target) => target.context.snapshot.destruct(),
  map: (target, bio) => target.context.map(bio),
  endIo: (target, bio) => target.context.endIo(bio),

  status(target, type) {
    const { snapshot } = target.context;
    return type === 'table' ? snapshot.tableWords() : snapshot.info();
  },

  iterateDevices(target, visit) {
    const { origin, cow } = target.context.snapshot;
    visit(origin.device, 0, target.sectorCount);
    visit(cow, 0, cow.sectorCount);
  },

  /** Of an invalid store everything is the origin's, as its requests are. */
  queryExtent(target, sector, sectorCount, done) {
    const { snapshot } = target.context;
    if (snapshot.valid) snapshot.queryExtent(sector, sectorCount, done);
    else queryExtent(snapshot.origin.device, sector, sectorCount, done);
  },
  syncObstacle: (target) => (target.context.running ? 'chunks are being merged, turn by turn' : null),
  presuspend: (target) => target.context.stop(),
  presuspendUndo: (target) => target.context.start(),
  postsuspend: (target) => target.context.snapshot.postsuspend(),
  preresume: (target) => target.context.snapshot.preresume(),

  resume(target) {
    target.context.snapshot.resume();
    target.context.start();
  },
};
