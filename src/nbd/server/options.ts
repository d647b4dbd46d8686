// What each option is answered ("Option types").
import {
  INFO_DESCRIPTION,
  INFO_NAME,
  OPT_ABORT,
  OPT_EXPORT_NAME,
  OPT_GO,
  OPT_INFO,
  OPT_LIST,
  OPT_STARTTLS,
  REP_ACK,
  REP_ERR_INVALID,
  REP_ERR_SHUTDOWN,
  REP_ERR_TLS_REQD,
  REP_ERR_UNKNOWN,
  REP_ERR_UNSUP,
  REP_INFO,
  REP_SERVER,
} from '../protocol/constants.ts';
import {
  decodeGoRequest,
  decodeString,
  encodeBlockSizes,
  encodeExportInfo,
  encodeServerReply,
  encodeTextInfo,
  type GoRequest,
  MalformedError,
} from '../protocol/info.ts';
import { encodeOptionReply, setUint64 } from '../protocol/wire.ts';
import { MAX_ERROR_TEXT_BYTE_LENGTH } from './bounds.ts';
import type { Connection } from './connection.ts';
import { exportBlockSizes, exportInfo, type NbdExport } from './exports.ts';
import { EXTENDED_HEADERS, Negotiation, type OptionReplier } from './negotiation.ts';

const NOTHING = new Uint8Array(0);
const EXPORT_NAME_REPLY_BYTE_LENGTH = 10;
const EXPORT_NAME_PADDING_BYTE_LENGTH = 124;
const utf8 = new TextEncoder();
const ignore = (): void => {};

/**
 * Answers options, and keeps what they negotiate. After STARTTLS a new one takes its place, so that nothing said in the
 * clear lives on.
 */
export class OptionHandler {
  /** The client wants no padding after EXPORT_NAME's reply. */
  noZeroes = false;
  /** Nothing more is to be read: ABORT, or the connection is being closed. */
  isOver = false;
  readonly #connection: Connection;
  readonly #negotiation: Negotiation;
  readonly #isSecure: boolean;
  readonly #startTls: () => void;

  /** @param startTls begins TLS; called when STARTTLS is granted, in the place of an answer */
  constructor(connection: Connection, isSecure: boolean, startTls: () => void) {
    this.#connection = connection;
    this.#negotiation = new Negotiation(connection.host.allowsExtendedHeaders);
    this.#isSecure = isSecure;
    this.#startTls = startTls;
  }

  send(messages: readonly Uint8Array[]): void {
    this.#connection.transport.send(messages, ignore);
  }

  /** An error reply, with a text for people. */
  reply(option: number, type: number, text = ''): void {
    this.send([encodeOptionReply(option, type, this.#shortText(text))]);
  }

  #shortText(text: string): Uint8Array {
    const bytes = new Uint8Array(MAX_ERROR_TEXT_BYTE_LENGTH);
    // encodeInto stops before a character that does not fit.
    return bytes.subarray(0, utf8.encodeInto(text, bytes).written);
  }

  /** `data` is null for options whose data is not looked at; its length counts all the same. */
  handle(option: number, byteLength: number, data: Uint8Array | null): void {
    if (option === OPT_ABORT) {
      this.isOver = true;
      this.reply(option, REP_ACK);
      this.#connection.finish();
    } else if (!this.#isSecure && this.#connection.host.tls?.required === true && option !== OPT_STARTTLS) {
      this.#demandTls(option);
    } else if (option === OPT_EXPORT_NAME) {
      this.#exportName(data ?? NOTHING);
    } else if (this.#connection.host.isShuttingDown) {
      this.reply(option, REP_ERR_SHUTDOWN, 'the server is shutting down');
    } else if (option === OPT_STARTTLS) {
      this.#secure(option, byteLength);
    } else if (option === OPT_LIST) {
      this.#list(option, byteLength);
    } else if (option === OPT_INFO || option === OPT_GO) {
      this.#go(option, data ?? NOTHING);
    } else if (!this.#negotiate(option, byteLength, data)) {
      this.reply(option, REP_ERR_UNSUP, `option ${option} is not supported`);
    }
  }

  /** TLS is required and not there: nothing is told, not even which exports there are. */
  #demandTls(option: number): void {
    if (option !== OPT_EXPORT_NAME) {
      this.reply(option, REP_ERR_TLS_REQD, 'this server talks under TLS only');
      return;
    }
    this.isOver = true;
    this.#connection.violation('NBD_OPT_EXPORT_NAME without TLS, which is required');
  }

  #secure(option: number, byteLength: number): void {
    const { host, transport } = this.#connection;
    if (byteLength > 0) this.reply(option, REP_ERR_INVALID, 'NBD_OPT_STARTTLS has no data');
    else if (this.#isSecure) this.reply(option, REP_ERR_INVALID, 'TLS is there already');
    else if (host.tls === null || transport.startTls === undefined) this.reply(option, REP_ERR_UNSUP, 'no TLS here');
    else this.#startTls();
  }

  #negotiate(option: number, byteLength: number, data: Uint8Array | null): boolean {
    const reply: OptionReplier = (type, answer) => {
      if (typeof answer === 'string') this.reply(option, type, answer);
      else this.send([encodeOptionReply(option, type, answer)]);
    };
    return this.#negotiation.answer(option, byteLength, data, this.#connection.host.exports, reply);
  }

  #list(option: number, byteLength: number): void {
    if (byteLength > 0) {
      this.reply(option, REP_ERR_INVALID, 'NBD_OPT_LIST has no data');
      return;
    }
    const messages: Uint8Array[] = [];
    for (const { name, description } of this.#connection.host.exports) {
      const data = encodeServerReply(utf8.encode(name), utf8.encode(description ?? ''));
      messages.push(encodeOptionReply(option, REP_SERVER, data));
    }
    messages.push(encodeOptionReply(option, REP_ACK, NOTHING));
    this.send(messages);
  }

  #go(option: number, data: Uint8Array): void {
    let request: GoRequest;
    try {
      request = decodeGoRequest(data);
    } catch (error) {
      if (!(error instanceof MalformedError)) throw error;
      this.reply(option, REP_ERR_INVALID, error.message);
      return;
    }
    const entry = this.#connection.host.exports.find(request.exportName);
    if (entry === undefined) {
      this.reply(option, REP_ERR_UNKNOWN, `there is no export named ${JSON.stringify(request.exportName)}`);
      return;
    }
    this.send(this.#goReplies(option, request, entry));
    if (option === OPT_GO) this.#connection.enterTransmission(entry, this.#negotiation);
  }

  #goReplies(option: number, { infoTypes }: GoRequest, entry: NbdExport): Uint8Array[] {
    const infos = [encodeExportInfo(exportInfo(entry, this.#negotiation))];
    if (infoTypes.has(INFO_NAME)) infos.push(encodeTextInfo(INFO_NAME, utf8.encode(entry.name)));
    if (infoTypes.has(INFO_DESCRIPTION) && entry.description !== undefined) {
      infos.push(encodeTextInfo(INFO_DESCRIPTION, utf8.encode(entry.description)));
    }
    // Sent unasked too: a client that did not ask may ignore it, and many are glad to know.
    infos.push(encodeBlockSizes(exportBlockSizes(entry)));
    const messages = infos.map((info) => encodeOptionReply(option, REP_INFO, info));
    messages.push(encodeOptionReply(option, REP_ACK, NOTHING));
    return messages;
  }

  /** The one option without a reply header: whatever is wrong, all there is to say is goodbye. */
  #exportName(data: Uint8Array): void {
    const entry = this.#findByName(data);
    if (entry === undefined || this.#connection.host.isShuttingDown || this.#isExtended) {
      this.isOver = true;
      this.#connection.violation('NBD_OPT_EXPORT_NAME for an export that is not there, or with extended headers');
      return;
    }
    const info = exportInfo(entry, this.#negotiation);
    const padding = this.noZeroes ? 0 : EXPORT_NAME_PADDING_BYTE_LENGTH;
    const message = new Uint8Array(EXPORT_NAME_REPLY_BYTE_LENGTH + padding);
    const view = new DataView(message.buffer);
    setUint64(view, 0, info.byteLength);
    view.setUint16(8, info.transmissionFlags);
    this.send([message]);
    this.#connection.enterTransmission(entry, this.#negotiation);
  }

  get #isExtended(): boolean {
    return this.#negotiation.replyKind === EXTENDED_HEADERS;
  }

  #findByName(data: Uint8Array): NbdExport | undefined {
    try {
      return this.#connection.host.exports.find(decodeString(data, 'the export name'));
    } catch (error) {
      if (error instanceof MalformedError) return undefined;
      throw error;
    }
  }
}
