// `npm run fuzz -- --minutes N --seed S`: the fuzzers of test/nbd/fuzz for N minutes (5), half for the server and half for
// the client. Without a seed one is drawn; it is printed either way. Each round draws from a number of its own, which a
// failure names: DMKIT_FUZZ_ROUND=<number> repeats that round alone.
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const root = fileURLToPath(new URL('..', import.meta.url));
const USAGE = 'usage: npm run fuzz -- [--minutes N] [--seed S]\n';
const values = readFlags({ minutes: { type: 'string', default: '5' }, seed: { type: 'string' } });
const minutes = Number(values.minutes);
const seed = values.seed === undefined ? Math.floor(Math.random() * 0x7fffffff) : Number(values.seed);
if (!(minutes > 0) || !Number.isInteger(seed)) {
  process.stderr.write(USAGE);
  process.exit(2);
}
const seconds = Math.max(1, Math.round(minutes * 30));
process.stdout.write(`fuzzing for ${minutes} min with --seed ${seed}\n`);
const child = spawn(process.execPath, [join(root, 'node_modules/vitest/vitest.mjs'), 'run', 'test/nbd/fuzz.test.ts'], {
  cwd: root,
  stdio: 'inherit',
  env: {
    ...process.env,
    DMKIT_SEED: String(seed),
    DMKIT_FUZZ_SECONDS: String(seconds),
    DMKIT_FILE_LIMIT: String(2 * seconds + 300),
  },
});
child.once('exit', (code) => {
  process.exitCode = code ?? 1;
});

function readFlags(options) {
  try {
    return parseArgs({ options }).values;
  } catch (error) {
    process.stderr.write(`${error.message}\n${USAGE}`);
    return process.exit(2);
  }
}
