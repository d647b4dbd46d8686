// striped: chunks dealt round over several devices. Drawn in drivers/md/dm-stripe.c.
//
//   chunk of the line   0  1  2  3  4  5  …        n stripes, `chunk` sectors each:
//   stripe              0  1  2  0  1  2           stripe = c mod n, row = floor(c / n)
//   row on the stripe   0  0  0  1  1  1           sector = offset[stripe] + row * chunk + (s mod chunk)
import type { Bio } from '../block/bio.ts';
import { REQ_OP_DISCARD, REQ_OP_FLUSH, REQ_OP_WRITE_ZEROES, REQ_RAHEAD } from '../block/bio.ts';
import type { BlockDevice } from '../block/block-device.ts';
import { queryExtent } from '../block/block-device.ts';
import { Errno } from '../block/errno.ts';
import { escapeArgument } from '../block/escape.ts';
import { parseUnsigned32, scanUnsigned64 } from '../block/numbers.ts';
import { SECTOR_SIZE } from '../block/sector.ts';
import { DM_MAPIO_REMAPPED, DM_MAPIO_SUBMITTED, type Target, TargetError, type TargetType } from '../block/target.ts';
import { lookUpDevice } from './arguments.ts';

/** A failing stripe raises this many events at the most, less one. */
const EVENT_ERROR_COUNT = 15;

interface Stripe {
  device: BlockDevice;
  start: number;
  errorCount: number;
}

interface StripedContext {
  stripes: readonly Stripe[];
  chunkSectorCount: number;
  raiseEvent: () => void;
}

/** The stripe that holds `sector`, which is counted from the line's start. */
function stripeIndex(context: StripedContext, sector: number): number {
  return Math.floor(sector / context.chunkSectorCount) % context.stripes.length;
}

/** The sector on the stripe that holds `sector`, counted from the stripe's start. */
function stripeSector(context: StripedContext, sector: number): number {
  const chunk = Math.floor(sector / context.chunkSectorCount);
  return Math.floor(chunk / context.stripes.length) * context.chunkSectorCount + (sector % context.chunkSectorCount);
}

/** Where a range that begins (or ends) at `sector` begins (or ends) on stripe `index`: one contiguous range for each. */
function rangeEdge(context: StripedContext, sector: number, index: number): number {
  const owner = stripeIndex(context, sector);
  const edge = stripeSector(context, sector);
  if (owner === index) return edge;
  const chunkStart = edge - (edge % context.chunkSectorCount);
  return index < owner ? chunkStart + context.chunkSectorCount : chunkStart;
}

function mapRange(target: Target<StripedContext>, bio: Bio) {
  const context = target.context;
  const stripe = context.stripes[bio.targetBioNumber]!;
  const from = bio.sector - target.begin;
  const begin = rangeEdge(context, from, bio.targetBioNumber);
  const end = rangeEdge(context, from + bio.sectorCount, bio.targetBioNumber);
  if (begin >= end) {
    bio.endIo(0);
    return DM_MAPIO_SUBMITTED;
  }
  bio.device = stripe.device;
  bio.sector = stripe.start + begin;
  bio.sectorCount = end - begin;
  return DM_MAPIO_REMAPPED;
}

/** The two numbers in front, checked in the kernel's order. */
function parseShape(target: Target<StripedContext>, args: readonly string[]): [stripeCount: number, chunk: number] {
  if (args.length < 2) throw new TargetError('Not enough arguments');
  const stripeCount = parseUnsigned32(args[0]!);
  if (!stripeCount) throw new TargetError('Invalid stripe count');
  const chunk = parseUnsigned32(args[1]!);
  if (!chunk) throw new TargetError('Invalid chunk_size');
  if (target.sectorCount % stripeCount !== 0) {
    throw new TargetError('Target length not divisible by number of stripes');
  }
  if ((target.sectorCount / stripeCount) % chunk !== 0) {
    throw new TargetError('Target length not divisible by chunk size');
  }
  if (args.length !== 2 + 2 * stripeCount) throw new TargetError('Not enough destinations specified');
  return [stripeCount, chunk];
}

/** Syntax: `striped STRIPES CHUNK [DEVICE OFFSET]…`, chunk and offsets in sectors. */
export const striped: TargetType<StripedContext> = {
  name: 'striped',
  version: [1, 6, 0],
  stateless: true,

  construct(target, args, setup) {
    const [stripeCount, chunkSectorCount] = parseShape(target, args);
    const stripes: Stripe[] = [];
    for (let index = 0; index < stripeCount; index++) {
      const text = "Couldn't parse stripe destination";
      const start = scanUnsigned64(args[3 + 2 * index]!);
      if (start === undefined) throw new TargetError(text);
      stripes.push({ device: lookUpDevice(setup, args[2 + 2 * index]!, text), start, errorCount: 0 });
    }
    target.maxIoSectorCount = chunkSectorCount;
    target.flushBioCount = stripeCount;
    target.discardBioCount = stripeCount;
    target.writeZeroesBioCount = stripeCount;
    target.flushBypassesMap = true;
    return { stripes, chunkSectorCount, raiseEvent: setup.raiseEvent };
  },

  map(target, bio) {
    const context = target.context;
    if (bio.op === REQ_OP_FLUSH) {
      bio.device = context.stripes[bio.targetBioNumber]!.device;
      return DM_MAPIO_REMAPPED;
    }
    if (bio.op === REQ_OP_DISCARD || bio.op === REQ_OP_WRITE_ZEROES) return mapRange(target, bio);
    const sector = bio.sector - target.begin;
    const stripe = context.stripes[stripeIndex(context, sector)]!;
    bio.device = stripe.device;
    bio.sector = stripe.start + stripeSector(context, sector);
    return DM_MAPIO_REMAPPED;
  },

  endIo(target, bio) {
    if (bio.status === 0 || bio.flags & REQ_RAHEAD || bio.status === Errno.EOPNOTSUPP) return;
    // Every stripe on the device that failed counts the error, not only the one the request went to.
    let news = false;
    for (const stripe of target.context.stripes) {
      if (stripe.device !== bio.device) continue;
      stripe.errorCount++;
      news ||= stripe.errorCount < EVENT_ERROR_COUNT;
    }
    if (news) target.context.raiseEvent();
  },

  status(target, type) {
    const { stripes, chunkSectorCount } = target.context;
    const names = stripes.map((stripe) => escapeArgument(stripe.device.name));
    if (type === 'table') {
      return `${stripes.length} ${chunkSectorCount} ${stripes.map((s, i) => `${names[i]} ${s.start}`).join(' ')}`;
    }
    return `${stripes.length} ${names.join(' ')} 1 ${stripes.map((s) => (s.errorCount > 0 ? 'D' : 'A')).join('')}`;
  },

  iterateDevices(target, visit) {
    const { stripes } = target.context;
    for (const stripe of stripes) visit(stripe.device, stripe.start, target.sectorCount / stripes.length);
  },

  ioHints(target, limits) {
    limits.ioMin = target.context.chunkSectorCount * SECTOR_SIZE;
    limits.ioOpt = limits.ioMin * target.context.stripes.length;
  },

  queryExtent(target, sector, sectorCount, done) {
    const context = target.context;
    const from = sector - target.begin;
    const stripe = context.stripes[stripeIndex(context, from)]!;
    const leftInChunk = context.chunkSectorCount - (from % context.chunkSectorCount);
    queryExtent(stripe.device, stripe.start + stripeSector(context, from), Math.min(sectorCount, leftInChunk), done);
  },
};
