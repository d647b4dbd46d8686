// The data of GO and INFO, and of their replies ("NBD_OPT_INFO and NBD_OPT_GO", "NBD_INFO information types"), and of
// LIST's. Everything here comes from or goes to a peer that may be hostile: every length is compared, as a Number,
// with what is there before anything is made of it.
import { isOddName } from '../../block/file-name.ts';
import { INFO_BLOCK_SIZE, INFO_EXPORT, MAX_STRING_BYTE_LENGTH } from './constants.ts';
import { getUint64, setUint64 } from './wire.ts';

const strictUtf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
const utf8 = new TextEncoder();

/** What is wrong with a message, in words for its sender. */
export class MalformedError extends Error {
  override readonly name = 'MalformedError';
}

/** A string of the protocol: UTF-8, no NUL, at most 4096 bytes. @throws MalformedError */
export function decodeString(bytes: Uint8Array, what: string): string {
  if (bytes.byteLength > MAX_STRING_BYTE_LENGTH) throw new MalformedError(`${what} is longer than 4096 bytes`);
  if (bytes.includes(0)) throw new MalformedError(`${what} has a NUL byte`);
  try {
    return strictUtf8.decode(bytes);
  } catch {
    throw new MalformedError(`${what} is not UTF-8`);
  }
}

/** @throws MalformedError for a string that the protocol can't carry */
export function encodeString(text: string, what: string): Uint8Array {
  if (isOddName(text)) throw new MalformedError(`${what} is not UTF-8`);
  const bytes = utf8.encode(text);
  if (bytes.byteLength > MAX_STRING_BYTE_LENGTH) throw new MalformedError(`${what} is longer than 4096 bytes`);
  if (bytes.includes(0)) throw new MalformedError(`${what} has a NUL byte`);
  return bytes;
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** What a client asks with GO or INFO: an export (`''` for the default one) and the kinds of information it wants. */
export interface GoRequest {
  exportName: string;
  infoTypes: Set<number>;
}

/** @throws MalformedError when lengths or count don't fit the data */
export function decodeGoRequest(data: Uint8Array): GoRequest {
  if (data.byteLength < 6) throw new MalformedError('the option is shorter than 6 bytes');
  const view = viewOf(data);
  const nameByteLength = view.getUint32(0);
  if (nameByteLength > data.byteLength - 6) throw new MalformedError('the name is longer than the option');
  const exportName = decodeString(data.subarray(4, 4 + nameByteLength), 'the export name');
  const count = view.getUint16(4 + nameByteLength);
  if (data.byteLength !== 6 + nameByteLength + 2 * count) {
    throw new MalformedError('the number of information requests does not fit the option');
  }
  const infoTypes = new Set<number>();
  for (let i = 0; i < count; i++) infoTypes.add(view.getUint16(6 + nameByteLength + 2 * i));
  return { exportName, infoTypes };
}

/** @throws MalformedError for a name that the protocol can't carry */
export function encodeGoRequest(exportName: string, infoTypes: readonly number[]): Uint8Array {
  const name = encodeString(exportName, 'the export name');
  const data = new Uint8Array(6 + name.byteLength + 2 * infoTypes.length);
  const view = viewOf(data);
  view.setUint32(0, name.byteLength);
  data.set(name, 4);
  view.setUint16(4 + name.byteLength, infoTypes.length);
  for (let i = 0; i < infoTypes.length; i++) view.setUint16(6 + name.byteLength + 2 * i, infoTypes[i]!);
  return data;
}

/** Bytes of an export and its transmission flags. */
export interface ExportInfo {
  byteLength: number;
  transmissionFlags: number;
}

export function encodeExportInfo(info: ExportInfo): Uint8Array {
  const data = new Uint8Array(12);
  const view = viewOf(data);
  view.setUint16(0, INFO_EXPORT);
  setUint64(view, 2, info.byteLength);
  view.setUint16(10, info.transmissionFlags);
  return data;
}

/** @throws MalformedError */
export function decodeExportInfo(data: Uint8Array): ExportInfo {
  if (data.byteLength !== 12) throw new MalformedError('an NBD_INFO_EXPORT reply has 12 bytes');
  const view = viewOf(data);
  return { byteLength: getUint64(view, 2), transmissionFlags: view.getUint16(10) };
}

/** "Block size constraints", in bytes. */
export interface BlockSizes {
  minimum: number;
  preferred: number;
  maximumPayload: number;
}

export function encodeBlockSizes(sizes: BlockSizes): Uint8Array {
  const data = new Uint8Array(14);
  const view = viewOf(data);
  view.setUint16(0, INFO_BLOCK_SIZE);
  view.setUint32(2, sizes.minimum);
  view.setUint32(6, sizes.preferred);
  view.setUint32(10, sizes.maximumPayload);
  return data;
}

function isPowerOfTwo(value: number): boolean {
  return value > 0 && (value & (value - 1)) === 0;
}

/** @throws MalformedError also for sizes that break the specification's rules */
export function decodeBlockSizes(data: Uint8Array): BlockSizes {
  if (data.byteLength !== 14) throw new MalformedError('an NBD_INFO_BLOCK_SIZE reply has 14 bytes');
  const view = viewOf(data);
  const minimum = view.getUint32(2);
  const preferred = view.getUint32(6);
  const maximumPayload = view.getUint32(10);
  if (!isPowerOfTwo(minimum) || minimum > 65536) throw new MalformedError(`a minimum block size of ${minimum}`);
  if (!isPowerOfTwo(preferred) || preferred < minimum)
    throw new MalformedError(`a preferred block size of ${preferred}`);
  if (maximumPayload < preferred) throw new MalformedError(`a maximum payload of ${maximumPayload} bytes`);
  return { minimum, preferred, maximumPayload };
}

/** NBD_INFO_NAME and NBD_INFO_DESCRIPTION: the type, then the text. */
export function encodeTextInfo(type: number, text: Uint8Array): Uint8Array {
  const data = new Uint8Array(2 + text.byteLength);
  viewOf(data).setUint16(0, type);
  data.set(text, 2);
  return data;
}

/** One line of LIST. */
export interface ExportDescription {
  name: string;
  description: string;
}

export function encodeServerReply(name: Uint8Array, description: Uint8Array): Uint8Array {
  const data = new Uint8Array(4 + name.byteLength + description.byteLength);
  viewOf(data).setUint32(0, name.byteLength);
  data.set(name, 4);
  data.set(description, 4 + name.byteLength);
  return data;
}

/** @throws MalformedError */
export function decodeServerReply(data: Uint8Array): ExportDescription {
  if (data.byteLength < 4) throw new MalformedError('an NBD_REP_SERVER reply has at least 4 bytes');
  const nameByteLength = viewOf(data).getUint32(0);
  if (nameByteLength > data.byteLength - 4) throw new MalformedError('the name is longer than the reply');
  return {
    name: decodeString(data.subarray(4, 4 + nameByteLength), 'the export name'),
    description: decodeString(data.subarray(4 + nameByteLength), 'the description'),
  };
}
