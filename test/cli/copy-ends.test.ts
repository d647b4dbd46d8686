// How a copy ends: signals, terminals that hang up, readers that leave, disks that are full; and that what is left is true.
import { type ChildProcess, spawn } from 'node:child_process';
import { openSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished } from 'vitest';
import { barLine, type ProgressState, shortened, timeText } from '../../src/cli/copy-progress.ts';
import { dmkit } from '../support/cli.ts';
import { makeImage, randomBytes, tempDir } from '../support/tmp.ts';

const MAIN = join(import.meta.dirname, '../../dist/cli/main.js');
const MIB = 1 << 20;

interface Running {
  child: ChildProcess;
  ended: Promise<{ code: number | null; signal: string | null }>;
  output(): string;
}

/** Starts a copy of 8 MiB. It has begun when this resolves, and ends by itself after two seconds at 4M. */
async function started(folder: string, options: string[], env: Record<string, string> = {}): Promise<Running> {
  writeFileSync(join(folder, 's.img'), randomBytes(8 * MIB, 1));
  const child = spawn(process.execPath, [MAIN, 'copy', 's.img', 'd.img', ...options], {
    cwd: folder,
    env: { ...process.env, _: '', ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  onTestFinished(() => void child.kill('SIGKILL'));
  let text = '';
  for (const stream of [child.stdout!, child.stderr!]) stream.on('data', (chunk) => (text += String(chunk)));
  const ended = new Promise<{ code: number | null; signal: string | null }>((resolve) => {
    child.on('close', (code, signal) => resolve({ code, signal }));
  });
  await expect.poll(() => statSync(join(folder, 'd.img'), { throwIfNoEntry: false })?.blocks ?? 0).toBeGreaterThan(0);
  return { child, ended, output: () => text };
}

describe('a copy that is told to stop', () => {
  it.each([
    ['SIGINT', 130],
    ['SIGTERM', 143],
    ['SIGHUP', 129],
  ] as const)('by %s leaves a map that is true, says how to go on, and ends with %i', async (signal, code) => {
    const folder = tempDir();
    const { child, ended, output } = await started(folder, ['--rate', '1M', '--mapfile', 'map']);
    child.kill(signal);
    expect(await ended).toEqual({ code, signal: null });
    expect(output()).toMatch(/^dmkit: stopping; ctrl-C again stops at once\n/);
    expect(output()).toMatch(/INCOMPLETE, .* missing; stopped\n/);
    expect(output()).toContain('--mapfile map --retry');
    const done = /^0x00000000 {2}(0x[0-9A-F]+) {2}\+$/m.exec(readFileSync(join(folder, 'map'), 'utf8'))?.[1];
    const length = Number(done);
    expect(length).toBeGreaterThan(0);
    const [from, to] = [readFileSync(join(folder, 's.img')), readFileSync(join(folder, 'd.img'))];
    expect(to.subarray(0, length).equals(from.subarray(0, length))).toBe(true);
    const rest = await dmkit(['copy', 's.img', 'd.img', '--mapfile', 'map', '--retry'], { cwd: folder });
    expect([rest.code, readFileSync(join(folder, 'd.img')).equals(from)]).toEqual([0, true]);
  });

  it('does not wait for a rate that would take hours', async () => {
    const { child, ended } = await started(tempDir(), ['--rate', '4K']);
    child.kill('SIGINT');
    expect(await ended).toEqual({ code: 130, signal: null });
  });

  it('by SIGHUP under nohup goes on to its end', async () => {
    const folder = tempDir();
    const { child, ended } = await started(folder, ['--rate', '4M'], { _: '/usr/bin/nohup' });
    child.kill('SIGHUP');
    expect(await ended).toEqual({ code: 0, signal: null });
    expect(readFileSync(join(folder, 'd.img')).equals(readFileSync(join(folder, 's.img')))).toBe(true);
  });

  it('by SIGHUP goes on where the shell that started it ignores that', async () => {
    const folder = tempDir();
    writeFileSync(join(folder, 's.img'), randomBytes(8 * MIB, 1));
    const begun = '[ "$(stat -c %b d.img 2>/dev/null || echo 0)" -gt 0 ]';
    const script = `trap '' HUP; "$0" "$1" copy s.img d.img --rate 2M & until ${begun}; do sleep 0.1; done; kill -HUP $!; wait $!; echo ended $?`;
    const child = spawn('sh', ['-c', script, process.execPath, MAIN], { cwd: folder, env: { ...process.env, _: '' } });
    let text = '';
    child.stdout.on('data', (chunk) => (text += String(chunk)));
    await new Promise((resolve) => child.on('close', resolve));
    expect(text).toContain('ended 0');
    expect(readFileSync(join(folder, 'd.img')).equals(readFileSync(join(folder, 's.img')))).toBe(true);
  });
});

describe('a copy whose reader', () => {
  it.each(['--json', '--keep-going'])('leaves goes on, and its exit code is its own (%s)', async (option) => {
    const folder = tempDir();
    const { child, ended } = await started(folder, [option, '--rate', '3M']);
    child.stdout!.destroy();
    child.stderr!.destroy();
    expect(await ended).toEqual({ code: 0, signal: null });
    expect(readFileSync(join(folder, 'd.img')).equals(readFileSync(join(folder, 's.img')))).toBe(true);
  });

  it('is a disk without room says so, and has copied', async () => {
    const folder = tempDir();
    const bytes = makeImage(join(folder, 's.img'), 100);
    const child = spawn(process.execPath, [MAIN, 'copy', 's.img', 'd.img'], {
      cwd: folder,
      stdio: ['ignore', openSync('/dev/full', 'w'), 'pipe'],
    });
    let text = '';
    child.stderr!.on('data', (chunk) => (text += String(chunk)));
    const code = await new Promise((resolve) => child.on('close', resolve));
    expect([code, text]).toEqual([1, 'dmkit: standard output: No space left on device\n']);
    expect(readFileSync(join(folder, 'd.img')).equals(bytes)).toBe(true);
  });
});

describe('a destination that is deleted while it is written', () => {
  it('has failed, and is not done', async () => {
    const folder = tempDir();
    const { ended, output } = await started(folder, ['--rate', '3M']);
    rmSync(join(folder, 'd.img'));
    expect(await ended).toEqual({ code: 1, signal: null });
    expect(output()).toMatch(/d\.img: INCOMPLETE.*d\.img is not there any more: it was deleted or replaced/);
  });
});

describe('the progress', () => {
  const state = (label: string, more: Partial<ProgressState> = {}): ProgressState => {
    return {
      label,
      doneByteLength: 119 * MIB,
      totalByteLength: 256 * MIB,
      bytesPerSecond: 23.9 * MIB,
      note: '',
      ...more,
    };
  };

  it('shows percent, rate and time at 80 columns, whatever the names; and their ends', () => {
    for (const columnCount of [60, 79, 120, 200]) {
      for (const length of [6, 15, 64, 300]) {
        const label = `a${'b'.repeat(length - 2)}c`;
        const line = barLine(state(label, { note: 'errors' }), length, columnCount);
        expect(line.length).toBeLessThanOrEqual(columnCount);
        expect(line).toMatch(/^a\S*c +=+-+ +46% (119 MiB of 256 MiB, )?23\.9 MiB\/s, 0:06 left, errors$/);
      }
    }
  });

  it('marks what has failed, and never takes what is not known for a rate', () => {
    expect(barLine(state('d', { note: 'FAILED' }), 9, 79)).toMatch(/ 46% FAILED$/);
    expect(barLine(state('d', { bytesPerSecond: null }), 9, 79)).toMatch(/ 46% -, - left$/);
    expect(barLine(state('d', { doneByteLength: 256 * MIB, bytesPerSecond: null }), 9, 79)).toMatch(/100% done$/);
  });

  it('shortens names in the middle, and tells times', () => {
    expect(shortened('abcdefghij', 5)).toBe('ab…ij');
    expect(shortened('abcde', 5)).toBe('abcde');
    expect([timeText(6.2), timeText(3723), timeText(Number.POSITIVE_INFINITY)]).toEqual(['0:07', '1:02:03', '-']);
  });
});
