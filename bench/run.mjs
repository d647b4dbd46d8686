// The benchmarks: npm run bench -- [--rows PATTERN] [--rounds N] [--seconds S] [--json FILE] [--quick] [--list]
// See bench/README.md for what its figures mean, and which may not be compared.
import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { formatRow, runRow } from './harness.mjs';
import { describeMachine, findFolders } from './machine.mjs';
import { dmIoRows } from './rows/dm-io.mjs';
import { inProcessRows } from './rows/in-process.mjs';
import { nbdRows } from './rows/nbd.mjs';
import { snapshotRows } from './rows/snapshot.mjs';
import { startUpRows } from './rows/start-up.mjs';
import { tableRows } from './rows/tables.mjs';

const { values: flags } = parseArgs({
  options: {
    rows: { type: 'string', default: '' },
    rounds: { type: 'string' },
    seconds: { type: 'string' },
    json: { type: 'string' },
    quick: { type: 'boolean', default: false },
    list: { type: 'boolean', default: false },
  },
});

function positive(name, text, fallback) {
  const value = text === undefined ? fallback : Number(text);
  if (!(value > 0)) throw new Error(`--${name} must be a number above 0, not ${text}`);
  return value;
}

const rounds = Math.ceil(positive('rounds', flags.rounds, flags.quick ? 2 : 5));
const options = {
  seconds: positive('seconds', flags.seconds, flags.quick ? 0.5 : 2),
  imageBytes: (flags.quick ? 64 : 256) << 20,
};

const folders = findFolders();
const pattern = new RegExp(flags.rows);
const rows = [nbdRows, inProcessRows, tableRows, dmIoRows, snapshotRows, startUpRows]
  .flatMap((make) => make(folders, options))
  .filter(({ name }) => pattern.test(name));

function showProgress(text) {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${text}`);
}

function saveJson(results) {
  const stamp = results.machine.date.replace(/[:.]/g, '-');
  const path = flags.json ?? join(fileURLToPath(new URL('results', import.meta.url)), `${stamp}.json`);
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, `${JSON.stringify(results, null, 2)}\n`);
  return path;
}

function printMachine(machine) {
  const { cpu, cores, memoryGiB, platform, kernel, versions } = machine;
  console.log(`${cpu}, ${cores} cores, ${memoryGiB} GiB, ${platform}, Linux ${kernel}`);
  for (const [name, version] of Object.entries(versions)) console.log(`  ${name}: ${version}`);
  for (const [place, folder] of Object.entries(folders)) {
    if (folder === undefined) console.log(`  no folder in ${place} here: its rows are left out`);
  }
}

async function main() {
  const machine = describeMachine();
  printMachine(machine);
  const results = { machine, rounds, ...options, quick: flags.quick, rows: [] };
  for (const row of rows) {
    const report = await runRow(row, rounds, showProgress);
    showProgress('');
    console.log(`\n${formatRow(report)}`);
    results.rows.push(report);
  }
  console.log(`\n${results.rows.length} rows, written to ${saveJson(results)}`);
  if (results.rows.some(({ failed }) => failed.length > 0)) process.exitCode = 1;
}

if (flags.list) for (const { name, what } of rows) console.log(`${name}: ${what}`);
else await main();
