// Runs rows of paired measurements. All contestants of a row take turns, round after round (A B C, A B C, …), so that
// whatever slows the machine for a while slows all of them, and only ratios taken within a round are compared.
import { loadavg } from 'node:os';

export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

export function summarize(values) {
  if (values.length === 0) return undefined;
  return { median: median(values), min: Math.min(...values), max: Math.max(...values) };
}

/** How much better `base` is than `values`, round by round; a round in which either has nothing to divide has no ratio. */
function pairwise(base, values, lessIsBetter) {
  return values.flatMap((value, round) => {
    if (!(value > 0 && base[round] > 0)) return [];
    return [lessIsBetter ? value / base[round] : base[round] / value];
  });
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
      running.push({ contestant, measured: [] });
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
    const measured = await entry.contestant.measure(round);
    entry.measured[round] = typeof measured === 'number' ? { value: measured } : measured;
  } catch (error) {
    // One failure takes it out of the row: what stalled once would stall every round for its whole time limit.
    entry.broken = true;
    report.failed.push({ name: entry.contestant.name, reason: error.message });
  }
}

const given = (values) => values.filter((value) => value !== undefined);

/** The figures of one contestant: its own, and how much better the first one is. */
function figures({ contestant, measured }, base, row) {
  const values = measured.map(({ value }) => value);
  const cpu = given(measured.map(({ cpuMicroseconds }) => cpuMicroseconds));
  const latencies = given(measured.map(({ latency }) => latency));
  const percentiles = Object.keys(latencies[0] ?? {}).map((name) => [name, median(latencies.map((one) => one[name]))]);
  return {
    name: contestant.name,
    ...(contestant.isCeiling ? { isCeiling: true } : {}),
    value: summarize(given(values)),
    values: measured.length === 0 ? [] : Array.from({ length: row.rounds }, (_, round) => values[round] ?? null),
    ...(cpu.length > 0 ? { cpuMicroseconds: summarize(cpu) } : {}),
    ...(percentiles.length > 0 ? { latencyMicroseconds: Object.fromEntries(percentiles) } : {}),
    ...(base === undefined || base.contestant === contestant
      ? {}
      : {
          ratio: summarize(
            pairwise(
              base.measured.map(({ value }) => value),
              values,
              row.lessIsBetter,
            ),
          ),
          ratioOf: base.contestant.name,
        }),
  };
}

/**
 * Runs one row: `{ name, what, fileSystem, contestants: [{ name, available(), start(), measure(round), stop() }] }`, maybe
 * with `section` and `label` (its place in the chart), `unit` (operations per second unless given), `lessIsBetter`, and
 * `rounds` where fewer must do. `available()` gives undefined, or the reason why not; `measure` a number in that unit, or
 * `{ value, cpuMicroseconds, latency: { p50, p99, p999 } }`: CPU time for each request, and microseconds.
 */
export async function runRow(row, wantedRounds, onProgress = () => {}) {
  const { name, what, fileSystem, unit = 'ops/s', lessIsBetter = false } = row;
  const rounds = Math.min(wantedRounds, row.rounds ?? wantedRounds);
  const { section = name.split(' ')[0], label = name } = row;
  const report = { name, what, fileSystem, section, label, unit, lessIsBetter, rounds, missing: [], failed: [] };
  report.loadBefore = loadavg()[0];
  const running = await startAll(row, report);
  try {
    for (let round = 0; round < rounds; round += 1) {
      for (const entry of running) {
        onProgress(`${name}: ${entry.contestant.name}, round ${round + 1} of ${rounds}`);
        await measureOnce(entry, round, report);
      }
    }
  } finally {
    for (const { contestant } of running) await contestant.stop();
  }
  // Ratios are to the first contestant of the row, not to the first that happens to be there.
  const base = running.find(({ contestant }) => contestant === row.contestants[0]);
  report.loadAfter = loadavg()[0];
  report.contestants = running.map((entry) => figures(entry, base, report));
  return report;
}

/** A figure in as many digits as it is worth. */
export function short(value) {
  if (value === 0) return '0';
  if (Math.abs(value) < 1000) return value.toPrecision(3);
  return `${(value / 1000).toFixed(value < 10_000 ? 2 : 1)}k`;
}

const PERCENTILES = [
  ['p50', 'p50 us'],
  ['p99', 'p99 us'],
  ['p999', 'p99.9 us'],
];

function cellsOf({ name, value, ratio, cpuMicroseconds, latencyMicroseconds }, hasCpu, hasLatency) {
  return [
    name,
    ...(value ? Object.values(value).map(short) : ['failed', '', '']),
    ...(ratio ? Object.values(ratio).map((one) => one.toFixed(2)) : ['', '', '']),
    ...(hasCpu ? [cpuMicroseconds ? short(cpuMicroseconds.median) : ''] : []),
    ...(hasLatency ? PERCENTILES.map(([key]) => (latencyMicroseconds ? short(latencyMicroseconds[key]) : '')) : []),
  ];
}

function line(cells, widths) {
  return cells.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]) : cell.padStart(widths[i]))).join('  ');
}

/** The row as text: medians, spread, and the first contestant's ratio to each other one. */
export function formatRow(report) {
  const hasCpu = report.contestants.some(({ cpuMicroseconds }) => cpuMicroseconds !== undefined);
  const hasLatency = report.contestants.some(({ latencyMicroseconds }) => latencyMicroseconds !== undefined);
  const cells = [
    [
      '',
      report.unit,
      'min',
      'max',
      'ratio',
      'min',
      'max',
      ...(hasCpu ? ['CPU us'] : []),
      ...(hasLatency ? PERCENTILES.map(([, title]) => title) : []),
    ],
    ...report.contestants.map((one) => cellsOf(one, hasCpu, hasLatency)),
  ];
  const widths = cells[0].map((_, column) => Math.max(...cells.map((row) => row[column].length)));
  const text = [`${report.name} [${report.fileSystem}] - ${report.what}`];
  for (const row of cells) text.push(`  ${line(row, widths).trimEnd()}`);
  for (const { name, reason } of report.missing) text.push(`  missing: ${name} (${reason})`);
  for (const { name, reason } of report.failed) text.push(`  failed: ${name} (${reason})`);
  const base = report.contestants.find(({ ratioOf }) => ratioOf !== undefined)?.ratioOf;
  const better = report.lessIsBetter ? 'less' : 'more';
  if (base !== undefined) {
    text.push(`  ratio: how much better (${better}) ${base} is than that line, median of ${report.rounds} rounds`);
  }
  return text.join('\n');
}
