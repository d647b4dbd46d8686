// Which engine a file gets, requests nested in requests, and what happens without native code.
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { Bio, REQ_OP_READ } from '../../src/block/bio.ts';
import { type BlockDevice, submitBio } from '../../src/block/block-device.ts';
import { MAX_INLINE_NESTING_DEPTH } from '../../src/block/bounds.ts';
import { Errno } from '../../src/block/errno.ts';
import { defaultLimits } from '../../src/block/limits.ts';
import { EngineSet, type Libc, parseEngineChoice } from '../../src/engine/index.ts';
import { loadLibc } from '../../src/engine/libc.ts';
import { enterSubmit, leaveSubmit, startQueuedBios } from '../../src/engine/nesting.ts';
import { clock, libcWith } from './harness.ts';

afterEach(() => {
  vi.unstubAllEnvs();
});

describe('the choice of an engine', () => {
  it('takes the word in DMKIT_ENGINE', () => {
    vi.stubEnv('DMKIT_ENGINE', 'portable');
    expect(new EngineSet({ reactor: clock }).choice).toBe('portable');
    expect(new EngineSet({ reactor: clock, engine: 'direct' }).choice).toBe('direct');
    vi.stubEnv('DMKIT_ENGINE', '');
    expect(new EngineSet({ reactor: clock }).choice).toBe('auto');
  });

  it('refuses a word that is none, and says which there are', () => {
    vi.stubEnv('DMKIT_ENGINE', 'turbo');
    expect(() => new EngineSet({ reactor: clock })).toThrow(
      'no engine is called "turbo"; DMKIT_ENGINE takes auto, direct',
    );
    expect(() => parseEngineChoice('Direct')).toThrow('no engine is called "Direct"');
  });

  it('refuses the ring where there is none, when a file is opened, and says why', () => {
    const refusing = (errno: number) =>
      libcWith((real) => ({ uring: () => ({ ...real.uring()!, setup: () => -errno }) }));
    const open = (libc: Libc | null) => new EngineSet({ reactor: clock, engine: 'ring', libc }).open(0, 'file', 'x');
    expect(() => open(refusing(Errno.EPERM))).toThrow(/ring engine can't be used here: io_uring is not permitted/);
    expect(() => open(refusing(Errno.ENOSYS))).toThrow(/this kernel has no io_uring/);
    expect(() => open(libcWith(() => ({ uring: () => null })))).toThrow(/koffi can't watch/);
    expect(() => open(null)).toThrow("the ring engine can't be used here: there is no C library");
  });

  it('refuses direct without a C library, and falls back to portable by itself', () => {
    const engines = new EngineSet({ reactor: clock, engine: 'direct', libc: null });
    expect(() => engines.open(0, 'file', 'x')).toThrow("the direct engine can't be used here");
    const auto = new EngineSet({ reactor: clock, engine: 'auto', libc: null });
    expect(auto.open(0, 'file', 'x').engine.kind).toBe('portable');
    expect(auto.portableReason).toBe('there is no C library');
    expect(auto.libc).toBeNull();
  });

  it('is direct on Linux', () => {
    const engines = new EngineSet({ reactor: clock, engine: 'auto' });
    expect(engines.open(0, 'file', 'x').engine.kind).toBe('direct');
    expect(engines.portableReason).toBeNull();
    expect(engines.libc).toBe(loadLibc().libc);
  });

  it('goes for engines that are made later too when it is blocking', () => {
    const engines = new EngineSet({ reactor: clock, engine: 'auto' });
    engines.blocking = true;
    expect(engines.open(0, 'file', 'x').engine.blocking).toBe(true);
    engines.blocking = false;
    expect(engines.open(0, 'file', 'x').engine.blocking).toBe(false);
  });

  it('loads koffi only when a file is opened', () => {
    const entry = new URL('../../src/devices/index.ts', import.meta.url).href;
    const script = `
      const { readFileSync } = await import('node:fs');
      const hasKoffi = () => readFileSync('/proc/self/maps', 'utf8').includes('koffi');
      const { DeviceRegistry } = await import(${JSON.stringify(entry)});
      const registry = new DeviceRegistry({ reactor: {}, engine: 'auto' });
      const before = hasKoffi();
      registry.open(${JSON.stringify(fileURLToPath(import.meta.url))}, true);
      console.log(before, hasKoffi());
    `;
    const newEnough = process.allowedNodeEnvironmentFlags.has('--experimental-strip-types');
    if (!newEnough) return;
    const child = spawnSync(process.execPath, ['--input-type=module', '-e', script], {
      encoding: 'utf8',
      timeout: 240_000,
    });
    expect(child.stdout.trim()).toBe('false true');
  });
});

/** Ends every request inside submit, as memory does. */
class InlineDevice implements BlockDevice {
  readonly name = 'inline';
  readonly sectorCount = 1_000_000;
  readonly readOnly = false;
  readonly limits = defaultLimits();
  depth = 0;
  deepest = 0;

  submit(bio: Bio): void {
    if (!enterSubmit(bio)) return;
    this.deepest = Math.max(this.deepest, ++this.depth);
    try {
      bio.endIo(0);
    } finally {
      this.depth--;
      leaveSubmit();
    }
  }
}

function submitTo(device: BlockDevice, onEnd: (bio: Bio) => void): void {
  const bio = new Bio();
  bio.reset(REQ_OP_READ, 0, device, 0, 1);
  bio.onEnd = onEnd;
  submitBio(bio);
}

describe('requests nested in requests', () => {
  it('wait for the outermost one past a depth', () => {
    const device = new InlineDevice();
    let ended = 0;
    const next = (): void => {
      ended++;
      if (ended < 100_000) submitTo(device, next);
    };
    submitTo(device, next);
    expect(ended).toBe(100_000);
    expect(device.deepest).toBe(MAX_INLINE_NESTING_DEPTH);
  });

  it('keep their order while they wait', () => {
    const device = new InlineDevice();
    const order: number[] = [];
    const nest = (depth: number): void => {
      submitTo(device, () => {
        if (depth > 1) nest(depth - 1);
        else for (const number of [1, 2, 3]) submitTo(device, () => order.push(number));
      });
    };
    nest(MAX_INLINE_NESTING_DEPTH);
    expect(order).toEqual([1, 2, 3]);
  });

  it('can be started by a synchronous call that waits for one, deep in the stack', () => {
    const device = new InlineDevice();
    const log: string[] = [];
    const nest = (depth: number): void => {
      submitTo(device, () => {
        if (depth > 1) {
          nest(depth - 1);
          return;
        }
        submitTo(device, () => log.push('ended'));
        log.push('submitted');
        expect(startQueuedBios()).toBe(true);
        log.push('waited');
        expect(startQueuedBios()).toBe(false);
      });
    };
    nest(MAX_INLINE_NESTING_DEPTH);
    expect(log).toEqual(['submitted', 'ended', 'waited']);
  });

  it('are all started though the end of one of them throws', () => {
    const device = new InlineDevice();
    const log: string[] = [];
    const nest = (depth: number): void => {
      submitTo(device, () => {
        if (depth > 1) {
          nest(depth - 1);
          return;
        }
        submitTo(device, () => {
          throw new Error('first');
        });
        submitTo(device, () => log.push('second'));
      });
    };
    expect(() => nest(MAX_INLINE_NESTING_DEPTH)).toThrow('first');
    expect(log).toEqual(['second']);
    submitTo(device, () => log.push('third'));
    expect(log).toEqual(['second', 'third']);
  });
});
