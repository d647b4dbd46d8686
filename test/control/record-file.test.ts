// A record file keeps every acknowledged commit, whole, whatever fails below it.
import { spawnSync } from 'node:child_process';
import {
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, onTestFinished, test } from 'vitest';
import { Errno, type ErrnoName } from '../../src/block/errno.ts';
import { DmError } from '../../src/block/errors.ts';
import { type Json, RecordFile, readRecords } from '../../src/control/record-file.ts';
import { makeRecord } from '../../src/control/record-format.ts';
import { ALL_CALLS, failingWhen, injectFailure, restoreCalls, shortWrites } from '../files/failing-calls.ts';
import { itPeer } from '../support/peers.ts';
import { runs } from '../support/seed.ts';
import { tempDir } from '../support/tmp.ts';

const place = (): string => join(tempDir('records'), 'records');
const map = (entries: Record<string, Json>) => new Map(Object.entries(entries));
const contents = (path: string) => Object.fromEntries(readRecords(path)?.values ?? []);
const names = (path: string): string[] => readdirSync(join(path, '..')).sort();

function open(path: string): RecordFile {
  const { file } = RecordFile.open(path);
  onTestFinished(() => file.close());
  return file;
}

async function errorOf(work: () => unknown): Promise<DmError | null> {
  try {
    await work();
    return null;
  } catch (error) {
    if (error instanceof DmError) return error;
    throw error;
  }
}

/** A file of ten records, and where each begins and ends; the first is the header. */
async function tenRecords(path: string) {
  const file = open(path);
  const ends = [0, file.byteLength];
  for (let index = 0; index < 9; index++) {
    const value = { name: `device-${index}`, text: 'ü"\\\n'.repeat(index) };
    await file.commit(map({ [`k${index}`]: value, counter: index }));
    ends.push(file.byteLength);
  }
  file.close();
  return { bytes: readFileSync(path), ends };
}

describe('a record file', () => {
  test('holds what was committed, in a new object as well', async () => {
    const path = place();
    const values = { a: 1, b: { name: 'x', list: [1, [], {}, '€"\\\n\u2028', true] }, __proto__x: 'y', empty: '' };
    const file = open(path);
    await file.commit(map(values), { durable: true });
    await file.commit(map({ a: null, c: 'new' }));
    file.commitNow(map({ d: false }));
    const { a: _, ...rest } = values;
    const expected = { ...rest, c: 'new', d: false };
    expect(contents(path)).toEqual(expected);
    expect(Object.fromEntries(file.values)).toEqual(expected);
    expect([file.byteLength, statSync(path).mode & 0o777]).toEqual([statSync(path).size, 0o600]);
    file.close();
    expect(Object.fromEntries(RecordFile.open(path).state.values)).toEqual(expected);
    expect(names(path)).toEqual(['records']);
  });

  test('is null where there is none, and has a header alone when its last key is gone', async () => {
    const path = place();
    expect(readRecords(path)).toBe(null);
    const file = open(path);
    const { byteLength } = file;
    await file.commit(map({ a: 1 }));
    await file.commit(map({ a: null }));
    await file.commit(map({}));
    expect(contents(path)).toEqual({});
    await file.commit(map({ b: 2 }));
    expect(contents(path)).toEqual({ b: 2 });
    await file.commit(map({ b: null }));
    file.close();
    await expect.poll(() => statSync(path).size).toBe(byteLength);
  });

  test('commits are in the order of the calls, and those that wait together share one sync', async () => {
    const path = place();
    const file = open(path);
    let syncCount = 0;
    failingWhen(['fdatasyncLater'], () => {
      syncCount++;
      return null;
    });
    onTestFinished(restoreCalls);
    await Promise.all(Array.from({ length: 50 }, (_, index) => file.commit(map({ last: index }), { durable: true })));
    expect([contents(path), syncCount]).toEqual([{ last: 49 }, 1]);
  });

  test('two readers read while it is written, and see a state of some moment', async () => {
    const path = place();
    const file = open(path);
    for (let index = 0; index < 200; index++) {
      const done = file.commit(map({ a: index, b: index, filler: 'x'.repeat(2000) }));
      for (const seen of [readRecords(path)!, readRecords(path)!]) {
        expect(seen.values.get('a')).toBe(seen.values.get('b'));
        expect(seen.damage).toEqual([]);
      }
      await done;
    }
    expect(statSync(path).size).toBeLessThan(200_000);
  });

  test('refuses a newer format and a file that is none, and leaves them alone', async () => {
    const path = place();
    for (const [content, errno, text] of [
      [makeRecord(1, '{"format":3}\n'), Errno.EOPNOTSUPP, 'has format 3, which a newer dmkit wrote'],
      [Buffer.from('{"format":1}'), Errno.EINVAL, 'is not a record file of dmkit'],
      [Buffer.alloc(5000), Errno.EINVAL, 'is not a record file of dmkit'],
    ] as const) {
      writeFileSync(path, content);
      for (const attempt of [() => readRecords(path), () => RecordFile.open(path)]) {
        const error = await errorOf(attempt);
        expect([error?.errno, error?.message]).toEqual([errno, expect.stringContaining(`${path} ${text}`)]);
      }
      expect([readFileSync(path).equals(content), names(path)]).toEqual([true, ['records']]);
    }
  });

  test('a deleted, replaced or changed file is written anew at its path, and a stranger is kept', async () => {
    const path = place();
    const file = open(path);
    await file.commit(map({ a: 1 }));
    rmSync(path);
    await file.commit(map({ b: 2 }));
    expect([contents(path), names(path)]).toEqual([{ a: 1, b: 2 }, ['records']]);
    rmSync(path);
    file.commitNow(map({ c: 3 }));
    expect(contents(path)).toEqual({ a: 1, b: 2, c: 3 });
    writeFileSync(`${path}.other`, 'stranger');
    renameSync(`${path}.other`, path);
    await file.commit(map({ d: 4 }));
    expect(contents(path)).toEqual({ a: 1, b: 2, c: 3, d: 4 });
    expect(readFileSync(`${path}.damaged-1`, 'utf8')).toBe('stranger');
    truncateSync(path, 3);
    await file.commit(map({ e: 5 }));
    expect(contents(path)).toEqual({ a: 1, b: 2, c: 3, d: 4, e: 5 });
    expect(names(path)).toEqual(['records', 'records.damaged-1', 'records.damaged-2']);
  });

  test('remove deletes its own file and not a stranger, and rejects what waits', async () => {
    const path = place();
    const file = open(path);
    const waits = errorOf(() => file.commit(map({ a: 1 })));
    file.remove();
    expect([(await waits)?.errno, existsSync(path)]).toEqual([Errno.ESHUTDOWN, false]);
    expect((await errorOf(() => file.commit(map({ a: 1 }))))?.errno).toBe(Errno.ESHUTDOWN);
    const other = open(path);
    rmSync(path);
    writeFileSync(path, 'stranger');
    other.remove();
    expect(readFileSync(path, 'utf8')).toBe('stranger');
  });

  test('close writes what waits', async () => {
    const path = place();
    const file = open(path);
    const waits = file.commit(map({ a: 1 }));
    file.close();
    await waits;
    expect(contents(path)).toEqual({ a: 1 });
  });

  test.each([0, 1, 2, 3, 5, 20])(
    'commitNow finishes the commits under way, %s turns after they began',
    async (turns) => {
      const path = place();
      const file = open(path);
      await file.commit(map({ x: 'old' }));
      const large = Array.from({ length: 40 }, () => 'y'.repeat(30_000));
      const others = [file.commit(map({ x: 1, large }), { durable: true }), file.commit(map({ x: 2, y: 2 }))];
      for (let index = 0; index < turns; index++) await new Promise((resolve) => setImmediate(resolve));
      others.push(file.commit(map({ y: 3 })));
      file.commitNow(map({ y: 4 }));
      expect(contents(path)).toEqual({ x: 2, large, y: 4 });
      await Promise.all(others);
      await file.commit(map({ z: 5 }));
      expect(contents(path)).toEqual({ x: 2, large, y: 4, z: 5 });
      expect(names(path)).toEqual(['records']);
    },
  );

  test('a value of 10 MiB leaves the event loop its turns', async () => {
    const path = place();
    const file = open(path);
    const value = Array.from({ length: 160 }, () => 'z'.repeat(65_536));
    let isDone = false;
    let turnCount = 0;
    const done = file.commit(map({ value })).then(() => (isDone = true));
    while (!isDone) {
      await new Promise((resolve) => setImmediate(resolve));
      turnCount++;
    }
    await done;
    expect(turnCount).toBeGreaterThan(60);
    expect(contents(path)).toEqual({ value });
    // Characters of two halves at the borders of pieces.
    await file.commit(map({ value: `a${'😀'.repeat(40_000)}\ud800` }));
    expect(contents(path)).toEqual({ value: `a${'😀'.repeat(40_000)}\ud800` });
  });
});

describe('damage', () => {
  test('cut at every byte: the state of a moment before, and no damage is named', async () => {
    const path = place();
    const { bytes, ends } = await tenRecords(path);
    for (let length = bytes.length; length >= 0; length--) {
      writeFileSync(path, bytes.subarray(0, length));
      const { values, damage } = readRecords(path)!;
      const whole = ends.filter((end) => end <= length).length - 2;
      expect([length, values.get('counter'), damage]).toEqual([length, whole > 0 ? whole - 1 : undefined, []]);
    }
    for (const length of [0, 10, ends[1]!, ends[4]! + 1, ends[5]! - 1]) {
      const cut = place();
      writeFileSync(cut, bytes.subarray(0, length));
      const { file, state } = RecordFile.open(cut);
      expect(state).toEqual(readRecords(cut));
      await file.commit(map({ after: 1 }));
      file.close();
      expect(contents(cut)).toEqual({ ...Object.fromEntries(state.values), after: 1 });
      // A torn end is no damage: nothing is kept aside.
      expect(names(cut)).toEqual(['records']);
    }
  });

  test.each([
    ['a flipped bit', (bytes: Buffer, at: number) => (bytes[at]! ^= 4)],
    ['a newline', (bytes: Buffer, at: number) => (bytes[at] = bytes[at] === 10 ? 0 : 10)],
    ['the byte that begins a record', (bytes: Buffer, at: number) => (bytes[at] = bytes[at] === 255 ? 0 : 255)],
    ['zeros', (bytes: Buffer, at: number) => bytes.fill(0, at, Math.min(bytes.length, at + 100))],
    [
      'other bytes of the file',
      (bytes: Buffer, at: number) => bytes.copy(bytes, at, (at * 7) % 500, 130 + ((at * 7) % 500)),
    ],
  ])('of %s at every byte: every other record is there, and the place is named', async (kind, spoil) => {
    const path = place();
    const { bytes, ends } = await tenRecords(path);
    for (let at = 0; at < bytes.length; at++) {
      const spoilt = Buffer.from(bytes);
      spoil(spoilt, at);
      writeFileSync(path, spoilt);
      const { values, damage } = readRecords(path)!;
      if (spoilt.equals(bytes)) continue;
      for (let index = 0; index < 9; index++) {
        const [start, end] = [ends[index + 1]!, ends[index + 2]!];
        // A copy of it elsewhere is as good.
        const isWhole = spoilt.includes(bytes.subarray(start, end));
        if (isWhole !== values.has(`k${index}`)) expect([at, index, isWhole]).toEqual([at, index, !isWhole]);
      }
      const first = spoilt.findIndex((byte, index) => byte !== bytes[index]);
      // Copies of whole records are read where they are; the places between them are named.
      const isCopied = kind === 'other bytes of the file' && damage.length > 0;
      const isNamed = isCopied || damage.some(({ start, end }) => start <= first && first < end);
      // A last record that looks cut off can't be told from one that is.
      if (!isNamed && first < ends.at(-2)!) expect([at, first, damage]).toBe('damage that is named');
    }
  });

  test('names the keys and the names in it, is kept aside, and its file goes on', async () => {
    const path = place();
    const { bytes, ends } = await tenRecords(path);
    bytes[ends[5]! - 3]! ^= 1;
    writeFileSync(path, bytes);
    const { file, state } = RecordFile.open(path);
    expect(state.damage).toMatchObject([
      { start: ends[4], end: ends[5], names: expect.arrayContaining(['k3', 'device-3']) },
    ]);
    expect(readFileSync(`${path}.damaged-1`).equals(bytes)).toBe(true);
    await file.commit(map({ k3: 'again' }));
    file.close();
    expect(readRecords(path)).toMatchObject({ damage: [] });
    expect([...readRecords(path)!.values.keys()].sort()).toEqual(
      [...Array(9).keys()]
        .map((n) => `k${n}`)
        .concat('counter')
        .sort()
        .slice(),
    );
  });

  test('a copy of an old record at the end, or of a newer one earlier, changes nothing', async () => {
    const path = place();
    const file = open(path);
    const ends = [file.byteLength];
    for (let index = 0; index < 6; index++) {
      await file.commit(map({ same: index, [`k${index}`]: 1 }));
      ends.push(file.byteLength);
    }
    file.close();
    const bytes = readFileSync(path);
    const record = (index: number) => bytes.subarray(ends[index], ends[index + 1]);
    writeFileSync(path, Buffer.concat([bytes, record(1)]));
    expect(readRecords(path)).toMatchObject({ damage: [{ start: bytes.length }] });
    expect(contents(path)).toMatchObject({ same: 5 });
    const newer = Buffer.from(bytes);
    record(5).copy(newer, ends[1]);
    writeFileSync(path, newer);
    expect(contents(path)).toEqual({ same: 5, k0: 1, k2: 1, k3: 1, k4: 1, k5: 1 });
    expect(readRecords(path)).toMatchObject({ damage: [{ start: ends[1], end: ends[2] }] });
  });
});

describe('failures below', () => {
  test('writes of a few bytes at a time are finished', async () => {
    const path = place();
    shortWrites(5);
    const file = open(path);
    await file.commit(map({ a: 'x'.repeat(300) }), { durable: true });
    file.commitNow(map({ b: 'y'.repeat(300) }));
    expect(contents(path)).toEqual({ a: 'x'.repeat(300), b: 'y'.repeat(300) });
  });

  test.each(['ENOSPC', 'EDQUOT', 'EIO', 'EROFS'] as ErrnoName[])(
    '%s at every call, once or from then on: what is rejected is not there, what is acknowledged is',
    async (code) => {
      for (const andAfter of [false, true]) {
        for (let nth = 1, happened = true; happened; nth++) {
          const path = place();
          const file = open(path);
          const filler = Array.from({ length: 3 }, () => 'f'.repeat(40_000));
          await file.commit(map({ a: 0, filler }));
          const failure = injectFailure(ALL_CALLS, nth, code, andAfter);
          const model = { a: 0, filler: filler as Json } as Record<string, Json>;
          for (let index = 1; index < 5; index++) {
            const change = { a: index, filler };
            if (index === 3) rmSync(path, { force: true });
            const work =
              index === 2 ? () => file.commitNow(map(change)) : () => file.commit(map(change), { durable: index > 2 });
            const error = await errorOf(work);
            if (error === null) Object.assign(model, change);
            else
              expect([error.errno, error.message]).toEqual([
                Errno[code],
                expect.stringMatching(/^\S*records.*nothing has changed/),
              ]);
            expect(Object.fromEntries(file.values)).toEqual(model);
          }
          happened = failure.happened();
          failure.restore();
          await file.commit(map({ z: 1 }), { durable: true });
          expect([nth, contents(path)]).toEqual([nth, { ...model, z: 1 }]);
          file.close();
          expect(names(path).filter((name) => !name.includes('.new-'))).toEqual(['records']);
        }
      }
    },
  );

  test('a commit without room does not take those with it that have some', async () => {
    const path = place();
    const file = open(path);
    let left = 3;
    failingWhen(['write', 'writeLater'], () => (left-- === 3 || left === 0 ? 'ENOSPC' : null));
    onTestFinished(restoreCalls);
    // Those that are synced go together, unless the file system has no disk.
    const commits = ['a', 'b', 'c'].map((key) => errorOf(() => file.commit(map({ [key]: 1 }), { durable: true })));
    const results = await Promise.all(commits);
    expect(results.map((error) => error?.errno ?? 0)).toEqual([0, Errno.ENOSPC, 0]);
    expect(contents(path)).toEqual({ a: 1, c: 1 });
  });

  test('any commits, failures and reopenings: the file is what a Map says', async () => {
    const step = fc.record({
      what: fc.constantFrom('commit', 'commit', 'durable', 'now', 'reopen', 'delete', 'large'),
      key: fc.constantFrom('a', 'b', 'c'),
      value: fc.oneof(fc.constant(null), fc.jsonValue({ maxDepth: 2 })),
      failAt: fc.option(fc.nat(8), { freq: 3 }),
      code: fc.constantFrom('ENOSPC', 'EIO'),
    });
    const check = async (steps: (typeof step extends fc.Arbitrary<infer T> ? T : never)[]): Promise<void> => {
      const folder = mkdtempSync(join(home, 'run-'));
      const path = join(folder, 'records');
      let { file } = RecordFile.open(path);
      const model = new Map<string, Json>();
      for (const { what, key, value, failAt, code } of steps) {
        // Opened again after a deletion it would be empty, rightly.
        if (what === 'reopen' && existsSync(path)) {
          file.close();
          file = RecordFile.open(path).file;
        } else if (what === 'delete') rmSync(path, { force: true });
        if (what === 'delete' || what === 'reopen') continue;
        // As JSON has it: no -0.
        const plain = JSON.parse(JSON.stringify(what === 'large' ? ['l'.repeat(40_000), value] : value)) as Json;
        const change = new Map([[key, plain]]);
        let count = 0;
        if (failAt !== null) failingWhen(ALL_CALLS, () => (count++ === failAt ? code : null));
        const work =
          what === 'now' ? () => file.commitNow(change) : () => file.commit(change, { durable: what === 'durable' });
        const error = await errorOf(work);
        // A compaction may go on behind a commit: let the worker end before its calls are whole again.
        for (let turns = 0; turns < 3; turns++) await new Promise((resolve) => setImmediate(resolve));
        restoreCalls();
        if (error !== null) expect(failAt).not.toBe(null);
        else if (plain === null) model.delete(key);
        else model.set(key, plain);
        expect(new Map(file.values)).toEqual(model);
      }
      await file.commit(new Map([['end', 1]]));
      file.close();
      expect(readRecords(path)!.values).toEqual(new Map(model).set('end', 1));
      expect(readRecords(path)!.damage).toEqual([]);
    };
    const home = tempDir('model');
    onTestFinished(restoreCalls);
    await fc.assert(fc.asyncProperty(fc.array(step, { maxLength: 25 }), check), { numRuns: runs(60) });
  });

  itPeer(
    ['root'],
    'on a file system that is full a commit is refused, the file is as it was, and remove works',
    async () => {
      const folder = mkdtempSync(join(tempDir('full'), 'small-'));
      expect(spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'none', folder]).status).toBe(0);
      onTestFinished(() => void spawnSync('umount', ['-l', folder], { timeout: 240_000 }));
      const path = join(folder, 'records');
      const file = open(path);
      await file.commit(map({ a: 'x' }));
      const before = readFileSync(path);
      for (const work of [
        () => file.commit(map({ b: 'y'.repeat(100_000) })),
        () => file.commitNow(map({ b: 'y'.repeat(100_000) })),
      ]) {
        const error = await errorOf(work);
        expect([error?.errno, error?.message]).toEqual([
          Errno.ENOSPC,
          `${path}: No space left on device; nothing has changed`,
        ]);
        expect(readFileSync(path).equals(before)).toBe(true);
      }
      await file.commit(map({ c: 'small' }), { durable: true });
      expect(contents(path)).toEqual({ a: 'x', c: 'small' });
      writeFileSync(join(folder, 'ballast'), Buffer.alloc(40_000));
      expect(RecordFile.open(path).state.values.get('c')).toBe('small');
      file.remove();
      expect(existsSync(path)).toBe(false);
    },
  );
});
