// The control socket's bytes: cut anywhere, broken in any way.
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { Errno } from '../../src/block/errno.ts';
import { DmError, TableError } from '../../src/block/errors.ts';
import { decodeName } from '../../src/block/file-name.ts';
import { REQUESTS, type RequestName } from '../../src/control/requests.ts';
import { type Fields, isFields, objection } from '../../src/control/schema.ts';
import {
  attachTables,
  decodeError,
  decodeLines,
  detachTables,
  encodeError,
  encodeLines,
  encodeMessage,
  MessageDecoder,
  ProtocolError,
} from '../../src/control/wire.ts';
import { formatTable } from '../../src/table/text.ts';

/** The decoder of a daemon. */
const decoderOf = (maxByteLength = 1000): MessageDecoder => new MessageDecoder({ maxByteLength, maxDepth: 16 });

function frame(text: string): Buffer {
  const length = Buffer.alloc(4);
  length.writeUInt32BE(Buffer.byteLength(text));
  return Buffer.concat([length, Buffer.from(text)]);
}

describe('messages', () => {
  test('arrive whole, however they are cut', () => {
    fc.assert(
      fc.property(
        fc.array(fc.dictionary(fc.constantFrom('a', 'b'), fc.jsonValue()), { maxLength: 5 }),
        fc.array(fc.integer({ min: 1, max: 40 })),
        (texts, cuts) => {
          const messages = texts.map((text) => JSON.parse(JSON.stringify(text)) as object);
          let bytes: Buffer = Buffer.concat(messages.flatMap((message) => encodeMessage(message)));
          const decoder = new MessageDecoder();
          const got: unknown[] = [];
          for (const cut of cuts) {
            got.push(...decoder.push(bytes.subarray(0, cut)));
            bytes = bytes.subarray(cut);
          }
          got.push(...decoder.push(bytes));
          expect(JSON.stringify(got)).toEqual(JSON.stringify(messages.map((json) => ({ json, texts: [] }))));
        },
      ),
    );
  });

  test('carry tables behind them, however they are cut', () => {
    fc.assert(
      fc.property(fc.string(), fc.integer({ min: 1, max: 40 }), (text, cut) => {
        const bytes = Buffer.concat(
          encodeMessage({ id: 1 }, [[Buffer.from(text), Buffer.from('x')], [Buffer.from('é')]]),
        );
        const decoder = decoderOf();
        const got = [];
        for (let at = 0; at < bytes.byteLength; at += cut) got.push(...decoder.push(bytes.subarray(at, at + cut)));
        const whole = Buffer.from(`${text}x`).toString();
        expect(got.map(({ texts }) => texts)).toEqual([[whole, 'é']]);
      }),
    );
  });

  test('carry long tables in pieces, which say what the bytes in one say, however they are cut', () => {
    const text = fc.oneof(fc.uint8Array({ maxLength: 40 }), fc.string({ unit: 'grapheme' }).map(Buffer.from));
    fc.assert(
      fc.property(fc.array(text, { minLength: 1, maxLength: 4 }), fc.integer({ min: 1, max: 9 }), (texts, cut) => {
        const messages = [
          encodeMessage(
            { id: 1 },
            texts.map((one) => [one]),
          ),
          encodeMessage({ id: 2 }),
        ];
        const bytes = Buffer.concat(messages.flat());
        const decoder = new MessageDecoder({ maxByteLength: 1000, longTextByteLength: 0 });
        const got = [];
        for (let at = 0; at < bytes.byteLength; at += cut) got.push(...decoder.push(bytes.subarray(at, at + cut)));
        expect(got.map((one) => (one.json as { id: number }).id)).toEqual([1, 2]);
        expect(got[0]!.texts.map(String)).toEqual(texts.map(decodeName));
        expect(decoder.isInLongText).toBe(false);
      }),
    );
  });

  test('that are too long are refused before they are there', () => {
    expect([...decoderOf(100).push(frame(JSON.stringify('x'.repeat(98))))]).toHaveLength(1);
    expect(() => [...decoderOf(100).push(Buffer.from([0, 0, 0, 101]))]).toThrow(ProtocolError);
    expect(() => [...new MessageDecoder().push(Buffer.from([255, 255, 255, 255]))]).toThrow(/at most/);
    expect(() => [...decoderOf().push(frame('{"texts":[1000000000]}'))]).toThrow(/at most/);
  });

  test.each(['', '{', 'undefined', '{"texts":[-1]}', '{"texts":[1.5]}', '{"texts":{}}'])(
    '%j is none and is refused',
    (text) => {
      expect(() => [...decoderOf().push(frame(text))]).toThrow(ProtocolError);
    },
  );

  test('of braces inside braces are refused before they are parsed', () => {
    const depths = (text: string) => [...decoderOf(1 << 20).push(frame(text))];
    expect(() => depths('['.repeat(1 << 20))).toThrow(/more than 16 braces/);
    expect(() => depths(`${'['.repeat(17)}${']'.repeat(17)}`)).toThrow(/more than 16 braces/);
    expect(depths(`${'['.repeat(16)}${']'.repeat(16)}`)).toHaveLength(1);
    // Braces in texts are none.
    expect(depths(JSON.stringify(`${'['.repeat(40)}"\\`))).toHaveLength(1);
  });

  test('of random bytes do nothing worse than be refused', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 64 }), (bytes) => {
        try {
          for (const { json, texts } of decoderOf().push(bytes)) if (isFields(json)) attachTables(json, texts);
        } catch (error) {
          expect(error).toBeInstanceOf(ProtocolError);
        }
      }),
    );
  });
});

describe('requests', () => {
  const device = { name: 'd' };
  const problem = (name: RequestName, args: Fields) => objection(REQUESTS[name].args, args);

  test.each([
    ['list', {}],
    ['info', { device: { uuid: 'u' } }],
    ['info', { device: { major: 253, minor: 0 }, inactive: true }],
    ['load', { device, table: [{ sector: 0, sectorCount: 8, type: 'zero', params: '' }] }],
    ['load', { device, table: '0 8 zero' }],
    ['load', { device, table: [{ sector: 0, sectorCount: 2 ** 64, type: 'zero', params: '' }] }],
    ['setReadAhead', { device, sectorCount: null }],
    ['overlayCreate', { overlays: [{ origin: 'a', name: 'b', folder: '/' }] }],
    ['batch', { steps: [{ name: 'create', args: { name: 'x' } }] }],
  ] as const)('%s %j is one', (name, args) => {
    expect(problem(name, args)).toBeNull();
  });

  test.each([
    ['info', {}],
    ['info', { device: {} }],
    ['info', { device: { major: 1 } }],
    ['info', { device: { major: 1.5, minor: 0 } }],
    ['info', { device, inactive: 1 }],
    ['info', { device, other: 1 }],
    ['load', { device, table: 8 }],
    ['load', { device, table: [{ sector: -1, sectorCount: 8, type: 'zero', params: '' }] }],
    ['load', { device, table: [{ sector: 0, sectorCount: 8.5, type: 'zero', params: '' }] }],
    ['load', { device, table: [null] }],
    ['create', { name: 1 }],
    ['wait', { device, eventNumber: null }],
    ['wait', { device, eventNumber: Number.POSITIVE_INFINITY }],
    ['table', { device, type: 'bogus' }],
    ['batch', { steps: [{ name: 'shutdown', args: {} }] }],
    ['overlayCreate', { overlays: [{ origin: 'a', name: 'b' }] }],
  ] as const)('%s %j is none', (name, args) => {
    expect(problem(name, args)).toEqual(expect.any(String));
  });

  test('of random shape do nothing worse than be refused', () => {
    fc.assert(
      fc.property(fc.constantFrom(...(Object.keys(REQUESTS) as RequestName[])), fc.object(), (name, args) => {
        const said = problem(name, args as Fields);
        expect(said === null || typeof said === 'string').toBe(true);
      }),
    );
  });

  test('send their tables as text, and get them back', () => {
    const table = [{ sector: 0, sectorCount: 8, type: 'linear', params: 'a\\ b.img 0' }];
    for (const args of [
      { device, table },
      {
        steps: [
          { name: 'load', args: { device, table } },
          { name: 'x', args: {} },
        ],
      },
    ]) {
      const { args: sent, texts } = detachTables(args);
      expect(JSON.stringify(sent)).not.toMatch(/linear/);
      const got = attachTables(
        sent as Fields,
        texts.map((pieces) => Buffer.concat(pieces).toString()),
      );
      expect(JSON.stringify(got)).toBe(
        JSON.stringify(args).replaceAll(JSON.stringify(table), JSON.stringify(formatTable(table))),
      );
    }
    const torn = [{ sector: 0, sectorCount: 8, type: 'zero', params: 'x\n8 8 error' }];
    expect(() => detachTables({ table: torn })).toThrow(/is no line of a table/);
    expect(() => attachTables({ table: { text: 1 } }, ['x'])).toThrow(ProtocolError);
  });

  test('are answered with long tables as text, the same lines', async () => {
    const lines = Array.from({ length: 5000 }, (_, index) => ({
      sector: index,
      sectorCount: 1,
      type: 'zero',
      params: index % 2 ? '' : 'a  b',
    }));
    expect(decodeLines(Buffer.concat((await encodeLines(lines))!).toString())).toEqual(lines);
    expect(await encodeLines(lines.slice(0, 10))).toBeNull();
    expect(await encodeLines(lines.map((line) => ({ ...line, params: 'a\nb' })))).toBeNull();
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
