// Synchronous calls: what ends inside them, what they never run, and every cause for which they are refused.
import { describe, expect, it, onTestFinished } from 'vitest';
import { Bio, REQ_OP_READ, REQ_OP_WRITE } from '../../src/block/bio.ts';
import { type BlockDevice, submitBio } from '../../src/block/block-device.ts';
import { Errno } from '../../src/block/errno.ts';
import { DM_MAPIO_SUBMITTED, type TargetType } from '../../src/block/target.ts';
import { DeviceRegistry, MemoryDevice } from '../../src/devices/index.ts';
import { DmIoClient, type DmIoMemory, dmIo, type SyncEngines } from '../../src/dm-io/index.ts';
import { Mapper } from '../../src/mapper/mapper.ts';
import { NodeLoop } from '../../src/reactor/node-loop.ts';
import { builtinTargets, Targets } from '../../src/targets/index.ts';
import { activate, CountingResolver, mapperOver, numbered, RecordingDevice, resume } from '../support/stack.ts';
import { makeImage, tempDir } from '../support/tmp.ts';
import { expectOne, ManualReactor, makeClient, newResult, region } from './support.ts';

function buffer(sectorCount: number): DmIoMemory {
  return { type: 'buffer', buffer: numbered(sectorCount) };
}

function writeSync(client: DmIoClient, bdev: BlockDevice, count = 8): number {
  return dmIo({ op: REQ_OP_WRITE, memory: buffer(count), client }, [region(bdev, 0, count)]);
}

function wouldDeadlock(reason: RegExp) {
  return expect.objectContaining({ code: 'DM_WOULD_DEADLOCK', message: expect.stringMatching(reason) });
}

describe('a synchronous call is refused, before any I/O,', () => {
  it('on a suspended device', () => {
    const disk = new RecordingDevice('disk', 64);
    const { mapper } = mapperOver(disk);
    const device = activate(mapper, 'frozen', '0 64 linear disk 0');
    const { client } = makeClient();
    device.suspend({}, () => {});
    expect(() => writeSync(client, device)).toThrow(wouldDeadlock(/frozen is suspended/));
    expect(disk.log).toEqual([]);
    expect([client.pagesInFlight, client.unfinishedCount]).toEqual([0, 0]);
    resume(device);
    expect(disk.log).toEqual([]);
    expect(writeSync(client, device)).toBe(0);
    expect(disk.log).toEqual(['write 0+8']);
  });

  it('on a stack with a suspended device at the bottom, and on one of many regions', () => {
    const disk = new RecordingDevice('disk', 64);
    const { mapper } = mapperOver(disk);
    const bottom = activate(mapper, 'bottom', '0 64 linear disk 0');
    activate(mapper, 'middle', '0 64 linear /dev/mapper/bottom 0');
    const top = activate(mapper, 'top', '0 32 zero\n32 32 linear /dev/mapper/middle 0');
    const { client } = makeClient();
    bottom.suspend({}, () => {});
    expect(() => writeSync(client, top)).toThrow(wouldDeadlock(/bottom is suspended/));
    const regions = [region(disk, 0, 1), region(disk, 1, 1), region(top, 40, 1)];
    const result = { errorBits: 77n, error: null };
    expect(() => dmIo({ op: REQ_OP_WRITE, memory: buffer(1), client }, regions, result)).toThrow(
      wouldDeadlock(/bottom/),
    );
    expect(disk.log).toEqual([]);
    expect(result.errorBits).toBe(77n);
    // A region that nothing is sent to is no obstacle.
    expect(dmIo({ op: REQ_OP_WRITE, memory: buffer(1), client }, [regions[0]!, region(top, 0, 0)])).toBe(0);
  });

  it('on a target that waits for a timer', () => {
    const delay: TargetType<BlockDevice> = {
      name: 'test-delay',
      version: [1, 0, 0],
      construct: (_target, args, setup) => setup.getDevice(args[0]!),
      map: () => DM_MAPIO_SUBMITTED,
      syncObstacle: () => 'its requests wait for a timer',
    };
    const disk = new RecordingDevice('disk', 64);
    const targets = new Targets([...builtinTargets, delay]);
    const mapper = new Mapper(targets, new CountingResolver(disk), 253);
    const slow = activate(mapper, 'slow', '0 32 linear disk 0\n32 32 test-delay disk');
    const top = activate(mapper, 'top', '0 64 linear /dev/mapper/slow 0');
    const { client } = makeClient();
    const reason = /slow, test-delay at sector 32: its requests wait for a timer/;
    expect(() => writeSync(client, top)).toThrow(wouldDeadlock(reason));
    mapper.load(slow, '0 64 linear disk 0');
    resume(slow);
    expect(writeSync(client, top)).toBe(0);
    // A removed device fails requests at once: its target is gone, and no obstacle any more.
    const removed = activate(mapper, 'removed', '0 64 test-delay disk');
    expect(removed.syncObstacle()).toMatch(/wait for a timer/);
    mapper.remove(removed);
    expect(removed.syncObstacle()).toBeNull();
  });

  it('on a leg that is remote', () => {
    const remote: BlockDevice = Object.assign(new RecordingDevice('remote', 64), {
      syncObstacle: () => 'remote is reached through a socket',
    });
    const { client } = makeClient();
    expect(() => writeSync(client, remote)).toThrow(wouldDeadlock(/through a socket/));
    expect((remote as RecordingDevice).log).toEqual([]);
    const { mapper } = mapperOver(remote, new RecordingDevice('near', 64));
    const both = activate(mapper, 'both', '0 64 linear near 0\n64 64 linear remote 0');
    expect(() => writeSync(client, both)).toThrow(wouldDeadlock(/through a socket/));
  });

  it('behind an asynchronous request that waits for pages', () => {
    const { client, reactor } = makeClient(2);
    const [slow, fast] = [new RecordingDevice('slow', 64), new RecordingDevice('fast', 64)];
    slow.hold = true;
    const { outcome, notify } = expectOne();
    dmIo({ op: REQ_OP_WRITE, memory: buffer(8), client, notify }, [region(slow, 0, 8)]);
    // One page is free: enough, in pieces.
    expect(writeSync(client, fast, 16)).toBe(0);
    expect(fast.log).toEqual(['write 0+8', 'write 8+8']);
    dmIo({ op: REQ_OP_WRITE, memory: buffer(16), client, notify }, [region(slow, 8, 16)]);
    expect(() => writeSync(client, fast)).toThrow(wouldDeadlock(/requests came before it, and 1 pages/));
    expect(fast.log).toHaveLength(2);
    slow.release();
    expect(writeSync(client, fast)).toBe(0);
    reactor.run();
    expect(outcome.callCount).toBe(2);
  });

  it('where all pages are in flight', () => {
    const { client } = makeClient(1);
    const [slow, fast] = [new RecordingDevice('slow', 64), new RecordingDevice('fast', 64)];
    slow.hold = true;
    dmIo({ op: REQ_OP_READ, memory: buffer(8), client, notify: expectOne().notify }, [region(slow, 0, 8)]);
    expect(() => writeSync(client, fast)).toThrow(wouldDeadlock(/all 1 pages of this client are in flight/));
    slow.release();
    expect(writeSync(client, fast)).toBe(0);
  });

  it('inside a submit, an end and an immediate callback', () => {
    const { client } = makeClient();
    const other = makeClient().client;
    const disk = new RecordingDevice('disk', 64);
    const thrown: unknown[] = [];
    const attempt = (through: DmIoClient): void => {
      try {
        writeSync(through, disk);
      } catch (error) {
        thrown.push(error);
      }
    };
    const inSubmit = new RecordingDevice('in submit', 64);
    inSubmit.fail = () => {
      attempt(client);
      attempt(other);
      return 0;
    };
    expect(writeSync(client, inSubmit)).toBe(0);
    expect(thrown.splice(0)).toEqual([wouldDeadlock(/submitted or ended/), wouldDeadlock(/submitted or ended/)]);

    const bio = new Bio();
    bio.reset(REQ_OP_READ, 0, new MemoryDevice('memory', 8), 0, 8);
    bio.vecs = [{ page: new Uint8Array(4096), offset: 0, byteLength: 4096 }];
    bio.onEnd = () => attempt(client);
    submitBio(bio);
    expect(thrown.splice(0)).toEqual([wouldDeadlock(/submitted or ended/)]);

    const held = new RecordingDevice('held', 64);
    held.hold = true;
    const notify = { immediate: true, fn: () => attempt(other) };
    dmIo({ op: REQ_OP_READ, memory: buffer(8), client, notify }, [region(held, 0, 8)]);
    held.release();
    expect(thrown.splice(0)).toEqual([wouldDeadlock(/submitted or ended/)]);
    expect(disk.log).toEqual([]);
    expect(writeSync(client, disk)).toBe(0);
  });

  it('and the engines are as they were', () => {
    const engines: SyncEngines = { blocking: false, poll: () => false };
    const client = new DmIoClient({ reactor: new ManualReactor(), engines });
    const seen: boolean[] = [];
    const disk: BlockDevice = Object.assign(new RecordingDevice('disk', 64), {
      syncObstacle: () => {
        seen.push(engines.blocking);
        return 'no';
      },
    });
    expect(() => writeSync(client, disk)).toThrow(wouldDeadlock(/no/));
    expect([seen, engines.blocking]).toEqual([[true], false]);
  });
});

describe('a device that takes a synchronous request and does not end it', () => {
  it.each([1, 20])('makes the call throw, and is heard later (%i pages)', (pageCount) => {
    const { client, reactor } = makeClient(pageCount);
    const liar = new RecordingDevice('liar', 64);
    liar.hold = true;
    const result = newResult();
    expect(() => dmIo({ op: REQ_OP_WRITE, memory: buffer(64), client }, [region(liar, 0, 64)], result)).toThrow(
      wouldDeadlock(/does not end it; it is still under way/),
    );
    expect(result.errorBits).toBe(-1n);
    expect(client.unfinishedCount).toBe(1);
    expect(client.pagesInFlight).toBe(Math.min(8, pageCount));
    liar.release();
    reactor.run();
    expect([client.pagesInFlight, client.unfinishedCount]).toEqual([0, 0]);
    // What had not been sent is not sent any more.
    expect(liar.log).toHaveLength(1);
    expect(writeSync(client, liar)).toBe(0);
  });
});

describe('inside a synchronous call', () => {
  it('no callback of a user runs, though requests of others end', () => {
    const { client, reactor } = makeClient(2);
    const disk = new RecordingDevice('disk', 64);
    const { outcome, notify } = expectOne();
    const slow = new RecordingDevice('slow', 64);
    slow.hold = true;
    dmIo({ op: REQ_OP_READ, memory: buffer(8), client, notify }, [region(slow, 0, 8)]);
    disk.fail = () => {
      slow.release();
      return 0;
    };
    expect(writeSync(client, disk, 32)).toBe(0);
    expect(slow.held).toEqual([]);
    expect(outcome.callCount).toBe(0);
    reactor.run();
    expect(outcome.callCount).toBe(1);
  });

  it('a long request of somebody else goes on, and is in front', () => {
    const { client, reactor } = makeClient(1);
    const disk = new RecordingDevice('disk', 2048);
    const { outcome, notify } = expectOne();
    dmIo({ op: REQ_OP_WRITE, memory: buffer(2048), client, notify }, [region(disk, 0, 2048)]);
    expect(disk.log).toHaveLength(64);
    expect(writeSync(client, disk, 1)).toBe(0);
    expect(disk.log).toHaveLength(257);
    expect(disk.log[256]).toBe('write 0+1');
    expect(outcome.callCount).toBe(0);
    reactor.run();
    expect(outcome.callCount).toBe(1);
  });

  it('the engines are polled for what is under way', () => {
    const disk = new RecordingDevice('disk', 256);
    const engines: SyncEngines = {
      blocking: false,
      poll: () => {
        const bio = disk.held.pop();
        if (bio !== undefined) disk.finish(bio);
        return bio !== undefined;
      },
    };
    const reactor = new ManualReactor();
    const client = new DmIoClient({ reactor, engines, pageCount: 4 });
    disk.hold = true;
    const { outcome, notify } = expectOne();
    for (let i = 0; i < 3; i++) {
      dmIo({ op: REQ_OP_WRITE, memory: buffer(24), client, notify }, [region(disk, 128 + i * 24, 24)]);
    }
    disk.fail = (bio) => (bio.sector === 32 ? Errno.ENOSPC : 0);
    const result = newResult();
    expect(dmIo({ op: REQ_OP_WRITE, memory: buffer(100), client }, [region(disk, 0, 100)], result)).toBe(Errno.EIO);
    expect(result.errorBits).toBe(1n);
    expect(result.error!.failedRegions[0]!.cause).toMatchObject({ code: 'ENOSPC', sector: 32 });
    expect(outcome.callCount).toBe(0);
    for (; disk.held.length > 0; reactor.run()) disk.finish(disk.held.shift()!);
    reactor.run();
    expect(outcome.callCount).toBe(3);
    expect(client.pagesInFlight).toBe(0);
  });

  it('the call is allowed in a callback, which the reactor makes', () => {
    const { client, reactor } = makeClient(1);
    const disk = new RecordingDevice('disk', 64);
    const answers: number[] = [];
    const notify = { fn: () => void answers.push(writeSync(client, disk)) };
    dmIo({ op: REQ_OP_READ, memory: buffer(8), client, notify }, [region(disk, 0, 8)]);
    reactor.run();
    expect(answers).toEqual([0]);
  });
});

describe.each(['direct', 'portable'] as const)('an image file and the %s engine', (engine) => {
  function openImage(pageCount: number) {
    const path = `${tempDir()}/image.img`;
    const content = makeImage(path, 2048);
    const loop = new NodeLoop();
    const devices = new DeviceRegistry({ reactor: loop, engine });
    const disk = devices.open(path, false);
    onTestFinished(() => devices.close(disk, false));
    return { disk, content, client: new DmIoClient({ reactor: loop, engines: devices.engines, pageCount }) };
  }

  it.skipIf(engine === 'direct' && process.platform !== 'linux')('end inside the call', () => {
    const { disk, content, client } = openImage(16);
    const memory = new Uint8Array(2048 * 512);
    expect(dmIo({ op: REQ_OP_READ, memory: { type: 'buffer', buffer: memory }, client }, [region(disk, 0, 2048)])).toBe(
      0,
    );
    expect(Buffer.compare(memory, content)).toBe(0);
    expect(writeSync(client, disk, 64)).toBe(0);
    dmIo({ op: REQ_OP_READ, memory: { type: 'buffer', buffer: memory }, client }, [region(disk, 0, 64)]);
    expect(Buffer.compare(memory.subarray(0, 64 * 512), numbered(64))).toBe(0);
  });

  it.skipIf(engine === 'direct')('refuse a call behind an asynchronous request that holds the pages', async () => {
    const { disk, client } = openImage(2);
    const ended = new Promise<bigint>((resolve) => {
      dmIo({ op: REQ_OP_READ, memory: buffer(16), client, notify: { fn: resolve } }, [region(disk, 0, 16)]);
    });
    expect(client.pagesInFlight).toBe(2);
    expect(() => writeSync(client, disk)).toThrow(wouldDeadlock(/only the event loop gets back/));
    expect(await ended).toBe(0n);
    expect(writeSync(client, disk)).toBe(0);
  });

  it.skipIf(engine === 'direct')('pass asynchronous requests that leave pages', async () => {
    const { disk, client } = openImage(16);
    const ended = new Promise<bigint>((resolve) => {
      dmIo({ op: REQ_OP_READ, memory: buffer(16), client, notify: { fn: resolve } }, [region(disk, 64, 16)]);
    });
    expect(client.pagesInFlight).toBe(2);
    expect(writeSync(client, disk, 64)).toBe(0);
    expect(client.pagesInFlight).toBe(2);
    expect(await ended).toBe(0n);
  });
});
