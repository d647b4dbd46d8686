// One round against the server: a few clients that speak the grammar of both phases, more or less well, on a device that
// ends requests in any order and fails some. An honest client's answers are checked word by word; whatever a dishonest one
// says, the server must not throw, must not hold more than its bound, and must have nothing left when all are gone.
import { Errno } from '../../../src/block/errno.ts';
import { MemoryDevice } from '../../../src/devices/memory.ts';
import { encodeMetaContextRequest } from '../../../src/nbd/protocol/meta-context.ts';
import { encodeExtendedRequest } from '../../../src/nbd/protocol/wire.ts';
import { HeldDevice, type MemoryTransport, option, request, Session } from '../support.ts';
import { Random, u32 } from './random.ts';

const SECTOR_COUNT = 512;
const SIZE = SECTOR_COUNT * 512;
const NAMES = ['disk', '', 'other', 'x'.repeat(4096), 'ü', 'a\0b'];
const QUERIES = ['base:allocation', 'base:', 'base:x', 'qemu:dirty-bitmap:x', '', 'x'.repeat(4097)];
const MAX_BYTE_LENGTH = 4 << 20;

type Kind = 'simple' | 'structured' | 'extended';

interface Talk {
  client: ReturnType<Session['connectAnother']>;
  transport: MemoryTransport;
  bytes: Buffer;
  /** Every byte is as it should be: so must be the answers. */
  isHonest: boolean;
  kind: Kind;
  /** By cookie: its command. */
  commands: Map<number, number>;
  /** By cookie: bytes that were asked for. */
  lengths: Map<number, number>;
  answer: Buffer[];
}

/** GO's data with any name and any lengths. */
function goData(random: Random, name: string): Buffer {
  const text = Buffer.from(name);
  const length = random.oneIn(8) ? random.edge() : text.length;
  return Buffer.concat([u32(length), text, u32(random.oneIn(4) ? random.edge() : 0).subarray(2)]);
}

function contextData(random: Random): Buffer {
  const queries = Array.from({ length: random.below(4) }, () => random.pick(QUERIES.slice(0, 4)));
  const data = Buffer.from(encodeMetaContextRequest({ exportName: random.pick(['disk', '', 'other']), queries }));
  return random.oneIn(3) ? random.damage(data) : data;
}

/** An option of any kind that does not lead to requests. */
function anyOption(random: Random): Uint8Array {
  switch (random.below(7)) {
    case 0:
      return option(3, random.oneIn(4) ? random.bytes(3) : Buffer.alloc(0));
    case 1:
      return option(8, random.oneIn(4) ? random.bytes(1) : Buffer.alloc(0));
    case 2:
      return option(6, goData(random, random.pick(NAMES)));
    case 3:
      return option(random.pick([9, 10]), contextData(random));
    case 4:
      return option(5, random.bytes(random.below(2)));
    case 5: {
      const data = random.bytes(random.below(40));
      return option(random.edge(), data, random.oneIn(10) ? random.edge() : data.length);
    }
    default:
      return option(9, Buffer.from(encodeMetaContextRequest({ exportName: 'disk', queries: [] })));
  }
}

/** The options of an honest client. */
function honestHandshake(kind: Kind): Uint8Array[] {
  const context = option(
    10,
    Buffer.from(encodeMetaContextRequest({ exportName: 'disk', queries: ['base:allocation'] })),
  );
  const first = kind === 'simple' ? [] : [option(kind === 'structured' ? 8 : 11), context];
  return [u32(3), ...first, option(7, Buffer.from('000000046469736b0000', 'hex'))];
}

interface Fields {
  type: number;
  flags: number;
  cookie: number;
  offset: bigint;
  length: number;
  data?: Buffer;
}

function anyRequest(random: Random, cookie: number): Fields {
  const type = random.oneIn(20) ? random.below(70_000) % 65_536 : random.pick([0, 0, 1, 1, 3, 4, 5, 6, 7]);
  const length = random.oneIn(12) ? random.edge() : random.below(random.pick([2, 600, 9000, 150_000]));
  const offset = random.oneIn(12) ? BigInt(random.edge()) * BigInt(random.edge()) : BigInt(random.below(SIZE));
  const flags = random.oneIn(4) ? 1 << random.below(6) : 0;
  const fields = { type, flags, cookie, offset: offset % 2n ** 64n, length };
  if (type !== 1) return fields;
  // No more data than this program likes to make; the server's own bound has tests of its own.
  const byteLength = length % 200_000;
  return { ...fields, length: byteLength, data: random.bytes(Math.min(byteLength, 64)) };
}

function encoded(kind: Kind, { data, ...fields }: Fields): Buffer {
  const payload = data === undefined ? Buffer.alloc(0) : Buffer.alloc(fields.length, data.length > 0 ? data : 0);
  if (kind !== 'extended') {
    return Buffer.concat([request({ ...fields }), payload]);
  }
  const header = Buffer.alloc(32);
  encodeExtendedRequest(new DataView(header.buffer, header.byteOffset, 32), 0, {
    flags: data === undefined ? fields.flags & ~32 : fields.flags | 32,
    type: fields.type,
    cookieHigh: 0,
    cookieLow: fields.cookie,
    offsetHigh: Number(fields.offset >> 32n),
    offsetLow: Number(fields.offset & 0xffffffffn),
    byteLength: fields.length,
  });
  return Buffer.concat([header, payload]);
}

function makeTalk(random: Random, session: Session): Talk {
  const isHonest = random.oneIn(2);
  const kind = random.pick<Kind>(['simple', 'structured', 'structured', 'extended']);
  const client = session.connectAnother();
  const commands = new Map<number, number>();
  const lengths = new Map<number, number>();
  const parts: Uint8Array[] = isHonest ? honestHandshake(kind) : [random.oneIn(8) ? u32(random.edge()) : u32(3)];
  if (!isHonest) {
    for (let i = random.below(6); i > 0; i--) parts.push(anyOption(random));
    if (random.oneIn(2)) parts.push(...honestHandshake(kind).slice(1));
  }
  for (let cookie = 1, count = random.below(40); cookie <= count; cookie++) {
    const fields = anyRequest(random, cookie);
    if (fields.type === 2) continue;
    commands.set(cookie, fields.type);
    lengths.set(cookie, fields.length);
    parts.push(encoded(kind, fields));
  }
  let bytes: Buffer = Buffer.concat(parts);
  if (!isHonest) for (let i = random.below(4); i > 0; i--) bytes = random.damage(bytes);
  return { client, transport: client.client, bytes, isHonest, kind, commands, lengths, answer: [] };
}

/** Ends some of what the device has. */
function work(random: Random, device: HeldDevice, count: number): void {
  for (let i = 0; i < count && device.bios.length > 0; i++) {
    const index = random.below(device.bios.length);
    const bio = device.bios[index]!;
    if (!random.oneIn(15)) {
      device.finish(index);
      continue;
    }
    device.bios.splice(index, 1);
    bio.fail(
      random.pick([Errno.EIO, Errno.ENOSPC, Errno.EOPNOTSUPP, 4711]),
      device,
      bio.sector + random.below(bio.sectorCount + 1),
    );
  }
}

function fail(text: string): never {
  throw new Error(text);
}

/** Reads an honest client's answers from its first request on. */
function checkAnswers(talk: Talk): void {
  const bytes = Buffer.concat(talk.answer);
  let at = 18;
  const optionCount = talk.kind === 'simple' ? 1 : 3;
  for (let i = 0; i < optionCount; ) {
    if (bytes.readBigUInt64BE(at) !== 0x3e889045565a9n) fail('no option reply');
    const type = bytes.readUInt32BE(at + 12);
    if (type > 2 ** 31) fail(`option refused with ${type.toString(16)}`);
    if (type === 1) i++;
    at += 20 + bytes.readUInt32BE(at + 16);
  }
  const ended = new Set<number>();
  while (at < bytes.length) at += checkReply(talk, bytes, at, ended);
  for (const cookie of talk.commands.keys()) if (!ended.has(cookie)) fail(`request ${cookie} was never answered`);
}

function checkReply(talk: Talk, bytes: Buffer, at: number, ended: Set<number>): number {
  const magic = bytes.readUInt32BE(at);
  const cookie = Number(bytes.readBigUInt64BE(at + 8));
  const command = talk.commands.get(cookie) ?? fail(`a reply to ${cookie}, which was not sent`);
  if (ended.has(cookie)) fail(`a reply to ${cookie} after its last`);
  if (magic === 0x67446698) {
    if (talk.kind === 'extended' || (talk.kind === 'structured' && (command === 0 || command === 7)))
      fail('a simple reply');
    ended.add(cookie);
    const isRead = command === 0 && bytes.readUInt32BE(at + 4) === 0;
    return 16 + (isRead ? talk.lengths.get(cookie)! : 0);
  }
  const isExtended = magic === 0x6e8a278c;
  if ((!isExtended && magic !== 0x668e33ef) || isExtended !== (talk.kind === 'extended')) fail('no reply');
  if ((bytes.readUInt16BE(at + 4) & 1) !== 0) ended.add(cookie);
  return isExtended ? 32 + Number(bytes.readBigUInt64BE(at + 24)) : 20 + bytes.readUInt32BE(at + 16);
}

/** @throws Error when the server does what it must not */
export function fuzzServer(seed: number): void {
  const random = new Random(seed);
  const isHeld = random.oneIn(2);
  const limits = {
    logicalBlockSize: random.pick([512, 512, 4096]),
    maxDiscardSectorCount: random.pick([0, 64]),
    maxWriteZeroesSectorCount: random.pick([0, 8, 1000]),
  };
  const held = new HeldDevice(SECTOR_COUNT, limits);
  const device = isHeld ? held : new MemoryDevice('disk', SECTOR_COUNT, { limits });
  const session = new Session(device, {
    extendedHeaders: true,
    maxConnectionRequestCount: random.pick([1, 4, 256]),
    maxConnectionByteLength: random.pick([1, 65_536, 1 << 20]),
    maxServerByteLength: random.pick([65_536, MAX_BYTE_LENGTH]),
  });
  session.server.exports.add({ name: 'other', device, readOnly: true });
  const talks = Array.from({ length: 1 + random.below(3) }, () => makeTalk(random, session));
  for (const { client } of talks) client.keepAll();
  for (const talk of talks) speak(random, talk, session, held);
  for (let i = 0; i < 100_000 && held.bios.length > 0; i++) {
    work(random, held, 10);
    session.reactor.turn();
  }
  for (const talk of talks) {
    talk.answer = talk.client.everything;
    if (talk.isHonest && !talk.client.isClosed) checkAnswers(talk);
    else if (talk.isHonest) fail('an honest client was cut off');
  }
  finish(random, session, talks);
}

function speak(random: Random, { transport, bytes }: Talk, session: Session, held: HeldDevice): void {
  for (const portion of random.portions(bytes)) {
    transport.send([new Uint8Array(portion)], () => {});
    if (random.oneIn(2)) session.reactor.turn();
    work(random, held, random.below(4));
    const { usedByteLength, connectionCount } = session.server.statistics;
    // Each connection may hold one request above the bound, with the edges of a partial block.
    if (usedByteLength > MAX_BYTE_LENGTH + connectionCount * (MAX_BYTE_LENGTH + (1 << 20)))
      fail(`holds ${usedByteLength} bytes`);
  }
  session.reactor.turn();
}

function finish(random: Random, session: Session, talks: readonly Talk[]): void {
  if (random.oneIn(3)) session.server.shutdown();
  for (const { transport } of talks) transport.destroy();
  session.client.destroy();
  session.reactor.turn();
  const bug = session.errors.find((error) => error.name !== 'MalformedError');
  if (bug !== undefined) throw bug;
  const { connectionCount, requestCount, usedByteLength } = session.server.statistics;
  if (connectionCount + requestCount + usedByteLength > 0) {
    fail(`left: ${connectionCount} connections, ${requestCount} requests, ${usedByteLength} bytes`);
  }
}
