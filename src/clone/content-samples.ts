/**
 * Digests of samples of what a device holds, to know it again by. What cannot be read tells nothing: neither that it is
 * another thing, nor that it is the same.
 *
 *     pinned     now
 *     readable   readable      equal, or it is another thing
 *     readable   unreadable    counts against it: where that is most of them, nobody can tell what it is
 *     unreadable whatever      nothing to compare: a disk that failed when the clone was made is cloned as well
 */
import { createHash } from "node:crypto";
import { DeviceError } from "../base/errors.ts";
import { isUnreadable } from "../engine/source-errors.ts";

/** Samples taken of a device, evenly spread, first and last included. */
const SAMPLES = 9;
const SAMPLE_BYTES = 16384;
/** Of each, how often it is tried, and what stands for one that cannot be read. */
const SAMPLE_ATTEMPTS = 3;
const UNREADABLE = "-";
/** Hexadecimal digits kept of a sample's SHA-256. */
const DIGEST_LENGTH = 16;

/** What samples are taken of. */
export interface Sampled {
  /** Bytes. */
  readonly size: number;
  /** Bytes. */
  readonly blockSize: number;
  read(offset: number, buffer: Uint8Array): Promise<void>;
}

/** What samples tell: that it is the same, that it is another thing, or that too few of them can be read to tell either. */
export type SampleVerdict = "same" | "other" | "unknown";

/**
 * Digests of samples, in order, a hyphen for one that cannot be read: a failing disk is still worth cloning, and what can
 * be read of it still tells.
 * @throws {DeviceError} of the device as a whole: one that is gone, away or another has told nothing of itself
 */
export async function contentSamples(device: Sampled): Promise<string> {
  const length = Math.min(SAMPLE_BYTES, device.size);
  const digests = Array.from({ length: SAMPLES }, async (_, index) => {
    const position = Math.floor(((device.size - length) * index) / (SAMPLES - 1));
    return await sampleDigest(device, position - (position % device.blockSize), length);
  });
  return (await Promise.all(digests)).join(" ");
}

async function sampleDigest(device: Sampled, offset: number, length: number): Promise<string> {
  const buffer = new Uint8Array(length);
  for (let attempt = 1; ; attempt++) {
    try {
      await device.read(offset, buffer);
      return digestOf(buffer);
    } catch (error) {
      if (!isUnreadable(error)) throw error;
      if (attempt === SAMPLE_ATTEMPTS) return UNREADABLE;
    }
  }
}

/** The digest of a sample, as it is kept. */
export function digestOf(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex").slice(0, DIGEST_LENGTH);
}

/**
 * Compares samples, as `contentSamples` has made them. At least half of those that could be read then must be readable now;
 * one of them, where the thing `isKnownBesides` by something that no other has: a disk that dies does not become another one.
 */
export function compareSamples(
  pinned: string,
  now: string,
  { isKnownBesides = false }: { isKnownBesides?: boolean } = {},
): SampleVerdict {
  const present = now.split(" ");
  let [wanted, readable] = [0, 0];
  for (const [index, digest] of pinned.split(" ").entries()) {
    if (digest === UNREADABLE) continue;
    wanted += 1;
    const other = present[index] ?? UNREADABLE;
    if (other === UNREADABLE) continue;
    readable += 1;
    if (other !== digest) return "other";
  }
  const needed = isKnownBesides ? Math.min(1, wanted) : Math.ceil(wanted / 2);
  return readable < needed ? "unknown" : "same";
}

/** The samples of now, and where one of them cannot be read, what was pinned of it. */
export function mergeSamples(pinned: string, now: string): string {
  const before = pinned.split(" ");
  const digests = now.split(" ");
  return digests.map((digest, index) => (digest === UNREADABLE ? (before[index] ?? digest) : digest)).join(" ");
}

/** As if a device were away that too few samples can be read of: another connection, or a later attempt, may show what it is. */
export function notRecognised(name: string, why: string): DeviceError {
  return new DeviceError(`Cannot use "${name}": ${why}`, { errno: "EIO", away: true });
}

/** Whether there is nothing in them that anything could be compared with. */
export function areAllUnreadable(samples: string): boolean {
  return samples.split(" ").every((digest) => digest === UNREADABLE);
}
