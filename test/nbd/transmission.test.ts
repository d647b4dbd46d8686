// Requests and replies over a transport in memory: exact errors, order, memory, and conversations cut anywhere.
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { REQ_FUA, REQ_OP_FLUSH, REQ_OP_WRITE, REQ_OP_WRITE_ZEROES } from '../../src/block/bio.ts';
import { Errno } from '../../src/block/errno.ts';
import { defaultLimits } from '../../src/block/limits.ts';
import { MemoryDevice } from '../../src/devices/memory.ts';
import { runs } from '../support/seed.ts';
import { HeldDevice, option, pattern, type RequestFields, request, Session, u32 } from './support.ts';

const [READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS] = [0, 1, 2, 3, 4, 5, 6, 7];
const MIB = 1 << 20;
const SIZE = 8 * MIB;
const memory = () => new MemoryDevice('disk', SIZE / 512);
const data512 = pattern(512);

function errorOf(fields: RequestFields, options = {}, device = memory()): number {
  const session = new Session(device, options).go();
  session.send(request({ cookie: 77, ...fields }));
  const reply = session.takeReply();
  expect(reply.cookie).toBe(77);
  // The connection lives on, and nothing of this request is left in it.
  session.take(reply.error === 0 && fields.type === READ ? (fields.length ?? 0) : 0);
  session.send(request({ type: FLUSH, cookie: 78 }));
  expect(session.takeReply()).toEqual({ error: 0, cookie: 78 });
  expect(session.receivedByteLength).toBe(0);
  expect(session.server.statistics).toMatchObject({ requestCount: 0, usedByteLength: 0 });
  return reply.error;
}

describe('errors of requests', () => {
  const rows: [string, RequestFields, number][] = [
    ['a read', { type: READ, length: 4096 }, 0],
    ['a read of the last sector', { type: READ, offset: SIZE - 512, length: 512 }, 0],
    ['a read past the end', { type: READ, offset: SIZE - 512, length: 1024 }, Errno.EINVAL],
    ['a read far past the end', { type: READ, offset: 2n ** 63n, length: 512 }, Errno.EINVAL],
    ['a read at the last byte there is', { type: READ, offset: 2n ** 64n - 512n, length: 512 }, Errno.EINVAL],
    ['a read at 2^64 - 1', { type: READ, offset: 2n ** 64n - 1n, length: 1 }, Errno.EINVAL],
    ['a read of 4 GiB', { type: READ, length: 0xffffffff }, Errno.EINVAL],
    ['a read off a sector', { type: READ, offset: 1, length: 512 }, 0],
    ['a read of half a sector', { type: READ, length: 256 }, 0],
    ['a read of the last byte', { type: READ, offset: SIZE - 1, length: 1 }, 0],
    ['a read of a byte past the end', { type: READ, offset: SIZE - 1, length: 2 }, Errno.EINVAL],
    ['a read of nothing', { type: READ }, 0],
    ['a read of nothing at the end', { type: READ, offset: SIZE }, 0],
    ['a read of nothing past the end', { type: READ, offset: SIZE + 512 }, Errno.EINVAL],
    ['a read with FUA', { type: READ, flags: 1, length: 512 }, 0],
    ['a read with DF, not negotiated', { type: READ, flags: 4, length: 512 }, Errno.EINVAL],
    ['a write', { type: WRITE, data: data512 }, 0],
    ['a write with FUA', { type: WRITE, flags: 1, data: data512 }, 0],
    ['a write of nothing', { type: WRITE }, 0],
    ['a write past the end', { type: WRITE, offset: SIZE, data: data512 }, Errno.ENOSPC],
    ['a write off a sector', { type: WRITE, offset: 100, data: data512 }, 0],
    ['a write of a byte past the end', { type: WRITE, offset: SIZE - 511, data: data512 }, Errno.ENOSPC],
    ['a write with an unknown flag', { type: WRITE, flags: 0x8000, data: data512 }, Errno.EINVAL],
    ['a flush', { type: FLUSH }, 0],
    ['a flush with FUA, offset and length', { type: FLUSH, flags: 1, offset: 512, length: 512 }, 0],
    ['a flush with an unknown flag', { type: FLUSH, flags: 2 }, Errno.EINVAL],
    ['a trim', { type: TRIM, length: 65536 }, 0],
    ['a trim with FUA', { type: TRIM, flags: 1, length: 65536 }, 0],
    ['a trim past the end', { type: TRIM, offset: SIZE, length: 512 }, Errno.EINVAL],
    ['a trim of nothing', { type: TRIM }, 0],
    ['write-zeroes', { type: ZEROES, length: SIZE }, 0],
    ['write-zeroes with FUA and NO_HOLE', { type: ZEROES, flags: 3, length: 65536 }, 0],
    ['write-zeroes past the end', { type: ZEROES, offset: 512, length: 0xfffffe00 }, Errno.ENOSPC],
    ['write-zeroes with FAST_ZERO', { type: ZEROES, flags: 16, length: 512 }, 0],
    ['write-zeroes of half a sector with FAST_ZERO', { type: ZEROES, flags: 16, length: 256 }, Errno.EOPNOTSUPP],
    ['write-zeroes with DF', { type: ZEROES, flags: 4, length: 512 }, Errno.EINVAL],
    ['CACHE', { type: CACHE, offset: 3, length: 4 * MIB }, 0],
    ['CACHE past the end', { type: CACHE, offset: SIZE, length: 1 }, Errno.EINVAL],
    ['CACHE with NO_HOLE', { type: CACHE, flags: 2, length: 512 }, Errno.EINVAL],
    ['BLOCK_STATUS, not negotiated', { type: STATUS, length: 512 }, Errno.EINVAL],
    ['an unknown command', { type: 4711, length: 512 }, Errno.EINVAL],
  ];
  it.each(rows)('%s', (_name, fields, error) => expect(errorOf(fields)).toBe(error));

  it.each([
    ['a write', { type: WRITE, data: data512 }],
    ['a trim', { type: TRIM, length: 512 }],
    ['write-zeroes', { type: ZEROES, length: 512 }],
  ] as [string, RequestFields][])('%s on a read-only export', (_name, fields) => {
    expect(errorOf(fields, { readOnly: true })).toBe(Errno.EPERM);
    expect(errorOf(fields, {}, new MemoryDevice('disk', 8, { readOnly: true }))).toBe(Errno.EPERM);
  });

  it('refuses trims that were not offered', () => {
    const device = new MemoryDevice('disk', 8, { limits: { maxDiscardSectorCount: 0 } });
    expect(errorOf({ type: TRIM, length: 512 }, {}, device)).toBe(Errno.EINVAL);
  });

  it.each([
    [Errno.EIO, Errno.EIO],
    [Errno.ENOSPC, Errno.ENOSPC],
    [Errno.EDQUOT, Errno.ENOSPC],
    [Errno.EROFS, Errno.EPERM],
    [Errno.EOPNOTSUPP, Errno.EINVAL],
    [Errno.ETIMEDOUT, Errno.EIO],
  ])('answers a device that fails with %i by %i', (errno, onTheWire) => {
    const device = new HeldDevice(64);
    const session = new Session(device).go().send(request({ type: READ, length: 4096 }));
    device.finish(0, errno);
    session.reactor.turn();
    expect(session.takeReply().error).toBe(onTheWire);
    expect(session.receivedByteLength).toBe(0);
  });

  it('closes on a wrong magic', () => {
    const session = new Session(memory()).go().send(request({ type: READ, length: 512, magic: 0x25609514 }));
    expect(session.isClosed).toBe(true);
  });

  it('answers a write of 4 GiB, then closes without reading it', () => {
    const session = new Session(memory()).go().send(request({ type: WRITE, length: 0xffffffff }));
    expect(session.takeReply().error).toBe(Errno.EINVAL);
    expect(session.isClosed).toBe(true);
  });

  it.each([
    ['has shrunk', { sectorCount: 8 }],
    ['has other blocks now', { limits: { ...defaultLimits(), logicalBlockSize: 4096 } }],
  ])('says ESHUTDOWN and goodbye on a device that %s', (_name, change) => {
    const device = new HeldDevice(64);
    const session = new Session(device).go().send(request({ type: READ, cookie: 1, length: 512 }));
    Object.assign(device, change);
    session.send(request({ type: READ, cookie: 2, length: 512 }), request({ type: READ, cookie: 3, length: 512 }));
    expect(session.takeReply()).toEqual({ error: Errno.ESHUTDOWN, cookie: 2 });
    expect(session.isClosed).toBe(false);
    device.finish(0);
    session.reactor.turn();
    expect(session.takeReply()).toEqual({ error: 0, cookie: 1 });
    expect(session.take(512)).toHaveLength(512);
    expect(session.receivedByteLength).toBe(0);
    expect(session.isClosed).toBe(true);
    expect(session.errors).toEqual([]);
  });

  it('shows a device that has grown to those who connect after that', () => {
    const device = new HeldDevice(64);
    const session = new Session(device).go();
    device.sectorCount = 128;
    session.send(request({ type: READ, offset: 64 * 512, length: 512 }));
    expect(session.takeReply().error).toBe(Errno.EINVAL);
    session
      .connectAnother()
      .go()
      .send(request({ type: READ, offset: 64 * 512, length: 512 }));
    expect(device.bios).toHaveLength(1);
  });

  it('knows sectors beyond 2^53 bytes', () => {
    const sectorCount = 2 ** 50;
    const session = new Session(new MemoryDevice('large', sectorCount)).go();
    const offset = BigInt(sectorCount - 1) * 512n;
    session.send(request({ type: WRITE, offset, data: data512 }), request({ type: READ, offset, length: 512 }));
    expect(session.takeReply().error).toBe(0);
    expect(session.takeReply().error).toBe(0);
    expect(session.take(512).equals(data512)).toBe(true);
    session.send(request({ type: READ, offset: offset + 512n, length: 512 }));
    expect(session.takeReply().error).toBe(Errno.EINVAL);
  });
});

describe('the way to the device', () => {
  it('answers a turn of requests that end at once in one send of one piece', () => {
    const device = memory();
    device.poke(0, pattern(65536));
    const session = new Session(device).go();
    const before = session.serverSide.sendCount;
    session.send(
      ...Array.from({ length: 16 }, (_, i) => request({ type: READ, cookie: i, offset: i * 4096, length: 4096 })),
    );
    // One send a chunk that came in, at the most.
    expect(session.serverSide.sendCount - before).toBeLessThanOrEqual(16);
    session.client.send(
      [
        Buffer.concat(
          Array.from({ length: 16 }, (_, i) => request({ type: READ, cookie: i, offset: i * 4096, length: 4096 })),
        ),
      ],
      () => {},
    );
    const middle = session.serverSide.sendCount;
    session.reactor.turn();
    expect(session.serverSide.sendCount - middle).toBe(1);
    for (let i = 0; i < 32; i++) {
      expect(session.takeReply()).toEqual({ error: 0, cookie: i % 16 });
      expect(session.take(4096).equals(pattern(65536).subarray((i % 16) * 4096, (i % 16) * 4096 + 4096))).toBe(true);
    }
  });

  it('answers in the order in which the device ends', () => {
    const device = new HeldDevice(64);
    device.memory.poke(0, pattern(4096));
    const session = new Session(device).go();
    session.send(...[1, 2, 3, 4].map((i) => request({ type: READ, cookie: i, offset: i * 512, length: 512 })));
    device.finish(2);
    device.finish(0);
    session.reactor.turn();
    device.finish(0, Errno.EIO);
    device.finish(0);
    session.reactor.turn();
    for (const cookie of [3, 1, 2, 4]) {
      const reply = session.takeReply();
      expect(reply).toEqual({ error: cookie === 2 ? Errno.EIO : 0, cookie });
      if (cookie !== 2)
        expect(session.take(512).equals(pattern(4096).subarray(cookie * 512, cookie * 512 + 512))).toBe(true);
    }
    expect(session.server.statistics.usedByteLength).toBe(0);
  });

  it('makes FUA a flag of writes and a flush behind the rest', () => {
    const device = new HeldDevice(64, { maxDiscardSectorCount: 64, maxWriteZeroesSectorCount: 64 });
    const session = new Session(device).go().send(request({ type: WRITE, flags: 1, data: data512 }));
    expect(device.bios[0]).toMatchObject({ op: REQ_OP_WRITE, flags: REQ_FUA });
    device.finish(0);
    for (const type of [TRIM, ZEROES]) {
      session.send(request({ type, flags: 1, length: 4096 }));
      device.finish(0);
      session.reactor.turn();
      expect(device.bios[0]).toMatchObject({ op: REQ_OP_FLUSH });
      device.finish(0);
    }
    session.reactor.turn();
    for (let i = 0; i < 3; i++) expect(session.takeReply().error).toBe(0);
  });

  it('writes zeroes where the device has no write-zeroes, or turns out not to', () => {
    for (const max of [0, 4096]) {
      const device = new HeldDevice(8192, { maxWriteZeroesSectorCount: max });
      device.memory.poke(0, pattern(SIZE / 2));
      const session = new Session(device).go().send(request({ type: ZEROES, offset: 512, length: 3 * MIB }));
      if (max > 0) {
        expect(device.bios[0]!.op).toBe(REQ_OP_WRITE_ZEROES);
        device.finish(0, Errno.EOPNOTSUPP);
      }
      while (device.bios.length > 0) device.finish(0);
      session.reactor.turn();
      expect(session.takeReply().error).toBe(0);
      const after = device.memory.peek(0, 8192);
      expect(Buffer.compare(after.subarray(0, 512), pattern(512))).toBe(0);
      expect(after.subarray(512, 512 + 3 * MIB).every((byte) => byte === 0)).toBe(true);
      expect(Buffer.compare(after.subarray(512 + 3 * MIB), pattern(SIZE / 2).subarray(512 + 3 * MIB))).toBe(0);
    }
  });

  it('finishes what is outstanding at DISC, whatever its offset', () => {
    const device = new HeldDevice(64);
    const session = new Session(device).go();
    session.send(
      request({ type: READ, length: 512 }),
      request({ type: DISC, offset: 0xffff_ffff_ffff_fe00n, length: 4711 }),
      request({ type: READ, length: 512 }),
    );
    expect(device.bios).toHaveLength(1);
    expect(session.isClosed).toBe(false);
    device.finish(0);
    session.reactor.turn();
    expect(session.takeReply().error).toBe(0);
    expect(session.take(512)).toHaveLength(512);
    expect(session.isClosed).toBe(true);
    expect(session.server.statistics).toEqual({ connectionCount: 0, requestCount: 0, usedByteLength: 0 });
  });

  it('takes a write of 64 MiB', () => {
    const device = new MemoryDevice('disk', (65 * MIB) / 512);
    const session = new Session(device).go();
    const data = new Uint8Array(64 * MIB).fill(0x5a);
    session.send(request({ type: WRITE, offset: 512, length: data.byteLength }));
    for (let i = 0; i < data.byteLength; i += MIB) session.send(data.slice(i, i + MIB));
    expect(session.takeReply().error).toBe(0);
    const stored = device.peek(0, (65 * MIB) / 512);
    expect(stored[511]).toBe(0);
    expect(stored[512]).toBe(0x5a);
    expect(stored[512 + 64 * MIB - 1]).toBe(0x5a);
    expect(stored[512 + 64 * MIB]).toBe(0);
    expect(session.server.statistics.usedByteLength).toBe(0);
  });
});

describe('a conversation', () => {
  const conversation = Buffer.concat([
    u32(3),
    option(99, pattern(10)),
    option(3),
    option(7, Buffer.from('000000046469736b0001' + '0003', 'hex')),
    request({ type: WRITE, cookie: 1, offset: 1024, data: pattern(1536) }),
    request({ type: READ, cookie: 2, offset: 512, length: 2560 }),
    request({ type: WRITE, cookie: 3, offset: SIZE, data: pattern(512) }),
    request({ type: ZEROES, cookie: 4, offset: 1024, length: 512 }),
    request({ type: 99, cookie: 5 }),
    request({ type: READ, cookie: 6, offset: 0, length: 4096 }),
    request({ type: FLUSH, cookie: 7 }),
    request({ type: DISC, cookie: 8 }),
  ]);

  function answersTo(chunks: Uint8Array[]): { answer: Buffer; isClosed: boolean } {
    const session = new Session(memory());
    for (const chunk of chunks) session.send(chunk);
    expect(session.server.statistics).toMatchObject({ requestCount: 0 });
    const answer = session.take(session.receivedByteLength);
    return { answer, isClosed: session.isClosed };
  }

  const whole = answersTo([conversation.subarray()]);

  it('is answered the same byte by byte', () => {
    expect(whole.isClosed).toBe(true);
    const bytes = Array.from({ length: conversation.length }, (_, i) => conversation.subarray(i, i + 1));
    expect(answersTo(bytes).answer.equals(whole.answer)).toBe(true);
  });

  it('is answered the same when cut once, anywhere', () => {
    for (let i = 1; i < conversation.length; i++) {
      const { answer } = answersTo([conversation.subarray(0, i), conversation.subarray(i)]);
      if (!answer.equals(whole.answer)) expect.fail(`cut at ${i}`);
    }
  });

  it('is answered the same in any portions', () => {
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 1, max: 700 }), { minLength: 1 }), (lengths) => {
        const chunks: Uint8Array[] = [];
        for (let at = 0, i = 0; at < conversation.length; at += lengths[i++ % lengths.length]!) {
          chunks.push(conversation.subarray(at, at + lengths[i % lengths.length]!));
        }
        return answersTo(chunks).answer.equals(whole.answer);
      }),
      { numRuns: runs(100) },
    );
  });

  it('can end anywhere without leaving anything behind', () => {
    for (let i = 0; i < conversation.length; i++) {
      const session = new Session(memory()).send(conversation.subarray(0, i));
      session.client.destroy();
      session.reactor.turn();
      expect(session.server.statistics).toEqual({ connectionCount: 0, requestCount: 0, usedByteLength: 0 });
      expect(session.reactor.timerCount).toBe(0);
      expect(session.errors).toEqual([]);
    }
  });

  it('ends in no exception, whatever is sent', () => {
    fc.assert(
      fc.property(
        fc.array(fc.uint8Array({ maxLength: 100 }), { maxLength: 20 }),
        fc.boolean(),
        (chunks, inTransmission) => {
          const session = new Session(memory());
          if (inTransmission) session.go();
          else session.send(u32(3));
          for (const chunk of chunks) session.send(chunk);
          session.client.destroy();
          session.reactor.turn();
          expect(session.errors.filter((error) => error.name !== 'MalformedError')).toEqual([]);
          expect(session.server.statistics).toEqual({ connectionCount: 0, requestCount: 0, usedByteLength: 0 });
        },
      ),
      { numRuns: runs(300) },
    );
  });
});
