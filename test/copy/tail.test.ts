// Sources and destinations whose length is no multiple of 512: every byte arrives, and no old byte stays.
import { readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it, onTestFinished } from 'vitest';
import { Copy } from '../../src/copy/copy.ts';
import { MemoryDevice } from '../../src/devices/index.ts';
import { formatNbdUri } from '../../src/nbd/index.ts';
import { SimulatedDevice } from '../../src/testing/index.ts';
import { itPeer, peer, start } from '../support/peers.ts';
import { runs } from '../support/seed.ts';
import { randomBytes, tempDir } from '../support/tmp.ts';
import { copied, failuresOf, mapperWith } from './support.ts';

const odd = fc.oneof(fc.integer({ min: 1, max: 1200 }), fc.integer({ min: 1, max: 1_200_000 }));

describe('a file of any length', () => {
  it('is copied to the byte, to files that are made, to longer ones and to devices; and verified', async () => {
    await fc.assert(
      fc.asyncProperty(odd, fc.nat(2000), async (byteLength, more) => {
        const folder = tempDir();
        const [from, made, there] = ['s.img', 'made.img', 'there.img'].map((name) => join(folder, name)) as [
          string,
          string,
          string,
        ];
        const bytes = Buffer.from(randomBytes(byteLength, 1));
        const old = Buffer.from(randomBytes(byteLength + more, 2));
        writeFileSync(from, bytes);
        writeFileSync(there, old);
        const device = new MemoryDevice('device', Math.ceil(byteLength / 512) + 1);
        device.poke(0, new Uint8Array(device.sectorCount * 512).fill(9));
        const copy = await copied(mapperWith([device]), from, [made, there, 'device'], { verify: true });
        expect(copy.complete).toBe(true);
        expect(readFileSync(made).equals(bytes)).toBe(true);
        expect(readFileSync(there).equals(Buffer.concat([bytes, old.subarray(byteLength)]))).toBe(true);
        const padded = Buffer.alloc(device.sectorCount * 512);
        bytes.copy(padded);
        padded.fill(9, padded.byteLength - 512);
        expect(Buffer.compare(device.peek(0, device.sectorCount), padded)).toBe(0);
        for (const { doneByteLength } of copy.destinations) expect(doneByteLength).toBe(byteLength);
      }),
      { numRuns: runs(20) },
    );
  });

  it('is zeroed to the byte, and keeps its length; several of them each to its own end', async () => {
    const folder = tempDir();
    const lengths = [100, 1000, 3_000_001, 512];
    const paths = lengths.map((byteLength, index) => {
      const path = join(folder, `${index}.img`);
      writeFileSync(path, randomBytes(byteLength, index));
      return path;
    });
    const copy = await copied(mapperWith([]), null, paths, { verify: true });
    expect(copy.complete).toBe(true);
    for (const [index, path] of paths.entries()) {
      expect(readFileSync(path).equals(Buffer.alloc(lengths[index]!))).toBe(true);
    }
  });

  it('that is one byte too long for a destination is refused, and nothing is written', async () => {
    const folder = tempDir();
    const [from, to] = [join(folder, 's.img'), join(folder, 'd.img')];
    writeFileSync(from, randomBytes(1001, 1));
    writeFileSync(to, Buffer.alloc(1000, 7));
    await expect(Copy.open(mapperWith([]), from, [to])).rejects.toThrow(
      /1001 bytes are wanted, and there are 1000 bytes/,
    );
    expect(readFileSync(to).equals(Buffer.alloc(1000, 7))).toBe(true);
    await expect(Copy.open(mapperWith([new MemoryDevice('d', 1)]), from, ['d'])).rejects.toThrow(/too small/);
  });

  it('has its last bytes in the map, which --retry does when they are missing', async () => {
    const folder = tempDir();
    const [from, map] = [join(folder, 's.img'), join(folder, 'map')];
    const bytes = randomBytes(5000, 1);
    writeFileSync(from, bytes);
    const faults = [{ kind: 'error', op: 'write', region: { sector: 9, sectorCount: 1 }, count: 1 } as const];
    const disk = new SimulatedDevice('disk', 20, { seed: 1, faults });
    const dm = mapperWith([disk]);
    const first = await copied(dm, from, ['disk'], { keepGoing: true, mapfile: map });
    expect(failuresOf(first)).toEqual(['9-9 write: Input/output error']);
    expect(readFileSync(map, 'utf8')).toContain('0x00001200  0x00000188  -');
    const second = await copied(dm, from, ['disk'], { mapfile: map, retry: true, verify: true });
    expect([second.complete, second.destinations[0]!.totalSectorCount]).toEqual([true, 1]);
    expect(Buffer.compare(disk.peek(0, 10).subarray(0, 5000), bytes)).toBe(0);
    expect(readFileSync(map, 'utf8')).toContain('0x00000000  0x00001388  +');
  });

  it('that is cut while it is copied has lost its last bytes, and says so', async () => {
    const folder = tempDir();
    const [from, to] = [join(folder, 's.img'), join(folder, 'd.img')];
    writeFileSync(from, randomBytes(1000, 1));
    const copy = await Copy.open(mapperWith([]), from, [to], { keepGoing: true });
    truncateSync(from, 700);
    await copy.run();
    await copy.close();
    expect(copy.complete).toBe(false);
    expect(failuresOf(copy)).toEqual(['1-1 read: Input/output error']);
  });

  it('whose last bytes a destination does not keep is not verified', async () => {
    const from = join(tempDir(), 's.img');
    writeFileSync(from, randomBytes(1000, 1));
    const liar = new MemoryDevice('liar', 4);
    const submit = liar.submit.bind(liar);
    liar.submit = (bio) => {
      submit(bio);
      // One byte behind the last: the sector is said to be filled up with zeroes.
      if (bio.op === 1 && bio.sector === 1) liar.poke(1, Uint8Array.of(...liar.peek(1, 1).subarray(0, 511), 1));
    };
    const copy = await copied(mapperWith([liar]), from, ['liar'], { verify: true });
    expect([copy.complete, copy.destinations[0]!.differing]).toEqual([false, [{ start: 1, end: 2 }]]);
  });
});

describe('exports of odd length', () => {
  itPeer(['nbdkit'], 'are read, written and zeroed to the byte', async () => {
    const folder = tempDir();
    const bytes = randomBytes(202_893, 1);
    const [from, far, back] = ['s.img', 'far.img', 'back.img'].map((name) => join(folder, name)) as [
      string,
      string,
      string,
    ];
    writeFileSync(from, bytes);
    writeFileSync(far, randomBytes(202_893, 2));
    const socket = join(folder, 'k.sock');
    const server = await start(peer('nbdkit'), ['-f', '-U', socket, 'file', far]);
    onTestFinished(() => void server.stop());
    await expect.poll(() => statSync(socket, { throwIfNoEntry: false })).toBeDefined();
    const uri = formatNbdUri({ socket, exportName: '' });
    expect((await copied(mapperWith([]), from, [uri], { verify: true })).complete).toBe(true);
    expect(readFileSync(far).equals(bytes)).toBe(true);
    expect((await copied(mapperWith([]), uri, [back], { verify: true })).complete).toBe(true);
    expect(readFileSync(back).equals(bytes)).toBe(true);
    expect((await copied(mapperWith([]), null, [uri], { verify: true })).complete).toBe(true);
    expect(readFileSync(far).equals(Buffer.alloc(202_893))).toBe(true);
  });
});
