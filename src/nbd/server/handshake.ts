// The first phase of a connection ("Fixed newstyle negotiation"): greeting, client flags, then options one by one.
import {
  FLAG_FIXED_NEWSTYLE,
  FLAG_NO_ZEROES,
  GREETING_BYTE_LENGTH,
  MAX_STRING_BYTE_LENGTH,
  NBD_MAGIC_HIGH,
  NBD_MAGIC_LOW,
  OPT_EXPORT_NAME,
  OPT_GO,
  OPT_INFO,
  OPT_STARTTLS,
  OPTION_HEADER_BYTE_LENGTH,
  OPTION_MAGIC_HIGH,
  OPTION_MAGIC_LOW,
  REP_ACK,
  REP_ERR_TOO_BIG,
} from '../protocol/constants.ts';
import { encodeOptionReply, isOptionHeader } from '../protocol/wire.ts';
import { MAX_OPTION_BYTE_LENGTH, MAX_UNSENT_OPTION_BYTE_LENGTH } from './bounds.ts';
import type { Connection, Phase } from './connection.ts';
import { negotiatesWithData } from './negotiation.ts';
import { OptionHandler } from './options.ts';

const CLIENT_FLAGS_BYTE_LENGTH = 4;
const OUR_FLAGS = FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES;

type State = 'client flags' | 'option header' | 'option data' | 'starting TLS';

/** Options whose data means something; that of others is only counted away. */
function readsData(option: number): boolean {
  return option === OPT_EXPORT_NAME || option === OPT_INFO || option === OPT_GO || negotiatesWithData(option);
}

export class Handshake implements Phase {
  readonly requestCount = 0;
  readonly #connection: Connection;
  #options: OptionHandler;
  #state: State = 'client flags';
  readonly #header = new Uint8Array(OPTION_HEADER_BYTE_LENGTH);
  readonly #headerView = new DataView(this.#header.buffer);
  #option = 0;
  /** The option's data; null where it is thrown away. */
  #data: Uint8Array | null = null;
  #dataByteLength = 0;
  /** Bytes of the current state that have arrived. */
  #have = 0;

  constructor(connection: Connection) {
    this.#connection = connection;
    this.#options = new OptionHandler(connection, false, () => this.#startTls());
  }

  start(): void {
    const greeting = new Uint8Array(GREETING_BYTE_LENGTH);
    const view = new DataView(greeting.buffer);
    view.setUint32(0, NBD_MAGIC_HIGH);
    view.setUint32(4, NBD_MAGIC_LOW);
    view.setUint32(8, OPTION_MAGIC_HIGH);
    view.setUint32(12, OPTION_MAGIC_LOW);
    view.setUint16(16, OUR_FLAGS);
    this.#options.send([greeting]);
  }

  consume(chunk: Uint8Array, start: number): number {
    let offset = start;
    while (offset < chunk.byteLength && this.#connection.entry === null && !this.#options.isOver) {
      if (this.#state === 'starting TLS') {
        // Whoever sends before the ACK is no client, but somebody on the way who wants his words to count as secured.
        this.#options.isOver = true;
        this.#connection.violation('bytes in the clear after NBD_OPT_STARTTLS');
        break;
      }
      // A client that asks on and on and never reads waits here.
      if (this.#connection.transport.pendingByteLength > MAX_UNSENT_OPTION_BYTE_LENGTH) break;
      offset += this.#state === 'option data' ? this.#takeData(chunk, offset) : this.#takeHeader(chunk, offset);
    }
    return this.#options.isOver ? chunk.byteLength : offset;
  }

  /** What has arrived is given to it. */
  pull(): boolean {
    return false;
  }

  afterTurn(): void {}

  onDrain(): void {
    this.#connection.schedule();
  }

  close(): void {
    this.#data = null;
  }

  #takeHeader(chunk: Uint8Array, offset: number): number {
    const need = this.#state === 'client flags' ? CLIENT_FLAGS_BYTE_LENGTH : OPTION_HEADER_BYTE_LENGTH;
    const count = Math.min(need - this.#have, chunk.byteLength - offset);
    this.#header.set(chunk.subarray(offset, offset + count), this.#have);
    this.#have += count;
    if (this.#have < need) return count;
    this.#have = 0;
    if (this.#state === 'client flags') this.#onClientFlags(this.#headerView.getUint32(0));
    else this.#onOptionHeader();
    return count;
  }

  #onClientFlags(flags: number): void {
    if ((flags & ~OUR_FLAGS) !== 0) {
      this.#options.isOver = true;
      this.#connection.violation(`unknown client flags 0x${flags.toString(16)}`);
      return;
    }
    this.#options.noZeroes = (flags & FLAG_NO_ZEROES) !== 0;
    this.#state = 'option header';
  }

  #onOptionHeader(): void {
    const view = this.#headerView;
    if (!isOptionHeader(view, 0)) {
      this.#options.isOver = true;
      this.#connection.violation('an option without its magic');
      return;
    }
    this.#option = view.getUint32(8);
    this.#dataByteLength = view.getUint32(12);
    if (this.#isTooLong()) return;
    this.#data = readsData(this.#option) ? new Uint8Array(this.#dataByteLength) : null;
    this.#state = 'option data';
    if (this.#dataByteLength === 0) this.#onOption();
  }

  /** Ends the connection for an option that is longer than any sense; a reply is sent where the protocol has one. */
  #isTooLong(): boolean {
    const bound = this.#option === OPT_EXPORT_NAME ? MAX_STRING_BYTE_LENGTH : MAX_OPTION_BYTE_LENGTH;
    if (this.#dataByteLength <= bound) return false;
    this.#options.isOver = true;
    if (this.#option === OPT_EXPORT_NAME) {
      this.#connection.violation(`an export name of ${this.#dataByteLength} bytes`);
    } else {
      this.#options.reply(this.#option, REP_ERR_TOO_BIG, `options have at most ${bound} bytes here`);
      this.#connection.finish();
    }
    return true;
  }

  /** Grants STARTTLS. Everything that was negotiated in the clear is forgotten; the client flags stay. */
  #startTls(): void {
    this.#state = 'starting TLS';
    this.#connection.startTls(encodeOptionReply(OPT_STARTTLS, REP_ACK, new Uint8Array(0)), () => {
      const { noZeroes } = this.#options;
      this.#options = new OptionHandler(this.#connection, true, () => {});
      this.#options.noZeroes = noZeroes;
      this.#state = 'option header';
    });
  }

  #takeData(chunk: Uint8Array, offset: number): number {
    const count = Math.min(this.#dataByteLength - this.#have, chunk.byteLength - offset);
    this.#data?.set(chunk.subarray(offset, offset + count), this.#have);
    this.#have += count;
    if (this.#have === this.#dataByteLength) this.#onOption();
    return count;
  }

  #onOption(): void {
    const data = this.#data;
    this.#data = null;
    this.#have = 0;
    this.#state = 'option header';
    this.#options.handle(this.#option, this.#dataByteLength, data);
  }
}
