// What a client negotiates before it names its export: structured replies, extended headers, meta contexts ("Structured
// replies", "Metadata querying", "Extended headers"). All of it is forgotten when TLS begins.
import {
  OPT_EXTENDED_HEADERS,
  OPT_LIST_META_CONTEXT,
  OPT_SET_META_CONTEXT,
  OPT_STRUCTURED_REPLY,
  REP_ACK,
  REP_ERR_EXT_HEADER_REQD,
  REP_ERR_INVALID,
  REP_ERR_UNKNOWN,
  REP_ERR_UNSUP,
  REP_META_CONTEXT,
} from '../protocol/constants.ts';
import { MalformedError } from '../protocol/info.ts';
import { decodeMetaContextRequest, encodeMetaContext } from '../protocol/meta-context.ts';
import { META_CONTEXTS } from './contexts.ts';
import type { ExportTable, NbdExport } from './exports.ts';

export const SIMPLE_REPLIES = 0;
export const STRUCTURED_REPLIES = 1;
export const EXTENDED_HEADERS = 2;

/** Adds one reply to the option. */
export type OptionReplier = (type: number, data: Uint8Array | string) => void;

const NOTHING = new Uint8Array(0);

/** Whether the data of `option` means something to {@link Negotiation}. */
export function negotiatesWithData(option: number): boolean {
  return option === OPT_LIST_META_CONTEXT || option === OPT_SET_META_CONTEXT;
}

export class Negotiation {
  readonly #allowsExtendedHeaders: boolean;
  #replyKind: number = SIMPLE_REPLIES;
  /** The export that contexts were selected for, and their numbers. */
  #contextsOf: NbdExport | null = null;
  #contextIds: readonly number[] = [];

  constructor(allowsExtendedHeaders: boolean) {
    this.#allowsExtendedHeaders = allowsExtendedHeaders;
  }

  /** SIMPLE_REPLIES, STRUCTURED_REPLIES or EXTENDED_HEADERS. */
  get replyKind(): number {
    return this.#replyKind;
  }

  get hasChunks(): boolean {
    return this.#replyKind !== SIMPLE_REPLIES;
  }

  /** What BLOCK_STATUS tells once this export is entered: contexts hold for the export they were set for. */
  contextIds(entry: NbdExport): readonly number[] {
    return this.#contextsOf === entry ? this.#contextIds : [];
  }

  /** Answers an option; false when it is none of these. */
  answer(
    option: number,
    byteLength: number,
    data: Uint8Array | null,
    exports: ExportTable,
    reply: OptionReplier,
  ): boolean {
    if (option === OPT_STRUCTURED_REPLY) this.#structuredReply(byteLength, reply);
    else if (option === OPT_EXTENDED_HEADERS) this.#extendedHeaders(byteLength, reply);
    else if (negotiatesWithData(option)) this.#metaContext(option, data ?? NOTHING, exports, reply);
    else return false;
    return true;
  }

  #structuredReply(byteLength: number, reply: OptionReplier): void {
    if (byteLength > 0) reply(REP_ERR_INVALID, 'NBD_OPT_STRUCTURED_REPLY has no data');
    else if (this.#replyKind === EXTENDED_HEADERS) reply(REP_ERR_EXT_HEADER_REQD, 'extended headers are agreed on');
    else {
      this.#replyKind = STRUCTURED_REPLIES;
      reply(REP_ACK, NOTHING);
    }
  }

  #extendedHeaders(byteLength: number, reply: OptionReplier): void {
    if (!this.#allowsExtendedHeaders) reply(REP_ERR_UNSUP, 'no extended headers here');
    else if (byteLength > 0) reply(REP_ERR_INVALID, 'NBD_OPT_EXTENDED_HEADERS has no data');
    else {
      this.#replyKind = EXTENDED_HEADERS;
      reply(REP_ACK, NOTHING);
    }
  }

  #metaContext(option: number, data: Uint8Array, exports: ExportTable, reply: OptionReplier): void {
    // Whatever comes of it, a SET takes back the one before.
    if (option === OPT_SET_META_CONTEXT) this.#contextsOf = null;
    if (!this.hasChunks) {
      reply(REP_ERR_INVALID, 'structured replies come first');
      return;
    }
    try {
      const { exportName, queries } = decodeMetaContextRequest(data);
      const entry = exports.find(exportName);
      if (entry === undefined) reply(REP_ERR_UNKNOWN, `there is no export named ${JSON.stringify(exportName)}`);
      else this.#selectContexts(option, entry, queries, reply);
    } catch (error) {
      if (!(error instanceof MalformedError)) throw error;
      reply(REP_ERR_INVALID, error.message);
    }
  }

  #selectContexts(option: number, entry: NbdExport, queries: readonly string[], reply: OptionReplier): void {
    const isList = option === OPT_LIST_META_CONTEXT;
    const ids: number[] = [];
    for (const { id, name, namespace } of META_CONTEXTS) {
      // A LIST without queries asks for everything, and `base:` for everything in it; a SET takes whole names alone.
      const asksAll = isList && (queries.length === 0 || queries.includes(namespace));
      if (!asksAll && !queries.includes(name)) continue;
      ids.push(id);
      reply(REP_META_CONTEXT, encodeMetaContext({ id: isList ? 0 : id, name }));
    }
    if (!isList) {
      this.#contextsOf = entry;
      this.#contextIds = ids;
    }
    reply(REP_ACK, NOTHING);
  }
}
