// A toy that stores one value in several sectors, by way of a journal: what the simulated disk must be hard enough for.
//
//   sector 0..3    cells: each filled with the value
//   sector 8       journal header: value, checksum of the journal's cells
//   sector 9..12   journal: the cells to come
//
// A commit writes the journal in one request, flushes, writes the cells, flushes. Recovery takes the journal where its
// checksum is right, else the cells.
import type { BlockDevice } from '../../src/block/block-device.ts';
import { issue, mixSeed } from '../../src/testing/index.ts';

const CELL_COUNT = 4;
const JOURNAL_SECTOR = 8;

/** What it may forget. */
export type Mistake = 'none' | 'no flush after the journal' | 'no flush after the cells' | 'no checksum';

const numberAt = (bytes: Uint8Array, offset: number) =>
  new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength).getUint32(offset);

function cellsOf(value: number): Uint8Array {
  const cells = new Uint8Array(CELL_COUNT * 512);
  const view = new DataView(cells.buffer);
  for (let offset = 0; offset < cells.byteLength; offset += 4) view.setUint32(offset, value);
  return cells;
}

const checksumOf = (cells: Uint8Array): number => mixSeed(...cells);

export async function commit(device: BlockDevice, value: number, mistake: Mistake): Promise<void> {
  const cells = cellsOf(value);
  const journal = new Uint8Array(512 + cells.byteLength);
  new DataView(journal.buffer).setUint32(0, value);
  new DataView(journal.buffer).setUint32(4, checksumOf(cells));
  journal.set(cells, 512);
  await issue(device, 'write', { sector: JOURNAL_SECTOR, data: journal }).done;
  if (mistake !== 'no flush after the journal') await issue(device, 'flush').done;
  await issue(device, 'write', { sector: 0, data: cells }).done;
  if (mistake !== 'no flush after the cells') await issue(device, 'flush').done;
}

/** The stored value. @throws Error for a state that is no value */
export async function recover(device: BlockDevice, mistake: Mistake): Promise<number> {
  const journal = await issue(device, 'read', { sector: JOURNAL_SECTOR, sectorCount: 1 + CELL_COUNT }).done;
  const fromJournal = journal.subarray(512);
  const valid =
    mistake === 'no checksum' ? numberAt(journal, 0) !== 0 : numberAt(journal, 4) === checksumOf(fromJournal);
  const cells = valid ? fromJournal : await issue(device, 'read', { sector: 0, sectorCount: CELL_COUNT }).done;
  const value = numberAt(cells, 0);
  if (cellsOf(value).some((byte, index) => byte !== cells[index])) {
    throw new Error(`the cells hold parts of different values (${valid ? 'from the journal' : 'in place'})`);
  }
  return value;
}
