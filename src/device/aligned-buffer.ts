/**
 * Buffers for O_DIRECT, which takes memory, offset and length only in multiples of the device's sectors.
 *
 * An ArrayBuffer of some length is allocated outside of V8's heap and is never moved (only typed arrays of up to 64
 * bytes live inside it), so a view at an aligned address stays aligned, and the garbage collector frees it.
 */
import { addressOf } from "./libc.ts";

/**
 * A zero-filled buffer whose first byte lies at a multiple of `alignment` (bytes, a power of two). The caller owns it.
 * @throws {RangeError} on an alignment that is no power of two
 */
export function alignedBuffer(byteLength: number, alignment: number): Uint8Array<ArrayBuffer> {
  if (alignment < 1 || !Number.isInteger(Math.log2(alignment))) {
    throw new RangeError(`alignment ${alignment} is not a power of two`);
  }
  // At least a page, so that it is never one of the small arrays on V8's heap.
  const memory = new Uint8Array(Math.max(byteLength + alignment, 4096));
  const excess = addressOf(memory) % alignment;
  const start = excess === 0 ? 0 : alignment - excess;
  return memory.subarray(start, start + byteLength);
}

/** Whether the first byte of a view lies at a multiple of `alignment` bytes. */
export function isAligned(view: Uint8Array, alignment: number): boolean {
  return addressOf(view) % alignment === 0;
}
