// A live table, and the way from a sector to its target (drivers/md/dm-table.c). builder.ts makes it.
import type { BlockDevice } from '../block/block-device.ts';
import type { AnyTarget, StatusType } from '../block/target.ts';
import type { TableDevices } from './devices.ts';
import type { KnownLimits } from './known-limits.ts';
import { INDEX_FANOUT, type SectorIndex } from './sector-index.ts';
import { formatTableLine } from './text.ts';

/** What {@link TableBuilder} gives to the table that it has built. */
export interface TableParts {
  readonly targets: readonly AnyTarget[];
  readonly hookedTargets: readonly AnyTarget[];
  readonly flushDevices: readonly BlockDevice[] | null;
  readonly index: SectorIndex;
  readonly devices: TableDevices;
  readonly readOnly: boolean;
  readonly isStateless: boolean;
}

/** A live table. Made by {@link buildTable}, ended by {@link Table.destroy}. */
export class Table {
  readonly targets: readonly AnyTarget[];
  /**
   * Those whose type has a part in a suspend, a resume or the table's end. A table of a million plain lines has none, and
   * all three are done without a walk over its lines.
   */
  readonly hookedTargets: readonly AnyTarget[];
  readonly readOnly: boolean;
  readonly sectorCount: number;
  /** In the order of first use, each once. */
  readonly devices: readonly BlockDevice[];
  /** The devices that a flush must reach, where that can be said without asking each target; null where it cannot. */
  readonly flushDevices: readonly BlockDevice[] | null;
  /** Every line's type says so: the limits follow from the lines and from the limits of the devices, and nothing else. */
  readonly isStateless: boolean;
  /** What limits.ts has found out; null before. */
  knownLimits: KnownLimits | null = null;
  readonly #devices: TableDevices;
  readonly #index: SectorIndex;
  #recent = 0;

  constructor(parts: TableParts) {
    this.targets = parts.targets;
    this.hookedTargets = parts.hookedTargets;
    this.flushDevices = parts.flushDevices;
    this.readOnly = parts.readOnly;
    this.isStateless = parts.isStateless;
    this.#devices = parts.devices;
    this.#index = parts.index;
    this.devices = parts.devices.list();
    const last = parts.targets[parts.targets.length - 1];
    this.sectorCount = last === undefined ? 0 : last.begin + last.sectorCount;
  }

  /** The target that owns `sector`; undefined past the end. */
  find(sector: number): AnyTarget | undefined {
    // Requests cluster: the target of the last one is the first guess.
    const recent = this.targets[this.#recent]!;
    if (sector >= recent.begin && sector < recent.begin + recent.sectorCount) return recent;
    if (!(sector < this.sectorCount)) return undefined;
    let at = 0;
    for (let level = this.#index.length - 1; level >= 0; level--) {
      const keys = this.#index[level]!;
      at *= INDEX_FANOUT;
      // Ends inside the node: the last key of the node above was not below the sector.
      while (keys[at]! < sector) at++;
    }
    this.#recent = at;
    return this.targets[at];
  }

  /** Lines as `dmsetup table` or `dmsetup status` prints them, without a newline. */
  lines(type: StatusType): string[] {
    return this.targets.map((target) => targetLine(target, type));
  }

  /**
   * Undoes every constructor and closes the devices. Calls `done` once they are closed: later than this call where a target
   * still has requests of its own under way.
   */
  destroy(done: () => void = () => {}): void {
    for (const target of this.hookedTargets) target.type.destruct?.(target);
    this.#devices.closeAll(done);
  }
}

function targetLine(target: AnyTarget, type: StatusType): string {
  return formatTableLine(target.begin, target.sectorCount, target.type.name, target.type.status?.(target, type) ?? '');
}

/** UTF-16 units of a piece of text. */
const MAX_PIECE_LENGTH = 65_536;

/**
 * What `table.lines(type)`, joined by newlines, gives, in pieces of at most 65,536 UTF-16 units that cut no character: to
 * print a long table a piece at a time. Each line is asked when its turn comes, so a status may be as of different moments;
 * whoever takes the pieces in several turns of the loop stops when the table is replaced.
 */
export function* tablePieces(table: Table, type: StatusType): Generator<string, void, void> {
  let text = '';
  for (const [index, target] of table.targets.entries()) {
    if (index > 0) text += '\n';
    text += targetLine(target, type);
    for (; text.length > MAX_PIECE_LENGTH; text = text.slice(pieceLength(text))) yield text.slice(0, pieceLength(text));
  }
  if (text !== '') yield text;
}

/** A character of two units stays whole. */
function pieceLength(text: string): number {
  return isHighSurrogate(text.charCodeAt(MAX_PIECE_LENGTH - 1)) ? MAX_PIECE_LENGTH - 1 : MAX_PIECE_LENGTH;
}

function isHighSurrogate(unit: number): boolean {
  return unit >= 0xd800 && unit < 0xdc00;
}
