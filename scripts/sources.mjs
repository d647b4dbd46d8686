// Whether dist/ was built from the sources as they are now. The build writes a hash of them into dist/; times of files say
// less: a checkout or a copy can make a file both different and older, and a file can change while the compiler runs.
import { createHash } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

/** Beside src/, what decides about the compiler's output. */
const OTHER_INPUTS = ['package.json', 'tsconfig.json', 'tsconfig.build.json', 'node_modules/typescript/package.json'];

/** In dist/; the package leaves it out. */
export const STAMP = '.sources';

/** A hash of the names and bytes of everything that dist/ is built from. */
export function hashSources(root) {
  const hash = createHash('sha256');
  const add = (name) => {
    const bytes = readFileSync(join(root, name));
    hash.update(`${name}\0${bytes.byteLength}\0`).update(bytes);
  };
  const sources = readdirSync(join(root, 'src'), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath ?? entry.path, entry.name).slice(join(root, '/').length));
  for (const name of [...sources.sort(), ...OTHER_INPUTS]) add(name);
  return hash.digest('hex');
}

/** Whether dist/ is there and was built from these sources. */
export function isFresh(root) {
  let stamp;
  try {
    stamp = readFileSync(join(root, 'dist', STAMP), 'utf8');
  } catch {
    return false;
  }
  return stamp === hashSources(root);
}
