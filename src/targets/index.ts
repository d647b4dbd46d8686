// The target types, one line each. Newest last, as they are registered; `dmsetup targets` lists them the other way round.
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import type { AnyTargetType, TargetRegistry } from '../block/target.ts';
import { error } from './error.ts';
import { linear } from './linear.ts';
import { snapshot, snapshotMerge, snapshotOrigin } from './snapshot/index.ts';
import { striped } from './striped.ts';
import { zero } from './zero.ts';

/** What dmkit brings. */
export const builtinTargets: readonly AnyTargetType[] = [
  error,
  linear,
  striped,
  zero,
  snapshot,
  snapshotOrigin,
  snapshotMerge,
];

const MAX_TYPE_NAME_LENGTH = 15;

/** Target types by name. A program may add its own. */
export class Targets implements TargetRegistry {
  readonly #types = new Map<string, AnyTargetType>();

  constructor(types: readonly AnyTargetType[] = builtinTargets) {
    for (const type of types) this.register(type);
  }

  /** @throws DmError EEXIST for a name that is taken, EINVAL for one that is empty, too long or holds white space */
  register(type: AnyTargetType): void {
    if (!/^\S+$/.test(type.name) || type.name.length > MAX_TYPE_NAME_LENGTH) {
      throw new DmError(Errno.EINVAL, `"${type.name}" is no name for a target: 1 to 15 characters, no blanks`);
    }
    if (this.#types.has(type.name))
      throw new DmError(Errno.EEXIST, `a target named ${type.name} is registered already`);
    this.#types.set(type.name, type);
  }

  find(name: string): AnyTargetType | undefined {
    return this.#types.get(name);
  }

  list(): readonly AnyTargetType[] {
    return [...this.#types.values()];
  }
}
