// STARTTLS at the level of bytes: what is answered, what is forgotten, and that nothing said in the clear is taken for
// something said under TLS. TLS itself is a stand-in here that the test begins and ends by hand.
import { describe, expect, it } from 'vitest';
import type { Transport, TransportSecurity } from '../../src/block/reactor.ts';
import { MemoryDevice } from '../../src/devices/memory.ts';
import { ClientHandshake } from '../../src/nbd/client/handshake.ts';
import { encodeGoRequest } from '../../src/nbd/protocol/info.ts';
import { encodeOptionReply } from '../../src/nbd/protocol/wire.ts';
import { option, request, Session, u32 } from './support.ts';

const [EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED_REPLY, SET_META_CONTEXT] = [1, 2, 3, 5, 6, 7, 8, 10];
const [ACK, SERVER] = [1, 2];
const [UNSUP, INVALID, TLS_REQD, SHUTDOWN] = [0x80000001, 0x80000003, 0x80000005, 0x80000007];
const NOTHING = new Uint8Array(0);
const SECURITY: TransportSecurity = { side: 'server' };

const memory = () => new MemoryDevice('disk', 16384);

/** A session whose transport has a TLS that the test finishes. */
class TlsSession extends Session {
  upgrades: { security: TransportSecurity; finish: (error: Error | null) => void }[] = [];

  constructor(required: boolean, options = {}) {
    super(memory(), { tls: { security: SECURITY, required }, ...options });
    const side: Transport = this.serverSide;
    side.startTls = (security, lastWords, finish) => {
      side.send([lastWords], () => {});
      this.upgrades.push({ security, finish });
    };
    this.take(18);
    this.send(u32(3));
  }

  /** STARTTLS, granted, and TLS there. */
  secure(): this {
    this.send(option(STARTTLS));
    expect(this.takeOptionReply()).toMatchObject({ option: STARTTLS, type: ACK, data: Buffer.alloc(0) });
    expect(this.upgrades).toMatchObject([{ security: SECURITY }]);
    this.upgrades[0]!.finish(null);
    this.reactor.turn();
    return this;
  }

  answers(...messages: Uint8Array[]): number[] {
    this.send(...messages);
    const types: number[] = [];
    while (this.receivedByteLength > 0) types.push(this.takeOptionReply().type);
    return types;
  }
}

describe('a server that requires TLS', () => {
  it.each([
    ['LIST', option(LIST)],
    ['INFO', option(INFO, encodeGoRequest('', []))],
    ['GO', option(GO, encodeGoRequest('disk', []))],
    ['GO for nothing there', option(GO, encodeGoRequest('other', []))],
    ['GO that is malformed', option(GO)],
    ['STRUCTURED_REPLY', option(STRUCTURED_REPLY)],
    ['SET_META_CONTEXT', option(SET_META_CONTEXT, new Uint8Array(12))],
    ['an unknown option', option(4711)],
  ])('answers %s with TLS_REQD and goes on', (_name, message) => {
    const session = new TlsSession(true);
    expect(session.answers(message)).toEqual([TLS_REQD]);
    expect(session.answers(message)).toEqual([TLS_REQD]);
    expect(session.secure().answers(option(LIST))).toEqual([SERVER, ACK]);
    expect(session.errors).toEqual([]);
  });

  it('closes on EXPORT_NAME, without a word about the export', () => {
    const session = new TlsSession(true).send(option(EXPORT_NAME, Buffer.from('disk')));
    expect(session).toMatchObject({ isClosed: true, receivedByteLength: 0 });
    expect(session.errors).toMatchObject([{ message: expect.stringContaining('without TLS') }]);
  });

  it('lets a client leave', () => {
    const session = new TlsSession(true);
    expect(session.answers(option(ABORT))).toEqual([ACK]);
    expect(session.isClosed).toBe(true);
  });

  it('serves under TLS', () => {
    const session = new TlsSession(true).secure().send(option(GO, encodeGoRequest('disk', [])));
    session.take(session.receivedByteLength);
    session.send(request({ type: 3, cookie: 5 }));
    expect(session.takeReply()).toEqual({ error: 0, cookie: 5 });
    expect(session.reactor.timerCount).toBe(0);
  });

  it('has no TLS on a transport that has none, and nothing else either', () => {
    const session = new TlsSession(true);
    delete (session.serverSide as Transport).startTls;
    expect(session.answers(option(STARTTLS), option(LIST))).toEqual([UNSUP, TLS_REQD]);
  });
});

describe('STARTTLS', () => {
  it('is offered beside the clear', () => {
    expect(new TlsSession(false).answers(option(LIST))).toEqual([SERVER, ACK]);
    expect(new TlsSession(false).secure().answers(option(LIST))).toEqual([SERVER, ACK]);
  });

  it('has no data', () => {
    const session = new TlsSession(true);
    expect(session.answers(option(STARTTLS, Buffer.from('x')))).toEqual([INVALID]);
    session.secure();
  });

  it('is invalid the second time', () => {
    const session = new TlsSession(true).secure();
    expect(session.answers(option(STARTTLS), option(LIST))).toEqual([INVALID, SERVER, ACK]);
    expect(session.upgrades).toHaveLength(1);
  });

  it('is refused by a server that is ending', () => {
    const session = new TlsSession(false);
    session.holdShutdown();
    expect(session.answers(option(STARTTLS))).toEqual([SHUTDOWN]);
  });

  it('forgets what was negotiated in the clear (CVE-2021-3716)', () => {
    const session = new TlsSession(false);
    session.answers(option(STRUCTURED_REPLY));
    session.secure();
    // Without structured replies, as after no negotiation at all: INVALID, or UNSUP where there are none.
    const [before] = new TlsSession(false).answers(option(SET_META_CONTEXT, Buffer.from('0000000000000000', 'hex')));
    expect(session.answers(option(SET_META_CONTEXT, Buffer.from('0000000000000000', 'hex')))).toEqual([before]);
    session.send(option(GO, encodeGoRequest('disk', [])));
    session.take(session.receivedByteLength);
    session.send(request({ type: 0, cookie: 9, length: 512 }));
    expect(session.takeReply()).toEqual({ error: 0, cookie: 9 });
    expect(session.take(512)).toEqual(Buffer.alloc(512));
  });

  it.each([
    ['one message', (session: TlsSession, more: Uint8Array) => session.send(Buffer.concat([option(STARTTLS), more]))],
    ['two messages', (session: TlsSession, more: Uint8Array) => session.send(option(STARTTLS)).send(more)],
    ['two messages of one turn', (session: TlsSession, more: Uint8Array) => session.send(option(STARTTLS), more)],
    [
      'a message cut inside the option',
      (session: TlsSession, more: Uint8Array) =>
        session.send(option(STARTTLS).subarray(0, 7)).send(Buffer.concat([option(STARTTLS).subarray(7), more])),
    ],
  ])('with anything in the clear behind it, in %s, ends the connection', (_name, send) => {
    for (const more of [option(LIST), option(GO, encodeGoRequest('disk', [])), Buffer.from([0x16])]) {
      const session = new TlsSession(true);
      send(session, more);
      expect(session.isClosed).toBe(true);
      expect(session.errors).toMatchObject([
        { name: 'MalformedError', message: expect.stringContaining('in the clear') },
      ]);
      // Nothing of it is answered, then or after TLS that may still come about.
      for (const { finish } of session.upgrades) finish(null);
      session.reactor.turn();
      expect(session.receivedByteLength === 0 || session.takeOptionReply().option === STARTTLS).toBe(true);
      expect(session.receivedByteLength).toBe(0);
      expect(session.server.statistics.connectionCount).toBe(0);
    }
  });

  it('that fails ends that connection alone, and is reported', () => {
    const session = new TlsSession(true);
    const other = session.connectAnother();
    session.send(option(STARTTLS));
    session.upgrades[0]!.finish(new Error('no shared cipher'));
    session.reactor.turn();
    expect([session.isClosed, other.isClosed]).toEqual([true, false]);
    expect(session.errors).toMatchObject([{ message: 'TLS: no shared cipher' }]);
  });

  it('has the time of the handshake, and no more', () => {
    const session = new TlsSession(true, { handshakeTimeoutMilliseconds: 1000 });
    session.send(option(STARTTLS));
    session.reactor.advance(999);
    expect(session.isClosed).toBe(false);
    session.reactor.advance(2);
    expect(session.isClosed).toBe(true);
    const late = new TlsSession(true, { handshakeTimeoutMilliseconds: 1000 });
    late.secure().reactor.advance(1001);
    expect(late.isClosed).toBe(true);
  });
});

describe('a client that wants TLS', () => {
  const greeting = Buffer.concat([Buffer.from('NBDMAGICIHAVEOPT'), Buffer.from([0, 3])]);

  function begin() {
    const sent: string[] = [];
    let tlsCount = 0;
    const handshake = new ClientHandshake({ kind: 'go', exportName: 'disk' }, true, {
      send: (message) => sent.push(Buffer.from(message).toString('hex')),
      onStartTls: () => {
        tlsCount++;
      },
      onExport: () => {},
      onList: () => {},
    });
    handshake.consume(greeting, 0);
    return { handshake, sent, tlsCount: () => tlsCount };
  }

  it('says nothing but STARTTLS in the clear', () => {
    const { handshake, sent, tlsCount } = begin();
    expect(sent.splice(0)).toEqual([`00000003${Buffer.from(option(STARTTLS)).toString('hex')}`]);
    handshake.consume(encodeOptionReply(STARTTLS, ACK, NOTHING), 0);
    expect([sent, tlsCount()]).toEqual([[], 1]);
    handshake.onSecure();
    expect(sent).toEqual([expect.stringMatching(/^49484156454f505400000008/)]);
  });

  it.each([0x80000001, 0x80000002, 0x80000007])('goes no further when the server answers 0x%x', (type) => {
    const { handshake, sent } = begin();
    expect(() => handshake.consume(encodeOptionReply(STARTTLS, type, NOTHING), 0)).toThrow(/TLS/);
    expect(sent).toHaveLength(1);
  });

  it('takes nothing in the clear after the answer', () => {
    const injected = Buffer.concat([
      encodeOptionReply(STARTTLS, ACK, NOTHING),
      encodeOptionReply(GO, 0x80000006, NOTHING),
    ]);
    expect(() => begin().handshake.consume(injected, 0)).toThrow(/in the clear/);
  });

  it.each([LIST, GO])('takes no answer of option %i for the one it waits for', (number) => {
    expect(() => begin().handshake.consume(encodeOptionReply(number, ACK, NOTHING), 0)).toThrow(/not sent/);
  });
});
