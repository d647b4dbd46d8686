// NBD URIs in tables of a program's own device mapper: connected before the load, one device for one export, let go with
// the last table; servers that are not there, are slow, die and come back.
import { writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { basename, dirname, join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it, onTestFinished } from 'vitest';
import { DeviceMapper, type DeviceMapperOptions } from '../../src/api/device-mapper.ts';
import type { Transport } from '../../src/block/reactor.ts';
import { compareIdentities, identifyPath } from '../../src/devices/index.ts';
import { MemoryDevice } from '../../src/devices/memory.ts';
import { NbdDevice } from '../../src/devices/nbd.ts';
import { attachNbd } from '../../src/nbd/index.ts';
import { SimulatedReactor } from '../../src/testing/index.ts';
import { itPeer, peer, start } from '../support/peers.ts';
import { runs, seed } from '../support/seed.ts';
import { makeImage, randomBytes, tempDir } from '../support/tmp.ts';
import { eventually, pipe, plainProxy, SECTOR_COUNT, serve } from './nbd-support.ts';

function mapper(options: DeviceMapperOptions = {}): DeviceMapper {
  const dm = new DeviceMapper({ remote: { reconnect: { delayMilliseconds: 10 } }, ...options });
  onTestFinished(() => dm.close());
  return dm;
}

const namesOf = (dm: DeviceMapper): string[] => [...dm.devices.list()].map(({ name }) => name);

describe('an NBD URI in a table', () => {
  it('is a device for as long as a table names it', async () => {
    const server = await serve();
    const dm = mapper();
    const local = join(tempDir(), 'local.img');
    makeImage(local, SECTOR_COUNT);
    const disk = await dm.create('stripe', `0 4096 striped 2 8 ${server.uri} 0 ${local} 0`);
    const data = randomBytes(4096 * 512, 3);
    await disk.write(0, data);
    expect((await disk.read(0, 4096)).equals(data)).toBe(true);
    expect(Buffer.from(server.device.peek(8, 8)).equals(data.subarray(16 * 512, 24 * 512))).toBe(true);
    expect(dm.lines('stripe', 'table')).toEqual([`0 4096 striped 2 8 ${server.uri} 0 ${local} 0`]);
    await dm.load('stripe', '0 8 zero');
    expect(server.connectionCount()).toBeGreaterThan(0);
    await dm.resume('stripe');
    await expect.poll(server.connectionCount).toBe(0);
    expect(namesOf(dm)).toEqual([]);
  });

  it('is one device, however it is written, also by an attachment of the program', async () => {
    const server = await serve();
    const folder = dirname(server.socket);
    const dm = mapper({ baseFolder: folder });
    const other = `nbd+unix:///%64isk?socket=${basename(server.socket)}`;
    await dm.create('two', `0 8 linear ${server.uri} 0\n8 8 linear ${other} 8`);
    await dm.create('three', `0 8 linear ${other} 0`);
    expect(namesOf(dm)).toEqual([server.uri]);
    expect(server.acceptedCount()).toBeLessThanOrEqual(4);
    await dm.remove('two');
    expect(namesOf(dm)).toEqual([server.uri]);
    await dm.remove('three');
    await expect.poll(server.connectionCount).toBe(0);
    const attached = await attachNbd(dm, other, { connectionCount: 1 });
    await dm.create('four', `0 8 linear ${server.uri} 0`);
    expect(server.connectionCount()).toBe(1);
    await dm.remove('four');
    expect(namesOf(dm)).toEqual([server.uri]);
    await attached.close();
    expect(namesOf(dm)).toEqual([]);
  });

  it('has an identity by the name and size of its export', async () => {
    const server = await serve();
    const dm = mapper({ baseFolder: dirname(server.socket) });
    await dm.create('d', `0 8 linear ${server.uri} 0`);
    const identity = dm.devices.identity(dm.devices.registered(server.uri)!)!;
    expect(identity).toEqual({ kind: 'nbd', uri: server.uri, exportName: 'disk', byteLength: SECTOR_COUNT * 512 });
    const named = identifyPath(`nbd+unix:///%64isk?socket=${basename(server.socket)}`, dirname(server.socket));
    expect(named).toEqual({ ...identity, byteLength: 0 });
    expect(compareIdentities(identity, named)).toBeNull();
  });

  it('that is reloaded is not connected anew', async () => {
    const server = await serve();
    const dm = mapper({ remote: { connectionCount: 1 } });
    const disk = await dm.create('d', `0 8 linear ${server.uri} 0`);
    for (let i = 1; i < 5; i++) {
      await dm.load('d', `0 8 linear ${server.uri} ${8 * i}`);
      await dm.resume('d');
      await disk.write(0, randomBytes(512, i));
      expect(Buffer.from(server.device.peek(8 * i, 1)).equals(randomBytes(512, i))).toBe(true);
    }
    expect(server.acceptedCount()).toBe(1);
  });

  it('can be opened without a table', async () => {
    const server = await serve();
    const dm = mapper();
    const disk = await dm.open(server.uri);
    expect(disk.sectorCount).toBe(SECTOR_COUNT);
    await disk.write(0, randomBytes(512, 1));
    disk.close();
    await expect.poll(server.connectionCount).toBe(0);
    await expect(dm.open('nbd+unix:///x?socket=none.sock')).rejects.toMatchObject({ code: 'ENOENT' });
  });

  it('of a read-only export reads, and refuses writes with EPERM', async () => {
    const server = await serve(new MemoryDevice('disk', 64, { readOnly: true }));
    const dm = mapper();
    const disk = await dm.create('d', `0 64 linear ${server.uri} 0`);
    expect((await disk.read(0, 64)).byteLength).toBe(64 * 512);
    await expect(disk.write(0, randomBytes(512, 1))).rejects.toMatchObject({ code: 'EPERM' });
  });

  it('is the origin of a snapshot, or the store of one that is not persistent', async () => {
    const server = await serve();
    server.device.poke(0, randomBytes(64 * 512, 9));
    const folder = tempDir();
    const [cow, base] = [join(folder, 'cow.img'), join(folder, 'base.img')];
    makeImage(base, 64);
    writeFileSync(cow, Buffer.alloc(512 * 1024));
    const dm = mapper();
    const disk = await dm.create('snap', `0 64 snapshot ${server.uri} ${cow} P 8`);
    await disk.write(3, Buffer.alloc(512, 'x'));
    const expected = randomBytes(64 * 512, 9);
    expected.fill('x', 3 * 512, 4 * 512);
    expect((await disk.read(0, 64)).equals(expected)).toBe(true);
    expect(Buffer.from(server.device.peek(0, 64)).equals(randomBytes(64 * 512, 9))).toBe(true);
    const volatile = await dm.create('volatile', `0 64 snapshot ${base} ${server.uri} N 8`);
    await volatile.write(0, Buffer.alloc(512, 'y'));
    expect((await volatile.read(0, 1)).equals(Buffer.alloc(512, 'y'))).toBe(true);
    await dm.remove('volatile');
    // What a constructor reads, it must read at once.
    await expect(dm.create('far', `0 64 snapshot ${base} ${server.uri} P 8`)).rejects.toMatchObject({
      code: 'EDEADLK',
      reason: 'snapshot: Failed to read snapshot metadata (-EDEADLK)',
    });
  });
});

describe('a load that is refused', () => {
  it.each<[string, (uri: string) => string, string, RegExp]>([
    [
      'a server that is not there',
      () => '0 8 linear nbd+unix:///x?socket=/none.sock 0',
      'ENOENT',
      /^linear: Device lookup failed \(-ENOENT\)$/,
    ],
    ['a port that nobody has', () => '0 8 linear nbd://127.0.0.1:1 0', 'ECONNREFUSED', /\(-ECONNREFUSED\)$/],
    ['an export that is not there', (uri) => `0 8 linear ${uri.replace('disk', 'other')} 0`, 'ENOENT', /\(-ENOENT\)$/],
    ['no URI', () => '0 8 linear nbd+unix:///x 0', 'EINVAL', /\(-EINVAL\)$/],
    ['an earlier line', (uri) => `0 8 nosuch\n8 8 linear ${uri} 0`, 'EINVAL', /^nosuch: unknown target type$/],
    [
      'an earlier line than a dead one',
      () => '0 0 zero\n0 8 linear nbd://127.0.0.1:1 0',
      'EINVAL',
      /^zero-length target$/,
    ],
    ['a later line', (uri) => `0 8 linear ${uri} 0\n8 8 linear ${uri}`, 'EINVAL', /Invalid argument count/],
    ['a second URI', (uri) => `0 16 striped 2 8 ${uri} 0 nbd://127.0.0.1:1 0`, 'ECONNREFUSED', /^striped: /],
    ['too many sectors', (uri) => `0 ${SECTOR_COUNT + 1} linear ${uri} 0`, 'EINVAL', /too small for target/],
  ])('for %s leaves nothing open and the table as it was', async (_, table, code, reason) => {
    const server = await serve();
    const dm = mapper();
    await expect(dm.create('d', table(server.uri))).rejects.toMatchObject({
      code,
      reason: expect.stringMatching(reason),
    });
    expect(dm.mapper.list()).toEqual([]);
    await dm.create('e', '0 8 zero');
    await dm.load('e', '0 16 zero');
    const refused = dm.load('e', table(server.uri));
    // At a device's later loads the sizes are looked at by the resume.
    if (reason.source.includes('too small')) {
      await refused;
      await expect(dm.resume('e')).rejects.toMatchObject({ code });
    } else {
      await expect(refused).rejects.toMatchObject({ code });
      expect(dm.mapper.get('e').inactiveTable?.sectorCount).toBe(16);
    }
    expect(dm.lines('e', 'table')).toEqual(['0 8 zero ']);
    expect(namesOf(dm)).toEqual([]);
    await expect.poll(server.connectionCount).toBe(0);
  });

  it('says what was wrong with the connection', async () => {
    const error = await mapper()
      .create('d', '0 8 linear nbd+unix:///?socket=/none.sock 0')
      .catch((reason: Error) => reason);
    expect((error as Error).cause).toMatchObject({
      message: 'cannot connect to nbd+unix:///?socket=/none.sock: connect ENOENT /none.sock',
    });
  });

  it('because the program attached the same URI meanwhile keeps that one connection', async () => {
    const server = await serve();
    const dm = mapper();
    const table = `0 8 linear ${server.uri} 0`;
    const [created, attached] = await Promise.allSettled([
      dm.create('d', table),
      attachNbd(dm, server.uri, { connectionCount: 1 }),
    ]);
    expect([created.status, attached.status].sort()).toEqual(['fulfilled', 'rejected']);
    const { reason } = [created, attached].find(({ status }) => status === 'rejected') as PromiseRejectedResult;
    expect(reason).toMatchObject({ code: 'EEXIST' });
    expect(namesOf(dm)).toEqual([server.uri]);
    if (attached.status === 'fulfilled') {
      await expect.poll(server.connectionCount).toBe(1);
      await dm.create('d', table);
      await dm.remove('d');
      await attached.value.close();
    } else await dm.remove('d');
    await expect.poll(server.connectionCount).toBe(0);
  });

  it('because the device was removed meanwhile lets the connection go', async () => {
    const server = await serve();
    let letThrough = (): void => {};
    const held = new Promise<void>((resolve) => {
      letThrough = resolve;
    });
    const socket = join(tempDir(), 'held.sock');
    await plainProxy(
      socket,
      () => server.socket,
      (client, to) => void held.then(() => pipe(client, to)),
    );
    const dm = mapper();
    const creating = dm.create('d', `0 8 linear nbd+unix:///disk?socket=${socket} 0`);
    const refused = expect(creating).rejects.toMatchObject({ code: 'ENXIO' });
    await dm.remove('d');
    // Somebody else has the name by now, and keeps it.
    await dm.create('d', '0 8 zero');
    letThrough();
    await refused;
    expect(dm.lines('d', 'table')).toEqual(['0 8 zero ']);
    expect(namesOf(dm)).toEqual([]);
    await expect.poll(server.connectionCount).toBe(0);
  });
});

describe('a server that does not answer', () => {
  it('is given up after a time, and what comes later is not kept', () => {
    const reactor = new SimulatedReactor({ seed });
    let connected: (error: Error | null, transport: Transport | null) => void = () => {};
    let outcome: Error | null = null;
    NbdDevice.open(
      'nbd://far/',
      {
        reactor,
        exportName: '',
        connect: (done) => {
          connected = done;
        },
      },
      (error) => {
        outcome = error;
      },
    );
    reactor.run(29_999);
    expect(outcome).toBeNull();
    reactor.runUntilIdle();
    expect(outcome).toMatchObject({ code: 'ETIMEDOUT', message: expect.stringMatching(/not answered for 30 s/) });
    let destroyed = false;
    const destroy = (): void => {
      destroyed = true;
    };
    connected(null, { destroy } as unknown as Transport);
    expect(destroyed).toBe(true);
  });

  it('to further connections is used with those there are', async () => {
    const server = await serve();
    const socket = join(tempDir(), 'one.sock');
    let count = 0;
    await plainProxy(
      socket,
      () => server.socket,
      (client, to) => {
        // The second is taken and never answered.
        if (++count === 1) pipe(client, to);
      },
    );
    const dm = mapper();
    const disk = await dm.create('d', `0 8 linear nbd+unix:///disk?socket=${socket} 0`);
    await disk.write(0, randomBytes(512, 1));
    await dm.remove('d');
    await expect.poll(server.connectionCount).toBe(0);
  });
});

describe('a server that goes away', () => {
  it('is waited for; then everything fails; a load that names it tries again', async () => {
    const server = await serve();
    const states: string[] = [];
    const dm = mapper({
      remote: {
        reconnect: { delayMilliseconds: 5, maxAttemptCount: 4 },
        onState: (uri, state) => void states.push(`${uri === server.uri} ${state}`),
      },
    });
    const table = `0 ${SECTOR_COUNT} linear ${server.uri} 0`;
    const disk = await dm.create('d', table);
    server.cut();
    expect((await disk.read(0, 1)).byteLength).toBe(512);
    expect(states).toEqual(['true lost', 'true back']);
    server.shut();
    await expect(disk.read(0, 1)).rejects.toMatchObject({ code: 'EIO' });
    expect(states.slice(2)).toEqual(['true lost', 'true failed']);
    const refused = dm.load('d', table);
    await expect(refused).rejects.toMatchObject({ reason: expect.stringMatching(/Device lookup failed/) });
    expect(dm.lines('d', 'table')).toEqual([table]);
    server.reopen();
    await dm.load('d', table);
    await dm.resume('d');
    await disk.write(5, randomBytes(512, 8));
    expect(Buffer.from(server.device.peek(5, 1)).equals(randomBytes(512, 8))).toBe(true);
    expect(states.slice(4)).toEqual(['true back']);
  });

  it('and comes back with another size is refused while a table uses the old one', async () => {
    const first = await serve(new MemoryDevice('disk', 64), join(tempDir(), 'a.sock'));
    const second = await serve(new MemoryDevice('disk', 128), join(tempDir(), 'b.sock'));
    const socket = join(tempDir(), 's.sock');
    let target = first.socket;
    const proxy = await plainProxy(socket, () => target);
    const dm = mapper({ remote: { reconnect: { delayMilliseconds: 5, maxAttemptCount: 2 } } });
    const uri = `nbd+unix:///disk?socket=${socket}`;
    const disk = await dm.create('d', `0 64 linear ${uri} 0`);
    target = second.socket;
    proxy.cut();
    await expect(disk.read(0, 1)).rejects.toMatchObject({ code: 'EIO' });
    const refused = await dm.create('e', `0 128 linear ${uri} 0`).catch((error: Error) => error);
    expect(refused).toMatchObject({ code: 'ESTALE', cause: { message: expect.stringMatching(/another size/) } });
    await dm.remove('d');
    await dm.create('e', `0 128 linear ${uri} 0`);
  });

  it('does not hold up a close', async () => {
    const server = await serve();
    const dm = mapper({ remote: { reconnect: { delayMilliseconds: 60_000 } } });
    const disk = await dm.create('d', `0 8 linear ${server.uri} 0`);
    server.shut();
    const reading = expect(disk.read(0, 1)).rejects.toMatchObject({ code: 'EIO' });
    await expect.poll(() => dm.mapper.get('d').inFlightCount).toBe(1);
    await expect.poll(server.connectionCount).toBe(0);
    await new Promise((resolve) => setTimeout(resolve, 50));
    await dm.close();
    await reading;
  });
});

describe('whatever is loaded, cleared, resumed and removed', () => {
  type Step = { kind: 'load' | 'resume' | 'clear' | 'remove'; device: number; uris: number[] };

  it('what is connected is what tables name', async () => {
    const servers = [await serve(), await serve(), await serve()];
    const dead = 'nbd+unix:///disk?socket=/none.sock';
    const step: fc.Arbitrary<Step> = fc.record({
      kind: fc.constantFrom('load', 'load', 'resume', 'clear', 'remove'),
      device: fc.nat(2),
      uris: fc.array(fc.nat(3), { minLength: 1, maxLength: 3 }),
    });
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 12 }), fc.boolean(), async (steps, together) => {
        const dm = new DeviceMapper({ remote: { connectionCount: 1 } });
        const work = async ({ kind, device, uris }: Step): Promise<void> => {
          const name = `d${device}`;
          if (kind === 'remove') {
            if (dm.mapper.has(name)) await dm.remove(name);
            return;
          }
          if (!dm.mapper.has(name)) dm.mapper.create(name);
          if (kind === 'clear') dm.mapper.get(name).clear();
          else if (kind === 'resume') await dm.resume(name);
          else {
            const lines = uris.map((uri, at) => `${8 * at} 8 linear ${servers[uri]?.uri ?? dead} 0`);
            const loading = dm.load(name, lines.join('\n'));
            const isRefused = await loading.then(
              () => false,
              () => true,
            );
            if (!together) expect(isRefused).toBe(uris.includes(3));
          }
        };
        const check = (): void => {
          const named = new Set<string>();
          for (const { table, inactiveTable } of dm.mapper.list()) {
            for (const one of [table, inactiveTable]) for (const { name } of one?.devices ?? []) named.add(name);
          }
          expect(new Set(namesOf(dm))).toEqual(named);
        };
        if (together) await Promise.all(steps.map(work));
        else {
          for (const one of steps) {
            await work(one);
            check();
          }
        }
        check();
        await dm.close();
        expect(namesOf(dm)).toEqual([]);
        for (const server of servers) await expect.poll(server.connectionCount).toBe(0);
      }),
      { numRuns: runs(40) },
    );
  });
});

describe('real servers', () => {
  itPeer(['qemu-nbd'], 'qemu-nbd, which takes one client at a time: goodbye comes before the next hello', async () => {
    const folder = tempDir();
    const socket = join(folder, 'q.sock');
    makeImage(join(folder, 'disk.img'), 2048);
    const server = await start(peer('qemu-nbd'), ['-f', 'raw', '-t', '-k', socket, join(folder, 'disk.img')]);
    onTestFinished(() => void server.stop());
    const dm = mapper();
    const table = `0 2048 linear nbd+unix:///?socket=${socket} 0`;
    await eventually(async () => void (await dm.create('d', table)));
    for (let i = 0; i < 5; i++) {
      await dm.remove('d');
      const disk = await dm.create('d', table);
      await disk.write(i, randomBytes(512, i));
    }
  });

  itPeer(['qemu-nbd'], 'qemu-nbd that allows two, where four are wanted', async () => {
    const folder = tempDir();
    const socket = join(folder, 'q.sock');
    const content = makeImage(join(folder, 'disk.img'), 2048);
    const server = await start(peer('qemu-nbd'), [
      '-f',
      'raw',
      '-t',
      '-e',
      '2',
      '-k',
      socket,
      join(folder, 'disk.img'),
    ]);
    onTestFinished(() => void server.stop());
    const dm = mapper();
    const table = `0 2048 linear nbd+unix:///?socket=${socket} 0`;
    await eventually(async () => void (await dm.create('d', table)));
    const disk = await dm.open('/dev/mapper/d');
    expect((await disk.read(0, 2048)).equals(content)).toBe(true);
  });
});

it('holds nothing that keeps the process, and refuses a socket that is no server', async () => {
  const socket = join(tempDir(), 's.sock');
  const liar = createServer((client) => client.end('hello, this is no NBD server at all'));
  await new Promise<void>((resolve) => liar.listen(socket, resolve));
  onTestFinished(() => void liar.close());
  await expect(mapper().create('d', `0 8 linear nbd+unix:///?socket=${socket} 0`)).rejects.toMatchObject({
    reason: expect.stringMatching(/^linear: Device lookup failed/),
    cause: { message: expect.stringMatching(/no NBD server/) },
  });
});
