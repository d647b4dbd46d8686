// Our client: against our server, and against servers that lie.
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Errno } from '../../src/block/errno.ts';
import { MemoryDevice } from '../../src/devices/memory.ts';
import { NbdClient } from '../../src/nbd/client/client.ts';
import { encodeExportInfo, encodeServerReply } from '../../src/nbd/protocol/info.ts';
import { encodeOptionReply } from '../../src/nbd/protocol/wire.ts';
import { NbdServer } from '../../src/nbd/server/server.ts';
import { runs } from '../support/seed.ts';
import { HeldDevice, ManualReactor, type MemoryTransport, pattern, transportPair } from './support.ts';

const NO_DATA = new Uint8Array(0);
const bytes = (...parts: (string | Uint8Array)[]) =>
  Buffer.concat(parts.map((part) => (typeof part === 'string' ? Buffer.from(part, 'hex') : part)));
/** And no structured replies. */
const GREETING = bytes(Buffer.from('NBDMAGICIHAVEOPT'), '0003', encodeOptionReply(8, 0x80000001, NO_DATA));
const ACK = encodeOptionReply(7, 1, NO_DATA);
const EXPORT = encodeOptionReply(7, 3, encodeExportInfo({ byteLength: 65536, transmissionFlags: 0x16d }));

interface Opened {
  reactor: ManualReactor;
  client: NbdClient;
  clientSide: MemoryTransport;
  serverSide: MemoryTransport;
  sent: Buffer[];
  error?: Error | null;
}

/** A client whose server is the test. */
function withFakeServer(...messages: Uint8Array[]): Opened {
  const reactor = new ManualReactor();
  const [clientSide, serverSide] = transportPair(reactor);
  const opened: Opened = { reactor, client: new NbdClient(reactor, clientSide), clientSide, serverSide, sent: [] };
  const ignore = (): void => {};
  serverSide.setHandler({
    onData: (chunk) => opened.sent.push(Buffer.from(chunk)),
    onEnd: ignore,
    onDrain: ignore,
    onClose: ignore,
  });
  opened.client.open('disk', (error) => {
    opened.error = error;
  });
  for (const message of messages) serverSide.send([new Uint8Array(message)], ignore);
  reactor.turn();
  return opened;
}

function reply(error: number, cookie: number, data: Uint8Array = NO_DATA, high = 0, magic = 0x67446698): Buffer {
  const header = Buffer.alloc(16);
  header.writeUInt32BE(magic, 0);
  header.writeUInt32BE(error, 4);
  header.writeUInt32BE(high, 8);
  header.writeUInt32BE(cookie, 12);
  return bytes(header, data);
}

function withServer(device: HeldDevice | MemoryDevice, readOnly = false) {
  const reactor = new ManualReactor();
  const [clientSide, serverSide] = transportPair(reactor);
  const server = new NbdServer({ reactor, exports: [{ name: 'disk', description: 'a disk', device, readOnly }] });
  server.accept(serverSide);
  const client = new NbdClient(reactor, clientSide);
  client.open('', (error) => {
    if (error !== null) throw error;
  });
  reactor.turn();
  return { reactor, client, server, serverSide };
}

describe('a client and our server', () => {
  it('learns what the server knows', () => {
    expect(withServer(new MemoryDevice('disk', 128)).client.details).toEqual({
      byteLength: 65536,
      transmissionFlags: 0xded,
      name: 'disk',
      description: 'a disk',
      blockSizes: { minimum: 1, preferred: 4096, maximumPayload: 64 << 20 },
      hasStructuredReplies: true,
      hasBlockStatus: true,
    });
  });

  it('reads what was written, whatever is asked at once', () => {
    const operation = fc.record({
      kind: fc.constantFrom('read', 'write', 'zero', 'trim', 'flush'),
      sector: fc.nat({ max: 255 }),
      count: fc.nat({ max: 64 }),
      fua: fc.boolean(),
    });
    fc.assert(
      fc.property(fc.array(operation, { maxLength: 60 }), (operations) => {
        const { reactor, client, server } = withServer(new MemoryDevice('disk', 256));
        const model = new Uint8Array(256 * 512);
        operations.forEach(({ kind, sector, count, fua }, i) => {
          const offset = sector * 512;
          const data = pattern(count * 512, i);
          const isPastEnd = sector + count > 256;
          const expectErrno = (errno: number) => (ended: number) => expect(ended).toBe(isPastEnd ? errno : 0);
          if (kind === 'read') {
            const expected = model.slice(offset, offset + count * 512);
            client.read(offset, data, (errno) => {
              expectErrno(Errno.EINVAL)(errno);
              if (errno === 0) expect(Buffer.compare(data, expected)).toBe(0);
            });
          } else if (kind === 'flush') {
            client.flush((errno) => expect(errno).toBe(0));
          } else if (kind === 'write') {
            client.write(offset, data, fua, expectErrno(Errno.ENOSPC));
            if (!isPastEnd) model.set(data, offset);
          } else {
            if (kind === 'zero')
              client.writeZeroes(offset, count * 512, { noHole: fua, fua, fast: false }, expectErrno(Errno.ENOSPC));
            else client.trim(offset, count * 512, fua, expectErrno(Errno.ENOSPC));
            if (!isPastEnd) model.fill(0, offset, offset + count * 512);
          }
        });
        reactor.turn();
        expect(client.requestCount).toBe(0);
        expect(server.statistics).toEqual({ connectionCount: 1, requestCount: 0, usedByteLength: 0 });
      }),
      { numRuns: runs(50) },
    );
  });

  it('gives the errno that the device gave', () => {
    const device = new HeldDevice(64);
    const { reactor, client } = withServer(device);
    const ended: number[] = [];
    client.read(0, new Uint8Array(512), (errno) => ended.push(errno));
    client.write(0, new Uint8Array(512), true, (errno) => ended.push(errno));
    reactor.turn();
    device.finish(1, Errno.ENOSPC);
    device.finish(0, Errno.EIO);
    reactor.turn();
    expect(ended).toEqual([Errno.ENOSPC, Errno.EIO]);
  });

  it('does not ask a read-only server to write', () => {
    const { reactor, client } = withServer(new MemoryDevice('disk', 8), true);
    const ended: number[] = [];
    client.write(0, new Uint8Array(512), false, (errno) => ended.push(errno));
    client.trim(0, 512, false, (errno) => ended.push(errno));
    reactor.turn();
    expect(ended).toEqual([Errno.EPERM, Errno.EPERM]);
  });

  it('says goodbye when everything is answered', () => {
    const device = new HeldDevice(64);
    const { reactor, client, server } = withServer(device);
    const events: string[] = [];
    client.read(0, new Uint8Array(512), (errno) => events.push(`read ${errno}`));
    client.disconnect((error) => events.push(`closed ${error}`));
    client.read(0, new Uint8Array(512), (errno) => events.push(`late ${errno}`));
    reactor.turn();
    expect(events).toEqual([`late ${Errno.ESHUTDOWN}`]);
    device.finish(0);
    reactor.turn();
    expect(events).toEqual([`late ${Errno.ESHUTDOWN}`, 'read 0', 'closed null']);
    expect(server.statistics.connectionCount).toBe(0);
  });

  it('ends everything in flight at once when the server dies', () => {
    const { reactor, client, serverSide } = withServer(new HeldDevice(64));
    const ended: number[] = [];
    for (let i = 0; i < 500; i++) client.read(0, new Uint8Array(512), (errno) => ended.push(errno));
    reactor.turn();
    serverSide.destroy();
    reactor.turn();
    expect(ended).toEqual(new Array(500).fill(Errno.EIO));
    client.read(0, new Uint8Array(512), (errno) => ended.push(errno));
    reactor.turn();
    expect(ended[500]).toBe(Errno.ESHUTDOWN);
  });
});

describe('a client and a server that lies', () => {
  it.each([
    ['is no NBD server', [Buffer.from('SSH-2.0-OpenSSH_9.2p1 Debian')]],
    ['speaks the old style', [bytes(Buffer.from('NBDMAGIC'), '0000420281861253', '0000')]],
    ['is not fixed', [bytes(Buffer.from('NBDMAGICIHAVEOPT'), '0000')]],
    ['answers without magic', [GREETING, Buffer.alloc(20, 1)]],
    ['answers another option', [GREETING, encodeOptionReply(3, 1, NO_DATA)]],
    ['tells 4 GiB', [GREETING, bytes('0003e889045565a9', '00000007', '00000003', 'ffffffff')]],
    ['acknowledges without telling', [GREETING, ACK]],
    ['has an unknown reply', [GREETING, encodeOptionReply(7, 99, NO_DATA)]],
    ['tells one byte', [GREETING, encodeOptionReply(7, 3, bytes('00'))]],
    ['tells a short export', [GREETING, encodeOptionReply(7, 3, bytes('000000000000'))]],
    ['has blocks of 0', [GREETING, encodeOptionReply(7, 3, bytes('0003', '000000000000100004000000'))]],
    ['has 2^63 bytes', [GREETING, encodeOptionReply(7, 3, bytes('0000', '8000000000000000', '0001')), ACK]],
    ['has a name that is not UTF-8', [GREETING, encodeOptionReply(7, 3, bytes('0001', 'ff'))]],
  ] as [string, Uint8Array[]][])('which %s', (_name, messages) => {
    const { error, clientSide, reactor } = withFakeServer(...messages);
    expect(error).toMatchObject({ code: 'EPROTO' });
    expect(clientSide.isClosed).toBe(true);
    expect(reactor.timerCount).toBe(0);
  });

  it('passes on what an error reply says', () => {
    const refused = encodeOptionReply(7, 0x80000006, Buffer.from('no such thing'));
    expect(withFakeServer(GREETING, refused).error).toMatchObject({
      code: 'ENOENT',
      message: 'the server refuses the export "disk" (0x80000006): no such thing',
    });
  });

  it('gives up on one that says nothing', () => {
    const opened = withFakeServer();
    opened.reactor.advance(30_001);
    expect(opened.error).toMatchObject({ code: 'ETIMEDOUT' });
  });

  it.each([
    ['a reply without magic', reply(0, 0, new Uint8Array(512), 0, 1)],
    ['a reply nobody asked for', reply(0, 1)],
    ['a cookie that was not sent', reply(0, 0, NO_DATA, 1)],
    ['the same reply twice', bytes(reply(5, 0), reply(5, 0))],
  ])('ends at %s', (_name, answer) => {
    const { client, reactor, serverSide, clientSide } = withFakeServer(GREETING, EXPORT, ACK);
    const ended: number[] = [];
    client.read(0, new Uint8Array(512), (errno) => ended.push(errno));
    reactor.turn();
    serverSide.send([new Uint8Array(answer)], () => {});
    reactor.turn();
    expect(ended).toEqual([Errno.EIO]);
    expect(clientSide.isClosed).toBe(true);
  });

  it('ends in no exception, whatever comes', () => {
    fc.assert(
      fc.property(fc.array(fc.uint8Array({ maxLength: 64 })), fc.boolean(), (chunks, isOpen) => {
        const { client, reactor, serverSide } = isOpen
          ? withFakeServer(GREETING, EXPORT, ACK)
          : withFakeServer(GREETING);
        client.read(0, new Uint8Array(512), () => {});
        reactor.turn();
        for (const chunk of chunks) serverSide.send([new Uint8Array(chunk)], () => {});
        reactor.turn();
        serverSide.destroy();
        reactor.turn();
        expect(client.requestCount).toBe(0);
      }),
      { numRuns: runs(200) },
    );
  });

  it('bounds a list', () => {
    const reactor = new ManualReactor();
    const [clientSide, serverSide] = transportPair(reactor);
    let ended: Error | null = null;
    new NbdClient(reactor, clientSide).list((error) => {
      ended = error;
    });
    const many = encodeOptionReply(3, 2, encodeServerReply(Buffer.from('x'), NO_DATA));
    serverSide.send([GREETING, Buffer.concat(new Array(70_000).fill(many))], () => {});
    reactor.turn();
    expect(ended).toMatchObject({ code: 'EPROTO' });
  });
});
