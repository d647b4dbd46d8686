// Compiles conformance/ and the sources it uses, and runs one of its programs: node conformance/start.mjs PROGRAM [ARGS]
import { spawnSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
// Inside node_modules, so that what dmkit depends on is found from there.
const out = join(root, 'node_modules', '.cache', 'dmkit-conformance');
const tsc = join(root, 'node_modules', 'typescript', 'bin', 'tsc');

mkdirSync(out, { recursive: true });
writeFileSync(join(out, 'package.json'), '{ "type": "module" }\n');
const args = [tsc, '-p', join(root, 'conformance'), '--outDir', out];
const { status } = spawnSync(process.execPath, args, { cwd: root, stdio: 'inherit' });
if (status !== 0) process.exit(status ?? 1);

const { main } = await import(pathToFileURL(join(out, 'conformance', `${process.argv[2]}.js`)).href);
await main(join(root, 'conformance'), process.argv.slice(3));
