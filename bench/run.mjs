// The benchmarks: npm run bench -- [--rows PATTERN] [--rounds N] [--seconds S] [--json FILE] [--quick] [--list]
// and what is made of their results: --merge FILE... [--json FILE], --chart FILE OUT.svg, --report FILE [PAGE.md]
// See bench/README.md for what its figures mean, and which may not be compared.
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { drawChart } from './chart.mjs';
import { formatRow, runRow } from './harness.mjs';
import { describeMachine, findFolders } from './machine.mjs';
import { writeReport } from './report.mjs';
import { mergeResults, readResult, writeResult } from './results.mjs';
import { connectionRows } from './rows/connections.mjs';
import { copyRows } from './rows/copy.mjs';
import { nbdcopyRows } from './rows/copy-nbd.mjs';
import { deviceRows } from './rows/devices.mjs';
import { dmIoRows } from './rows/dm-io.mjs';
import { inProcessRows } from './rows/in-process.mjs';
import { nbdRows } from './rows/nbd.mjs';
import { snapshotRows } from './rows/snapshot.mjs';
import { snapshotCreateRows } from './rows/snapshot-create.mjs';
import { snapshotNbdRows } from './rows/snapshot-nbd.mjs';
import { startUpRows } from './rows/start-up.mjs';
import { tableRows } from './rows/tables.mjs';
import { tableNbdRows } from './rows/tables-nbd.mjs';

const MAKERS = [
  nbdRows,
  nbdcopyRows,
  tableNbdRows,
  deviceRows,
  connectionRows,
  inProcessRows,
  tableRows,
  dmIoRows,
  copyRows,
  snapshotRows,
  snapshotNbdRows,
  snapshotCreateRows,
  startUpRows,
];

const USAGE = `usage: npm run bench -- [--rows TEXT] [--rounds N] [--seconds N] [--json FILE] [--quick] [--list]
       npm run bench -- --merge|--chart|--report [FILE...]
bench/README.md says what the rows are and how they are measured.
`;

const { values: flags, positionals } = readFlags({
  allowPositionals: true,
  options: {
    help: { type: 'boolean', short: 'h', default: false },
    rows: { type: 'string', default: '' },
    rounds: { type: 'string' },
    seconds: { type: 'string' },
    json: { type: 'string' },
    quick: { type: 'boolean', default: false },
    list: { type: 'boolean', default: false },
    merge: { type: 'boolean', default: false },
    chart: { type: 'boolean', default: false },
    report: { type: 'boolean', default: false },
  },
});

function readFlags(config) {
  try {
    const parsed = parseArgs(config);
    if (!parsed.values.help) return parsed;
    process.stdout.write(USAGE);
    return process.exit(0);
  } catch (error) {
    process.stderr.write(`${error.message}\n${USAGE}`);
    return process.exit(2);
  }
}

function positive(name, text, fallback) {
  const value = text === undefined ? fallback : Number(text);
  if (!(value > 0)) throw new Error(`--${name} must be a number above 0, not ${text}`);
  return value;
}

function resultPath(date) {
  const name = `${date.replace(/[:.]/g, '-')}.json`;
  return flags.json ?? join(fileURLToPath(new URL('results', import.meta.url)), name);
}

function showProgress(text) {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${text}`);
}

function printMachine(machine, folders) {
  const { cpu, cores, memoryGiB, platform, kernel, versions } = machine;
  console.log(`${cpu}, ${cores} cores, ${memoryGiB} GiB, ${platform}, Linux ${kernel}`);
  for (const [name, version] of Object.entries(versions)) console.log(`  ${name}: ${version}`);
  for (const [place, folder] of Object.entries(folders)) {
    if (folder === undefined) console.log(`  no folder in ${place} here: its rows are left out`);
  }
}

async function measure(rows, rounds, options, folders) {
  const machine = describeMachine();
  printMachine(machine, folders);
  const result = { machine, rounds, ...options, quick: flags.quick, rows: [] };
  const path = resultPath(machine.date);
  for (const row of rows) {
    const report = await runRow(row, rounds, showProgress);
    showProgress('');
    console.log(`\n${formatRow(report)}`);
    result.rows.push(report);
    // After each row: what is measured is not lost when something ends the run.
    writeResult(path, result);
  }
  console.log(`\n${result.rows.length} rows, written to ${path}`);
  if (result.rows.some(({ failed }) => failed.length > 0)) process.exitCode = 1;
}

async function runRows() {
  const rounds = Math.ceil(positive('rounds', flags.rounds, flags.quick ? 2 : 5));
  const options = {
    seconds: positive('seconds', flags.seconds, flags.quick ? 0.5 : 2),
    imageBytes: (flags.quick ? 64 : 256) << 20,
    copyBytes: (flags.quick ? 128 : 1024) << 20,
  };
  const folders = findFolders();
  const pattern = new RegExp(flags.rows);
  const rows = MAKERS.flatMap((make) => make(folders, options)).filter(({ name }) => pattern.test(name));
  if (rows.length === 0) throw new Error(`no row's name matches ${flags.rows}; --list shows them all`);
  if (flags.list) for (const { name, what } of rows) console.log(`${name}: ${what}`);
  else await measure(rows, rounds, options, folders);
}

function takeFiles(use, count, most = count) {
  if (positionals.length >= count && positionals.length <= most) return positionals;
  throw new Error(`${use} is how it is used`);
}

function merge() {
  const paths = takeFiles('--merge FILE FILE... [--json OUT]', 2, Number.POSITIVE_INFINITY);
  const result = mergeResults(paths.map((path) => ({ path, result: readResult(path) })));
  const path = resultPath(`${result.machine.date}-merged`);
  writeResult(path, result);
  console.log(`${result.rows.length} rows, written to ${path}`);
}

function chart() {
  const [from, to] = takeFiles('--chart RESULT.json CHART.svg', 2);
  writeFileSync(to, drawChart(readResult(from)));
}

/** The page's table, and the chart beside the page under the same name. */
function report() {
  const own = fileURLToPath(new URL('../docs/performance.md', import.meta.url));
  const [from, page = own] = takeFiles('--report RESULT.json [PAGE.md]', 1, 2);
  const result = readResult(from);
  const drawn = drawChart(result);
  writeFileSync(writeReport(page, result), drawn);
}

async function main() {
  if (flags.merge) merge();
  else if (flags.chart) chart();
  else if (flags.report) report();
  else {
    takeFiles('--rows PATTERN, without further words,', 0);
    await runRows();
  }
}

try {
  await main();
} catch (error) {
  console.error(`bench: ${error.message}`);
  process.exitCode = 1;
}
