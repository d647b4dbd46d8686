// A disk is an identity: what stays the same through moves and changes, and what does not through replacement.
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { describe, expect, it, onTestFinished } from 'vitest';
import { DmError } from '../../src/block/errors.ts';
import { birthOf } from '../../src/devices/file-mark.ts';
import type { FileIdentity, HostBlockIdentity, NbdIdentity } from '../../src/devices/identity.ts';
import {
  compareIdentities,
  DeviceRegistry,
  type DiskIdentity,
  describeIdentity,
  identifyPath,
  isWeak,
  MemoryDevice,
} from '../../src/devices/index.ts';
import { clock, FOLDERS, folderIn } from '../engine/harness.ts';
import { describePeer, itPeer } from '../support/peers.ts';
import { tempDir } from '../support/tmp.ts';

const text = (expected: DiskIdentity, found: DiskIdentity) => compareIdentities(expected, found)?.text ?? null;
const identify = (path: string) => identifyPath(path, '/') as FileIdentity;

function imageIn(folder: string, name = 'image', byteLength = 8192): string {
  const path = join(folder, name);
  fs.writeFileSync(path, Buffer.alloc(byteLength, 1));
  return path;
}

describe.each(FOLDERS)('the identity of an image file in %s', (_name, parent) => {
  it('is plain JSON, and survives it', () => {
    const identity = identify(imageIn(folderIn(parent)));
    expect(JSON.parse(JSON.stringify(identity))).toEqual(identity);
    expect(identity).toMatchObject({ kind: 'file', byteLength: 8192 });
    expect(identity.inode).toMatch(/^\d+$/);
    expect(isWeak(identity)).toBe(false);
  });

  it('stays through writes, chmod, touch, growth and a new name', () => {
    const folder = folderIn(parent);
    const path = imageIn(folder);
    const before = identify(path);
    const changes: [string, () => void][] = [
      ['write', () => fs.writeFileSync(path, Buffer.alloc(8192, 2), { flag: 'r+' })],
      ['chmod', () => fs.chmodSync(path, 0o600)],
      ['touch', () => fs.utimesSync(path, 1, 1)],
      ['truncate and write again', () => fs.writeFileSync(path, Buffer.alloc(8192, 3))],
      ['growth', () => fs.truncateSync(path, 16384)],
    ];
    for (const [name, change] of changes) {
      change();
      expect(text(before, identify(path)), name).toBeNull();
    }
    fs.linkSync(path, join(folder, 'hard'));
    fs.symlinkSync('hard', join(folder, 'soft'));
    fs.renameSync(path, join(folder, 'moved'));
    for (const name of ['hard', 'soft', 'moved']) {
      expect(text(before, identifyPath(name, folder)), name).toBeNull();
    }
  });

  it('is not that of a copy, nor of a file that was renamed over it, and the sentence names both', () => {
    const folder = folderIn(parent);
    const path = imageIn(folder);
    const before = identify(path);
    const copy = join(folder, 'copy');
    fs.copyFileSync(path, copy);
    expect(text(before, identify(copy))).toContain(`${copy} is another file now`);
    const { inode } = identify(copy);
    fs.renameSync(copy, path);
    const found = text(before, identify(path));
    expect(found).toMatch(new RegExp(`^${path} is another file now: inode ${inode}.* and inode ${before.inode}.* was`));
  });

  it('is not that of a file that got the same inode number later', async ({ skip }) => {
    const path = imageIn(folderIn(parent));
    const first = identify(path);
    if (first.birth === null) skip('this file system does not tell when a file was made');
    // The clock of file systems ticks every few milliseconds.
    await setTimeout(20);
    for (let round = 0; round < 200; round++) {
      fs.rmSync(path);
      imageIn(join(path, '..'));
      const now = identify(path);
      // With the inode's number alone they would be one.
      const reused = { ...now, inode: first.inode };
      expect(text(first, reused), `round ${round}`).toMatch(/is another file now: inode \d+ made .* was expected/);
      expect(text(first, now)).not.toBeNull();
    }
  });

  it('is not that of the file cut shorter', () => {
    const path = imageIn(folderIn(parent));
    const before = identify(path);
    fs.truncateSync(path, 4096);
    expect(text(before, identify(path))).toBe(`${path} is shorter now: 4096 bytes, and 8192 were expected`);
  });

  it('has a file system number that counts within one boot alone', () => {
    const now = identify(imageIn(folderIn(parent)));
    const elsewhere = { ...now, dev: String(BigInt(now.dev) + 1n) };
    expect(text(elsewhere, now)).toMatch(/another file now: on the file system \d+:\d+, and one on \d+:\d+ was/);
    expect(text({ ...elsewhere, bootId: 'another' }, now)).toBeNull();
    expect(text({ ...elsewhere, bootId: '' }, { ...now, bootId: '' })).toBeNull();
  });

  it('is told by the open descriptor, after the path has gone to another file', () => {
    const folder = folderIn(parent);
    const path = imageIn(folder);
    const before = identify(path);
    const registry = new DeviceRegistry({ reactor: clock });
    const device = registry.open(path, true);
    onTestFinished(() => registry.close(device, true));
    expect(registry.identity(device)).toEqual(before);
    fs.renameSync(imageIn(folder, 'next'), path);
    expect(registry.identity(device)).toEqual(before);
    expect(text(registry.identity(device)!, identify(path))).not.toBeNull();
  });
});

describe('when a file was made', () => {
  it('is not told by a zero, nor by a ctime in its place', () => {
    const times = (birthtimeNs: bigint, ctimeNs: bigint) => ({ birthtimeNs, ctimeNs });
    for (const isStatxThere of [true, false]) {
      expect(birthOf(times(0n, 5n), () => isStatxThere)).toBeNull();
      expect(birthOf(times(4n, 5n), () => isStatxThere)).toBe('4');
      expect(birthOf(times(5n, 5n), () => isStatxThere)).toBe(isStatxThere ? '5' : null);
    }
  });

  it('counts only where both sides know it', () => {
    const now = identify(imageIn(tempDir('identity')));
    expect(text({ ...now, birth: null }, now)).toBeNull();
    expect(text(now, { ...now, birth: null })).toBeNull();
  });

  itPeer(['root'], 'does not make a file on overlayfs another one when the first write copies it up', ({ skip }) => {
    const folder = tempDir('identity');
    for (const name of ['lower', 'upper', 'work', 'merged']) fs.mkdirSync(join(folder, name));
    imageIn(join(folder, 'lower'));
    const merged = join(folder, 'merged');
    const options = `lowerdir=${folder}/lower,upperdir=${folder}/upper,workdir=${folder}/work`;
    try {
      execFileSync('mount', ['-t', 'overlay', 'overlay', '-o', options, merged], { stdio: 'ignore' });
    } catch {
      skip('no overlayfs on this file system');
    }
    onTestFinished(() => void execFileSync('umount', [merged]));
    const path = join(merged, 'image');
    const before = identify(path);
    fs.chmodSync(path, 0o600);
    fs.writeFileSync(path, Buffer.alloc(8192, 2), { flag: 'r+' });
    expect(fs.existsSync(join(folder, 'upper', 'image'))).toBe(true);
    expect(text(before, identify(path))).toBeNull();
  });
});

describe('identities of different kinds', () => {
  const file: DiskIdentity = {
    kind: 'file',
    path: '/a.img',
    inode: '1',
    birth: '1767348000000000000',
    dev: '2',
    bootId: 'x',
    byteLength: 512,
  };
  const block: HostBlockIdentity = { kind: 'block', path: '/dev/sdz', number: '65:144', mark: null, byteLength: 512 };
  const nbd: NbdIdentity = { kind: 'nbd', uri: 'nbd://h/x', exportName: 'x', byteLength: 512 };
  const mapped: DiskIdentity = { kind: 'mapped', id: '7', name: 'a' };
  const program: DiskIdentity = { kind: 'program', name: 'a' };
  const all = [file, block, nbd, mapped, program];

  it('never match, and the sentence describes both', () => {
    for (const expected of all) {
      for (const found of all) {
        const answer = text(expected, found);
        if (expected === found) expect(answer).toBeNull();
        else expect(answer).toBe(`${describeIdentity(found)} is there, and ${describeIdentity(expected)} was expected`);
      }
    }
    expect(describeIdentity(file)).toBe('/a.img (inode 1 made 2026-01-02 10:00:00, 512 bytes)');
  });

  it('match for a mapped device by its id, whatever its name, and for a program by the name', () => {
    expect(text(mapped, { ...mapped, name: 'b' })).toBeNull();
    expect(text(mapped, { ...mapped, id: '8' })).toContain('was expected');
    expect(text(program, { ...program, name: 'b' })).toContain('was expected');
  });

  it('of exports go by name and size, and by the address where there is no name', () => {
    expect(text(nbd, { ...nbd, uri: 'nbd://10.0.0.1:10809/x', byteLength: 1024 })).toBeNull();
    expect(text(nbd, { ...nbd, byteLength: 0 })).toBeNull();
    expect(text(nbd, { ...nbd, byteLength: 511 })).toContain('is shorter now: 511 bytes');
    expect(text(nbd, { ...nbd, uri: 'nbd://h/y', exportName: 'y' })).toContain('the export y, and the export x');
    const unnamed = (uri: string): NbdIdentity => ({ ...nbd, uri, exportName: '' });
    expect(text(unnamed('nbd://h/'), unnamed('nbd://H:10809'))).toBeNull();
    expect(text(unnamed('nbd://h/'), unnamed('nbd://h2/'))).toContain('the export without a name');
    expect(text(unnamed('nbd+unix:///?socket=/a'), unnamed('nbd+unix:///?socket=/b'))).not.toBeNull();
  });

  it('of block devices go by the mark alone where there is one, by number and size where not', () => {
    expect([isWeak(block), isWeak({ ...block, mark: { type: 'serial', value: 's' } })]).toEqual([true, false]);
    expect(text(block, { ...block, path: '/dev/other' })).toBeNull();
    for (const other of [{ number: '65:145' }, { byteLength: 1024 }]) {
      expect(text(block, { ...block, ...other })).toContain('is another block device now');
    }
    const marked: HostBlockIdentity = { ...block, mark: { type: 'serial', value: 's' } };
    expect(text(marked, { ...marked, number: '8:0', path: '/dev/sda', byteLength: 1024 })).toBeNull();
    expect(text(marked, { ...marked, byteLength: 511 })).toContain('is shorter now');
    for (const mark of [null, { type: 'serial', value: 't' }, { type: 'wwid', value: 's' }] as const) {
      expect(text(marked, { ...marked, mark })).toContain('serial number s was expected');
    }
    expect(text(marked, { ...marked, mark: { type: 'serial', value: 's', partition: '1' } })).not.toBeNull();
  });

  it('are null for a device of no registry, and a name for one of the program', () => {
    const registry = new DeviceRegistry({ reactor: clock });
    const memory = new MemoryDevice('m', 8);
    expect(registry.identity(memory)).toBeNull();
    registry.register('scratch', memory);
    expect(registry.identity(memory)).toEqual({ kind: 'program', name: 'scratch' });
  });

  it('are not made for paths that a table could not name', () => {
    const folder = tempDir('identity');
    for (const [argument, code] of [
      ['missing', 'ENODEV'],
      ['.', 'ENODEV'],
      ['', 'ENODEV'],
      ['4000:77', 'ENXIO'],
      ['nbd://h:port/x', 'EINVAL'],
    ] as const) {
      let error: unknown;
      try {
        identifyPath(argument, folder);
      } catch (thrown) {
        error = thrown;
      }
      expect(error, argument).toBeInstanceOf(DmError);
      expect((error as DmError).code, argument).toBe(code);
    }
    expect(identifyPath('nbd+unix:///golden?socket=sock', folder)).toMatchObject({ kind: 'nbd', exportName: 'golden' });
  });
});

describePeer(['root', 'losetup', 'loop'], 'the identity of a loop device', () => {
  const attach = (image: string, ...options: string[]): string => {
    const node = execFileSync('losetup', ['--find', '--show', ...options, image], { encoding: 'utf8' }).trim();
    onTestFinished(() => void execFileSync('losetup', ['--detach', node]));
    return node;
  };
  const identifyBlock = (node: string) => identifyPath(node, '/') as HostBlockIdentity;

  it('is that of its backing file, moved or under another number, and not that of another file', () => {
    const folder = tempDir('identity');
    const [a, b] = [imageIn(folder, 'a'), imageIn(folder, 'b')];
    const first = attach(a);
    const before = identifyBlock(first);
    expect(before).toMatchObject({ kind: 'block', byteLength: 8192, mark: { type: 'loop-backing-file', value: a } });
    expect(isWeak(before)).toBe(false);
    const other = identifyBlock(attach(b));
    expect(text(before, other)).toContain(`a loop device of ${b}, inode ${identify(b).inode}`);
    // The number that it had goes to another file.
    expect(text(before, { ...other, number: before.number, path: before.path })).toContain(`a loop device of ${a}`);
    fs.renameSync(a, join(folder, 'moved'));
    const again = identifyBlock(attach(join(folder, 'moved')));
    expect(again.number).not.toBe(before.number);
    expect(text(before, again)).toBeNull();
    expect(text(before, identifyBlock(attach(b, '--offset', '512')))).not.toBeNull();
    expect(text(before, identifyBlock(attach(join(folder, 'moved'), '--offset', '512')))).toContain('from byte 512 on');
  });

  it('is the same by number, node and open device', () => {
    const node = attach(imageIn(tempDir('identity')));
    const before = identifyBlock(node);
    const registry = new DeviceRegistry({ reactor: clock });
    const device = registry.open(node, true);
    onTestFinished(() => registry.close(device, true));
    expect(registry.identity(device)).toEqual(before);
    expect(text(before, identifyBlock(before.number))).toBeNull();
  });
});
