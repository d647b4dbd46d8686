// Bytes behind the last whole sector of an image or export: no sector has them, so no device built on it shows them.
import { SECTOR_SIZE } from './sector.ts';

/** The end of a file or export that a device does not show. */
export interface CutEnd {
  /** The device, as tables print it. */
  readonly name: string;
  /** The whole file or export. */
  readonly byteLength: number;
  /** Its last 1 to 511 bytes, which no request reaches. */
  readonly cutByteLength: number;
}

/** One sentence for people. */
export function cutEndText({ name, byteLength, cutByteLength }: CutEnd): string {
  const bytes = cutByteLength === 1 ? 'its last byte' : `its last ${cutByteLength} bytes`;
  return `${name} has ${byteLength} bytes, no multiple of ${SECTOR_SIZE}: ${bytes} can not be reached`;
}
