// The control socket's bytes: cut anywhere, broken in any way.
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { Errno } from '../../src/block/errno.ts';
import { DmError, TableError } from '../../src/block/errors.ts';
import { checkMessage } from '../../src/daemon/check.ts';
import { decodeError, encodeError, encodeMessage, MessageDecoder, ProtocolError } from '../../src/daemon/protocol.ts';

function frame(text: string): Buffer {
  const length = Buffer.alloc(4);
  length.writeUInt32BE(Buffer.byteLength(text));
  return Buffer.concat([length, Buffer.from(text)]);
}

describe('messages', () => {
  test('arrive whole, however they are cut', () => {
    fc.assert(
      fc.property(fc.array(fc.json(), { maxLength: 5 }), fc.array(fc.integer({ min: 1, max: 40 })), (texts, cuts) => {
        const messages = texts.map((text) => JSON.parse(text) as unknown);
        let bytes: Buffer = Buffer.concat(messages.flatMap((message) => encodeMessage(message)));
        const decoder = new MessageDecoder();
        const got: unknown[] = [];
        for (const cut of cuts) {
          got.push(...decoder.push(bytes.subarray(0, cut)));
          bytes = bytes.subarray(cut);
        }
        got.push(...decoder.push(bytes));
        expect(JSON.stringify(got)).toEqual(JSON.stringify(messages));
      }),
    );
  });

  test('that are too long are refused before they are there', () => {
    const decoder = new MessageDecoder(100);
    expect(decoder.push(frame(JSON.stringify('x'.repeat(98))))).toHaveLength(1);
    expect(() => decoder.push(Buffer.from([0, 0, 0, 101]))).toThrow(ProtocolError);
    expect(() => new MessageDecoder().push(Buffer.from([255, 255, 255, 255]))).toThrow(/at most/);
  });

  test.each(['', '{', 'undefined', `${'['.repeat(200_000)}`])('that are no JSON are refused', (text) => {
    expect(() => new MessageDecoder().push(frame(text))).toThrow(ProtocolError);
  });

  test('of random bytes do nothing worse than be refused', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 64 }), (bytes) => {
        try {
          for (const message of new MessageDecoder(1000).push(bytes)) checkMessage(message);
        } catch (error) {
          expect(error).toBeInstanceOf(ProtocolError);
        }
      }),
    );
  });
});

describe('requests', () => {
  const device = { name: 'd' };

  test.each([
    { id: 1, name: 'list', args: {} },
    { id: 1, name: 'info', args: { device: { uuid: 'u' } } },
    { id: 1, name: 'info', args: { device: { major: 253, minor: 0 }, inactive: true } },
    { id: 1, name: 'load', args: { device, table: [{ sector: 0, sectorCount: 8, type: 'zero', params: '' }] } },
    { id: 1, name: 'setReadAhead', args: { device, sectorCount: null } },
    { cancel: 3 },
  ])('%j is one', (message) => {
    expect(checkMessage(message)).toEqual(message);
  });

  test.each([
    null,
    [],
    'list',
    {},
    { id: 1, name: 'list' },
    { id: -1, name: 'list', args: {} },
    { id: 'x', name: 'list', args: {} },
    { id: 1, name: 'constructor', args: {} },
    { id: 1, name: '__proto__', args: {} },
    { id: 1, name: 'info', args: {} },
    { id: 1, name: 'info', args: { device: {} } },
    { id: 1, name: 'info', args: { device: { major: 1 } } },
    { id: 1, name: 'info', args: { device, inactive: 1 } },
    { id: 1, name: 'load', args: { device, table: '0 8 zero' } },
    { id: 1, name: 'load', args: { device, table: [{ sector: -1, sectorCount: 8, type: 'zero', params: '' }] } },
    { id: 1, name: 'load', args: { device, table: [null] } },
    { id: 1, name: 'create', args: { name: 1 } },
    { id: 1, name: 'table', args: { device, type: 'bogus' } },
  ])('%j is none', (message) => {
    expect(() => checkMessage(message)).toThrow(ProtocolError);
  });

  test('of random shape do nothing worse than be refused', () => {
    fc.assert(
      fc.property(fc.anything(), (message) => {
        try {
          checkMessage(message);
        } catch (error) {
          expect(error).toBeInstanceOf(ProtocolError);
        }
      }),
    );
  });
});

describe('errors', () => {
  test('are the same on the other side, causes and all', () => {
    const cause = new Error('a.img does not exist');
    const table = new TableError(Errno.ENODEV, 'linear: Device lookup failed (-ENODEV)', 2);
    table.cause = cause;
    const got = decodeError(JSON.parse(JSON.stringify(encodeError(table)))) as TableError;
    expect(got).toBeInstanceOf(TableError);
    expect(got).toMatchObject({
      errno: 19,
      code: 'ENODEV',
      reason: table.reason,
      lineIndex: 2,
      message: table.message,
    });
    expect((got.cause as Error).message).toBe(cause.message);
  });

  test('of dmkit’s own keep their code; others say that the daemon failed', () => {
    const own = decodeError(encodeError(new DmError(0, 'no', 'DM_X'))) as DmError;
    expect([own.code, own.errno, own.message]).toEqual(['DM_X', 0, 'no']);
    expect(decodeError(encodeError(new Error('a bug'))).message).toBe('the daemon failed: a bug');
    expect(decodeError(encodeError('text')).message).toMatch(/text/);
  });
});
