// The holes that other NBD servers had, each by its name, as something that must not happen here. Those of clients are in
// client-structured.test.ts, those of TLS in tls-handshake.test.ts.
import { describe, expect, it } from 'vitest';
import type { Bio } from '../../src/block/bio.ts';
import { EXTENT_DATA, type ExtentCallback } from '../../src/block/block-device.ts';
import { Errno } from '../../src/block/errno.ts';
import { MemoryDevice } from '../../src/devices/memory.ts';
import { encodeGoRequest } from '../../src/nbd/protocol/info.ts';
import { contexts, goStructured, HeldDevice, option, pattern, request, Session, u32 } from './support.ts';

const [EXPORT_NAME, LIST, INFO, GO, SET] = [1, 3, 6, 7, 10];
const [READ, WRITE, FLUSH, ZEROES, STATUS] = [0, 1, 3, 6, 7];
const UNKNOWN = 0x80000006;
const MIB = 1 << 20;
const LEFT = { requestCount: 0, usedByteLength: 0 };

const memory = () => new MemoryDevice('disk', 2048);

/** Another client is served as ever. */
function expectService(session: Session): void {
  const other = session.connectAnother().go();
  other.send(request({ type: READ, cookie: 99, length: 512 }));
  expect(other.takeReply()).toEqual({ error: 0, cookie: 99 });
  expect(other.take(512)).toHaveLength(512);
  other.client.destroy();
  session.reactor.turn();
}

describe('nbd-server', () => {
  it('CVE-2005-3534, CVE-2011-0530: a request longer than the buffer', () => {
    const session = new Session(memory()).go();
    for (const length of [64 * MIB + 1, 0x7fffffff, 0x80000000, 0xffffffff]) {
      session.send(request({ type: READ, length }));
      expect(session.takeReply().error).toBe(Errno.EINVAL);
    }
    session.send(request({ type: WRITE, length: 0xffffffff }), pattern(1000));
    expect(session.takeReply().error).toBe(Errno.EINVAL);
    expect(session.isClosed).toBe(true);
    expect(session.server.statistics).toMatchObject(LEFT);
    expectService(session);
  });

  it('CVE-2011-1925, CVE-2013-7441: a failed negotiation ends the server', () => {
    const session = new Session(memory());
    for (const message of [
      option(EXPORT_NAME, Buffer.from('nothing')),
      option(GO, encodeGoRequest('nothing', [])),
      Buffer.alloc(16),
    ]) {
      const client = session.connectAnother().send(u32(3), message);
      client.client.destroy();
      session.reactor.turn();
      expectService(session);
    }
  });

  it.each([
    ['GO', option(GO, Buffer.from('ffffffff0000', 'hex'))],
    ['INFO', option(INFO, Buffer.from('ffffffff64690000', 'hex'))],
    ['SET_META_CONTEXT', option(SET, Buffer.from('ffffffff00000001', 'hex'))],
    ['EXPORT_NAME', option(EXPORT_NAME, Buffer.alloc(0), 0xffffffff)],
  ])('CVE-2022-26495, CVE-2022-26496: a name of 2^32 - 1 bytes in %s', (_name, message) => {
    const session = new Session(memory()).send(u32(3), option(8), message);
    expect(session.server.statistics.usedByteLength).toBe(0);
    expectService(session);
  });
});

describe('qemu-nbd', () => {
  it('CVE-2017-7539, CVE-2017-9524: a client that talks before its turn, or goes at any time', () => {
    const session = new Session(memory());
    const talk = Buffer.concat([
      u32(3),
      option(LIST),
      option(8),
      option(GO, encodeGoRequest('disk', [3])),
      request({ type: READ, length: 512 }),
    ]);
    for (let i = 0; i <= talk.length; i++) {
      const client = session.connectAnother();
      client.client.send([new Uint8Array(talk.subarray(0, i))], () => {});
      if (i % 2 === 0) session.reactor.turn();
      client.client.destroy();
      session.reactor.turn();
    }
    expect(session.server.statistics).toEqual({ connectionCount: 1, ...LEFT });
    expect(session.errors).toEqual([]);
    expectService(session);
  });

  it.each([255, 256, 257, 4095, 4096, 4097])('CVE-2017-15118: a name of %i bytes', (byteLength) => {
    const session = new Session(memory()).send(u32(3));
    const name = Buffer.alloc(byteLength, 'x');
    session.take(18);
    session.send(option(GO, Buffer.concat([u32(byteLength), name, Buffer.alloc(2)])));
    const { type, data } = session.takeOptionReply();
    expect(type).toBe(byteLength > 4096 ? 0x80000003 : UNKNOWN);
    // CVE-2020-10761: the text of an error stays below 4096 bytes, whatever it quotes.
    expect(data.length).toBeLessThan(4096);
    if (byteLength <= 4096) {
      session.server.exports.add({ name: name.toString(), device: memory() });
      session.send(option(GO, encodeGoRequest(name.toString(), [1])));
      expect(session.takeOptionReply().type).toBe(3);
    }
  });

  it('CVE-2017-15119: options of gigabytes, one after the other', () => {
    const session = new Session(memory()).send(u32(3), option(4711, Buffer.alloc(0), 0xfffffff0));
    session.reactor.turn();
    expect(session.isClosed).toBe(true);
    expectService(session);
  });

  it('CVE-2024-7409: clients that hold their sockets open while the server stops, or never say anything', () => {
    const session = new Session(memory(), { maxHandshakeCount: 4, handshakeTimeoutMilliseconds: 100 });
    const clients = [session.connectAnother(), session.connectAnother().send(u32(3)), session.connectAnother().go()];
    session.reactor.advance(101);
    expect(clients.map(({ isClosed }) => isClosed)).toEqual([true, true, false]);
    session.connectAnother().send(u32(3));
    let ended: Error | null | undefined;
    session.server.shutdown((error) => {
      ended = error;
    });
    session.reactor.turn();
    expect(ended).toBe(null);
    expect(session.server.statistics).toEqual({ connectionCount: 0, ...LEFT });
    expect(session.reactor.timerCount).toBe(0);
  });
});

describe('nbdkit', () => {
  it('CVE-2019-14850: work for a client that has not chosen an export', () => {
    class Touched extends HeldDevice {
      touchCount = 0;
      override submit(_bio: Bio): void {
        this.touchCount++;
      }
      queryExtent(_sector: number, count: number, done: ExtentCallback): void {
        this.touchCount++;
        done(0, count, EXTENT_DATA);
      }
    }
    const device = new Touched(64);
    const session = new Session(device).send(
      u32(3),
      option(LIST),
      option(8),
      option(SET, contexts('', 'base:allocation')),
    );
    session.send(option(INFO, encodeGoRequest('disk', [0, 1, 2, 3])));
    session.client.destroy();
    session.reactor.turn();
    expect(device.touchCount).toBe(0);
  });

  it('CVE-2019-14851: commands in the wrong order', () => {
    const session = new Session(memory());
    session.connectAnother().send(u32(3), request({ type: READ, length: 512 }));
    session
      .connectAnother()
      .go()
      .send(option(GO, encodeGoRequest('disk', [])), option(LIST));
    session.connectAnother().send(option(LIST), u32(3));
    expect(session.errors.every(({ name }) => name === 'MalformedError')).toBe(true);
    expect(session.errors).toHaveLength(3);
    expectService(session);
  });

  it.each([0, 1, 511])('CVE-2025-47711, CVE-2025-47712: a block status of 2^32 - 1 bytes from byte %i on', (offset) => {
    for (const logicalBlockSize of [512, 4096]) {
      for (const flags of [0, 8]) {
        const device = new MemoryDevice('disk', 2 ** 30, { limits: { logicalBlockSize } });
        const session = goStructured(new Session(device));
        session.send(request({ type: STATUS, flags, offset, length: 0xffffffff }));
        expect(session.takeChunk().payload.toString('hex')).toBe('00000001ffffffff00000003');
        expect(session.errors).toEqual([]);
      }
    }
  });

  it('zeroes that end early: old data shows (1.44.1)', () => {
    const device = new MemoryDevice('disk', (200 * MIB) / 512, { limits: { maxWriteZeroesSectorCount: 2048 } });
    for (let at = 0; at < 200; at++) device.poke(at * 2048 + 7, pattern(512));
    const session = new Session(device).go().send(request({ type: ZEROES, offset: 3, length: 200 * MIB - 5 }));
    expect(session.takeReply().error).toBe(0);
    for (let at = 0; at < 200; at++) expect(device.peek(at * 2048 + 7, 1).every((byte) => byte === 0)).toBe(true);
  });
});

describe('bounds of large writes', () => {
  it('64 MiB take a few, are written as they come, and a failure in the middle is the answer', () => {
    const device = new HeldDevice((65 * MIB) / 512);
    const session = goStructured(new Session(device));
    session.send(request({ type: WRITE, cookie: 5, offset: 100, length: 64 * MIB }));
    expect(session.server.statistics.usedByteLength).toBe(0);
    const data = pattern(64 * MIB);
    let most = 0;
    let writeCount = 0;
    for (let at = 0; at < data.byteLength; at += 65_536) {
      session.send(data.subarray(at, at + 65_536));
      most = Math.max(most, session.server.statistics.usedByteLength);
      while (device.bios.length > 2) {
        const { op, sector } = device.bios[0]!;
        if (op === 1) writeCount++;
        if (op === 1 && writeCount === 30) device.bios.splice(0, 1)[0]!.fail(Errno.EIO, device, sector + 3);
        else device.finish(0);
        session.reactor.turn();
      }
    }
    while (device.bios.length > 0) {
      device.finish(0);
      session.reactor.turn();
    }
    expect(most).toBeLessThan(8 * MIB);
    expect(writeCount).toBeGreaterThan(60);
    const error = session.takeChunk();
    expect(error).toMatchObject({ type: 0x8002, isDone: true, cookie: 5 });
    expect(Number(error.payload.readBigUInt64BE(6))).toBe(29 * MIB + 3 * 512);
    expect(session.server.statistics).toMatchObject(LEFT);
    expect(Buffer.compare(device.memory.peek(0, 2048).subarray(100), data.subarray(0, MIB - 100))).toBe(0);
  });

  it('a header without its data holds next to nothing, and goes with its client', () => {
    const session = new Session(memory());
    const clients = Array.from({ length: 100 }, () => session.connectAnother().go());
    for (const client of clients) client.send(request({ type: WRITE, length: MIB }), pattern(1000));
    expect(session.server.statistics.usedByteLength).toBeLessThan(110 * (MIB + 16_384));
    for (const client of clients) client.client.destroy();
    session.reactor.turn();
    expect(session.server.statistics).toEqual({ connectionCount: 1, ...LEFT });
  });

  it('a client that dies in the middle leaves what it had written, and no trace in the server', () => {
    const device = new HeldDevice((65 * MIB) / 512);
    const session = new Session(device).go().send(request({ type: WRITE, length: 64 * MIB }));
    for (let at = 0; at < 3; at++) session.send(pattern(MIB + 1, at));
    expect(device.bios).toHaveLength(3);
    session.client.destroy();
    session.reactor.turn();
    expect(session.server.statistics).toMatchObject({ connectionCount: 1, requestCount: 3 });
    while (device.bios.length > 0) device.finish(0);
    session.reactor.turn();
    expect(session.server.statistics).toEqual({ connectionCount: 0, ...LEFT });
    expect(Buffer.compare(device.memory.peek(0, 1), pattern(512, 0))).toBe(0);
  });

  it('a shutdown does not wait for data that never comes', () => {
    const session = new Session(memory()).go().send(request({ type: WRITE, length: 64 * MIB }), pattern(1000));
    session.send(request({ type: FLUSH }));
    let ended: Error | null | undefined;
    session.server.shutdown((error) => {
      ended = error;
    });
    session.reactor.turn();
    expect(ended).toBe(null);
    expect(session.server.statistics).toEqual({ connectionCount: 0, ...LEFT });
  });
});
