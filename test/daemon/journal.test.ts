// The journal of a living daemon: lines behind a state, whatever is done and wherever it is cut.
import { readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { Journal, readJournal } from '../../src/daemon/journal.ts';
import type { MappedDevice } from '../../src/mapper/mapped-device.ts';
import { runs } from '../support/seed.ts';
import { activate, mapperOver, RecordingDevice } from '../support/stack.ts';
import { tempDir } from '../support/tmp.ts';

function journaled() {
  const path = join(tempDir(), 'journal.json');
  const { mapper } = mapperOver(new RecordingDevice('a', 100));
  const journal = new Journal(path, mapper.major);
  const note = (device: MappedDevice): void => {
    const isThere = mapper.has(device.dmName) && mapper.get(device.dmName) === device;
    journal.note(device, isThere, () => mapper.list());
  };
  const names = (): string[] | undefined => readJournal(path)?.devices.map(({ name }) => name);
  return { path, mapper, note, names };
}

describe('the journal of a living daemon', () => {
  test('says what the devices are, after every change of any kind', () => {
    const change = fc.record({ what: fc.constantFrom('make', 'remove', 'rename', 'load'), which: fc.nat(9) });
    const check = (changes: { what: string; which: number }[]): void => {
      const { path, mapper, note } = journaled();
      let made = 0;
      for (const { what, which } of changes) {
        const all = mapper.list();
        const device = all[which % Math.max(1, all.length)];
        if (what === 'make' || device === undefined) {
          note(activate(mapper, `d${made++}`, '0 8 linear a 3'));
          continue;
        }
        if (what === 'remove') mapper.remove(device);
        else if (what === 'rename') mapper.rename(device, `r${made++}`);
        else mapper.load(device, `0 ${which + 1} zero`);
        note(device);
      }
      const expected = mapper.list().map(({ dmName, minor, inactiveTable }) => ({
        name: dmName,
        minor,
        inactive: inactiveTable === null ? null : { lines: [{ sectorCount: inactiveTable.sectorCount }] },
      }));
      expect(readJournal(path)?.devices ?? []).toMatchObject(expected);
      expect(readJournal(path)?.devices ?? []).toHaveLength(expected.length);
    };
    fc.assert(fc.property(fc.array(change, { minLength: 1, maxLength: 300 }), check), { numRuns: runs(40) });
  });

  test('is cut at any byte: the state is that of a moment before', () => {
    const { path, mapper, note, names } = journaled();
    note(activate(mapper, 'first', '0 8 zero'));
    const whole = statSync(path).size;
    for (const name of ['second', 'third']) note(activate(mapper, name, '0 8 zero'));
    const text = readFileSync(path);
    const seen = new Set<string>();
    for (let length = text.length; length >= whole; length--) {
      writeFileSync(path, text);
      truncateSync(path, length);
      seen.add(names()!.join());
    }
    expect([...seen]).toEqual(['first,second,third', 'first,second', 'first']);
  });

  test('does not take a device for the one that had its number before', () => {
    const { mapper, note, names } = journaled();
    const [old] = ['old', 'other'].map((name) => {
      const device = activate(mapper, name, '0 8 zero');
      note(device);
      return device;
    });
    mapper.remove(old!);
    const young = activate(mapper, 'young', '0 8 zero');
    expect(young.minor).toBe(old!.minor);
    note(young);
    note(old!);
    expect(names()).toEqual(['other', 'young']);
  });

  test('is begun anew where it was taken away, and when it has become long', () => {
    const { path, mapper, note, names } = journaled();
    const device = activate(mapper, 'd', '0 8 zero');
    note(device);
    rmSync(path);
    note(device);
    expect(names()).toEqual(['d']);
    for (let i = 0; i < 1000; i++) note(device);
    expect(readFileSync(path, 'utf8').split('\n').length).toBeLessThan(80);
    expect(names()).toEqual(['d']);
  });
});
