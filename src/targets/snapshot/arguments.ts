// The arguments that snapshot and snapshot-merge share: `ORIGIN COW P|PO|N CHUNK [COUNT FEATURE...]`.
import type { BlockDevice } from '../../block/block-device.ts';
import { parseUnsigned32 } from '../../block/numbers.ts';
import { TargetError, type TargetSetup } from '../../block/target.ts';
import { lookUpDevice, lookUpOwnDevice } from '../arguments.ts';
import { chunkSizeObjection } from './layout.ts';
import { PersistentStore } from './persistent.ts';
import type { ExceptionStore } from './store.ts';
import { TransientStore } from './transient.ts';

const NO_STORE = "Couldn't create exception store";

export interface SnapshotFeatures {
  /** Discards of a whole chunk zero it. */
  discardZeroesCow: boolean;
  /** Discards go to the origin as well. */
  discardPassdownOrigin: boolean;
  /** dmkit's own: records may wait in memory for a flush. */
  lazyCommit: boolean;
}

const FEATURE_WORDS: readonly [string, keyof SnapshotFeatures][] = [
  ['discard_zeroes_cow', 'discardZeroesCow'],
  ['discard_passdown_origin', 'discardPassdownOrigin'],
  ['lazy_commit', 'lazyCommit'],
];

export interface SnapshotArguments {
  origin: BlockDevice;
  cow: BlockDevice;
  store: ExceptionStore;
  features: SnapshotFeatures;
}

/**
 * Reads the arguments in the kernel's order, with its words.
 *
 * The table's read-only flag is for the users of the mapped device: the target copies out for the origin and merges all the
 * same. A store that may only be read is good for reading, until something has to be copied.
 *
 * @param writesOrigin a merge
 * @throws TargetError
 */
export function parseSnapshotArguments(
  args: readonly string[],
  setup: TargetSetup,
  writesOrigin: boolean,
): SnapshotArguments {
  if (args.length < 4) throw new TargetError('requires 4 or more arguments');
  const features = parseFeatures(args.slice(4));
  const noOrigin = 'Cannot get origin device';
  const origin = writesOrigin
    ? lookUpOwnDevice(setup, args[0]!, noOrigin, false)
    : lookUpDevice(setup, args[0]!, noOrigin, true);
  const cow = lookUpOwnDevice(setup, args[1]!, 'Cannot get COW device', true);
  if (cow === origin) throw new TargetError('COW device cannot be the same as origin device');
  const store = parseStore(args[2]!, args[3]!, origin, cow, features, setup);
  return { origin, cow, store, features };
}

function parseFeatures(args: readonly string[]): SnapshotFeatures {
  const features = { discardZeroesCow: false, discardPassdownOrigin: false, lazyCommit: false };
  if (args.length === 0) return features;
  const count = /^[0-9]+$/.test(args[0]!) ? Number(args[0]) : Number.NaN;
  const words = args.slice(1, 1 + count).map((word) => word.toLowerCase());
  // The kernel knows two; the third place is for our own.
  const most = words.includes('lazy_commit') ? 3 : 2;
  if (!(count <= most && count < args.length)) throw new TargetError('Invalid number of feature arguments');
  for (const word of words) {
    const known = FEATURE_WORDS.find(([name]) => name === word);
    if (known === undefined) throw new TargetError('Unrecognised feature requested');
    features[known[1]] = true;
  }
  if (features.discardPassdownOrigin && !features.discardZeroesCow) {
    throw new TargetError('discard_passdown_origin feature depends on discard_zeroes_cow');
  }
  return features;
}

/** As a table prints them: nothing, or their number and their words. */
export function formatFeatures(features: SnapshotFeatures): string {
  const words = FEATURE_WORDS.filter(([, key]) => features[key]).map(([word]) => word);
  return words.length === 0 ? '' : ` ${words.length} ${words.join(' ')}`;
}

function parseStore(
  word: string,
  chunkWord: string,
  origin: BlockDevice,
  cow: BlockDevice,
  features: SnapshotFeatures,
  setup: TargetSetup,
): ExceptionStore {
  const refuse = (why: string): TargetError => new TargetError(NO_STORE, undefined, { cause: new Error(why) });
  const type = word[0]!.toUpperCase();
  if (type !== 'P' && type !== 'N') throw refuse('Exception store type is not P or N');
  const chunkSectorCount = parseUnsigned32(chunkWord);
  if (chunkSectorCount === undefined) throw refuse('Invalid chunk size');
  const objection = chunkSectorCount === 0 ? null : chunkSizeObjection(chunkSectorCount, [origin, cow]);
  if (objection !== null) throw refuse(objection);
  if (type === 'N') return new TransientStore(cow, chunkSectorCount);
  const option = word.slice(1);
  if (option !== '' && option[0]!.toUpperCase() !== 'O') throw refuse(`Unsupported persistent store option: ${option}`);
  const { services } = setup;
  return new PersistentStore(cow, chunkSectorCount, {
    services,
    overflowAware: option !== '',
    lazy: features.lazyCommit,
  });
}
