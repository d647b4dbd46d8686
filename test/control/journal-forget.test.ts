// Keys that mean nothing any more leave the journal with the next commit, and keep nothing alive until then.
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { openJournal } from '../../src/control/journal.ts';
import { readRecords } from '../../src/control/record-file.ts';
import { tempDir } from '../support/tmp.ts';

function filesIn(folder: string) {
  return { journal: join(folder, 'journal.json'), lostJournal: join(folder, 'lost.json') };
}

test('a forgotten key goes with the next commit, and with none of them before', async () => {
  const files = filesIn(tempDir('j'));
  const { journal } = openJournal(files);
  await journal.commit(new Map([['intent/a', { files: [] }]]));
  journal.forget('intent/a');
  expect([...readRecords(files.journal)!.values.keys()]).toEqual(['intent/a']);
  await journal.commit(new Map([['merge/b', { name: 'b' }]]));
  expect([...readRecords(files.journal)!.values.keys()]).toEqual(['merge/b']);
  journal.close();
});

test('a forgotten key that the next commit sets stays', async () => {
  const files = filesIn(tempDir('j'));
  const { journal } = openJournal(files);
  await journal.commit(new Map([['merge/a', 1]]));
  journal.forget('merge/a');
  await journal.commit(new Map([['merge/a', 2]]));
  await journal.commit(new Map([['merge/b', 1]]));
  expect([...readRecords(files.journal)!.values]).toEqual([
    ['merge/a', 2],
    ['merge/b', 1],
  ]);
  journal.close();
});

test('a shutdown deletes a journal of devices and forgotten keys alone', async () => {
  const files = filesIn(tempDir('j'));
  const { journal } = openJournal(files);
  await journal.commit(
    new Map([
      ['intent/a', { files: [] }],
      ['device/1', { name: 'd' }],
    ]),
  );
  journal.forget('intent/a');
  expect(journal.isEmpty).toBe(false);
  await journal.forgetDevices();
  expect(existsSync(files.journal)).toBe(false);
});

test('a journal of forgotten keys alone is empty', async () => {
  const { journal } = openJournal(filesIn(tempDir('j')));
  await journal.commit(new Map([['intent/a', { files: [] }]]));
  expect(journal.isEmpty).toBe(false);
  journal.forget('intent/a');
  expect(journal.isEmpty).toBe(true);
  journal.close();
});

test('a key that is not there is not forgotten: the commit that makes it counts', async () => {
  const files = filesIn(tempDir('j'));
  const { journal } = openJournal(files);
  journal.forget('merge/a');
  await journal.commit(new Map([['merge/a', 1]]));
  await journal.commit(new Map([['merge/b', 1]]));
  expect([...journal.values.keys()]).toEqual(['merge/a', 'merge/b']);
  journal.close();
});
