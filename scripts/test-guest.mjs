// npm run test:guest: a real kernel on what dmkit exports, in a small guest under QEMU. First the export is the guest's
// virtio disk, then the guest's own NBD client attaches it. Not part of `npm test`: it fetches a kernel and takes a minute.
// Needs Debian (or a relative) on x86-64. Everything is killed when its time is up; the output of a failure is kept.
import { spawn, spawnSync } from 'node:child_process';
import { closeSync, existsSync, mkdirSync, mkdtempSync, openSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { homedir, tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const cache = join(process.env.XDG_CACHE_HOME ?? join(homedir(), '.cache'), 'dmkit');
const guest = join(cache, 'nbd-guest');
const BUILD_SECONDS = 600;
/** Under emulation the client's job takes about a minute on two slow processors. */
const JOB_SECONDS = 300;
const CHUNK = 128;
const LEG_SECTORS = 64 * 2048;

const living = new Set();

function fail(text) {
  throw new Error(text);
}

/** A child that is killed when this process ends or `seconds` are over, with what it has said. */
function startChild(name, command, args, seconds, stdin = 'ignore') {
  const child = spawn(command, args, { cwd: root, stdio: [stdin, 'pipe', 'pipe'] });
  const started = { name, child, output: '', waiters: [], isLate: false };
  living.add(child);
  const timer = setTimeout(() => {
    started.isLate = true;
    child.kill('SIGKILL');
  }, seconds * 1000);
  const take = (chunk) => {
    started.output += chunk;
    for (const look of started.waiters) look();
  };
  child.stdout.on('data', take);
  child.stderr.on('data', take);
  started.exited = new Promise((resolve) => {
    child.on('error', (error) => take(error.message));
    child.on('close', (code) => {
      clearTimeout(timer);
      living.delete(child);
      started.hasEnded = true;
      for (const look of started.waiters) look();
      resolve(code);
    });
  });
  return started;
}

process.on('exit', () => {
  for (const child of living) child.kill('SIGKILL');
});
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => process.exit(1));

/** Resolves with the match of `pattern` in what the child says after `from`; rejects when it ends before. */
function said(started, pattern, from = 0) {
  return new Promise((resolve, reject) => {
    const look = () => {
      const match = pattern.exec(started.output.slice(from));
      if (match !== null) resolve(match);
      else if (started.hasEnded) {
        const how = started.isLate ? 'was killed when its time was up' : 'ended';
        reject(new Error(`${started.name} ${how} before it said ${pattern}`));
      }
    };
    started.waiters.push(look);
    look();
  });
}

function runTool(command, args) {
  const result = spawnSync(command, args, { encoding: 'utf8', timeout: 120_000, killSignal: 'SIGKILL' });
  if (result.status !== 0) fail(`${command} ${args.join(' ')}: ${result.error ?? ''}${result.stdout}${result.stderr}`);
  return result.stdout;
}

/** A stripe over two images, served at `address`. The log of every server of this run is kept. */
class Server {
  constructor(folder, address, logs) {
    this.address = address;
    this.logs = logs;
    const legs = ['a.img', 'b.img'].map((name) => join(folder, name));
    for (const leg of legs) {
      if (!existsSync(leg)) {
        writeFileSync(leg, '');
        truncateSync(leg, LEG_SECTORS * 512);
      }
    }
    this.table = `0 ${2 * LEG_SECTORS} striped 2 ${CHUNK} ${legs[0]} 0 ${legs[1]} 0`;
  }

  async start() {
    const main = join(root, 'dist', 'cli', 'main.js');
    const args = [main, 'serve', 'disk', '--table', this.table, '--nbd', this.address];
    this.process = startChild('dmkit serve', process.execPath, args, 2 * JOB_SECONDS);
    this.logs.push(this.process);
    [this.uri] = await said(this.process, /^nbd\S+$/m);
    // The port that the system has chosen is kept for the next start.
    const port = /:(\d+)\//.exec(this.uri)?.[1];
    if (port !== undefined) this.address = `tcp:127.0.0.1:${port}`;
    this.port = port;
  }

  async stop() {
    this.process.child.kill('SIGTERM');
    const code = await this.process.exited;
    if (code !== 0) fail(`dmkit serve ended with ${code}`);
  }
}

let accelerator;

/** KVM where a processor of it can be set up; the node alone says nothing, least of all in a virtual machine. */
function chooseAccelerator() {
  try {
    closeSync(openSync('/dev/kvm', 'r+'));
  } catch {
    return 'tcg';
  }
  const args = [
    '-machine',
    'pc,accel=kvm',
    '-cpu',
    'host',
    '-S',
    '-nodefaults',
    '-display',
    'none',
    '-monitor',
    'stdio',
  ];
  const probe = spawnSync('qemu-system-x86_64', args, { input: 'quit\n', timeout: 20_000, killSignal: 'SIGKILL' });
  return probe.status === 0 ? 'kvm' : 'tcg';
}

function bootGuest(job, more, port = 0) {
  accelerator ??= process.env.DMKIT_ACCELERATOR ?? chooseAccelerator();
  const args = ['-machine', `pc,accel=${accelerator}`, '-cpu', accelerator === 'kvm' ? 'host' : 'max', '-m', '512'];
  args.push('-nodefaults', '-display', 'none', '-no-reboot', '-serial', 'stdio');
  args.push('-kernel', join(guest, 'vmlinuz'), '-initrd', join(guest, 'initramfs.gz'));
  args.push('-append', `console=ttyS0 quiet panic=-1 job=${job} port=${port}`, ...more);
  return startChild(`the guest (${accelerator})`, 'qemu-system-x86_64', args, JOB_SECONDS, 'pipe');
}

/** The guest is done, and said so. */
async function guestDone(machine, job) {
  const [, outcome] = await said(machine, new RegExp(`^@(ok|failed) ${job}`, 'm'));
  if (outcome !== 'ok') fail(`the job "${job}" failed in the guest`);
  await machine.exited;
}

/** What the guest has left behind is a sound file system, also for who reads it past its own server. */
async function checkFileSystem(server, folder) {
  await server.start();
  runTool('nbdcopy', [server.uri, join(folder, 'whole.img')]);
  await server.stop();
  return runTool('e2fsck', ['-f', '-n', join(folder, 'whole.img')]);
}

async function testDisk(folder, logs) {
  const server = new Server(folder, `unix:${join(folder, 's')}`, logs);
  await server.start();
  const drive = `file=${server.uri},format=raw,if=virtio,discard=unmap,cache=none`;
  const machine = bootGuest('disk', ['-drive', drive]);
  logs.push(machine);
  await guestDone(machine, 'disk');
  await server.stop();
  await checkFileSystem(server, folder);
}

async function testClient(folder, logs) {
  const server = new Server(folder, 'tcp:127.0.0.1:0', logs);
  await server.start();
  const network = ['-netdev', 'user,id=n0', '-device', 'virtio-net-pci,netdev=n0,romfile='];
  const machine = bootGuest('client', network, server.port);
  logs.push(machine);
  for (let from = 0, i = 0; i < 2; i++) {
    const match = await said(machine, /^@(restart|failed)/m, from);
    if (match[1] !== 'restart') fail('the job "client" failed in the guest');
    from += match.index + match[0].length;
    await server.stop();
    await server.start();
    machine.child.stdin.write('restarted\n');
  }
  await guestDone(machine, 'client');
  await server.stop();
  await checkFileSystem(server, folder);
}

/** Runs one test; what everybody said is kept where it failed. @returns whether it passed */
async function runTest(name, test) {
  const folder = mkdtempSync(join(process.env.DMKIT_TEST_DIR ?? tmpdir(), 'dmkit-guest-'));
  const logs = [];
  const begin = performance.now();
  const seconds = () => ((performance.now() - begin) / 1000).toFixed(1);
  try {
    await test(folder, logs);
    process.stdout.write(`ok      ${name} (${accelerator}, ${seconds()} s)\n`);
    rmSync(folder, { recursive: true, force: true });
    return true;
  } catch (error) {
    for (const { child } of logs) child.kill('SIGKILL');
    await Promise.all(logs.map(({ exited }) => exited));
    for (const [index, { name: who, output }] of logs.entries()) {
      writeFileSync(join(folder, `${index}.log`), `${who}\n${output}`);
    }
    const last = logs.findLast(({ name: who }) => who.startsWith('the guest'))?.output ?? '';
    process.stdout.write(
      `FAILED  ${name} (${seconds()} s): ${error.message}\n${last.split('\n').slice(-40).join('\n')}\n`,
    );
    process.stdout.write(`        images and logs are in ${folder}\n`);
    return false;
  }
}

async function main() {
  if (!existsSync(join(root, 'dist', 'cli', 'main.js'))) fail('dist/ is missing: npm run build');
  mkdirSync(cache, { recursive: true });
  // Always built anew: it takes seconds once the kernel's package is there, and is then what the sources say.
  const build = startChild('build-guest', join(root, 'test', 'guest', 'build-guest'), [cache], BUILD_SECONDS);
  if ((await build.exited) !== 0) fail(`the guest could not be built:\n${build.output}`);
  process.stdout.write(build.output);
  const tests = [
    ['a guest whose virtio disk is the export', testDisk],
    ["the kernel's NBD client on two connections, the server restarted under it", testClient],
  ];
  let failedCount = 0;
  for (const [name, test] of tests) if (!(await runTest(name, test))) failedCount++;
  process.stdout.write(`${tests.length - failedCount} passed, ${failedCount} failed\n`);
  process.exitCode = failedCount === 0 ? 0 : 1;
}

await main();
