/**
 * Buffers for O_DIRECT, which takes memory, offset and length only in multiples of the device's sectors.
 *
 * An ArrayBuffer of some length is allocated outside of V8's heap and is never moved (only typed arrays of up to 64
 * bytes live inside it), so a view at an aligned address stays aligned, and the garbage collector frees it.
 */
import { addressOf, wishHugePages } from "./libc.ts";

const HUGE_PAGE = 2 ** 21;

/**
 * A zero-filled buffer whose first byte lies at a multiple of `alignment` (bytes, a power of two); one that is large
 * enough, in huge pages where the kernel has them. The caller owns it.
 * @throws {RangeError} on an alignment that is no power of two
 */
export function alignedBuffer(byteLength: number, alignment: number): Uint8Array<ArrayBuffer> {
  if (alignment < 1 || !Number.isInteger(Math.log2(alignment))) {
    throw new RangeError(`alignment ${alignment} is not a power of two`);
  }
  const huge = byteLength >= HUGE_PAGE;
  const unit = huge ? Math.max(alignment, HUGE_PAGE) : alignment;
  // At least a page, so that it is never one of the small arrays on V8's heap.
  const memory = new Uint8Array(Math.max(byteLength + unit, 4096));
  const excess = addressOf(memory) % unit;
  const start = excess === 0 ? 0 : unit - excess;
  const buffer = memory.subarray(start, start + byteLength);
  if (huge) wishHugePages(buffer); // before the first byte is touched, or the small pages are there already
  return buffer;
}

/** Whether the first byte of a view lies at a multiple of `alignment` bytes. */
export function isAligned(view: Uint8Array, alignment: number): boolean {
  return addressOf(view) % alignment === 0;
}
