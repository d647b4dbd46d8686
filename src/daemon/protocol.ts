// The bytes of the control socket: each message is its length in four bytes, big-endian, and then JSON.
//
//   server, once   { "dmkit": { "protocol": 1, "version": "0.1.0" } }
//   client         { "id": 1, "name": "info", "args": { "device": { "name": "disk" } } }   or   { "cancel": 1 }
//   server         { "id": 1, "reply": … }   or   { "id": 1, "error": { … } }
import { DmError, TableError } from '../block/errors.ts';
import { MAX_MESSAGE_BYTE_LENGTH } from './bounds.ts';

/** Goes up when a client and a daemon of different versions would not understand each other. */
export const PROTOCOL_VERSION = 1;

const LENGTH_BYTE_LENGTH = 4;

export interface Greeting {
  protocol: number;
  version: string;
}

/** The peer sent what is no message. */
export class ProtocolError extends Error {}

/** One message as bytes. */
export function encodeMessage(message: unknown): Uint8Array[] {
  const body = Buffer.from(JSON.stringify(message));
  const length = Buffer.alloc(LENGTH_BYTE_LENGTH);
  length.writeUInt32BE(body.byteLength);
  return [length, body];
}

/** Bytes to messages, however they were cut on their way. */
export class MessageDecoder {
  readonly #maxByteLength: number;
  #chunks: Uint8Array[] = [];
  #byteLength = 0;
  #needed = LENGTH_BYTE_LENGTH;
  #inBody = false;

  constructor(maxByteLength: number = MAX_MESSAGE_BYTE_LENGTH) {
    this.#maxByteLength = maxByteLength;
  }

  /** @throws ProtocolError for a message that is too long or no JSON: the connection is of no use any more */
  push(chunk: Uint8Array): unknown[] {
    const messages: unknown[] = [];
    this.#chunks.push(chunk);
    this.#byteLength += chunk.byteLength;
    while (this.#byteLength >= this.#needed) {
      const bytes = this.#take(this.#needed);
      if (this.#inBody) {
        messages.push(parse(bytes));
        this.#expect(LENGTH_BYTE_LENGTH, false);
      } else this.#expect(this.#checkedLength(bytes.readUInt32BE()), true);
    }
    return messages;
  }

  #expect(byteLength: number, inBody: boolean): void {
    this.#needed = byteLength;
    this.#inBody = inBody;
  }

  #checkedLength(byteLength: number): number {
    if (byteLength > this.#maxByteLength) {
      throw new ProtocolError(`a message of ${byteLength} bytes; at most ${this.#maxByteLength} are taken`);
    }
    return byteLength;
  }

  #take(byteLength: number): Buffer {
    // Put together once, when all of it is there.
    const all = this.#chunks.length === 1 ? Buffer.from(this.#chunks[0]!) : Buffer.concat(this.#chunks);
    const rest = all.subarray(byteLength);
    this.#chunks = rest.byteLength === 0 ? [] : [rest];
    this.#byteLength = rest.byteLength;
    return all.subarray(0, byteLength);
  }
}

function parse(bytes: Buffer): unknown {
  try {
    return JSON.parse(bytes.toString());
  } catch (error) {
    // A SyntaxError, or a RangeError for nesting beyond all measure.
    throw new ProtocolError(`a message that is no JSON: ${(error as Error).message}`);
  }
}

/** An exception on its way. */
export interface WireError {
  kind: 'DmError' | 'TableError' | 'Error';
  errno: number;
  code: string;
  message: string;
  reason?: string;
  lineIndex?: number;
  causes: string[];
}

export function encodeError(error: unknown): WireError {
  const causes: string[] = [];
  for (let cause = (error as Error).cause; cause instanceof Error; cause = cause.cause) causes.push(cause.message);
  const message = error instanceof Error ? error.message : String(error);
  if (!(error instanceof DmError)) return { kind: 'Error', errno: 0, code: '', message, causes };
  const { errno, code } = error;
  if (!(error instanceof TableError)) return { kind: 'DmError', errno, code, message, causes };
  return { kind: 'TableError', errno, code, message, reason: error.reason, lineIndex: error.lineIndex, causes };
}

/** The same exception again, causes and all. */
export function decodeError(wire: WireError): Error {
  const { errno, message, code } = wire;
  let error: Error;
  if (wire.kind === 'TableError') error = new TableError(errno, wire.reason ?? message, wire.lineIndex ?? -1);
  else if (wire.kind === 'DmError') error = new DmError(errno, message, code);
  else error = new Error(`the daemon failed: ${message}`);
  let at = error;
  for (const text of wire.causes) {
    at.cause = new Error(text);
    at = at.cause as Error;
  }
  return error;
}
