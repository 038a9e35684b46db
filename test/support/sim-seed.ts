/** A seed of its own for each use of one seed (the finalizer of MurmurHash3). */
export function mix(seed: number, use: number): number {
  let mixed = (seed ^ Math.imul(use, 0x9e37_79b1)) >>> 0;
  mixed = Math.imul(mixed ^ (mixed >>> 16), 0x85eb_ca6b);
  mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2_ae35);
  return (mixed ^ (mixed >>> 16)) >>> 0;
}
