// One round against our client: a server that speaks the grammar and lies. Every request must end once, a success must
// be one, and nothing may be thrown.
import { NbdClient } from '../../../src/nbd/client/client.ts';
import { encodeBlockSizes, encodeExportInfo } from '../../../src/nbd/protocol/info.ts';
import { encodeMetaContext } from '../../../src/nbd/protocol/meta-context.ts';
import { encodeOptionReply } from '../../../src/nbd/protocol/wire.ts';
import { ManualReactor, transportPair } from '../support.ts';
import { Random } from './random.ts';

const SIZE = 65_536;
/** What stands in a READ's memory before; no server sends it. */
const UNTOUCHED = 0xaa;
const SENT = 0x55;
const CONTEXT = 9;

interface Asked {
  command: number;
  offset: number;
  byteLength: number;
  memory: Buffer;
  errnos: number[];
  pairs: readonly number[];
}

function handshake(random: Random, hasChunks: boolean): Buffer {
  const info = encodeExportInfo({
    byteLength: random.oneIn(10) ? random.edge() * 2 ** 31 : SIZE,
    transmissionFlags: 0xfff,
  });
  const sizes = encodeBlockSizes({
    minimum: 1,
    preferred: 4096,
    maximumPayload: random.pick([4096, 65_536, 0xffffffff]),
  });
  const nothing = new Uint8Array(0);
  const parts = [
    Buffer.from('NBDMAGICIHAVEOPT'),
    Buffer.from([0, 3]),
    encodeOptionReply(8, hasChunks ? 1 : 0x80000001, nothing),
    ...(hasChunks ? [encodeOptionReply(10, 4, encodeMetaContext({ id: CONTEXT, name: 'base:allocation' }))] : []),
    ...(hasChunks ? [encodeOptionReply(10, 1, nothing)] : []),
    encodeOptionReply(7, 3, info),
    ...(random.oneIn(2) ? [encodeOptionReply(7, 3, sizes)] : []),
    encodeOptionReply(7, 1, nothing),
  ];
  return Buffer.concat(parts);
}

function ask(random: Random, client: NbdClient): Asked {
  const command = random.pick([0, 0, 0, 1, 3, 4, 5, 6, 7]);
  const offset = random.below(SIZE);
  const byteLength = random.below(Math.min(SIZE - offset, 3000));
  const memory = Buffer.alloc(byteLength, UNTOUCHED);
  const asked: Asked = { command, offset, byteLength, memory, errnos: [], pairs: [] };
  const done = (errno: number): void => void asked.errnos.push(errno);
  const options = { fua: random.oneIn(2), noHole: random.oneIn(2), fast: random.oneIn(2) };
  if (command === 0) client.read(offset, memory, done);
  else if (command === 1) client.write(offset, memory, options.fua, done);
  else if (command === 3) client.flush(done);
  else if (command === 4) client.trim(offset, byteLength, options.fua, done);
  else if (command === 5) client.cache(offset, byteLength, done);
  else if (command === 6) client.writeZeroes(offset, byteLength, options, done);
  else
    client.blockStatus(offset, byteLength, false, (errno, pairs) => {
      asked.errnos.push(errno);
      asked.pairs = [...pairs];
    });
  return asked;
}

function header(magic: number, byteLength: number): Buffer {
  const bytes = Buffer.alloc(byteLength);
  bytes.writeUInt32BE(magic);
  return bytes;
}

function simple(cookie: number, error: number, data: Buffer): Buffer {
  const reply = header(0x67446698, 16);
  reply.writeUInt32BE(error, 4);
  reply.writeUInt32BE(cookie, 12);
  return Buffer.concat([reply, data]);
}

function chunk(cookie: number, type: number, flags: number, payload: Buffer): Buffer {
  const reply = header(0x668e33ef, 20);
  reply.writeUInt16BE(flags, 4);
  reply.writeUInt16BE(type, 6);
  reply.writeUInt32BE(cookie, 12);
  reply.writeUInt32BE(payload.length, 16);
  return Buffer.concat([reply, payload]);
}

function place(offset: number, rest: Buffer): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(BigInt(Math.max(0, offset)));
  return Buffer.concat([bytes, rest]);
}

const four = (value: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
};

/** An answer to one request, a right one as often as not. */
function answer(random: Random, asked: Asked, cookie: number, hasChunks: boolean): Buffer {
  const { offset, byteLength, command } = asked;
  const isLie = random.oneIn(6);
  if (random.oneIn(10)) {
    if (!hasChunks) return simple(cookie, random.pick([1, 5, 22, 4711]), Buffer.alloc(0));
    const at = offset + random.below(byteLength + (isLie ? 2000 : 1));
    return chunk(cookie, 0x8002, 1, Buffer.concat([four(5), Buffer.alloc(2), place(at, Buffer.alloc(0))]));
  }
  if (!hasChunks || (command !== 0 && command !== 7 && random.oneIn(2))) {
    return simple(
      cookie,
      0,
      Buffer.alloc(command === 0 ? Math.max(0, byteLength + (isLie ? random.below(9) - 4 : 0)) : 0, SENT),
    );
  }
  if (command === 7) {
    const extents = Array.from({ length: 1 + random.below(4) }, () =>
      Buffer.concat([four(1 + random.below(2000)), four(random.below(4))]),
    );
    return chunk(cookie, 5, 1, Buffer.concat([four(isLie ? random.edge() : CONTEXT), ...extents]));
  }
  if (command !== 0) return chunk(cookie, 0, 1, Buffer.alloc(0));
  const pieces: Buffer[] = [];
  for (let at = 0; at < byteLength; ) {
    const end = Math.min(byteLength, at + 1 + random.below(1500));
    const from = offset + at + (isLie && random.oneIn(3) ? random.below(20) - 10 : 0);
    const isHole = random.oneIn(3);
    const rest = isHole ? four(end - at) : Buffer.alloc(end - at, SENT);
    if (!(isLie && random.oneIn(5))) pieces.push(chunk(cookie, isHole ? 2 : 1, 0, place(from, rest)));
    at = end;
  }
  if (random.oneIn(2)) pieces.reverse();
  return Buffer.concat([...pieces, chunk(cookie, 0, 1, Buffer.alloc(0))]);
}

function check({ command, errnos, memory, byteLength, pairs }: Asked, isDamaged: boolean): void {
  if (errnos.length !== 1) throw new Error(`a request ended ${errnos.length} times`);
  if (errnos[0] !== 0) return;
  // What is damaged can have any bytes in it.
  if (command === 0 && !isDamaged && memory.includes(UNTOUCHED)) throw new Error('a read succeeded without its data');
  if (command !== 7) return;
  let covered = 0;
  for (let i = 0; i < pairs.length; i += 2) covered += pairs[i]!;
  if (covered > byteLength || pairs.length === 0) throw new Error('a status that is none');
}

/** @throws Error when the client does what it must not */
export function fuzzClient(seed: number): void {
  const random = new Random(seed);
  const reactor = new ManualReactor();
  const [clientSide, serverSide] = transportPair(reactor);
  // The client's own memory is read after the round: its transport must not scribble over it.
  clientSide.send = (_chunks, onSent) => reactor.wake(onSent);
  const ignore = (): void => {};
  serverSide.setHandler({ onData: ignore, onEnd: ignore, onDrain: ignore, onClose: ignore });
  const client = new NbdClient(reactor, clientSide);
  const opens: (Error | null)[] = [];
  client.open('disk', (error) => opens.push(error));
  const hasChunks = random.oneIn(2);
  const hello = random.oneIn(3) ? random.damage(handshake(random, hasChunks)) : handshake(random, hasChunks);
  for (const portion of random.portions(hello)) serverSide.send([new Uint8Array(portion)], ignore);
  reactor.turn();
  const asked = Array.from({ length: random.below(20) }, () => ask(random, client));
  reactor.turn();
  const whole = Buffer.concat(replies(random, asked, hasChunks));
  const isDamaged = random.oneIn(3);
  const bytes = isDamaged ? random.damage(whole) : whole;
  for (const portion of random.portions(bytes)) serverSide.send([new Uint8Array(portion)], ignore);
  reactor.turn();
  serverSide.destroy();
  reactor.turn();
  if (opens.length !== 1) throw new Error(`opening ended ${opens.length} times`);
  for (const one of asked) check(one, isDamaged);
  if (client.requestCount > 0 || reactor.timerCount > 0) throw new Error('something is left');
}

/** Replies to the requests that were sent, in any order. Cookies are given in the order of sending, from 0. */
function replies(random: Random, asked: readonly Asked[], hasChunks: boolean): Buffer[] {
  const sent = asked.filter(({ errnos }) => errnos.length === 0);
  const answers = sent.map((one, cookie) => answer(random, one, cookie, hasChunks));
  for (let i = answers.length - 1; i > 0; i--) {
    const j = random.below(i + 1);
    [answers[i], answers[j]] = [answers[j]!, answers[i]!];
  }
  return answers.slice(random.oneIn(4) ? random.below(3) : 0);
}
