// Result files: read, checked, merged.
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';

/** @throws Error for a file that is no result */
export function readResult(path) {
  let result;
  try {
    result = JSON.parse(readFileSync(path, 'utf8'));
  } catch (error) {
    throw new Error(`${path}: ${error.message}; give a file that npm run bench wrote`);
  }
  if (typeof result?.machine !== 'object' || !Array.isArray(result.rows)) {
    throw new Error(`${path} is no result of the benchmarks: it has no machine or no rows`);
  }
  const old = result.rows.find(({ section, contestants }) => section === undefined || !Array.isArray(contestants));
  if (old !== undefined) throw new Error(`${path}: row ${old.name} was written by another version; measure it again`);
  return result;
}

export function writeResult(path, result) {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, `${JSON.stringify(result, null, 2)}\n`);
}

/** What must be alike for rows to stand in one table. */
function conditions({ machine, seconds, imageBytes, copyBytes, quick }) {
  const { date: _date, ...rest } = machine;
  return { ...rest, seconds, imageBytes, copyBytes, quick };
}

function differences(a, b, prefix = '') {
  return [...new Set([...Object.keys(a), ...Object.keys(b)])].flatMap((key) => {
    if (typeof a[key] === 'object' && typeof b[key] === 'object')
      return differences(a[key], b[key], `${prefix}${key}.`);
    return a[key] === b[key] ? [] : [`${prefix}${key}: ${a[key]} and ${b[key]}`];
  });
}

/**
 * One result of several that were measured on one machine with the same options. A row that is in more than one is
 * taken from the last.
 *
 * @param parts `{ path, result }`
 * @throws Error naming what differs
 */
export function mergeResults(parts) {
  const [first, ...others] = parts;
  for (const { path, result } of others) {
    const found = differences(conditions(first.result), conditions(result));
    if (found.length > 0) {
      throw new Error(
        `${first.path} and ${path} cannot be merged, their figures are not comparable:\n  ${found.join('\n  ')}`,
      );
    }
  }
  const rows = new Map(parts.flatMap(({ result }) => result.rows.map((row) => [row.name, row])));
  const dates = parts.map(({ result }) => result.machine.date).sort();
  return { ...first.result, machine: { ...first.result.machine, date: dates[0] }, rows: [...rows.values()] };
}

/** Rows by section, both in the order they were measured. */
export function sectionsOf(result) {
  const sections = new Map();
  for (const row of result.rows) sections.set(row.section, [...(sections.get(row.section) ?? []), row]);
  return sections;
}
