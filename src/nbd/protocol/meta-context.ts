// The data of LIST_META_CONTEXT and SET_META_CONTEXT, and of their replies ("Metadata querying").
import { MAX_STRING_BYTE_LENGTH } from './constants.ts';
import { decodeString, encodeString, MalformedError } from './info.ts';

/** An export, and what a client wants to know about it: names of contexts, or of whole name spaces. */
export interface MetaContextRequest {
  exportName: string;
  queries: string[];
}

/** Reads strings with their lengths before them; every length is compared with what is there first. */
class Reader {
  readonly #data: Uint8Array;
  readonly #view: DataView;
  #at = 0;

  constructor(data: Uint8Array) {
    this.#data = data;
    this.#view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  }

  get left(): number {
    return this.#data.byteLength - this.#at;
  }

  uint32(what: string): number {
    if (this.left < 4) throw new MalformedError(`the option ends before ${what}`);
    const value = this.#view.getUint32(this.#at);
    this.#at += 4;
    return value;
  }

  string(what: string): string {
    const byteLength = this.uint32(`the length of ${what}`);
    if (byteLength > this.left) throw new MalformedError(`${what} is longer than the option`);
    const start = this.#at;
    this.#at += byteLength;
    return decodeString(this.#data.subarray(start, this.#at), what);
  }
}

/** @throws MalformedError when lengths or counts don't fit the data */
export function decodeMetaContextRequest(data: Uint8Array): MetaContextRequest {
  const reader = new Reader(data);
  const exportName = reader.string('the export name');
  const count = reader.uint32('the number of queries');
  // Each query has four bytes of length at least: a count that can't be true costs nothing.
  if (count > reader.left / 4) throw new MalformedError('more queries than the option has room for');
  const queries: string[] = [];
  for (let i = 0; i < count; i++) queries.push(reader.string('a query'));
  if (reader.left > 0) throw new MalformedError('bytes after the last query');
  return { exportName, queries };
}

/** @throws MalformedError for names that the protocol can't carry */
export function encodeMetaContextRequest({ exportName, queries }: MetaContextRequest): Uint8Array {
  const name = encodeString(exportName, 'the export name');
  const encoded = queries.map((query) => encodeString(query, 'a query'));
  const byteLength = encoded.reduce((sum, query) => sum + 4 + query.byteLength, 8 + name.byteLength);
  const data = new Uint8Array(byteLength);
  const view = new DataView(data.buffer);
  view.setUint32(0, name.byteLength);
  data.set(name, 4);
  let at = 4 + name.byteLength;
  view.setUint32(at, queries.length);
  at += 4;
  for (const query of encoded) {
    view.setUint32(at, query.byteLength);
    data.set(query, at + 4);
    at += 4 + query.byteLength;
  }
  return data;
}

/** A context and the number that stands for it in replies. */
export interface MetaContext {
  id: number;
  name: string;
}

export function encodeMetaContext({ id, name }: MetaContext): Uint8Array {
  const text = encodeString(name, 'the context');
  const data = new Uint8Array(4 + text.byteLength);
  new DataView(data.buffer).setUint32(0, id);
  data.set(text, 4);
  return data;
}

/** @throws MalformedError */
export function decodeMetaContext(data: Uint8Array): MetaContext {
  if (data.byteLength < 4 || data.byteLength > 4 + MAX_STRING_BYTE_LENGTH) {
    throw new MalformedError(`a context of ${data.byteLength} bytes`);
  }
  const id = new DataView(data.buffer, data.byteOffset, data.byteLength).getUint32(0);
  return { id, name: decodeString(data.subarray(4), 'the context') };
}
