// What BLOCK_STATUS can tell of an extent: each meta context with its number and how its value comes about.
import { extentDepth } from '../../block/block-device.ts';
import { BASE_ALLOCATION, BASE_NAMESPACE, QEMU_ALLOCATION_DEPTH, QEMU_NAMESPACE } from '../protocol/constants.ts';

interface ServedContext {
  /** Stands for it in replies, on every connection. */
  readonly id: number;
  readonly name: string;
  readonly namespace: string;
  /** What a reply says of an extent that the device has described. */
  value(extentFlags: number, depth: number | undefined): number;
}

export const META_CONTEXTS: readonly ServedContext[] = [
  { id: 1, name: BASE_ALLOCATION, namespace: BASE_NAMESPACE, value: (extentFlags) => extentFlags },
  { id: 2, name: QEMU_ALLOCATION_DEPTH, namespace: QEMU_NAMESPACE, value: extentDepth },
];
