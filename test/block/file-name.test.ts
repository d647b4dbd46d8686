// Names that are not UTF-8 keep their bytes, whatever they pass through.
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { escapeArgument } from '../../src/block/escape.ts';
import { decodeName, encodeName, isOddName, NameDecoder, rawName } from '../../src/block/file-name.ts';
import { mangled, unmangled } from '../../src/block/mangling.ts';
import { formatNbdUri, parseNbdUri } from '../../src/nbd/protocol/uri.ts';
import { splitArguments } from '../../src/table/text.ts';
import '../support/seed.ts';

/** Bytes near what is UTF-8: whole characters, their halves, and anything. */
const bytes = fc
  .array(
    fc.oneof(
      fc.uint8Array({ maxLength: 4 }).map((array) => Buffer.from(array)),
      fc.string({ unit: 'binary', maxLength: 3 }).map((text) => Buffer.from(text)),
      fc.constantFrom('é', '日', '😀', ' ', '\\', '#', '\n', '%').map((text) => Buffer.from(text)),
      fc.constantFrom([0xed, 0xb2, 0x80], [0xc3], [0xf0, 0x9f], [0xff], [0xe9]).map((array) => Buffer.from(array)),
    ),
    { maxLength: 12 },
  )
  .map((parts) => Buffer.concat(parts));

test('any bytes come back, through JSON and structured clones too', () => {
  fc.assert(
    fc.property(bytes, (name) => {
      const text = decodeName(name);
      expect(encodeName(text).equals(name)).toBe(true);
      expect(encodeName(JSON.parse(JSON.stringify(text)) as string).equals(name)).toBe(true);
      expect(encodeName(structuredClone(text)).equals(name)).toBe(true);
    }),
  );
});

test('text that is UTF-8 is itself', () => {
  fc.assert(
    fc.property(fc.string({ unit: 'binary' }), (text) => {
      expect(decodeName(Buffer.from(text))).toBe(text);
      expect(rawName(text)).toBe(text);
      expect(isOddName(text)).toBe(false);
    }),
  );
});

test('pieces of names can be put together and cut like their bytes', () => {
  fc.assert(
    fc.property(bytes, bytes, (a, b) => {
      const joined = `${decodeName(a)}/${decodeName(b)}`;
      expect(encodeName(joined).equals(Buffer.concat([a, Buffer.from('/'), b]))).toBe(true);
    }),
  );
});

test('a name among a table’s words, in a URI and in dmsetup’s mangled form comes back', () => {
  fc.assert(
    fc.property(
      bytes.filter((name) => name.length > 0 && !name.includes(0) && !name.includes('\n')),
      (name) => {
        const text = decodeName(name);
        const [back, after] = splitArguments(`${escapeArgument(text)} 0`);
        expect([encodeName(back!), after]).toEqual([name, '0']);
        const uri = formatNbdUri({ socket: `/s/${text}`, exportName: 'd' });
        expect(uri).toMatch(/^[!-~]+$/);
        expect(encodeName(parseNbdUri(uri).socket!)).toEqual(Buffer.concat([Buffer.from('/s/'), name]));
        expect(encodeName(unmangled(mangled(text)))).toEqual(name);
      },
    ),
  );
});

test('bytes that come in chunks give the same text, wherever they are cut', () => {
  fc.assert(
    fc.property(bytes, fc.array(fc.nat(24), { maxLength: 6 }), (name, cuts) => {
      const decoder = new NameDecoder();
      let text = '';
      let from = 0;
      for (const cut of [...cuts, name.byteLength].sort((a, b) => a - b)) {
        text += decoder.write(name.subarray(from, cut));
        from = Math.max(from, Math.min(cut, name.byteLength));
      }
      expect(text + decoder.end()).toBe(decodeName(name));
    }),
  );
});
