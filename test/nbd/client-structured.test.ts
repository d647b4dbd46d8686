// Our client under structured replies: what honest servers send in any form, and what dishonest ones do. The named cases
// of earlier holes in other clients (docs/nbd.md has the list) are marked with what they were.
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Errno } from '../../src/block/errno.ts';
import { MemoryDevice } from '../../src/devices/memory.ts';
import { NbdClient } from '../../src/nbd/client/client.ts';
import { openNbd } from '../../src/nbd/connect.ts';
import { NodeLoop } from '../../src/nbd/index.ts';
import { encodeBlockSizes, encodeExportInfo } from '../../src/nbd/protocol/info.ts';
import { encodeMetaContext } from '../../src/nbd/protocol/meta-context.ts';
import { encodeOptionReply } from '../../src/nbd/protocol/wire.ts';
import { NbdServer } from '../../src/nbd/server/server.ts';
import { runs } from '../support/seed.ts';
import { HeldDevice, ManualReactor, pattern, transportPair } from './support.ts';

const [NONE, DATA, HOLE, STATUS, ERROR, ERROR_OFFSET] = [0, 1, 2, 5, 0x8001, 0x8002];
const NO_DATA = new Uint8Array(0);
const hex = (text: string) => Buffer.from(text.replaceAll(' ', ''), 'hex');

function greeting(byteLength = 65536): Buffer {
  return Buffer.concat([
    Buffer.from('NBDMAGICIHAVEOPT'),
    hex('0003'),
    encodeOptionReply(8, 1, NO_DATA),
    encodeOptionReply(10, 4, encodeMetaContext({ id: 42, name: 'base:allocation' })),
    encodeOptionReply(10, 1, NO_DATA),
    encodeOptionReply(7, 3, encodeExportInfo({ byteLength, transmissionFlags: 0xded })),
    encodeOptionReply(7, 1, NO_DATA),
  ]);
}

function opened(first: Uint8Array = greeting()) {
  const reactor = new ManualReactor();
  const [clientSide, serverSide] = transportPair(reactor);
  const client = new NbdClient(reactor, clientSide);
  const ignore = (): void => {};
  serverSide.setHandler({ onData: ignore, onEnd: ignore, onDrain: ignore, onClose: ignore });
  let error: Error | null | undefined;
  client.open('disk', (failure) => {
    error = failure;
  });
  const say = (...messages: Uint8Array[]) => {
    for (const message of messages) serverSide.send([new Uint8Array(message)], ignore);
    reactor.turn();
  };
  say(first);
  return { reactor, client, clientSide, serverSide, say, error };
}

function chunk(type: number, payload: Uint8Array = NO_DATA, flags = 1, cookie = 0, byteLength = payload.byteLength) {
  const header = Buffer.alloc(20);
  header.writeUInt32BE(0x668e33ef, 0);
  header.writeUInt16BE(flags, 4);
  header.writeUInt16BE(type, 6);
  header.writeUInt32BE(cookie, 12);
  header.writeUInt32BE(byteLength, 16);
  return Buffer.concat([header, payload]);
}

function data(offset: number | bigint, bytes: Uint8Array): Buffer {
  const head = Buffer.alloc(8);
  head.writeBigUInt64BE(BigInt(offset));
  return Buffer.concat([head, bytes]);
}

const hole = (offset: number | bigint, byteLength: number) =>
  data(offset, hex(byteLength.toString(16).padStart(8, '0')));

/** What a read of 1,024 bytes at 4,096 comes to. */
function readOf(...messages: Uint8Array[]) {
  const session = opened();
  const memory = new Uint8Array(1024).fill(0xaa);
  const ends: [number, number][] = [];
  session.client.read(4096, memory, (errno, errorOffset) => ends.push([errno, errorOffset]));
  session.reactor.turn();
  session.say(...messages);
  return { ...session, memory, ends };
}

const whole = pattern(1024);

describe('a read', () => {
  it.each([
    ['one chunk', [chunk(DATA, data(4096, whole))]],
    ['data, then the end', [chunk(DATA, data(4096, whole), 0), chunk(NONE)]],
    [
      'pieces in any order',
      [
        chunk(DATA, data(5000, whole.subarray(904)), 0),
        chunk(DATA, data(4096, whole.subarray(0, 100)), 0),
        chunk(DATA, data(4196, whole.subarray(100, 904))),
      ],
    ],
  ])('takes %s, in any portions', (_name, messages) => {
    const bytes = Buffer.concat(messages);
    for (const size of [1, 7, 100, bytes.length]) {
      const portions: Buffer[] = [];
      for (let at = 0; at < bytes.length; at += size) portions.push(bytes.subarray(at, at + size));
      const { memory, ends, clientSide } = readOf(...portions);
      expect(ends).toEqual([[0, -1]]);
      expect(Buffer.compare(memory, whole)).toBe(0);
      expect(clientSide.isClosed).toBe(false);
    }
  });

  it('takes holes as zeroes', () => {
    const { memory, ends } = readOf(chunk(HOLE, hole(4096, 1000), 0), chunk(DATA, data(5096, whole.subarray(0, 24))));
    expect(ends).toEqual([[0, -1]]);
    expect(Buffer.compare(memory, Buffer.concat([Buffer.alloc(1000), whole.subarray(0, 24)]))).toBe(0);
  });

  it.each([
    ['an error', [chunk(ERROR, hex('00000005 0000'))], Errno.EIO, -1],
    ['an error with a text', [chunk(ERROR, hex('0000001c 0003 616263'))], Errno.ENOSPC, -1],
    ['an error that says it is none', [chunk(ERROR, hex('00000000 0000'))], Errno.EIO, -1],
    ['an error of an unknown number', [chunk(ERROR, hex('00001234 0000'))], Errno.EINVAL, -1],
    ['an error of an unknown kind', [chunk(0x8765, hex('00000005 0000 010203'))], Errno.EIO, -1],
    ['an error at a byte', [chunk(ERROR_OFFSET, hex('00000005 0000 0000000000001200'))], Errno.EIO, 0x1200],
    [
      'good data before an error',
      [chunk(DATA, data(4096, whole.subarray(0, 512)), 0), chunk(ERROR_OFFSET, hex('00000005 0000 0000000000001200'))],
      Errno.EIO,
      0x1200,
    ],
    [
      'several errors, the first byte counts',
      [
        chunk(ERROR_OFFSET, hex('00000005 0000 0000000000001300'), 0),
        chunk(ERROR_OFFSET, hex('00000016 0000 0000000000001200'), 0),
        chunk(NONE),
      ],
      Errno.EIO,
      0x1200,
    ],
    // "Async error ignored" (nbdcopy): an error before all the data is an error.
    [
      'an error, then all the data',
      [chunk(ERROR, hex('00000005 0000'), 0), chunk(DATA, data(4096, whole))],
      Errno.EIO,
      -1,
    ],
  ])('gives %s to its caller and lives on', (_name, messages, errno, errorOffset) => {
    const { ends, clientSide } = readOf(...messages);
    expect(ends).toEqual([[errno, errorOffset]]);
    expect(clientSide.isClosed).toBe(false);
  });

  it.each([
    ['a simple reply', [hex('67446698 00000000 00000000 00000000')]],
    ['a chunk with another magic', [hex('12345678 00000000 00000000 00000000 00000000')]],
    ['an extended header that was not agreed on', [hex('6e8a278c 00010000 0000000000000000')]],
    ['another cookie', [chunk(NONE, NO_DATA, 1, 1)]],
    ['nothing at all', [chunk(NONE)]],
    ['an empty chunk that is not the last', [chunk(NONE, NO_DATA, 0)]],
    ['an empty chunk with something in it', [chunk(NONE, hex('00'))]],
    ['less than all', [chunk(DATA, data(4096, whole.subarray(1)))]],
    ['more than all', [chunk(DATA, data(4096, new Uint8Array(1025)))]],
    ['bytes before', [chunk(DATA, data(4095, whole))]],
    ['bytes behind', [chunk(DATA, data(4097, whole))]],
    ['bytes at 2^64 - 1', [chunk(DATA, data(2n ** 64n - 1n, whole))]],
    [
      'a piece twice',
      [chunk(DATA, data(4096, whole.subarray(0, 512)), 0), chunk(DATA, data(4096, whole.subarray(0, 512)))],
    ],
    ['pieces that overlap', [chunk(DATA, data(4096, whole.subarray(0, 600)), 0), chunk(HOLE, hole(4600, 520))]],
    ['data without data', [chunk(DATA, data(4096, NO_DATA))]],
    ['data of 3 bytes', [chunk(DATA, hex('010203'))]],
    // "Server-controlled lengths" (libnbd 2019).
    ['data of 4 GiB', [chunk(DATA, NO_DATA, 1, 0, 0xffffffff)]],
    ['an error of 4 GiB', [chunk(ERROR, NO_DATA, 1, 0, 0xffffffff)]],
    ['a hole of 4 GiB', [chunk(HOLE, hole(4096, 0xffffffff))]],
    ['a hole of nothing', [chunk(HOLE, hole(4096, 0))]],
    ['a hole of 11 bytes', [chunk(HOLE, new Uint8Array(11))]],
    ['an error without a number', [chunk(ERROR, hex('0000'))]],
    ['an error whose text is longer', [chunk(ERROR, hex('00000005 ffff 61'))]],
    ['an error without its byte', [chunk(ERROR_OFFSET, hex('00000005 0000 00'))]],
    ['an error outside', [chunk(ERROR_OFFSET, hex('00000005 0000 0000000000000fff'))]],
    ['a chunk of an unknown type', [chunk(77, hex('00'))]],
    ['the status of blocks', [chunk(STATUS, hex('0000002a 00000400 00000000'))]],
  ])('ends the connection at %s', (_name, messages) => {
    const { ends, clientSide, client } = readOf(...messages);
    expect(ends).toEqual([[Errno.EIO, -1]]);
    expect(clientSide.isClosed).toBe(true);
    expect(client.requestCount).toBe(0);
  });

  it('has a bound for the number of its pieces', () => {
    const session = opened(greeting(1 << 20));
    const ends: number[] = [];
    session.client.read(0, new Uint8Array(1 << 20), (errno) => ends.push(errno));
    session.reactor.turn();
    session.say(Buffer.concat(Array.from({ length: 5000 }, (_, i) => chunk(HOLE, hole(i * 2, 1), 0))));
    expect(ends).toEqual([Errno.EIO]);
  });
});

describe('other requests', () => {
  it('take simple replies and chunks', () => {
    const { client, reactor, say } = opened();
    const ends: number[] = [];
    client.write(0, whole, false, (errno) => ends.push(errno));
    client.flush((errno) => ends.push(errno));
    client.cache(0, 512, (errno) => ends.push(errno));
    reactor.turn();
    say(
      chunk(NONE),
      hex('67446698 00000005 00000000 00000001'),
      chunk(ERROR_OFFSET, hex('00000016 0000 0000000000000100'), 1, 2),
    );
    expect(ends).toEqual([0, Errno.EIO, Errno.EINVAL]);
  });

  it('end the connection when data comes for them', () => {
    const { client, reactor, say, clientSide } = opened();
    const ends: number[] = [];
    client.write(4096, whole, false, (errno) => ends.push(errno));
    reactor.turn();
    say(chunk(DATA, data(4096, whole)));
    expect(ends).toEqual([Errno.EIO]);
    expect(clientSide.isClosed).toBe(true);
  });
});

describe('block status', () => {
  function statusOf(...messages: Uint8Array[]) {
    const session = opened();
    const ends: [number, number[]][] = [];
    session.client.blockStatus(0, 4096, false, (errno, pairs) => ends.push([errno, [...pairs]]));
    session.reactor.turn();
    session.say(...messages);
    return { ...session, ends };
  }

  it('gives the extents, no more than was asked', () => {
    expect(statusOf(chunk(STATUS, hex('0000002a 00000200 00000000 ffffffff 00000003'))).ends).toEqual([
      [0, [512, 0, 3584, 3]],
    ]);
    expect(statusOf(chunk(STATUS, hex('0000002a 00000200 00000000'), 0), chunk(NONE)).ends).toEqual([[0, [512, 0]]]);
    expect(statusOf(chunk(ERROR, hex('00000005 0000'))).ends).toEqual([[Errno.EIO, []]]);
  });

  it.each([
    ['nothing', [chunk(NONE)]],
    ['no extents', [chunk(STATUS, hex('0000002a'))]],
    ['half an extent', [chunk(STATUS, hex('0000002a 00000200'))]],
    ['an extent of nothing', [chunk(STATUS, hex('0000002a 00000000 00000000'))]],
    ['extents past the end', [chunk(STATUS, hex('0000002a 00001000 00000000 00001000 00000000'))]],
    ['another context', [chunk(STATUS, hex('0000002b 00000200 00000000'))]],
    ['a simple reply', [hex('67446698 00000000 00000000 00000000')]],
    [
      'the same twice',
      [chunk(STATUS, hex('0000002a 00000200 00000000'), 0), chunk(STATUS, hex('0000002a 00000200 00000000'))],
    ],
    // "64-bit status flags" (CVE-2023-5871): what was not agreed on is not taken.
    ['64-bit extents', [chunk(6, hex('0000002a 00000001 0000000000000200 8000000000000000'))]],
    ['2^20 extents', [chunk(STATUS, NO_DATA, 1, 0, 4 + 8 * (1 << 20))]],
  ])('ends the connection at %s', (_name, messages) => {
    const { ends, clientSide } = statusOf(...messages);
    expect(ends).toEqual([[Errno.EIO, []]]);
    expect(clientSide.isClosed).toBe(true);
  });
});

describe('a handshake', () => {
  const start = Buffer.concat([Buffer.from('NBDMAGICIHAVEOPT'), hex('0003')]);
  const context = (id: number, name: string) => encodeOptionReply(10, 4, encodeMetaContext({ id, name }));
  const structured = encodeOptionReply(8, 1, NO_DATA);
  const info = encodeOptionReply(7, 3, encodeExportInfo({ byteLength: 4096, transmissionFlags: 1 }));
  const end = encodeOptionReply(7, 1, NO_DATA);

  it.each([
    ['no structured replies', [encodeOptionReply(8, 0x80000001, NO_DATA), info, end], false, false],
    ['no contexts', [structured, encodeOptionReply(10, 0x80000001, NO_DATA), info, end], true, false],
    ['no such context', [structured, encodeOptionReply(10, 1, NO_DATA), info, end], true, false],
    ['all', [structured, context(7, 'base:allocation'), encodeOptionReply(10, 1, NO_DATA), info, end], true, true],
    [
      'a context, then an error',
      [structured, context(7, 'base:allocation'), encodeOptionReply(10, 0x80000003, NO_DATA), info, end],
      true,
      false,
    ],
  ])('gets along with a server that has %s', (_name, messages, hasStructuredReplies, hasBlockStatus) => {
    const { client, error } = opened(Buffer.concat([start, ...messages]));
    expect(error).toBe(null);
    expect(client.details).toMatchObject({ hasStructuredReplies, hasBlockStatus });
  });

  it.each([
    ['a context that was not asked for', [structured, context(7, 'base:other')]],
    ['a context twice', [structured, context(7, 'base:allocation'), context(8, 'base:allocation')]],
    ['a context of 3 bytes', [structured, encodeOptionReply(10, 4, hex('010203'))]],
    // "Stack overflow reading replies" (CVE-2017-2630).
    ['a context of 64 KiB', [structured, encodeOptionReply(10, 4, new Uint8Array(65536))]],
    ['data for STRUCTURED_REPLY of another kind', [encodeOptionReply(8, 3, hex('0000'))]],
    // "Size > 2^63 negative" (CVE-2023-5215).
    [
      '2^63 bytes',
      [structured, encodeOptionReply(10, 1, NO_DATA), encodeOptionReply(7, 3, hex('0000 8000000000000000 0001')), end],
    ],
    [
      '2^64 - 1 bytes',
      [structured, encodeOptionReply(10, 1, NO_DATA), encodeOptionReply(7, 3, hex('0000 ffffffffffffffff 0001')), end],
    ],
  ])('refuses %s', (_name, messages) => {
    expect(opened(Buffer.concat([start, ...messages])).error).toMatchObject({ code: 'EPROTO' });
  });

  it('is over when the server dies, at any byte (CVE-2021-20286)', () => {
    const all = greeting();
    for (let i = 0; i < all.length; i++) {
      const session = opened(all.subarray(0, i));
      let ended: Error | null | undefined;
      const reactor = new ManualReactor();
      const [clientSide, serverSide] = transportPair(reactor);
      serverSide.setHandler({ onData: () => {}, onEnd: () => {}, onDrain: () => {}, onClose: () => {} });
      new NbdClient(reactor, clientSide).open('disk', (error) => {
        ended = error;
      });
      serverSide.send([new Uint8Array(all.subarray(0, i))], () => {});
      serverSide.end();
      reactor.turn();
      expect(ended).toBeInstanceOf(Error);
      expect(session.client.details).toBe(null);
    }
  });
});

describe('with our server', () => {
  async function withServer(device: MemoryDevice | HeldDevice, maximumPayload?: number) {
    const loop = new NodeLoop();
    const [clientSide, serverSide] = transportPair(loop);
    if (maximumPayload !== undefined) {
      const { send } = serverSide;
      // A server that takes less: only the number in the handshake is changed on the way.
      serverSide.send = (chunks, onSent) => {
        const sizes = encodeBlockSizes({ minimum: 1, preferred: 4096, maximumPayload: 64 << 20 });
        const less = encodeBlockSizes({ minimum: 1, preferred: 4096, maximumPayload });
        for (const bytes of chunks) {
          const at = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).indexOf(sizes);
          if (at >= 0) bytes.set(less, at);
        }
        send.call(serverSide, chunks, onSent);
      };
    }
    new NbdServer({ reactor: loop, exports: [{ name: '', device }] }).accept(serverSide);
    return openNbd(loop, clientSide, '');
  }

  it('splits what is longer than the server takes', async () => {
    const device = new MemoryDevice('disk', 2048);
    const disk = await withServer(device, 65536);
    expect(disk.details.blockSizes?.maximumPayload).toBe(65536);
    const bytes = pattern(1_000_003);
    // The transport of these tests scribbles over what it has sent.
    await disk.write(13, bytes.slice(), { fua: true });
    expect(Buffer.compare(await disk.read(13, bytes.length), bytes)).toBe(0);
    expect(Buffer.compare(device.peek(0, 2048).subarray(13, 13 + bytes.length), bytes)).toBe(0);
    await disk.close();
  });

  it('reads the map, joined', async () => {
    const device = new MemoryDevice('disk', 2 ** 33);
    const disk = await withServer(device);
    await disk.write(2 ** 41, pattern(65536));
    const extents = [];
    for await (const extent of disk.extents(1)) extents.push(extent);
    expect(extents).toEqual([
      { offset: 1, byteLength: 2 ** 41 - 1, hole: true, zero: true },
      { offset: 2 ** 41, byteLength: 65536, hole: false, zero: false },
      { offset: 2 ** 41 + 65536, byteLength: 2 ** 41 - 65536, hole: true, zero: true },
    ]);
    await disk.writeZeroes(2 ** 41, 65536, { fast: true });
    await disk.cache(0, 4096);
    await expect(disk.writeZeroes(3, 10, { fast: true })).rejects.toMatchObject({ code: 'EOPNOTSUPP' });
    await disk.close();
  });

  it('says at which byte a request failed', async () => {
    const device = new HeldDevice(64);
    device.submit = (bio) => bio.fail(Errno.EIO, device, bio.sector + bio.sectorCount - 1);
    const disk = await withServer(device);
    await expect(disk.write(1024, pattern(2048))).rejects.toThrow('write at 1024 failed: EIO (at byte 2560)');
    await disk.close();
  });

  it('changes any bytes, and no other', async () => {
    const operation = fc.record({
      offset: fc.nat({ max: 8000 }),
      length: fc.nat({ max: 5000 }),
      kind: fc.nat({ max: 2 }),
    });
    await fc.assert(
      fc.asyncProperty(fc.array(operation, { maxLength: 30 }), async (operations) => {
        const disk = await withServer(new MemoryDevice('disk', 32, { limits: { logicalBlockSize: 4096 } }));
        const model = new Uint8Array(16384);
        for (const [i, { offset, length, kind }] of operations.entries()) {
          const bytes = pattern(length, i);
          if (kind === 0)
            expect(Buffer.compare(await disk.read(offset, length), model.subarray(offset, offset + length))).toBe(0);
          else if (kind === 1) await disk.write(offset, bytes.slice());
          else await disk.writeZeroes(offset, length);
          if (kind > 0) model.set(kind === 1 ? bytes : new Uint8Array(length), offset);
        }
        expect(Buffer.compare(await disk.read(0, 16384), model)).toBe(0);
        await disk.close();
      }),
      { numRuns: runs(40) },
    );
  });
});
