// Requests that a target took from the core and sends on later, with a bio of its own, so that failures are carried back.
import { Bio } from '../../block/bio.ts';
import { type BlockDevice, submitBio } from '../../block/block-device.ts';
import { MAX_POOLED_OBJECT_COUNT } from '../../block/bounds.ts';

class ForwardedBio extends Bio {
  original!: Bio;
  sentSector = 0;
  onSuccess: ((original: Bio) => void) | null = null;
}

const pool: ForwardedBio[] = [];

function ended(bio: Bio): void {
  const forwarded = bio as ForwardedBio;
  const { original, onSuccess, status } = forwarded;
  if (status !== 0) {
    const below = forwarded.errorSector < 0 ? forwarded.sentSector : forwarded.errorSector;
    original.errorSector = original.sector + Math.max(0, below - forwarded.sentSector);
    original.errorDevice = forwarded.errorDevice;
    original.errorDeviceSector = forwarded.errorDeviceSector;
  }
  forwarded.release();
  forwarded.onSuccess = null;
  if (pool.length < MAX_POOLED_OBJECT_COUNT) pool.push(forwarded);
  if (status === 0 && onSuccess !== null) onSuccess(original);
  else original.endIo(status);
}

/** Sends `original` to `sector` of `device` and ends it as that ends; after a success `onSuccess` ends it, where given. */
export function forward(
  original: Bio,
  device: BlockDevice,
  sector: number,
  onSuccess: ((original: Bio) => void) | null,
): void {
  const forwarded = pool.pop() ?? new ForwardedBio();
  forwarded.reset(original.op, original.flags, device, sector, original.sectorCount);
  forwarded.vecs = original.vecs;
  forwarded.vecIndex = original.vecIndex;
  forwarded.vecOffset = original.vecOffset;
  forwarded.original = original;
  forwarded.sentSector = sector;
  forwarded.onSuccess = onSuccess;
  forwarded.onEnd = ended;
  submitBio(forwarded);
}
