// The kernel's two ways to read a number in a target's arguments; which of them a field uses decides what is accepted.

const DIGITS = /^[0-9]+$/;
const KSTRTO = /^\+?[0-9]+$/;

/**
 * A field that the kernel reads with sscanf("%llu%c"): decimal digits only, no sign, and a value past 2^64 wraps.
 * A result past 2^53 is rounded, which keeps it larger than every sector here.
 *
 * @returns undefined where the kernel refuses the text
 */
export function scanUnsigned64(text: string): number | undefined {
  if (!DIGITS.test(text)) return undefined;
  if (text.length < 16) return Number(text);
  return Number(BigInt.asUintN(64, BigInt(text)));
}

/**
 * A field that the kernel reads with kstrtouint(…, 10, …): decimal, one leading `+` allowed, no wrap.
 *
 * @returns undefined where the kernel refuses the text
 */
export function parseUnsigned32(text: string): number | undefined {
  if (!KSTRTO.test(text)) return undefined;
  const value = Number(text);
  return value <= 0xffffffff ? value : undefined;
}
