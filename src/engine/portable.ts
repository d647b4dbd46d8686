// The engine for everywhere: node:fs alone. No discard, no extents, no locks.
import type { EngineCapabilities } from './engine.ts';
import { ThreadedEngine, type ThreadedEngineOptions } from './threads.ts';

export class PortableEngine extends ThreadedEngine {
  readonly kind = 'portable';
  readonly capabilities: EngineCapabilities = {
    fallocate: false,
    seekHole: false,
    ioctl: false,
    locks: false,
    inline: false,
  };

  constructor(options: ThreadedEngineOptions = {}) {
    super(options);
  }
}
