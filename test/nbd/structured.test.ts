// Structured replies, meta contexts and extended headers, byte for byte.
import { describe, expect, it } from 'vitest';
import { type Bio, REQ_OP_READ } from '../../src/block/bio.ts';
import { EXTENT_DATA, EXTENT_HOLE, EXTENT_ZERO, type ExtentCallback } from '../../src/block/block-device.ts';
import { Errno } from '../../src/block/errno.ts';
import { MemoryDevice } from '../../src/devices/memory.ts';
import { type Chunk, contexts, goStructured, HeldDevice, option, pattern, request, Session, u32 } from './support.ts';

const [READ, WRITE, FLUSH, TRIM, CACHE, ZEROES, STATUS] = [0, 1, 3, 4, 5, 6, 7];
const [NONE, DATA, HOLE, BLOCK_STATUS, ERROR, ERROR_OFFSET] = [0, 1, 2, 5, 0x8001, 0x8002];
const KIB = 1024;
const [DF, REQ_ONE] = [4, 8];

/** Fails every request that touches one sector, and says so as the layers do. */
class BadSectorDevice extends MemoryDevice {
  bad = new Set<number>();

  override submit(bio: Bio): void {
    for (let i = 0; i < bio.sectorCount; i++) {
      if (!this.bad.has(bio.sector + i)) continue;
      bio.fail(Errno.EIO, this, bio.sector + i);
      return;
    }
    super.submit(bio);
  }
}

function filled<Device extends MemoryDevice>(device: Device, byteLength: number): Device {
  device.poke(0, pattern(byteLength));
  return device;
}

const structured = (device: MemoryDevice | HeldDevice, options = {}) => goStructured(new Session(device, options));
const offsetOf = (chunk: Chunk, at = 0) => Number(chunk.payload.readBigUInt64BE(at));

function extentsOf(chunk: Chunk): [number, number][] {
  expect(chunk).toMatchObject({ type: BLOCK_STATUS, isDone: true });
  expect(chunk.payload.readUInt32BE(0)).toBe(1);
  const extents: [number, number][] = [];
  for (let at = 4; at < chunk.payload.length; at += 8) {
    extents.push([chunk.payload.readUInt32BE(at), chunk.payload.readUInt32BE(at + 4)]);
  }
  return extents;
}

describe('structured replies', () => {
  it.each([
    [0, 4096],
    [1, 511],
    [511, 2],
    [1000, 70_000],
  ])('carry the data of a read at %i of %i bytes in one chunk', (offset, length) => {
    const session = structured(filled(new MemoryDevice('disk', 256), 128 * KIB));
    for (const flags of [0, DF]) {
      session.send(request({ type: READ, flags, cookie: 9, offset, length }));
      const chunk = session.takeChunk();
      expect(chunk).toMatchObject({ type: DATA, isDone: true, cookie: 9 });
      expect(offsetOf(chunk)).toBe(offset);
      expect(Buffer.compare(chunk.payload.subarray(8), pattern(128 * KIB).subarray(offset, offset + length))).toBe(0);
    }
    expect(session.receivedByteLength).toBe(0);
    expect(session.server.statistics).toMatchObject({ requestCount: 0, usedByteLength: 0 });
  });

  it('have no data for a read of nothing', () => {
    const session = structured(new MemoryDevice('disk', 8)).send(request({ type: READ, length: 0 }));
    expect(session.takeChunk()).toMatchObject({ type: NONE, isDone: true, payload: Buffer.alloc(0) });
  });

  it('tell a long hole without its zeroes, unless DF asks for them', () => {
    const session = structured(filled(new MemoryDevice('disk', 1024), 64 * KIB));
    session.send(request({ type: READ, offset: 64 * KIB + 1, length: 128 * KIB }));
    const hole = session.takeChunk();
    expect(hole).toMatchObject({ type: HOLE, isDone: true });
    expect([offsetOf(hole), hole.payload.readUInt32BE(8)]).toEqual([64 * KIB + 1, 128 * KIB]);
    session.send(request({ type: READ, flags: DF, offset: 64 * KIB, length: 128 * KIB }));
    expect(session.takeChunk()).toMatchObject({ type: DATA, payload: { length: 8 + 128 * KIB } });
    session.send(request({ type: READ, offset: 32 * KIB, length: 128 * KIB }));
    expect(session.takeChunk()).toMatchObject({ type: DATA });
    expect(session.server.statistics.usedByteLength).toBe(0);
  });

  it.each([
    ['a read', { type: READ, offset: 1024, length: 4096 }, 4 * 512, 2 * 512],
    ['a read of parts of blocks', { type: READ, offset: 1030, length: 4000 }, 4 * 512, 1018],
    ['a read from the bad sector on', { type: READ, offset: 2050, length: 4096 }, 2050, 0],
  ])('give %s its good data, and the byte of the bad sector', (_name, fields, at, goodByteLength) => {
    const device = filled(new BadSectorDevice('disk', 64), 32 * KIB);
    device.bad.add(4);
    const session = structured(device).send(request({ cookie: 5, ...fields }));
    if (goodByteLength > 0) {
      const data = session.takeChunk();
      expect(data).toMatchObject({ type: DATA, isDone: false, cookie: 5 });
      expect(offsetOf(data)).toBe(fields.offset);
      const expected = pattern(32 * KIB).subarray(fields.offset, fields.offset + goodByteLength);
      expect(Buffer.compare(data.payload.subarray(8), expected)).toBe(0);
    }
    const error = session.takeChunk();
    expect(error).toMatchObject({ type: ERROR_OFFSET, isDone: true, cookie: 5 });
    expect([error.payload.readUInt32BE(0), error.payload.readUInt16BE(4), offsetOf(error, 6)]).toEqual([5, 0, at]);
    session.send(request({ type: READ, cookie: 6, length: 512 }));
    expect(session.takeChunk()).toMatchObject({ type: DATA, cookie: 6 });
    expect(session.server.statistics).toMatchObject({ requestCount: 0, usedByteLength: 0 });
  });

  it('never tell memory that the device did not write to', () => {
    const device = new HeldDevice(64);
    const session = structured(device).send(request({ type: READ, length: 8 * 512 }));
    device.bios.splice(0, 1)[0]!.fail(Errno.EIO, device, 4);
    // The sectors before are read again, by themselves; that fails, too.
    expect(device.bios).toMatchObject([{ op: REQ_OP_READ, sector: 0, sectorCount: 4 }]);
    device.bios.splice(0, 1)[0]!.fail(Errno.EIO, device, 2);
    session.reactor.turn();
    const error = session.takeChunk();
    expect(error).toMatchObject({ type: ERROR_OFFSET, isDone: true });
    expect(offsetOf(error, 6)).toBe(1024);
    expect(session.receivedByteLength).toBe(0);
  });

  it('name the byte for every command that has one, and none for a flush', () => {
    const device = new BadSectorDevice('disk', 64, { limits: { hasWriteCache: true } });
    device.bad.add(4);
    const session = structured(device);
    for (const type of [WRITE, TRIM, CACHE, ZEROES]) {
      const range = { offset: 1024, ...(type === WRITE ? { data: pattern(4096) } : { length: 4096 }) };
      session.send(request({ type, ...range }));
      while (session.receivedByteLength === 0) session.reactor.turn();
      const error = session.takeChunk();
      expect([type, error.type, offsetOf(error, 6)]).toEqual([type, ERROR_OFFSET, 2048]);
    }
    const held = new HeldDevice(8);
    const other = structured(held).send(request({ type: FLUSH }));
    held.finish(0, Errno.EIO);
    other.reactor.turn();
    expect(other.takeChunk()).toMatchObject({ type: ERROR, isDone: true });
  });

  it('refuse in chunks, and say yes to writes in short', () => {
    const session = structured(new MemoryDevice('disk', 8));
    session.send(request({ type: READ, offset: 4096, length: 1 }));
    expect(session.takeChunk()).toMatchObject({ type: ERROR, payload: Buffer.from('000000160000', 'hex') });
    session.send(request({ type: WRITE, cookie: 3, data: pattern(512) }));
    expect(session.takeReply()).toEqual({ error: 0, cookie: 3 });
  });
});

describe('block status', () => {
  const status = (offset: number, length: number, flags = 0) => request({ type: STATUS, flags, offset, length });

  it('tells what is allocated, byte for byte at the ends', () => {
    const session = structured(filled(new MemoryDevice('disk', 1024), 64 * KIB));
    session.send(status(0, 512 * KIB));
    expect(extentsOf(session.takeChunk())).toEqual([
      [64 * KIB, 0],
      [448 * KIB, 3],
    ]);
    session.send(status(100, 64 * KIB));
    expect(extentsOf(session.takeChunk())).toEqual([
      [64 * KIB - 100, 0],
      [100, 3],
    ]);
    session.send(status(100, 512 * KIB - 100, REQ_ONE));
    expect(extentsOf(session.takeChunk())).toEqual([[64 * KIB - 100, 0]]);
    session.send(status(100 * KIB + 1, 1));
    expect(extentsOf(session.takeChunk())).toEqual([[1, 3]]);
  });

  /** Its map is sectors by turns; each answer covers one sector alone, like one chunk of a stripe. */
  class StripyDevice extends MemoryDevice {
    queryCount = 0;
    /** Sectors until the flags change. */
    run = 1;

    override queryExtent(sector: number, _sectorCount: number, done: ExtentCallback): void {
      this.queryCount++;
      done(0, 1, Math.floor(sector / this.run) % 2 === 0 ? EXTENT_DATA : EXTENT_HOLE | EXTENT_ZERO);
    }
  }

  it('joins neighbours that are alike', () => {
    const device = new StripyDevice('disk', 64);
    device.run = 16;
    const session = structured(device).send(status(0, 32 * KIB));
    expect(extentsOf(session.takeChunk())).toEqual([0, 3, 0, 3].map((flags) => [8 * KIB, flags]));
    device.queryCount = 0;
    session.send(status(0, 32 * KIB, REQ_ONE));
    expect(extentsOf(session.takeChunk())).toEqual([[8 * KIB, 0]]);
    expect(device.queryCount).toBe(17);
  });

  it('has a bound for extents and one for questions', () => {
    const device = new StripyDevice('disk', 1 << 22);
    const session = structured(device).send(status(0, 2 ** 31));
    expect(extentsOf(session.takeChunk())).toHaveLength(4096);
    device.run = 1 << 22;
    device.queryCount = 0;
    session.send(status(0, 2 ** 31));
    expect(extentsOf(session.takeChunk())).toEqual([[expect.any(Number), 0]]);
    expect(device.queryCount).toBeLessThanOrEqual(65_536);
  });

  it('tells what it knows when the map ends in an error', () => {
    class Broken extends MemoryDevice {
      override queryExtent(sector: number, _sectorCount: number, done: ExtentCallback): void {
        done(sector < 8 ? 0 : Errno.EIO, 4, EXTENT_DATA);
      }
    }
    const session = structured(new Broken('disk', 64)).send(status(0, 32 * KIB));
    expect(extentsOf(session.takeChunk())).toEqual([[4096, 0]]);
    session.send(status(4096, 4096));
    const error = session.takeChunk();
    expect([error.type, offsetOf(error, 6)]).toEqual([ERROR_OFFSET, 4096]);
  });

  it('tells each context in a chunk of its own, the depth by the flags where the device does not say', () => {
    class Layered extends MemoryDevice {
      override queryExtent(sector: number, sectorCount: number, done: ExtentCallback): void {
        if (sector < 8) done(0, 8 - sector, EXTENT_DATA, 1);
        else if (sector < 16) done(0, 16 - sector, EXTENT_DATA, 2);
        else if (sector < 24) done(0, 24 - sector, EXTENT_DATA);
        else done(0, sectorCount, EXTENT_HOLE | EXTENT_ZERO);
      }
    }
    const both = ['base:allocation', 'qemu:allocation-depth'];
    const session = new Session(new Layered('disk', 64));
    session.send(u32(3), option(8), option(10, contexts('disk', ...both))).goOn('disk');
    const lists = (): number[][] =>
      [1, 2].map((id) => {
        const { type, isDone, payload } = session.takeChunk();
        expect([type, isDone, payload.readUInt32BE(0)]).toEqual([BLOCK_STATUS, id === 2, id]);
        return Array.from({ length: payload.length / 4 - 1 }, (_, index) => payload.readUInt32BE(4 * index + 4));
      });
    session.send(status(0, 32 * KIB));
    expect(lists()).toEqual([
      [12 * KIB, 0, 20 * KIB, 3],
      [4096, 1, 4096, 2, 4096, 1, 20 * KIB, 0],
    ]);
    session.send(status(4096, 28 * KIB, REQ_ONE));
    expect(lists()).toEqual([
      [8 * KIB, 0],
      [4096, 2],
    ]);
  });

  it.each([
    ['past the end', 32 * KIB, 1],
    ['across the end', 32 * KIB - 1, 2],
    ['of nothing', 0, 0],
  ])('%s is refused', (_name, offset, length) => {
    const session = structured(new MemoryDevice('disk', 64)).send(status(offset, length));
    const { type, payload } = session.takeChunk();
    expect([type & ERROR, payload.readUInt32BE(0)]).toEqual([ERROR & type, Errno.EINVAL]);
  });

  it('is refused without its context, and for an export that the context was not set for', () => {
    const device = new MemoryDevice('disk', 64);
    for (const set of [[], [option(10, contexts('disk'))], [option(10, contexts('other', 'base:allocation'))]]) {
      const session = new Session(device);
      session.server.exports.add({ name: 'other', device });
      session.send(u32(3), option(8), ...set).goOn('disk');
      session.send(status(0, 512));
      expect(session.takeChunk()).toMatchObject({ type: ERROR });
    }
  });
});

describe('meta contexts', () => {
  const [LIST, SET] = [9, 10];
  const [ACK, CONTEXT] = [1, 4];
  const [INVALID, UNKNOWN] = [0x80000003, 0x80000006];

  function answers(message: Uint8Array): [number, string][] {
    const session = new Session(new MemoryDevice('disk', 8));
    session.send(u32(3), option(8));
    session.take(18);
    session.takeOptionReply();
    session.send(message);
    const replies: [number, string][] = [];
    while (session.receivedByteLength > 0) {
      const { type, data } = session.takeOptionReply();
      replies.push([type, type === CONTEXT ? `${data.readUInt32BE(0)} ${data.toString('utf8', 4)}` : '']);
    }
    expect(session.isClosed).toBe(false);
    return replies;
  }

  const acknowledged: [number, string] = [ACK, ''];
  it.each([
    [
      'LIST of everything',
      option(LIST, contexts('disk')),
      [[CONTEXT, '0 base:allocation'], [CONTEXT, '0 qemu:allocation-depth'], acknowledged],
    ],
    ['LIST of base:', option(LIST, contexts('disk', 'x:', 'base:')), [[CONTEXT, '0 base:allocation'], acknowledged]],
    ['LIST of a leaf', option(LIST, contexts('', 'base:allocation')), [[CONTEXT, '0 base:allocation'], acknowledged]],
    ['LIST of qemu:', option(LIST, contexts('disk', 'qemu:')), [[CONTEXT, '0 qemu:allocation-depth'], acknowledged]],
    ['LIST of something else', option(LIST, contexts('disk', 'qemu:dirty-bitmap:b')), [acknowledged]],
    [
      'SET of both',
      option(SET, contexts('disk', 'qemu:allocation-depth', 'base:allocation')),
      [[CONTEXT, '1 base:allocation'], [CONTEXT, '2 qemu:allocation-depth'], acknowledged],
    ],
    ['SET of nothing', option(SET, contexts('disk')), [acknowledged]],
    ['SET of base:', option(SET, contexts('disk', 'base:')), [acknowledged]],
    [
      'SET of one twice and others',
      option(SET, contexts('disk', 'base:allocation', 'base:other', 'base:allocation')),
      [[CONTEXT, '1 base:allocation'], acknowledged],
    ],
    ['SET for nothing there', option(SET, contexts('other', 'base:allocation')), [[UNKNOWN, '']]],
    ['no data', option(SET), [[INVALID, '']]],
    ['a name of 4 GiB', option(SET, Buffer.from('ffffffff00000000', 'hex')), [[INVALID, '']]],
    ['2^32 - 1 queries', option(SET, Buffer.from('00000000ffffffff', 'hex')), [[INVALID, '']]],
    ['a query of 4 GiB', option(SET, Buffer.from('0000000000000001ffffffff', 'hex')), [[INVALID, '']]],
    ['a query that is not all there', option(SET, Buffer.from('000000000000000100000002aa', 'hex')), [[INVALID, '']]],
    ['bytes after the end', option(SET, Buffer.from('000000000000000000', 'hex')), [[INVALID, '']]],
  ] as [string, Uint8Array, [number, string][]][])('%s', (_name, message, expected) => {
    expect(answers(message)).toEqual(expected);
  });

  it('are forgotten with the next SET, also when it fails', () => {
    for (const next of [contexts('disk'), contexts('other', 'base:allocation'), new Uint8Array(3)]) {
      const session = new Session(new MemoryDevice('disk', 8));
      session.send(u32(3), option(8), option(SET, contexts('disk', 'base:allocation')), option(SET, next)).goOn('disk');
      session.send(request({ type: STATUS, length: 512 }));
      expect(session.takeChunk().type).toBe(ERROR);
    }
  });
});

describe('extended headers', () => {
  const PAYLOAD_LEN = 32;

  function message(type: number, flags: number, offset: number, length: bigint | number, data?: Uint8Array): Buffer {
    const bytes = Buffer.alloc(32 + (data?.byteLength ?? 0));
    bytes.writeUInt32BE(0x21e41c71, 0);
    bytes.writeUInt16BE(flags, 4);
    bytes.writeUInt16BE(type, 6);
    bytes.writeBigUInt64BE(7n, 8);
    bytes.writeBigUInt64BE(BigInt(offset), 16);
    bytes.writeBigUInt64BE(BigInt(length), 24);
    if (data !== undefined) bytes.set(data, 32);
    return bytes;
  }

  function takeReply(session: Session) {
    const header = session.take(32);
    expect(header.readUInt32BE(0)).toBe(0x6e8a278c);
    expect(header.readBigUInt64BE(8)).toBe(7n);
    const payload = session.take(Number(header.readBigUInt64BE(24)));
    const isDone = (header.readUInt16BE(4) & 1) === 1;
    return { type: header.readUInt16BE(6), isDone, offset: Number(header.readBigUInt64BE(16)), payload };
  }

  function extended(device: MemoryDevice): Session {
    const session = new Session(device, { extendedHeaders: true });
    session.send(u32(3), option(11), option(10, contexts('', 'base:allocation')));
    return session.goOn();
  }

  it('carry every command', () => {
    const session = extended(filled(new MemoryDevice('disk', 2 ** 33), 64 * KIB));
    session.send(message(READ, 0, 5, 1000));
    const read = takeReply(session);
    expect(read).toMatchObject({ type: DATA, isDone: true, offset: 5 });
    expect(Buffer.compare(read.payload.subarray(8), pattern(64 * KIB).subarray(5, 1005))).toBe(0);
    session.send(message(WRITE, PAYLOAD_LEN, 512, 3, pattern(3)));
    expect(takeReply(session)).toMatchObject({ type: NONE, isDone: true, offset: 512 });
    // More than 32 bits can tell.
    session.send(message(ZEROES, 0, 0, 2 ** 40), message(STATUS, 0, 1, 2 ** 41));
    expect(takeReply(session)).toMatchObject({ type: NONE });
    const { type, payload } = takeReply(session);
    expect([type, payload.readUInt32BE(0), payload.readUInt32BE(4)]).toEqual([6, 1, 1]);
    expect([payload.readBigUInt64BE(8), payload.readBigUInt64BE(16)]).toEqual([2n ** 41n, 3n]);
    session.send(message(READ, 0, 0, 2n ** 64n - 1n));
    expect(takeReply(session)).toMatchObject({ type: ERROR, isDone: true });
  });

  it('have data exactly where the flag says so', () => {
    const session = extended(new MemoryDevice('disk', 64));
    session.send(message(WRITE, 0, 0, 512));
    expect(takeReply(session)).toMatchObject({ type: ERROR, payload: Buffer.from('000000160000', 'hex') });
    session.send(message(TRIM, PAYLOAD_LEN, 0, 4, pattern(4)), message(FLUSH, 0, 0, 0));
    expect(takeReply(session)).toMatchObject({ type: ERROR });
    expect(takeReply(session)).toMatchObject({ type: NONE });
    session.send(message(WRITE, PAYLOAD_LEN, 0, 2n ** 63n));
    expect(takeReply(session)).toMatchObject({ type: ERROR });
    expect(session.isClosed).toBe(true);
  });

  it('do not go with EXPORT_NAME or a short header', () => {
    const session = new Session(new MemoryDevice('disk', 8), { extendedHeaders: true });
    session.send(u32(3), option(11), option(1, Buffer.from('disk')));
    expect(session.isClosed).toBe(true);
    expect(extended(new MemoryDevice('disk', 8)).send(request({ type: FLUSH }), Buffer.alloc(4)).isClosed).toBe(true);
  });

  it('make STRUCTURED_REPLY superfluous', () => {
    const session = new Session(new MemoryDevice('disk', 8), { extendedHeaders: true }).send(u32(3));
    session.take(18);
    session.send(option(11), option(8));
    expect(session.takeOptionReply()).toMatchObject({ option: 11, type: 1 });
    expect(session.takeOptionReply()).toMatchObject({ option: 8, type: 0x8000000a });
  });
});
