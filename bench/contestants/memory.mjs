// Buffers at addresses that O_DIRECT takes.
import koffi from 'koffi';

const PAGE = 4096;

/** `count` buffers of 4 KiB, each a page of its own. */
export function pages(count) {
  const whole = Buffer.allocUnsafeSlow((count + 1) * PAGE).fill(0x5a);
  const start = (PAGE - Number(BigInt(koffi.address(whole)) % BigInt(PAGE))) % PAGE;
  return Array.from({ length: count }, (_, i) => whole.subarray(start + i * PAGE, start + (i + 1) * PAGE));
}
