// The parts of a device mapper that the control plane works on, and the client that a request came from.
import type { TargetRegistry } from '../../block/target.ts';
import type { DeviceRegistry } from '../../devices/index.ts';
import type { Mapper } from '../../mapper/mapper.ts';
import type { RemoteDevices } from '../../reactor/remote-devices.ts';

export interface ControlHost {
  readonly mapper: Mapper;
  readonly targets: TargetRegistry;
  /** The devices at the bottom. Without them (tests on disks in memory) a disk is known by its name alone. */
  readonly devices?: DeviceRegistry;
  /** For tables that name NBD URIs; without it they are refused. */
  readonly remotes?: RemoteDevices;
}

/** The program that asks: as it says itself, for messages. */
export interface ClientInfo {
  pid: number;
  /** Its command line, shortened. */
  command: string;
}

/** Beside its arguments, a request has these. */
export interface RequestContext {
  /** Aborted when the client goes away or interrupts: the request is undone. */
  readonly signal?: AbortSignal | undefined;
  readonly client?: ClientInfo | undefined;
  /** Takes what a long request has done so far. */
  readonly onProgress?: ((progress: unknown) => void) | undefined;
  /** Takes sentences that the caller should see although nothing failed. */
  readonly onNotice?: ((text: string) => void) | undefined;
}

/** Plain data that JSON can hold. */
export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

/** The journal: keys with values, changed all at once. */
export interface JournalSink {
  /**
   * Sets each key to its value, null takes it away; all of them or none.
   *
   * @param options `durable: false`: it need not survive a loss of power, only the end of the process
   * @throws DmError where that could not be written: nothing has changed then
   */
  commit(changes: ReadonlyMap<string, Json>, options?: { durable?: boolean }): Promise<void>;
  /**
   * Takes away a key that means nothing any more, with the next commit: where none follows, a later daemon finds it once
   * more, and has to find nothing to do.
   */
  forget(key: string): void;
  readonly values: ReadonlyMap<string, Json>;
}
