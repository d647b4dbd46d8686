// What the tests of kcopyd share.
import type { BlockDevice } from '../../src/block/block-device.ts';
import { MemoryDevice } from '../../src/devices/index.ts';
import type { DmIoRegion } from '../../src/dm-io/index.ts';
import { KcopydClient, type KcopydClientOptions, type KcopydError } from '../../src/kcopyd/index.ts';
import { SimulatedReactor } from '../../src/testing/simulated-reactor.ts';
import { seed } from '../support/seed.ts';
import { RecordingDevice } from '../support/stack.ts';

export function makeClient(options: Partial<KcopydClientOptions> = {}): {
  client: KcopydClient;
  reactor: SimulatedReactor;
} {
  const reactor = new SimulatedReactor({ seed });
  return { reactor, client: new KcopydClient({ reactor, ...options }) };
}

export interface Outcome {
  callCount: number;
  readErr: number;
  writeErr: number;
  context: unknown;
  error: KcopydError | null;
}

export function expectOne(): {
  outcome: Outcome;
  fn: (readErr: number, writeErr: number, context: unknown, error: KcopydError | null) => void;
} {
  const outcome: Outcome = { callCount: 0, readErr: -1, writeErr: -1, context: undefined, error: null };
  const fn = (readErr: number, writeErr: number, context: unknown, error: KcopydError | null): void => {
    Object.assign(outcome, { callCount: outcome.callCount + 1, readErr, writeErr, context, error });
  };
  return { outcome, fn };
}

export function region(bdev: BlockDevice, sector: number, count: number): DmIoRegion {
  return { bdev, sector, count };
}

const patterns = new Map<number, Uint8Array>();
const PATTERN_BYTE_LENGTH = 20_000 * 512;

/** Every sector different from the others of this device and of devices with another number. Not to be changed. */
export function pattern(sectorCount: number, number = 0): Uint8Array {
  let bytes = patterns.get(number);
  if (bytes === undefined) {
    bytes = new Uint8Array(PATTERN_BYTE_LENGTH);
    const words = new Uint32Array(bytes.buffer);
    for (let i = 0; i < words.length; i++) words[i] = Math.imul(i + 1, 2654435761) ^ (number * 77);
    patterns.set(number, bytes);
  }
  return bytes.subarray(0, sectorCount * 512);
}

export function filled(name: string, sectorCount: number, number = 0): MemoryDevice {
  const device = new MemoryDevice(name, sectorCount);
  device.poke(0, pattern(sectorCount, number));
  return device;
}

export function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.compare(a, b) === 0;
}

/** A recording device whose content can be looked at and set as that of one in memory. */
export class TapedDevice extends RecordingDevice {
  peek(sector: number, sectorCount: number): Uint8Array {
    return this.bytes.slice(sector * 512, (sector + sectorCount) * 512);
  }

  poke(sector: number, bytes: Uint8Array): void {
    this.bytes.set(bytes, sector * 512);
  }

  /** `read`, `write` …: each that it has seen. */
  get operations(): Set<string> {
    return new Set(this.log.map((line) => line.split(' ')[0]!));
  }
}
