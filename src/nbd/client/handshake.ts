// A client's half of the handshake: greeting, flags, and one option with its replies. Fed with bytes in any portions.

import { Errno } from '../../block/errno.ts';
import { DmError } from '../../block/errors.ts';
import { printable } from '../../block/printable.ts';
import {
  BASE_ALLOCATION,
  FLAG_FIXED_NEWSTYLE,
  FLAG_NO_ZEROES,
  GREETING_BYTE_LENGTH,
  INFO_BLOCK_SIZE,
  INFO_DESCRIPTION,
  INFO_EXPORT,
  INFO_NAME,
  NBD_MAGIC_HIGH,
  NBD_MAGIC_LOW,
  OLD_STYLE_MAGIC_HIGH,
  OPT_ABORT,
  OPT_GO,
  OPT_LIST,
  OPT_SET_META_CONTEXT,
  OPT_STARTTLS,
  OPT_STRUCTURED_REPLY,
  OPTION_MAGIC_HIGH,
  OPTION_MAGIC_LOW,
  OPTION_REPLY_HEADER_BYTE_LENGTH,
  REP_ACK,
  REP_ERR_SHUTDOWN,
  REP_ERR_TLS_REQD,
  REP_ERR_UNKNOWN,
  REP_ERR_UNSUP,
  REP_ERROR_BIT,
  REP_INFO,
  REP_META_CONTEXT,
  REP_SERVER,
} from '../protocol/constants.ts';
import {
  type BlockSizes,
  decodeBlockSizes,
  decodeExportInfo,
  decodeServerReply,
  decodeString,
  type ExportDescription,
  type ExportInfo,
  encodeGoRequest,
  MalformedError,
} from '../protocol/info.ts';
import { decodeMetaContext, encodeMetaContextRequest } from '../protocol/meta-context.ts';
import { encodeOptionHeader, isOptionReply } from '../protocol/wire.ts';
import { MAX_OPTION_REPLY_BYTE_LENGTH, MAX_OPTION_REPLY_COUNT } from './bounds.ts';

/** What GO told about the export. */
export interface NbdExportDetails extends ExportInfo {
  /** Errors say where, and reads may tell holes. */
  hasStructuredReplies: boolean;
  /** The server tells what is allocated (base:allocation). */
  hasBlockStatus: boolean;
  /** The name the server knows it by, which may not be the one that was asked; null where it does not say. */
  name: string | null;
  description: string | null;
  /** Null where the server does not say. */
  blockSizes: BlockSizes | null;
}

/** What the handshake is for. */
export type HandshakeGoal = { kind: 'go'; exportName: string } | { kind: 'list' };

export interface HandshakeEvents {
  send(message: Uint8Array): void;
  /** The server is ready for TLS. {@link ClientHandshake.onSecure} is to be called when it is there. */
  onStartTls(): void;
  /** `contextId` is the number of base:allocation in replies, -1 where the server does not tell it. */
  onExport(details: NbdExportDetails, contextId: number): void;
  onList(exports: ExportDescription[]): void;
}

/** What an error reply means, for the errno of the exception. */
function errnoOfReply(type: number): number {
  switch (type) {
    case REP_ERR_UNKNOWN:
      return Errno.ENOENT;
    case REP_ERR_UNSUP:
      return Errno.EOPNOTSUPP;
    case REP_ERR_SHUTDOWN:
      return Errno.ESHUTDOWN;
    case REP_ERR_TLS_REQD:
      return Errno.EACCES;
    default:
      return Errno.EINVAL;
  }
}

export class ClientHandshake {
  readonly #goal: HandshakeGoal;
  readonly #events: HandshakeEvents;
  #state: 'greeting' | 'reply header' | 'reply data' | 'starting TLS' | 'over' = 'greeting';
  /** The option that waits for its replies. */
  #option = 0;
  readonly #wantsTls: boolean;
  readonly #header = new Uint8Array(OPTION_REPLY_HEADER_BYTE_LENGTH);
  readonly #view = new DataView(this.#header.buffer);
  #data = new Uint8Array(0);
  #have = 0;
  #replyCount = 0;
  #hasStructuredReplies = false;
  #contextId = -1;
  #export: ExportInfo | null = null;
  #name: string | null = null;
  #description: string | null = null;
  #blockSizes: BlockSizes | null = null;
  readonly #list: ExportDescription[] = [];

  /** @param wantsTls asks for TLS before anything else, and goes no further without it */
  constructor(goal: HandshakeGoal, wantsTls: boolean, events: HandshakeEvents) {
    this.#wantsTls = wantsTls;
    this.#goal = goal;
    this.#events = events;
  }

  get isOver(): boolean {
    return this.#state === 'over';
  }

  /**
   * Takes bytes from `offset` on; what follows the last reply of GO is not taken.
   *
   * @returns where it stopped
   * @throws MalformedError for a server that breaks the protocol; DmError for one that refuses
   */
  consume(chunk: Uint8Array, start: number): number {
    let offset = start;
    while (offset < chunk.byteLength && this.#state !== 'over') {
      if (this.#state === 'starting TLS') throw new MalformedError('something in the clear after TLS was agreed on');
      const target = this.#state === 'reply data' ? this.#data : this.#header;
      const need = this.#state === 'greeting' ? GREETING_BYTE_LENGTH : target.byteLength;
      const count = Math.min(need - this.#have, chunk.byteLength - offset);
      target.set(chunk.subarray(offset, offset + count), this.#have);
      this.#have += count;
      offset += count;
      if (this.#have === need) this.#advance();
    }
    return offset;
  }

  #advance(): void {
    this.#have = 0;
    if (this.#state === 'greeting') this.#onGreeting();
    else if (this.#state === 'reply header') this.#onReplyHeader();
    else this.#onReply();
  }

  #onGreeting(): void {
    const view = this.#view;
    if (view.getUint32(0) !== NBD_MAGIC_HIGH || view.getUint32(4) !== NBD_MAGIC_LOW) {
      throw new MalformedError('this is no NBD server');
    }
    if (view.getUint32(8) === OLD_STYLE_MAGIC_HIGH) throw new MalformedError('the server speaks only the old style');
    const isNewStyle = view.getUint32(8) === OPTION_MAGIC_HIGH && view.getUint32(12) === OPTION_MAGIC_LOW;
    const serverFlags = view.getUint16(16);
    if (!isNewStyle || (serverFlags & FLAG_FIXED_NEWSTYLE) === 0) {
      throw new MalformedError('the server does not speak the fixed new style');
    }
    const flags = new Uint8Array(4);
    new DataView(flags.buffer).setUint32(0, FLAG_FIXED_NEWSTYLE | (serverFlags & FLAG_NO_ZEROES));
    if (this.#wantsTls) this.#sendOption(OPT_STARTTLS, new Uint8Array(0), flags);
    else this.#sendGoal(flags);
  }

  /** TLS is there: only now is it said what this is about. */
  onSecure(): void {
    this.#sendGoal(new Uint8Array(0));
  }

  #sendGoal(before: Uint8Array): void {
    if (this.#goal.kind === 'list') {
      this.#sendOption(OPT_LIST, new Uint8Array(0), before);
    } else {
      this.#sendOption(OPT_STRUCTURED_REPLY, new Uint8Array(0), before);
    }
  }

  #sendGo(exportName: string): void {
    const infoTypes = [INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE];
    this.#sendOption(OPT_GO, encodeGoRequest(exportName, infoTypes), new Uint8Array(0));
  }

  /** What the server answered to a wish that is none of our needs. */
  #onWishAnswered(isGranted: boolean): void {
    if (this.#goal.kind !== 'go') return;
    const { exportName } = this.#goal;
    if (this.#option === OPT_STRUCTURED_REPLY && isGranted) {
      this.#hasStructuredReplies = true;
      const data = encodeMetaContextRequest({ exportName, queries: [BASE_ALLOCATION] });
      this.#sendOption(OPT_SET_META_CONTEXT, data, new Uint8Array(0));
      return;
    }
    if (!isGranted) this.#contextId = -1;
    this.#sendGo(exportName);
  }

  #onMetaContext(data: Uint8Array): void {
    const { id, name } = decodeMetaContext(data);
    if (name !== BASE_ALLOCATION || this.#contextId >= 0) throw new MalformedError('a context that was not asked for');
    this.#contextId = id;
  }

  /** Sends an option, in one message with what comes before it. */
  #sendOption(option: number, data: Uint8Array, before: Uint8Array): void {
    const message = new Uint8Array(before.byteLength + 16 + data.byteLength);
    message.set(before, 0);
    encodeOptionHeader(new DataView(message.buffer), before.byteLength, option, data.byteLength);
    message.set(data, before.byteLength + 16);
    this.#option = option;
    this.#replyCount = 0;
    this.#state = 'reply header';
    this.#events.send(message);
  }

  #onReplyHeader(): void {
    const view = this.#view;
    if (!isOptionReply(view, 0)) throw new MalformedError('an option reply without its magic');
    if (view.getUint32(8) !== this.#option) throw new MalformedError('a reply to an option that was not sent');
    const byteLength = view.getUint32(16);
    if (byteLength > MAX_OPTION_REPLY_BYTE_LENGTH) throw new MalformedError(`an option reply of ${byteLength} bytes`);
    if (++this.#replyCount > MAX_OPTION_REPLY_COUNT) throw new MalformedError('too many replies to one option');
    this.#data = new Uint8Array(byteLength);
    this.#state = 'reply data';
    if (byteLength === 0) this.#onReply();
  }

  #onReply(): void {
    this.#state = 'reply header';
    const type = this.#view.getUint32(12);
    const data = this.#data;
    const isWish = this.#option === OPT_STRUCTURED_REPLY || this.#option === OPT_SET_META_CONTEXT;
    // A server under a rule (TLS, say) refuses the wish and the need alike: that is told in the answer to the need.
    if (isWish && (type >= REP_ERROR_BIT || type === REP_ACK)) this.#onWishAnswered(type === REP_ACK);
    else if (type >= REP_ERROR_BIT) this.#onErrorReply(type, data);
    else if (type === REP_META_CONTEXT && this.#option === OPT_SET_META_CONTEXT) this.#onMetaContext(data);
    else if (type === REP_ACK && this.#option === OPT_STARTTLS) this.#onStartTlsAck();
    else if (type === REP_ACK) this.#onAck();
    else if (type === REP_INFO && this.#option === OPT_GO) this.#onInfo(data);
    else if (type === REP_SERVER && this.#option === OPT_LIST) this.#list.push(decodeServerReply(data));
    else throw new MalformedError(`an option reply of the unknown type ${type}`);
  }

  #onErrorReply(type: number, data: Uint8Array): never {
    const text = printable(new TextDecoder().decode(data.subarray(0, 4096)));
    const code = `0x${type.toString(16)}`;
    // Going on in the clear is just what somebody on the way would like.
    const errno = this.#option === OPT_STARTTLS ? Errno.EACCES : errnoOfReply(type);
    throw new DmError(errno, `the server refuses ${this.#what()} (${code})${text === '' ? '' : `: ${text}`}`);
  }

  #what(): string {
    if (this.#option === OPT_STARTTLS) return 'TLS, which is required here';
    return this.#goal.kind === 'list' ? 'the list' : `the export ${JSON.stringify(this.#goal.exportName)}`;
  }

  #onStartTlsAck(): void {
    this.#state = 'starting TLS';
    this.#events.onStartTls();
  }

  #onInfo(data: Uint8Array): void {
    if (data.byteLength < 2) throw new MalformedError('an information reply has at least 2 bytes');
    switch ((data[0]! << 8) | data[1]!) {
      case INFO_EXPORT:
        this.#export = decodeExportInfo(data);
        break;
      case INFO_NAME:
        this.#name = decodeString(data.subarray(2), 'the export name');
        break;
      case INFO_DESCRIPTION:
        this.#description = decodeString(data.subarray(2), 'the description');
        break;
      case INFO_BLOCK_SIZE:
        this.#blockSizes = decodeBlockSizes(data);
        break;
      default:
      // Later kinds are to be ignored.
    }
  }

  #onAck(): void {
    if (this.#goal.kind === 'list') {
      this.#state = 'over';
      const message = new Uint8Array(16);
      encodeOptionHeader(new DataView(message.buffer), 0, OPT_ABORT, 0);
      this.#events.send(message);
      this.#events.onList(this.#list);
      return;
    }
    const info = this.#export;
    if (info === null) throw new MalformedError('the server says nothing about the export');
    // A size that is no exact number can't be told from its neighbours; the bound is far past any device.
    if (info.byteLength > Number.MAX_SAFE_INTEGER * 512) {
      throw new MalformedError('an export larger than 2^62 bytes');
    }
    this.#state = 'over';
    const blockSizes = this.#blockSizes;
    const hasStructuredReplies = this.#hasStructuredReplies;
    const names = { name: this.#name, description: this.#description };
    const hasBlockStatus = this.#contextId >= 0;
    this.#events.onExport({ ...info, ...names, blockSizes, hasStructuredReplies, hasBlockStatus }, this.#contextId);
  }
}
