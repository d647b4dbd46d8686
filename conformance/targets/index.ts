// The targets, one line each.
import { error } from './error.ts';
import { linear } from './linear.ts';
import { snapshot } from './snapshot.ts';
import { snapshotMerge } from './snapshot-merge.ts';
import { snapshotOrigin } from './snapshot-origin.ts';
import { striped } from './striped.ts';
import type { TargetCases } from './target.ts';
import { zero } from './zero.ts';

export const targets: readonly TargetCases[] = [error, linear, striped, zero, snapshot, snapshotOrigin, snapshotMerge];
