// The index from a sector to its line: a search tree without pointers.
// Level 0 has the last sector of each target, ascending, and each level above it the last key of every node of
// INDEX_FANOUT keys below. A node's keys lie together, so that a search in a million targets touches seven cache lines.

/** Keys in a node of the index. */
export const INDEX_FANOUT = 8;

/** Levels of the tree, the leaves first. */
export type SectorIndex = readonly Float64Array[];

/** The tree over `lastSectors`, which becomes its level 0. */
export function buildSectorIndex(lastSectors: Float64Array): SectorIndex {
  const levels = [lastSectors];
  for (let keys = lastSectors; keys.length > INDEX_FANOUT; levels.push(keys)) {
    const below = keys;
    const nodeCount = Math.ceil(below.length / INDEX_FANOUT);
    keys = new Float64Array(nodeCount);
    for (let node = 0; node < nodeCount; node++) {
      keys[node] = below[Math.min((node + 1) * INDEX_FANOUT, below.length) - 1]!;
    }
  }
  return levels;
}
