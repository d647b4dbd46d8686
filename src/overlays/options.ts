// What can be asked of overlays, and what is told of them, in plain data.

/** Where an overlay's changes are kept: for good; for good, and readable when full; as long as the device lives. */
export type StoreKind = 'persistent' | 'overflow' | 'transient';

export interface OverlayOptions {
  /** An image, a block device, or one of dmkit's devices, as tables name it; or a device's bare name, where no file has it. */
  origin: string;
  /** The overlay's. */
  name: string;
  /** The store; an existing one goes on with its content. Without it `NAME.cow`, which must be new. */
  cow?: string;
  /** Where `NAME.cow` is made: beside the origin's image unless given. */
  cowFolder?: string;
  /** Bytes of the store: room for a change of everything unless given. It is sparse. */
  cowByteLength?: number;
  /** 32 unless given, or the size in the store's header. */
  chunkSectorCount?: number;
  /** Persistent unless given. */
  store?: StoreKind;
  /** Records of first writes may wait for a flush. */
  lazyCommit?: boolean;
  /** The origin goes on being written, through a device of this name (snapshot-origin), which is made where it is missing. */
  originName?: string;
  /** Where relative paths start. */
  folder: string;
  /** Go on with a store that belongs to another origin, or to another moment of it. */
  force?: boolean;
}

/** A device and its table, in one line. */
export interface PlannedDevice {
  name: string;
  table: string;
}

export interface OverlayPlan {
  name: string;
  /** As tables name it. */
  origin: string;
  sectorCount: number;
  /** Absolute. */
  cow: string;
  cowByteLength: number;
  /** Whether the file is made, or has to grow. */
  makesCow: boolean;
  growsCow: boolean;
  chunkSectorCount: number;
  /** The snapshot-origin that is made first; null where none is, or there is one. */
  originDevice: PlannedDevice | null;
  /** Devices through which the origin is written: they wait while the overlay is made. */
  suspends: string[];
  overlay: PlannedDevice;
  /** Sentences beside it: bytes that are cut off, a store that was not detached cleanly. */
  notices: string[];
}

/** How far a merge is. */
export interface MergeProgress {
  /** Chunks that are not home yet, and how many there were when this run began to look. */
  leftChunkCount: number;
  totalChunkCount: number;
  chunkSectorCount: number;
}

/** The end of an overlay, and of its store. */
export interface DroppedOverlay {
  name: string;
  cow: string;
  deleted: boolean;
  /** Kept stores that can't be used any more (merge), or not after the next write to their origin (drop): paths. */
  stale: string[];
}
