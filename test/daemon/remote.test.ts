// Remote devices that a daemon holds: loads that wait for a connection, the journal, restores with servers that are away.
import { readFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { basename, dirname, join } from 'node:path';
import { describe, expect, onTestFinished, test } from 'vitest';
import { readRecords } from '../../src/control/record-file.ts';
import { MemoryDevice } from '../../src/devices/memory.ts';
import { connectNbd } from '../../src/nbd/index.ts';
import { serve } from '../devices/nbd-support.ts';
import { randomBytes, tempDir } from '../support/tmp.ts';
import { clientOf, running } from './support.ts';

/** A socket that takes connections and says nothing. */
async function silentSocket(): Promise<{ uri: string; connectionCount(): number }> {
  const socket = join(tempDir(), 'silent.sock');
  let count = 0;
  const server = createServer((client) => {
    count++;
    client.on('close', () => count--).on('error', () => {});
  });
  await new Promise<void>((resolve) => server.listen(socket, resolve));
  onTestFinished(() => void server.close());
  return { uri: `nbd+unix:///?socket=${socket}`, connectionCount: () => count };
}

const logOf = (path: string): string[] =>
  readFileSync(path, 'utf8')
    .trim()
    .split('\n')
    .map((line) => (JSON.parse(line) as { msg: string }).msg);

describe('a remote device', () => {
  test('is created, told, reloaded, used and let go', async () => {
    const server = await serve();
    const { client } = await running();
    const table = `0 64 linear ${server.uri} 8`;
    await client.create('far', table);
    expect(await client.table('far')).toEqual([
      { sector: 0, sectorCount: 64, type: 'linear', params: `${server.uri} 8` },
    ]);
    expect(await client.deps('far')).toEqual([{ name: server.uri }]);
    expect(await client.info('far')).toMatchObject({ sectorCount: 64, live: true, readOnly: false, openCount: 0 });
    await client.load('far', `0 128 linear ${server.uri} 0`);
    await client.resume('far');
    const disk = await connectNbd(await client.uri('far'));
    await disk.write(0, randomBytes(1024, 1));
    await disk.flush();
    expect(Buffer.from(server.device.peek(0, 2)).equals(randomBytes(1024, 1))).toBe(true);
    await disk.close();
    await expect.poll(async () => (await client.info('far')).openCount).toBe(0);
    await client.remove('far');
    await expect.poll(server.connectionCount).toBe(0);
  });

  test('is named from where the caller stands', async () => {
    const server = await serve();
    const { client } = await running();
    const uri = `nbd+unix:///disk?socket=${basename(server.socket)}`;
    await client.create('near', `0 8 linear ${uri} 0`, { baseFolder: dirname(server.socket) });
    expect((await client.table('near'))[0]!.params).toBe(`${server.uri} 0`);
    await expect(client.create('astray', `0 8 linear ${uri} 0`, { baseFolder: tempDir() })).rejects.toMatchObject({
      code: 'ENOENT',
    });
  });

  test('of a server that is not there is refused as the kernel refuses a device, and the old table stays', async () => {
    const { client, folder } = await running();
    const refused = client.create('far', '0 8 linear nbd://127.0.0.1:1/x 0');
    await expect(refused).rejects.toMatchObject({
      code: 'ECONNREFUSED',
      reason: 'linear: Device lookup failed (-ECONNREFUSED)',
      cause: { message: 'cannot connect to nbd://127.0.0.1:1/x: connect ECONNREFUSED 127.0.0.1:1' },
    });
    expect(await client.list()).toEqual([]);
    expect(readRecords(folder.journal)!.values.size).toBe(0);
    await client.create('near', '0 8 zero');
    await expect(client.load('near', '0 8 linear nbd://127.0.0.1:1/x 0')).rejects.toMatchObject({
      code: 'ECONNREFUSED',
    });
    expect(await client.info('near')).toMatchObject({ live: true, inactive: false });
  });

  test('that does not answer keeps nobody else waiting, and its load ends with the client', async () => {
    const silent = await silentSocket();
    const { client, folder } = await running();
    await client.create('near', '0 8 zero');
    const other = clientOf(folder);
    const waiting = other.load('near', `0 8 linear ${silent.uri} 0`);
    const interrupted = expect(waiting).rejects.toThrow();
    await expect.poll(silent.connectionCount).toBeGreaterThan(0);
    expect(await client.table('near')).toHaveLength(1);
    await client.create('quick', '0 8 zero');
    await other.close();
    await interrupted;
    expect(await client.info('near')).toMatchObject({ inactive: false });
    expect((await client.list()).map(({ name }) => name)).toEqual(['near', 'quick']);
  });

  test('that goes away is told in the log, and a stop does not wait for it', async () => {
    const server = await serve(new MemoryDevice('disk', 64));
    const { client, daemon, folder } = await running({ reconnect: { delayMilliseconds: 10, maxAttemptCount: 1e9 } });
    await client.create('far', `0 64 linear ${server.uri} 0`);
    const disk = await connectNbd(await client.uri('far'));
    server.cut();
    expect(await disk.read(0, 512)).toEqual(Buffer.alloc(512));
    expect(logOf(folder.logFile)).toEqual(
      expect.arrayContaining(['a remote device is lost', 'a remote device is back']),
    );
    server.shut();
    const reading = expect(disk.read(0, 512)).rejects.toMatchObject({ code: 'EIO' });
    await expect.poll(async () => (await client.info('far')).inFlightCount).toBe(1);
    await expect.poll(() => logOf(folder.logFile).filter((line) => line === 'a remote device is lost').length).toBe(2);
    await daemon.stop('signal');
    await reading;
    expect(logOf(folder.logFile)).toContain('a remote device has failed');
    expect(logOf(folder.logFile).at(-1)).toBe('stopped');
  });
});

describe('a restore', () => {
  test('connects again; what has no server yet can be restored later', async () => {
    const [here, later] = [await serve(), await serve()];
    const first = await running();
    const { folder, client } = first;
    await client.create('here', `0 8 linear ${here.uri} 0`);
    await client.create('later', `0 8 linear ${later.uri} 0`, { uuid: 'U' });
    await client.load('later', `0 16 linear ${later.uri} 0`);
    await client.create('top', '0 8 linear /dev/mapper/later 0', { readOnly: true });
    const before = await client.list();
    await first.daemon.stop('signal');
    later.shut();
    const second = await running({}, folder);
    const errors = (results: { name: string; error: string | null }[]) =>
      results.map(({ name, error }) => [name, error === null]);
    const results = await second.client.restore();
    expect(errors(results)).toEqual([
      ['here', true],
      ['later', false],
      ['top', false],
    ]);
    expect(results[1]!.error).toMatch(/^linear: Device lookup failed .*: cannot connect to nbd\+unix:/);
    expect((await second.client.list()).map(({ name }) => name)).toEqual(['here']);
    later.reopen();
    expect(errors(await second.client.restore())).toEqual([
      ['later', true],
      ['top', true],
    ]);
    expect(await second.client.list()).toEqual(before);
    expect((await second.client.lost()).devices).toEqual([]);
    await expect(second.client.restore()).rejects.toMatchObject({ code: 'ENOENT' });
  });
});
