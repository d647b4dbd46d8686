// NBD URIs: what is read, what is written, what is refused.
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { formatNbdUri, type NbdUri, parseNbdUri } from '../../src/nbd/protocol/uri.ts';

describe('parseNbdUri', () => {
  it.each([
    ['nbd://example.org', { host: 'example.org', port: 10809, exportName: '' }],
    ['nbd://example.org:1234/disk', { host: 'example.org', port: 1234, exportName: 'disk' }],
    ['nbd://[::1]:1234//disk', { host: '::1', port: 1234, exportName: '/disk' }],
    ['nbd:///disk', { host: 'localhost', port: 10809, exportName: 'disk' }],
    ['nbds://alice@h/a%20b%2Fc', { tls: true, user: 'alice', host: 'h', port: 10809, exportName: 'a b/c' }],
    ['nbd+unix:///?socket=/run/x.sock', { socket: '/run/x.sock', exportName: '' }],
    ['nbd+unix:///disk?socket=%2Frun%2Fa%20b', { socket: '/run/a b', exportName: 'disk' }],
    ['nbd+unix:///?socket=%00/name', { socket: '\0/name', exportName: '' }],
    [
      'nbds+unix:///?socket=s&tls-type=psk',
      { tls: true, socket: 's', exportName: '', parameters: new Map([['tls-type', 'psk']]) },
    ],
  ] as [string, NbdUri][])('reads %s', (text, uri) => expect(parseNbdUri(text)).toEqual(uri));

  it.each([
    '',
    'disk',
    'http://example.org/',
    'nbd:example.org',
    'nbd://a b/',
    'nbd://h:0/',
    'nbd://h:65536/',
    'nbd://h:12x/',
    'nbd://h/%zz',
    'nbd://h/%00',
    'nbd://h/%ff',
    'nbd://[::1/',
    'nbd://h/?socket=/x',
    'nbd+unix:///disk',
    'nbd+unix:///disk?socket=',
    'nbd+unix://host/disk?socket=/x',
    'nbd+unix:///?socket=/x&socket=/y',
    `nbd://h/${'x'.repeat(4097)}`,
  ])('refuses %j', (text) => expect(() => parseNbdUri(text)).toThrow(/URI|export name/));
});

describe('formatNbdUri', () => {
  it('writes what people write', () => {
    expect(formatNbdUri({ socket: '/run/a b.sock', exportName: 'disk' })).toBe(
      'nbd+unix:///disk?socket=/run/a%20b.sock',
    );
    expect(formatNbdUri({ host: '::1', port: 5000, exportName: '/dev/x' })).toBe('nbd://[::1]:5000//dev/x');
  });

  it('writes what is read back the same', () => {
    const text = fc.string({ unit: 'grapheme', maxLength: 30 }).filter((s) => !s.includes('\0'));
    const place = fc.oneof(
      fc.record({ socket: text.filter((s) => s !== '') }),
      fc.record({ host: fc.constantFrom('::1', '127.0.0.1', 'a.example'), port: fc.integer({ min: 1, max: 65535 }) }),
    );
    fc.assert(
      fc.property(place, text, fc.option(text), fc.boolean(), (where, exportName, user, tls) => {
        const uri: NbdUri = { ...where, exportName };
        if (user !== null) uri.user = user;
        if (tls) uri.tls = true;
        expect(parseNbdUri(formatNbdUri(uri))).toEqual(uri);
      }),
    );
  });
});
