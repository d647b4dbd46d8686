// The largest table there can be.
import { expect, test } from 'vitest';
import { REQ_OP_READ, REQ_OP_WRITE } from '../../src/block/bio.ts';
import { MAX_TARGET_COUNT } from '../../src/block/bounds.ts';
import type { TableEntry } from '../../src/table/text.ts';
import { activate, mapperOver, numbered, RecordingDevice, submit } from '../support/stack.ts';

const SECTORS = 4096;

/** Lines of one to three sectors, each somewhere else on the device than its neighbours. */
function lines(count: number): TableEntry[] {
  const entries: TableEntry[] = [];
  let sector = 0;
  for (let i = 0; i < count; i++) {
    const sectorCount = 1 + (i % 3);
    entries.push({ sector, sectorCount, type: 'linear', params: `a ${(i * 2654435761) % (SECTORS - 3)}` });
    sector += sectorCount;
  }
  return entries;
}

test('a table of 2^20 lines loads, and every line maps to its own place', () => {
  const a = new RecordingDevice('a', SECTORS);
  const { mapper } = mapperOver(a);
  const entries = lines(MAX_TARGET_COUNT);
  const disk = mapper.create('d');
  mapper.load(disk, entries);
  disk.resume({}, (error) => expect(error).toBeNull());
  for (let i = 0; i < MAX_TARGET_COUNT; i += 9973) {
    const entry = entries[i]!;
    a.log.length = 0;
    submit(disk, REQ_OP_READ, entry.sector + entry.sectorCount - 1, 1);
    expect(a.log).toEqual([`read ${Number(entry.params.slice(2)) + entry.sectorCount - 1}+1`]);
  }
  const last = entries[MAX_TARGET_COUNT - 1]!;
  expect(disk.sectorCount).toBe(last.sector + last.sectorCount);
  a.log.length = 0;
  submit(disk, REQ_OP_WRITE, entries[3000]!.sector, 6, { data: numbered(6) });
  expect(a.log.map((line) => line.replace(/ \d+/, ''))).toEqual(['write+1', 'write+2', 'write+3']);
});

test('one line more is refused', () => {
  const a = new RecordingDevice('a', SECTORS);
  const { mapper } = mapperOver(a);
  expect(() => activate(mapper, 'd', '0 1 zero\n'.repeat(MAX_TARGET_COUNT + 1))).toThrow(/at most 1048576 lines/);
});
