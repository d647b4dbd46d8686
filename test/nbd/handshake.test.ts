// The handshake over a transport in memory, with well-behaved and hostile clients.
import { describe, expect, it } from 'vitest';
import { MemoryDevice } from '../../src/devices/memory.ts';
import { encodeGoRequest } from '../../src/nbd/protocol/info.ts';
import { option, request, Session, u32 } from './support.ts';

const [EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED_REPLY, SET_META_CONTEXT] = [1, 2, 3, 5, 6, 7, 8, 10];
const EXTENDED_HEADERS = 11;
const [ACK, SERVER, REP_INFO] = [1, 2, 3];
const [UNSUP, INVALID, UNKNOWN, SHUTDOWN, TOO_BIG] = [0x80000001, 0x80000003, 0x80000006, 0x80000007, 0x80000009];

const memory = () => new MemoryDevice('disk', 16384);
const name = (text: string) => new TextEncoder().encode(text);

function greeted(options = {}, device = memory()): Session {
  const session = new Session(device, options);
  expect(session.take(18).toString('hex')).toBe(`${Buffer.from('NBDMAGICIHAVEOPT').toString('hex')}0003`);
  return session.send(u32(3));
}

describe('options', () => {
  it('GO tells size, flags, block sizes, name and description, and leads to requests', () => {
    const session = greeted().send(option(GO, encodeGoRequest('', [1, 2, 3, 99])));
    const export_ = session.takeOptionReply();
    expect(export_).toMatchObject({ option: GO, type: REP_INFO });
    expect(export_.data.toString('hex')).toBe('0000' + '0000000000800000' + '0d6d');
    expect(session.takeOptionReply().data.toString()).toBe('\0\u0001disk');
    expect(session.takeOptionReply().data.toString()).toBe('\0\u0002a disk');
    expect(session.takeOptionReply().data.toString('hex')).toBe('0003' + '00000001' + '00001000' + '04000000');
    expect(session.takeOptionReply()).toMatchObject({ option: GO, type: ACK });
    session.send(request({ type: 3, cookie: 5 }));
    expect(session.takeReply()).toEqual({ error: 0, cookie: 5 });
  });

  it('INFO tells the same and stays', () => {
    const session = greeted();
    const answers = [INFO, GO].map((number) => {
      session.send(option(number, encodeGoRequest('disk', [3])));
      const replies: string[] = [];
      for (;;) {
        const reply = session.takeOptionReply();
        if (reply.type === ACK) return replies;
        replies.push(reply.data.toString('hex'));
      }
    });
    expect(answers[0]).toEqual(answers[1]);
  });

  it.each([
    ['a read-only export', { readOnly: true }, memory(), 0x050f],
    ['no discard', {}, new MemoryDevice('disk', 8, { limits: { maxDiscardSectorCount: 0 } }), 0x0d4d],
  ])('has the transmission flags of %s', (_name, options, device, flags) => {
    const session = greeted(options, device).send(option(GO, encodeGoRequest('', [])));
    expect(session.takeOptionReply().data.readUInt16BE(10)).toBe(flags);
  });

  it('LIST names every export', () => {
    const session = greeted();
    session.server.exports.add({ name: 'zweite Scheibe ü', device: memory() });
    session.send(option(LIST));
    const first = session.takeOptionReply();
    expect(first.type).toBe(SERVER);
    expect(first.data.toString('latin1')).toBe('\0\0\0\u0004diska disk');
    expect(session.takeOptionReply().data.toString()).toBe('\0\0\0\u0011zweite Scheibe ü');
    expect(session.takeOptionReply().type).toBe(ACK);
  });

  it.each([0, 124])('EXPORT_NAME answers without a header, with %i zeroes', (padding) => {
    const session = new Session(memory());
    session.take(18);
    session.send(u32(padding === 0 ? 3 : 1), option(EXPORT_NAME, name('disk')));
    expect(session.take(10).toString('hex')).toBe('0000000000800000' + '0d6d');
    expect(session.take(padding).every((byte) => byte === 0)).toBe(true);
    session.send(request({ type: 3 }));
    expect(session.takeReply().error).toBe(0);
  });

  it.each([
    ['an unknown option', option(4711, name('whatever')), UNSUP],
    ['STARTTLS without TLS', option(STARTTLS), UNSUP],
    ['STRUCTURED_REPLY', option(STRUCTURED_REPLY), ACK],
    ['STRUCTURED_REPLY with data', option(STRUCTURED_REPLY, name('x')), INVALID],
    ['extended headers that are not allowed', option(EXTENDED_HEADERS), UNSUP],
    ['SET_META_CONTEXT before STRUCTURED_REPLY', option(SET_META_CONTEXT, new Uint8Array(12)), INVALID],
    ['LIST with data', option(LIST, name('x')), INVALID],
    ['GO for nothing there', option(GO, encodeGoRequest('other', [])), UNKNOWN],
    ['GO without data', option(GO), INVALID],
    ['GO with a name longer than the option', option(GO, Buffer.from('ffffffff6469736b0000', 'hex')), INVALID],
    ['GO with a name one byte too long', option(GO, Buffer.from('000000056469736b0000', 'hex')), INVALID],
    ['GO with too few information types', option(GO, Buffer.from('000000046469736b0002' + '0001', 'hex')), INVALID],
    ['GO with a byte too many', option(GO, Buffer.from('000000046469736b000000', 'hex')), INVALID],
    ['GO with a NUL in the name', option(GO, Buffer.from('0000000464690073' + '0000', 'hex')), INVALID],
    ['GO with a name that is not UTF-8', option(GO, Buffer.from('00000004ffff0173' + '0000', 'hex')), INVALID],
    ['GO with a name of 4096 bytes', option(GO, encodeGoRequest('x'.repeat(4096), [])), UNKNOWN],
    [
      'GO with a name of 4097 bytes',
      option(GO, Buffer.concat([u32(4097), Buffer.alloc(4097, 'x'), Buffer.alloc(2)])),
      INVALID,
    ],
    ['an unknown option of 128 KiB', option(4711, new Uint8Array(131072)), UNSUP],
  ])('%s is answered, and the next option too', (_name, message, type) => {
    const session = greeted().send(message);
    const reply = session.takeOptionReply();
    expect(reply.type).toBe(type);
    expect(reply.data.length).toBeLessThan(4096);
    session.send(option(LIST));
    expect(session.takeOptionReply().type).toBe(SERVER);
    expect(session.isClosed).toBe(false);
    expect(session.errors).toEqual([]);
  });

  it('ABORT is acknowledged, data or not, and ends it', () => {
    const session = greeted().send(option(ABORT, name('bye')));
    expect(session.takeOptionReply()).toMatchObject({ option: ABORT, type: ACK });
    expect(session.isClosed).toBe(true);
    expect(session.reactor.timerCount).toBe(0);
  });
});

describe('hostile clients', () => {
  it.each([
    ['unknown client flags', [u32(0xffffffff)]],
    ['a wrong magic before an option', [u32(3), Buffer.alloc(16, 7)]],
    ['EXPORT_NAME for nothing there', [u32(3), option(EXPORT_NAME, name('other'))]],
    ['EXPORT_NAME with 4097 bytes', [u32(3), option(EXPORT_NAME, Buffer.alloc(4097, 'x'))]],
    ['EXPORT_NAME of 4 GiB', [u32(3), option(EXPORT_NAME, new Uint8Array(0), 0xffffffff)]],
  ] as [string, Uint8Array[]][])('%s end the connection', (_name, messages) => {
    const session = new Session(memory());
    session.take(18);
    session.send(...messages);
    expect(session.isClosed).toBe(true);
    expect(session.receivedByteLength).toBe(0);
    expect(session.errors).toMatchObject([{ name: 'MalformedError' }]);
    expect(session.server.statistics.connectionCount).toBe(0);
  });

  it.each([LIST, GO, 4711])('option %i of 4 GiB is answered, then the connection ends', (number) => {
    const session = greeted().send(option(number, new Uint8Array(0), 0xffffffff));
    expect(session.takeOptionReply().type).toBe(TOO_BIG);
    expect(session.isClosed).toBe(true);
  });

  it('who says nothing is cut off after a while', () => {
    const session = new Session(memory(), { handshakeTimeoutMilliseconds: 1000 });
    session.reactor.advance(999);
    expect(session.isClosed).toBe(false);
    session.reactor.advance(2);
    expect(session.isClosed).toBe(true);
    expect(session.server.statistics.connectionCount).toBe(0);
  });

  it('who is in transmission may be silent for ever', () => {
    const session = new Session(memory(), { handshakeTimeoutMilliseconds: 1000 }).go();
    expect(session.reactor.timerCount).toBe(0);
  });

  it('who lists on and on and never reads is made to wait', () => {
    const session = greeted();
    session.server.exports.add({ name: 'long', description: 'x'.repeat(4000), device: memory() });
    session.serverSide.autoDeliver = false;
    for (let i = 0; i < 200; i++) session.send(Buffer.concat(Array.from({ length: 10 }, () => option(LIST))));
    expect(session.serverSide.pendingByteLength).toBeLessThan(300 * 1024);
    expect(session.serverSide.isPaused).toBe(true);
    session.serverSide.autoDeliver = true;
    session.serverSide.deliver();
    session.reactor.turn();
    expect(session.receivedByteLength).toBe(2000 * (20 + 4 + 4 + 6 + 20 + 4 + 4 + 4000 + 20));
  });

  it('one connection too many is closed at once', () => {
    const session = new Session(memory(), { maxConnectionCount: 1 }).go();
    const other = session.connectAnother();
    session.reactor.turn();
    expect(other.isClosed).toBe(true);
    expect(session.isClosed).toBe(false);
  });

  it('of handshakes that are too many the oldest silent one ends, or the oldest; connections beyond them stay', () => {
    const session = new Session(memory(), { maxHandshakeCount: 3 }).go();
    const talking = session.connectAnother().send(u32(3));
    const silent = [session.connectAnother(), session.connectAnother()];
    const next = session.connectAnother();
    session.reactor.turn();
    expect([talking, ...silent, next].map(({ isClosed }) => isClosed)).toEqual([false, true, false, false]);
    next.send(u32(3));
    silent[1]!.send(u32(3));
    const last = session.connectAnother();
    session.reactor.turn();
    expect([session, talking, silent[1]!, next, last].map(({ isClosed }) => isClosed)).toEqual([
      false,
      true,
      false,
      false,
      false,
    ]);
    last.go();
    expect(last.isClosed).toBe(false);
  });

  it('connections that finish their handshakes at the same time are no more than there may be', () => {
    const session = new Session(memory(), { maxConnectionCount: 2 });
    const others = [session.connectAnother(), session.connectAnother()];
    session.go();
    for (const other of others) {
      other.send(u32(3), option(GO, encodeGoRequest('', [])));
      session.reactor.turn();
    }
    expect([session, ...others].map(({ isClosed }) => isClosed)).toEqual([false, false, true]);
    expect(session.server.establishedCount).toBe(2);
  });

  it('a server that is ending says so', () => {
    const session = greeted();
    session.holdShutdown();
    session.send(option(LIST));
    expect(session.takeOptionReply().type).toBe(SHUTDOWN);
    session.send(option(GO, encodeGoRequest('', [])));
    expect(session.takeOptionReply().type).toBe(SHUTDOWN);
    session.send(option(ABORT));
    expect(session.takeOptionReply().type).toBe(ACK);
  });
});
