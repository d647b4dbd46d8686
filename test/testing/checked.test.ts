// The witness is right about good devices, and finds each way of being wrong.
import { describe, expect, test } from 'vitest';
import { Bio, copyFromMemory, fillMemory, REQ_OP_READ, walkMemory } from '../../src/block/bio.ts';
import { type BlockDevice, type ExtentCallback, submitBio } from '../../src/block/block-device.ts';
import { Errno } from '../../src/block/errno.ts';
import { defaultLimits, UNLIMITED_SECTOR_COUNT } from '../../src/block/limits.ts';
import { MemoryDevice } from '../../src/devices/memory.ts';
import {
  checkedDevice,
  HoldingDevice,
  issue,
  randomFromSeed,
  randomRequest,
  randomVecs,
  SimulatedDevice,
  SimulatedReactor,
} from '../../src/testing/index.ts';
import { activate, mapperOver } from '../support/stack.ts';

/** A device that does what it is told. */
class Bad implements BlockDevice {
  readonly name = 'bad';
  readonly sectorCount = 64;
  readonly readOnly = false;
  readonly limits = { ...defaultLimits(), maxDiscardSectorCount: UNLIMITED_SECTOR_COUNT, hasWriteCache: true };
  readonly submit: (bio: Bio) => void;
  queryExtent?: (sector: number, sectorCount: number, done: ExtentCallback) => void;

  constructor(submit: (bio: Bio) => void) {
    this.submit = submit;
  }
}

function problemsOf(submit: (bio: Bio) => void, op: 'read' | 'write' | 'discard' = 'read'): string {
  const device = checkedDevice(new Bad(submit));
  issue(device, op, op === 'write' ? { sector: 8, data: new Uint8Array(1024).fill(1) } : { sector: 8, sectorCount: 2 });
  try {
    device.check();
    return '';
  } catch (error) {
    return (error as Error).message;
  }
}

const answer = (bio: Bio): void => {
  if (bio.op === REQ_OP_READ) fillMemory(bio, 1);
  bio.endIo(0);
};

describe('a good device', () => {
  test('passes, in memory, on a table and simulated, with memory in pieces', () => {
    const reactor = new SimulatedReactor({ seed: 1 });
    const simulated = new SimulatedDevice('disk', 128, {
      seed: 1,
      reactor,
      latency: [1, 5],
      faults: [{ kind: 'error', probability: 0.05 }],
    });
    const { mapper } = mapperOver(new MemoryDevice('a', 100), new MemoryDevice('b', 100));
    const mapped = activate(mapper, 'd', '0 64 striped 2 4 a 0 b 0\n64 64 linear a 32');
    for (const lower of [new MemoryDevice('memory', 128), mapped, simulated]) {
      const device = checkedDevice(lower);
      const random = randomFromSeed(3);
      for (let i = 0; i < 300; i++) {
        const request = randomRequest(random, { sectorCount: 128, operations: ['read', 'write', 'discard', 'flush'] });
        const { op, ...rest } = request;
        if (op !== 'read') issue(device, op, rest);
        else readInPieces(device, request.sector, request.sectorCount, random);
      }
      reactor.runUntilIdle();
      device.check();
      expect(device.inFlightCount).toBe(0);
    }
  });

  function readInPieces(device: BlockDevice, sector: number, sectorCount: number, random: () => number): void {
    const bio = new Bio();
    bio.reset(REQ_OP_READ, 0, device, sector, sectorCount);
    bio.vecs = randomVecs(random, sectorCount * 512);
    bio.onEnd = () => {};
    submitBio(bio);
  }

  test('gets the data through', () => {
    const memory = new MemoryDevice('memory', 64);
    const device = checkedDevice(memory);
    issue(device, 'write', { sector: 3, data: new Uint8Array(512).fill(9) });
    expect(memory.peek(3, 1)[0]).toBe(9);
    expect(issue(device, 'read', { sector: 3, sectorCount: 1 }).data[511]).toBe(9);
    const extents: number[][] = [];
    device.queryExtent(0, 64, (errno, count, flags) => extents.push([errno, count, flags]));
    expect(extents).toEqual([[0, 64, 0]]);
  });
});

describe('what is wrong is found', () => {
  test('a request that never ends', () => {
    expect(problemsOf(() => {})).toContain('read 8+2 has not ended');
  });

  test('a request that ends twice', () => {
    const twice = problemsOf((bio) => {
      answer(bio);
      expect(() => bio.endIo(0)).toThrow('ended twice');
    });
    expect(twice).toContain('read 8+2 ended twice');
  });

  test('a read that fills nothing, or not all', () => {
    expect(problemsOf((bio) => bio.endIo(0))).toContain('without filling sector 8');
    expect(
      problemsOf((bio) => {
        fillMemory(bio, 1, 0, 512);
        bio.endIo(0);
      }),
    ).toContain('without filling sector 9');
  });

  test('a read that writes beside its memory', () => {
    const problems = problemsOf((bio) => {
      answer2(bio);
    });
    expect(problems).toContain('wrote outside its memory');

    function answer2(bio: Bio): void {
      fillMemory(bio, 1);
      const { page, offset, byteLength } = bio.vecs[0]!;
      page[offset + byteLength] = 1;
      bio.endIo(0);
    }
  });

  test('a device that changes what it is to write, or the request', () => {
    const scribbles = problemsOf((bio) => {
      fillMemory(bio, 7);
      bio.endIo(0);
    }, 'write');
    expect(scribbles).toContain('its memory was changed');
    const moves = problemsOf((bio) => {
      bio.sector++;
      answer(bio);
    });
    expect(moves).toContain('read 8+2 was changed into read 9+2');
    const iterates = problemsOf((bio) => {
      answer(bio);
      bio.vecIndex = 1;
    }, 'discard');
    expect(iterates).toBe('');
    const advances = problemsOf((bio) => {
      fillMemory(bio, 1);
      bio.vecOffset = 512;
      bio.endIo(0);
    });
    expect(advances).toContain('iterator changed');
  });

  test('memory that is written to after the end', () => {
    const late = problemsOf((bio) => {
      let memory: Uint8Array | undefined;
      walkMemory(bio, 0, 1, (piece) => {
        memory = piece;
      });
      answer(bio);
      memory![0] = 1;
    });
    expect(late).toContain('read 8+2 had its memory written to after its end');
  });

  test('memory that is read after the end is poison', () => {
    const stored = new Uint8Array(1024);
    problemsOf((bio) => {
      bio.endIo(0);
      copyFromMemory(bio, stored);
    }, 'write');
    expect(new Set(stored)).toEqual(new Set([0xd5]));
  });

  test('failures at sectors that were not asked for, and statuses that are none', () => {
    expect(problemsOf((bio) => bio.fail(Errno.EIO, bio.device!, 10))).toContain('failed at sector 10');
    expect(problemsOf((bio) => bio.fail(Errno.EIO, bio.device!, 9))).toBe('');
    expect(problemsOf((bio) => bio.endIo(-5))).toContain('ended with the status -5');
  });

  test('requests past the end, and empty ones', () => {
    const reached: Bio[] = [];
    const device = checkedDevice(new Bad((bio) => reached.push(bio)));
    for (const [sector, sectorCount] of [
      [60, 5],
      [2 ** 53 - 1, 1],
      [0, 0],
    ] as const) {
      const bio = new Bio();
      bio.reset(REQ_OP_READ, 0, device, sector, sectorCount);
      bio.onEnd = () => {};
      device.submit(bio);
      expect(bio.status).toBe(Errno.EIO);
    }
    expect(reached).toEqual([]);
    expect(device.violations.length).toBe(3);
    expect(() => device.check()).toThrow('read 60+5 was submitted to a device of 64 sectors');
  });

  test('extents that are empty, too long, or come twice', () => {
    const bad = new Bad(() => {});
    bad.queryExtent = (_sector, sectorCount, done) => {
      done(0, 0, 0);
      done(0, sectorCount + 1, 0);
    };
    const device = checkedDevice(bad);
    let count = 0;
    device.queryExtent(3, 5, () => count++);
    expect(count).toBe(1);
    expect(device.violations.map((violation) => violation.message)).toEqual([
      'the extent at 3+5 was reported as 0 sectors',
      'the extent at 3+5 was reported twice',
      'the extent at 3+5 was reported as 6 sectors',
    ]);
  });

  test('a failed read leaves no data that somebody could use', () => {
    const device = checkedDevice(new Bad((bio) => bio.fail(Errno.EIO, bio.device!)));
    expect(new Set(issue(device, 'read', { sectorCount: 1 }).data)).toEqual(new Set([0xd5]));
  });

  test('memory is watched in bounds', () => {
    const kept: Uint8Array[] = [];
    const device = checkedDevice(
      new Bad((bio) => {
        walkMemory(bio, 0, 1, (piece) => kept.push(piece));
        answer(bio);
      }),
    );
    issue(device, 'read', { sectorCount: 1 });
    kept[0]![0] = 1;
    for (let i = 0; i < 300; i++) issue(device, 'read', { sectorCount: 1 });
    expect(device.violations.length).toBe(1);
  });

  test('what is held is in flight', () => {
    const held = new HoldingDevice(new MemoryDevice('memory', 64));
    const device = checkedDevice(held);
    issue(device, 'write', { data: new Uint8Array(512) });
    expect(() => device.check()).toThrow('write 0+1 has not ended');
    held.open();
    device.check();
  });
});
