// The daemon's log where it can't be written, where it is long, and where clients want it to be.
import { spawnSync } from 'node:child_process';
import { closeSync, constants, openSync, readFileSync, readSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { expect, onTestFinished, test, vi } from 'vitest';
import { ComplaintLimit } from '../../src/daemon/complaint-limit.ts';
import { DaemonFolder } from '../../src/daemon/folder.ts';
import { LineFile, LineWriter } from '../../src/daemon/line-file.ts';
import { openLog } from '../../src/daemon/log.ts';
import { MalformedError } from '../../src/nbd/protocol/info.ts';
import { tempDir } from '../support/tmp.ts';
import { running } from './support.ts';

const missing = (count: number): string => `${count} missing\n`;

/** A pipe that can be filled: writes fail with EAGAIN then. */
function pipe(): { fd: number; drain: () => string } {
  const path = join(tempDir('fifo'), 'p');
  expect(spawnSync('mkfifo', [path]).status).toBe(0);
  const fd = openSync(path, constants.O_RDWR | constants.O_NONBLOCK);
  onTestFinished(() => closeSync(fd));
  const drain = (): string => {
    const parts: string[] = [];
    const buffer = Buffer.alloc(65_536);
    try {
      for (;;) parts.push(buffer.toString('latin1', 0, readSync(fd, buffer)));
    } catch {
      return parts.join('');
    }
  };
  return { fd, drain };
}

test('lines that can’t be written are dropped, counted, and told of by the next that can; no line is torn', () => {
  const { fd, drain } = pipe();
  const writer = new LineWriter(fd, missing);
  const line = `${'x'.repeat(4998)}\n`;
  for (let i = 0; i < 50; i++) writer.write(line);
  const whole = drain().split('\n');
  const torn = whole.pop()!;
  expect(whole.every((text) => text.length === 4998)).toBe(true);
  writer.write('after\n');
  const lines = drain().split('\n');
  // What stood there of a line gets its end, and begins no other.
  if (torn !== '') expect(lines.shift()).toBe('');
  expect(lines).toEqual([`${50 - whole.length} missing`, 'after', '']);
});

test('a log on a full disk: nothing is thrown', async () => {
  const log = await openLog('/dev/full');
  for (let i = 0; i < 20; i++) log.info({ i }, 'x');
  log.complain({}, new Error('y'), 'z');
  log.close();
});

test('a log that grows goes on in a new file, within a run too, and the one before it stays', () => {
  const path = join(tempDir('log'), 'l');
  writeFileSync(path, 'a'.repeat(2000));
  const file = new LineFile(path, 1000, missing);
  expect(statSync(`${path}.1`).size).toBe(2000);
  for (let i = 0; i < 1000; i++) file.write(`line ${i} ${'x'.repeat(40)}\n`);
  const sizes = [path, `${path}.1`].map((name) => statSync(name).size);
  expect(Math.max(...sizes)).toBeLessThan(1100);
  const both = [`${path}.1`, path].map((name) => readFileSync(name, 'utf8')).join('');
  const numbers = [...both.matchAll(/^line (\d+) x{40}$/gm)].map((match) => Number(match[1]));
  expect(numbers).toEqual(numbers.map((_, index) => 1000 - numbers.length + index));
});

test('of complaints that read alike five are written, then one a minute that says how many more there were', () => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] });
  onTestFinished(() => void vi.useRealTimers());
  const told: [number, string][] = [];
  const limit = new ComplaintLimit((count, text) => told.push([count, text]));
  let written = 0;
  for (let i = 0; i < 1000; i++) if (limit.allows(`flags 0x${i.toString(16)}`)) written++;
  expect(limit.allows('another kind')).toBe(true);
  expect([written, told.length]).toEqual([5, 0]);
  vi.advanceTimersByTime(60_001);
  expect(told).toEqual([[995, 'flags 0x3e7']]);
  for (let i = 0; i < 10; i++) limit.allows('flags 1');
  limit.close();
  expect(told[1]).toEqual([10, 'flags 1']);
  expect(vi.getTimerCount()).toBe(0);
  // Kinds that a peer makes up are bounded in number, and so are their lines.
  written = 0;
  for (let i = 0; i < 10_000; i++) {
    if (limit.allows([...String(i)].map((digit) => 'ghijklmnop'[Number(digit)]).join(''))) written++;
  }
  expect(written).toBeLessThan(100);
});

test('a peer’s text is one line of JSON in the log, with nothing in it that moves a cursor', async () => {
  const path = join(tempDir('log'), 'l');
  const log = await openLog(path);
  log.complain({ peer: 'unix:\u202ex' }, new MalformedError('\u001b[2J\u009b\n'), 'an NBD client');
  const text = readFileSync(path, 'utf8');
  expect(/[^\n\x20-\x7e]/.test(text)).toBe(false);
  expect(JSON.parse(text)).toMatchObject({ peer: 'unix:\u202ex', reason: '\u001b[2J\u009b\n' });
});

test('a daemon whose log can’t be written serves on after any number of bad clients, and stops as told', async () => {
  const folder = new DaemonFolder(join(tempDir('d'), 'd'));
  folder.make();
  symlinkSync('/dev/full', folder.logFile);
  const { daemon, client } = await running({}, folder);
  for (let i = 0; i < 30; i++) {
    await new Promise<void>((resolve) => {
      const socket = connect(folder.nbdSocket, () => socket.write(Buffer.alloc(4, 0xff)));
      socket.resume();
      socket.on('error', () => {});
      socket.on('close', () => resolve());
    });
  }
  await client.create('a', '0 8 zero');
  expect((await client.list()).length).toBe(1);
  await daemon.stop('signal');
  expect(await daemon.stopped).toBe('signal');
});
