// A writer is killed at each system call that changes its record file: the file holds what was acknowledged, or one commit
// more, and each commit as a whole.
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect } from 'vitest';
import { RecordFile, readRecords } from '../../src/control/record-file.ts';
import { itPeer, run } from '../support/peers.ts';
import { tempDir } from '../support/tmp.ts';

const writer = fileURLToPath(new URL('killed-writer.mjs', import.meta.url));
const SYSTEM_CALLS = ['pwrite64', 'fsync', 'fdatasync', 'ftruncate', 'rename', 'link', 'unlink'];

/** Runs the writer under strace, which kills it at the Nth of these calls; how it ended and what it had acknowledged. */
async function killAt(path: string, call: string, nth: number) {
  const args = ['-f', '-qq', '-o', '/dev/null', '-e', `trace=${call}`, '-e', `inject=${call}:signal=KILL:when=${nth}`];
  const { code, stdout } = await run('strace', [...args, process.execPath, writer, path], {
    // One thread does the file's calls: strace counts for each thread.
    env: { ...process.env, UV_THREADPOOL_SIZE: '1' },
    timeoutSeconds: 240,
  });
  const said = stdout.trim().split('\n');
  return { isKilled: code !== 0, acknowledged: Math.max(0, ...said.map((word) => Number(word) || 0)) };
}

describe('a writer that is killed', () => {
  itPeer(
    ['strace'],
    'at any system call leaves what it acknowledged, or one commit more, whole',
    async () => {
      const killCounts: Record<string, number> = {};
      for (const call of SYSTEM_CALLS) {
        for (let nth = 1; ; nth++) {
          const path = join(tempDir('killed'), 'records');
          const { isKilled, acknowledged } = await killAt(path, call, nth);
          const state = readRecords(path);
          const seen = Object.fromEntries(state?.values ?? []);
          const last = Number(seen.a ?? 0);
          expect([call, nth, state?.damage ?? []]).toEqual([call, nth, []]);
          expect([acknowledged, acknowledged + 1]).toContain(last);
          if (last > 0) expect(seen).toEqual({ a: last, b: last, filler: [String(last).repeat(30_000)] });
          // The next one goes on from it, and takes what the killed one left beside it.
          RecordFile.open(path).file.close();
          expect(Object.fromEntries(readRecords(path)!.values)).toEqual(seen);
          expect(readdirSync(join(path, '..')).filter((name) => name.includes('.new-'))).toEqual([]);
          if (!isKilled) break;
          killCounts[call] = nth;
        }
      }
      // It was killed in commits, in syncs, and in a compaction after the making.
      expect(killCounts).toMatchObject({ pwrite64: expect.any(Number), fsync: expect.any(Number), rename: 2 });
    },
    240_000,
  );
});
