/** What metadata calls hydrated, held against the bytes that are there. */
import { join } from "node:path";
import { expect } from "vitest";
import { readRange } from "./files.ts";
import { cloneOk, oneJson } from "./run-clone.ts";

/**
 * Each region that is called hydrated holds what the source has. For clones that nobody has written to.
 * @returns how many there are
 */
export async function expectHydratedRight(clone: {
  cwd: string;
  /** The destination; its metadata is beside it unless told where. */
  copy: string;
  metadata?: string;
  /** The source's. */
  bytes: Buffer;
}): Promise<number> {
  const { cwd, copy, metadata = `${copy}.clone`, bytes } = clone;
  const dump = await cloneOk(["dump", metadata, "--json"], { cwd });
  const { hydrated, regionSize } = oneJson<{ hydrated: [number, number][]; regionSize: number }>(dump);
  let regions = 0;
  for (const [start, end] of hydrated) {
    const [from, to] = [start * regionSize, Math.min(bytes.length, end * regionSize)];
    const there = await readRange(join(cwd, copy), from, to - from);
    expect(Buffer.compare(there, bytes.subarray(from, to)), `regions ${start} … ${end - 1}`).toBe(0);
    regions += end - start;
  }
  return regions;
}
