// Everything through the ring: for files whose bytes come from a disk each time (O_DIRECT), and for whoever asks for it
// by name. In blocking mode a request is one call on this thread, as with the other engines: a ring would only add to it.
import type { Bio } from '../block/bio.ts';
import { DirectEngine, type DirectFile } from './direct.ts';
import type { EngineCapabilities } from './engine.ts';

export class RingEngine extends DirectEngine {
  override readonly kind = 'ring';
  override readonly capabilities: EngineCapabilities = {
    fallocate: true,
    seekHole: true,
    ioctl: true,
    locks: true,
    inline: false,
  };

  protected override begin(file: DirectFile, bio: Bio): void {
    if (this.blocking || file.directIo !== null) super.begin(file, bio);
    else this.offload(file, bio, 0);
  }
}
