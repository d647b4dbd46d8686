// dmkit targets: `dmsetup targets`, newest registered first.
import { builtinTargets } from '../targets/index.ts';

export function printTargets(): void {
  for (const type of [...builtinTargets].reverse()) {
    process.stdout.write(`${type.name.padEnd(16)} v${type.version.join('.')}\n`);
  }
}
