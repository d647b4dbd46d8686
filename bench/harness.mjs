// Runs rows of paired measurements. All contestants of a row take turns, round after round (A B C, A B C, …), so that
// whatever slows the machine for a while slows all of them, and only ratios taken within a round are compared.

export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

function summarize(values) {
  if (values.length === 0) return undefined;
  return { median: median(values), min: Math.min(...values), max: Math.max(...values) };
}

/** Ratios of `values` to `base`, round by round; a round in which either failed has none. */
function pairwise(base, values) {
  return values.flatMap((value, round) => (value > 0 && base[round] > 0 ? [base[round] / value] : []));
}

async function startAll(row, report) {
  const running = [];
  for (const contestant of row.contestants) {
    const reason = await contestant.available();
    if (reason !== undefined) {
      report.missing.push({ name: contestant.name, reason });
      continue;
    }
    try {
      await contestant.start();
      running.push({ contestant, values: [] });
    } catch (error) {
      report.failed.push({ name: contestant.name, reason: error.message });
      await contestant.stop();
    }
  }
  return running;
}

async function measureOnce(entry, round, report) {
  if (entry.broken) return;
  try {
    entry.values[round] = await entry.contestant.measure(round);
  } catch (error) {
    // One failure takes it out of the row: what stalled once would stall every round for its whole time limit.
    entry.broken = true;
    report.failed.push({ name: entry.contestant.name, reason: error.message });
  }
}

/**
 * Runs one row: `{ name, what, fileSystem, contestants: [{ name, available(), start(), measure(round), stop() }] }`.
 * `available()` gives undefined, or the reason why not; `measure` gives operations per second.
 */
export async function runRow(row, rounds, onProgress = () => {}) {
  const report = { name: row.name, what: row.what, fileSystem: row.fileSystem, rounds, missing: [], failed: [] };
  const running = await startAll(row, report);
  try {
    for (let round = 0; round < rounds; round += 1) {
      for (const entry of running) {
        onProgress(`${row.name}: ${entry.contestant.name}, round ${round + 1} of ${rounds}`);
        await measureOnce(entry, round, report);
      }
    }
  } finally {
    for (const { contestant } of running) await contestant.stop();
  }
  const base = running[0];
  report.contestants = running.map(({ contestant, values }) => ({
    name: contestant.name,
    opsPerSecond: summarize(values.filter((value) => value > 0)),
    values,
    ...(contestant === base.contestant
      ? {}
      : { ratio: summarize(pairwise(base.values, values)), ratioOf: base.contestant.name }),
  }));
  return report;
}

const thousands = (value) =>
  value < 1000 ? value.toPrecision(3) : `${(value / 1000).toFixed(value < 10_000 ? 2 : 1)}k`;

function line(cells, widths) {
  return cells.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]) : cell.padStart(widths[i]))).join('  ');
}

/** The row as text: medians, spread, and the first contestant's ratio to each other one. */
export function formatRow(report) {
  const cells = [['', 'ops/s', 'min', 'max', 'ratio', 'min', 'max']];
  for (const { name, opsPerSecond, ratio } of report.contestants) {
    const numbers = opsPerSecond ? Object.values(opsPerSecond).map(thousands) : ['failed', '', ''];
    const ratios = ratio ? Object.values(ratio).map((value) => value.toFixed(2)) : ['', '', ''];
    cells.push([name, ...numbers, ...ratios]);
  }
  const widths = cells[0].map((_, column) => Math.max(...cells.map((row) => row[column].length)));
  const text = [`${report.name} [${report.fileSystem}] - ${report.what}`];
  for (const row of cells) text.push(`  ${line(row, widths).trimEnd()}`);
  for (const { name, reason } of report.missing) text.push(`  missing: ${name} (${reason})`);
  for (const { name, reason } of report.failed) text.push(`  failed: ${name} (${reason})`);
  const base = report.contestants[0]?.name;
  if (report.contestants.length > 1) text.push(`  ratio: ${base} to that line, median of ${report.rounds} rounds`);
  return text.join('\n');
}
