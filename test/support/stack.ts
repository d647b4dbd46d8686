// What the tests of tables and mapped devices are built on: lower devices that tell what reached them and fail or wait
// on demand, a resolver that counts who is open, and requests as plain calls.
import { Bio, operationName, REQ_OP_READ, REQ_OP_WRITE } from '../../src/block/bio.ts';
import { type BlockDevice, submitBio } from '../../src/block/block-device.ts';
import type { DeviceResolver } from '../../src/block/device-resolver.ts';
import { Errno } from '../../src/block/errno.ts';
import { DmError } from '../../src/block/errors.ts';
import { defaultLimits, type QueueLimits, UNLIMITED_SECTOR_COUNT } from '../../src/block/limits.ts';
import type { MappedDevice } from '../../src/mapper/mapped-device.ts';
import { Mapper } from '../../src/mapper/mapper.ts';
import { Targets } from '../../src/targets/index.ts';

/** Memory that writes down every request, can fail some and can keep requests until told. */
export class RecordingDevice implements BlockDevice {
  readonly name: string;
  readonly bytes: Uint8Array;
  readonly limits: QueueLimits;
  sectorCount: number;
  readOnly = false;
  /** `read 5+3`, one for each request, in the order they came. */
  readonly log: string[] = [];
  /** Returns an errno to fail a request with. */
  fail: (bio: Bio) => number = () => 0;
  /** While true, requests wait in `held`. */
  hold = false;
  readonly held: Bio[] = [];

  constructor(name: string, sectorCount: number, limits: Partial<QueueLimits> = {}) {
    this.name = name;
    this.sectorCount = sectorCount;
    this.bytes = new Uint8Array(sectorCount * 512);
    this.limits = {
      ...defaultLimits(),
      maxDiscardSectorCount: UNLIMITED_SECTOR_COUNT,
      maxWriteZeroesSectorCount: UNLIMITED_SECTOR_COUNT,
      hasWriteCache: true,
      ...limits,
    };
  }

  submit(bio: Bio): void {
    this.log.push(`${operationName(bio.op)} ${bio.sector}+${bio.sectorCount}`);
    if (this.hold) this.held.push(bio);
    else this.finish(bio);
  }

  /** Ends what is held, oldest first. */
  release(): void {
    this.hold = false;
    for (const bio of this.held.splice(0)) this.finish(bio);
  }

  finish(bio: Bio): void {
    const errno = this.fail(bio);
    if (errno !== 0) {
      bio.fail(errno, this);
      return;
    }
    const start = bio.sector * 512;
    if (bio.op === REQ_OP_READ || bio.op === REQ_OP_WRITE) this.#transfer(bio, start);
    else this.bytes.fill(0, start, start + bio.byteLength);
    bio.endIo(0);
  }

  #transfer(bio: Bio, start: number): void {
    let left = bio.byteLength;
    let offset = bio.vecOffset;
    let at = start;
    for (let index = bio.vecIndex; left > 0; index++, offset = 0) {
      const vec = bio.vecs[index]!;
      const length = Math.min(left, vec.byteLength - offset);
      const memory = vec.page.subarray(vec.offset + offset, vec.offset + offset + length);
      if (bio.op === REQ_OP_READ) memory.set(this.bytes.subarray(at, at + length));
      else this.bytes.set(memory, at);
      left -= length;
      at += length;
    }
  }
}

/** Devices by name, with the number of times each is open. */
export class CountingResolver implements DeviceResolver {
  readonly devices = new Map<string, BlockDevice>();
  readonly openCounts = new Map<BlockDevice, number>();

  constructor(...devices: BlockDevice[]) {
    for (const device of devices) this.devices.set(device.name, device);
  }

  open(argument: string): BlockDevice {
    const device = this.devices.get(argument);
    if (device === undefined) throw new DmError(Errno.ENODEV, `no device ${argument}`);
    this.openCounts.set(device, this.openCount(device) + 1);
    return device;
  }

  close(device: BlockDevice): void {
    this.openCounts.set(device, this.openCount(device) - 1);
  }

  openCount(device: BlockDevice): number {
    return this.openCounts.get(device) ?? 0;
  }

  get totalOpenCount(): number {
    return [...this.openCounts.values()].reduce((sum, count) => sum + count, 0);
  }
}

/** A mapper over the devices given. */
export function mapperOver(...devices: BlockDevice[]): { mapper: Mapper; resolver: CountingResolver } {
  const resolver = new CountingResolver(...devices);
  return { resolver, mapper: new Mapper(new Targets(), resolver, 253) };
}

/** Makes a device, loads `table` and resumes it. */
export function activate(
  mapper: Mapper,
  name: string,
  table: string,
  options: { readOnly?: boolean } = {},
): MappedDevice {
  const device = mapper.create(name);
  mapper.load(device, table, options);
  resume(device);
  return device;
}

/** Resumes and throws what resume reports; fails where the resume has to wait. */
export function resume(device: MappedDevice): void {
  let answered = false;
  let failure: Error | null = null;
  device.resume({}, (error) => {
    answered = true;
    failure = error;
  });
  if (!answered) throw new Error('the resume waits for requests in flight');
  if (failure !== null) throw failure;
}

/** Gives a request to a device; the result is filled in when it ends. */
export function submit(
  device: BlockDevice,
  op: number,
  sector: number,
  sectorCount: number,
  options: { data?: Uint8Array; flags?: number } = {},
): Bio & { ended: boolean } {
  const bio = new Bio() as Bio & { ended: boolean };
  bio.ended = false;
  bio.reset(op, options.flags ?? 0, device, sector, sectorCount);
  const data = options.data ?? (bio.hasData ? new Uint8Array(sectorCount * 512) : undefined);
  if (data !== undefined) bio.vecs = [{ page: data, offset: 0, byteLength: data.byteLength }];
  bio.onEnd = () => {
    bio.ended = true;
  };
  submitBio(bio);
  return bio;
}

/** `sectorCount` sectors, each filled with its own number (from `first` on), so that a misplaced one shows. */
export function numbered(sectorCount: number, first = 1): Uint8Array {
  const bytes = new Uint8Array(sectorCount * 512);
  for (let sector = 0; sector < sectorCount; sector++)
    bytes.fill((first + sector) & 0xff, sector * 512, sector * 512 + 512);
  return bytes;
}
