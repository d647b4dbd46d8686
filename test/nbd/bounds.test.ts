// What a connection and a server hold at the most, what happens at the bounds, and how a server ends.
import { describe, expect, it } from 'vitest';
import type { Bio } from '../../src/block/bio.ts';
import { Errno } from '../../src/block/errno.ts';
import { MemoryDevice } from '../../src/devices/memory.ts';
import { HeldDevice, pattern, request, Session } from './support.ts';

const [READ, WRITE, FLUSH] = [0, 1, 3];
const KIB = 1024;
const MIB = 1 << 20;
const NOTHING = { requestCount: 0, usedByteLength: 0 };

function reads(count: number, length: number): Buffer {
  return Buffer.concat(Array.from({ length: count }, (_, i) => request({ type: READ, cookie: i, length })));
}

describe('back-pressure', () => {
  it('a client that never reads 2,000 replies of 64 KiB holds its bound', () => {
    const session = new Session(new MemoryDevice('disk', 2048)).go();
    session.serverSide.autoDeliver = false;
    session.send(reads(2000, 64 * KIB));
    const { usedByteLength } = session.server.statistics;
    expect(usedByteLength).toBeGreaterThan(256 * KIB);
    expect(usedByteLength).toBeLessThanOrEqual(MIB);
    expect(session.serverSide.pendingByteLength).toBeLessThanOrEqual(usedByteLength);
    expect(session.serverSide.isPaused).toBe(true);
    session.serverSide.autoDeliver = true;
    session.serverSide.deliver();
    session.reactor.turn();
    expect(session.receivedByteLength).toBe(2000 * (16 + 64 * KIB));
    expect(session.server.statistics).toMatchObject(NOTHING);
    expect(session.serverSide.isPaused).toBe(false);
  });

  it('64 reads of 32 MiB, then gone: nothing stays', () => {
    const session = new Session(new MemoryDevice('disk', (64 * MIB) / 512)).go();
    session.serverSide.autoDeliver = false;
    session.send(reads(64, 32 * MIB));
    expect(session.server.statistics.usedByteLength).toBeLessThan(100 * MIB);
    session.client.destroy();
    session.reactor.turn();
    expect(session.server.statistics).toEqual({ connectionCount: 0, ...NOTHING });
  });

  it('a device gets so many requests of one connection at a time', () => {
    const device = new HeldDevice(2048);
    const session = new Session(device, { maxConnectionRequestCount: 128 }).go().send(reads(1000, 4096));
    expect(device.bios).toHaveLength(128);
    expect(session.serverSide.isPaused).toBe(true);
    for (let i = 0; i < 1000; i++) {
      device.finish(device.bios.length - 1);
      session.reactor.turn();
      expect(device.bios.length).toBeLessThanOrEqual(128);
    }
    expect(session.receivedByteLength).toBe(1000 * (16 + 4096));
    expect(session.server.statistics).toMatchObject(NOTHING);
    expect(session.serverSide.isPaused).toBe(false);
  });

  it('a request of the largest size gets through a small bound', () => {
    const session = new Session(new MemoryDevice('disk', (64 * MIB) / 512), {
      maxConnectionByteLength: MIB,
      maxServerByteLength: MIB,
    }).go();
    session.send(reads(2, 64 * MIB));
    expect(session.receivedByteLength).toBe(2 * (16 + 64 * MIB));
  });

  it('a connection that holds nothing is served while another holds all of the server', () => {
    const session = new Session(new MemoryDevice('disk', 2048), { maxServerByteLength: 8 * MIB }).go();
    session.serverSide.autoDeliver = false;
    session.send(reads(2000, 64 * KIB));
    expect(session.server.statistics.usedByteLength).toBeLessThan(9 * MIB);
    const other = session.connectAnother().go();
    for (let i = 0; i < 10; i++) {
      other.send(request({ type: READ, length: 4096 }));
      other.reactor.turn();
      expect(other.takeReply().error).toBe(0);
      other.take(4096);
    }
    // What one of them gives back lets the other go on.
    session.serverSide.autoDeliver = true;
    session.serverSide.deliver();
    session.reactor.turn();
    expect(session.receivedByteLength).toBe(2000 * (16 + 64 * KIB));
  });

  it('counts writes that a device holds, in place or gathered', () => {
    const device = new HeldDevice(65536);
    const session = new Session(device, { maxConnectionByteLength: MIB }).go();
    const write = request({ type: WRITE, data: pattern(256 * KIB) });
    for (let i = 0; i < 16; i++) session.send(write.subarray(0, 100 * KIB), write.subarray(100 * KIB));
    expect(device.bios.length).toBeLessThanOrEqual(5);
    for (let i = 0; i < 16; i++) {
      device.finish(0);
      session.reactor.turn();
    }
    for (let i = 0; i < 16; i++) expect(session.takeReply().error).toBe(0);
    expect(session.server.statistics).toMatchObject(NOTHING);
    expect(Buffer.compare(device.memory.peek(0, 512), pattern(256 * KIB))).toBe(0);
  });
});

describe('a client that vanishes', () => {
  it('leaves requests with the device, and its memory comes back when they end', () => {
    const device = new HeldDevice(2048);
    const session = new Session(device).go();
    session.send(reads(10, 4096), request({ type: WRITE, data: pattern(4096) }));
    session.send(request({ type: WRITE, data: pattern(64 * KIB) }).subarray(0, 1000));
    device.finish(3);
    session.client.destroy();
    session.reactor.turn();
    expect(session.server.statistics).toMatchObject({ connectionCount: 1, requestCount: 10 });
    while (device.bios.length > 1) device.finish(0);
    expect(session.server.statistics.usedByteLength).toBeGreaterThan(0);
    device.finish(0, Errno.EIO);
    session.reactor.turn();
    expect(session.server.statistics).toEqual({ connectionCount: 0, ...NOTHING });
  });
});

describe('a device that throws', () => {
  class ThrowingDevice extends HeldDevice {
    override submit(bio: Bio): void {
      if (bio.sector === 1) bio.endIo(0);
      throw new Error('a bug');
    }
  }

  it.each([0, 512])('ends the connection, not the server (offset %i)', (offset) => {
    const device = new ThrowingDevice(64);
    const session = new Session(device).go();
    const other = session.connectAnother().go();
    session.send(request({ type: READ, offset, length: 512 }));
    expect(session.isClosed).toBe(true);
    expect(session.errors.map(String)).toEqual(['Error: a bug']);
    other.send(request({ type: READ, offset: 64 * 512, length: 512 }));
    expect(other.takeReply().error).toBe(Errno.EINVAL);
    expect(session.server.statistics).toEqual({ connectionCount: 1, ...NOTHING });
  });
});

describe('shutdown', () => {
  it('finishes and answers what the device has, refuses what comes later, flushes, closes', () => {
    const device = new HeldDevice(64);
    const session = new Session(device).go().send(request({ type: WRITE, cookie: 1, data: pattern(512) }));
    let ended: Error | null | undefined;
    session.server.shutdown((error) => {
      ended = error;
    });
    session.send(
      request({ type: READ, cookie: 2, length: 512 }),
      request({ type: WRITE, cookie: 3, data: pattern(512) }),
      request({ type: FLUSH, cookie: 4 }),
    );
    for (const cookie of [2, 3, 4]) expect(session.takeReply()).toEqual({ error: Errno.ESHUTDOWN, cookie });
    expect(ended).toBe(undefined);
    device.finish(0);
    session.reactor.turn();
    expect(session.takeReply()).toEqual({ error: 0, cookie: 1 });
    expect(session.isClosed).toBe(false);
    expect(device.bios).toMatchObject([{ op: 2 }]);
    device.finish(0);
    session.reactor.turn();
    expect(session.isClosed).toBe(true);
    expect(ended).toBe(null);
    expect(session.server.statistics).toEqual({ connectionCount: 0, ...NOTHING });
    expect(session.reactor.timerCount).toBe(0);
  });

  it('says when a flush failed', () => {
    const device = new HeldDevice(64);
    const session = new Session(device).go();
    let ended: Error | null | undefined;
    session.server.shutdown((error) => {
      ended = error;
    });
    session.reactor.turn();
    device.finish(0, Errno.EIO);
    session.reactor.turn();
    expect(ended).toMatchObject({ code: 'EIO', operation: 'flush' });
    expect(session.isClosed).toBe(true);
  });

  it('cuts off what takes too long', () => {
    const device = new HeldDevice(64);
    const session = new Session(device).go().send(request({ type: READ, length: 512 }));
    let ended: Error | null | undefined;
    session.server.shutdown((error) => {
      ended = error;
    }, 1000);
    session.reactor.turn();
    expect(ended).toBe(undefined);
    session.reactor.advance(1001);
    expect(String(ended)).toMatch('devices still have 1 requests');
    expect(session.isClosed).toBe(true);
    device.finish(0);
    session.reactor.turn();
    expect(session.server.statistics).toEqual({ connectionCount: 0, ...NOTHING });
  });

  it('does not wait for clients that only sit there', () => {
    const session = new Session(new MemoryDevice('disk', 8));
    let ended: Error | null | undefined;
    session.server.shutdown((error) => {
      ended = error;
    });
    session.reactor.turn();
    expect(ended).toBe(null);
    expect(session.isClosed).toBe(true);
    const late = session.connectAnother();
    session.reactor.turn();
    expect(late.isClosed).toBe(true);
  });

  it('takes an export away when its requests are answered', () => {
    const device = new HeldDevice(64);
    const session = new Session(device).go().send(request({ type: READ, length: 512 }));
    expect(session.server.removeExport('other')).toBe(false);
    expect(session.server.removeExport('disk')).toBe(true);
    session.reactor.turn();
    expect(session.isClosed).toBe(false);
    device.finish(0);
    session.reactor.turn();
    expect(session.takeReply().error).toBe(0);
    expect(session.isClosed).toBe(true);
  });
});
