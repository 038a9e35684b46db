/**
 * Whether a destination still holds what the metadata says of it. Inodes are used again, block devices change their names
 * and files are restored from old backups: then bits would vouch for data that is not there.
 *
 *     never copied to      a device that only its name identifies must be as empty as it was for `create`, unless
 *                          that was told to overwrite it
 *     settled              the time of last change is that of our last write; otherwise, and for all but files, samples
 *                          of the hydrated regions must match the source
 *     cut off              the same
 *
 * A disk behind NBD has no identity besides: digests of samples of what it was left with are kept, and must be there again.
 *
 * What somebody else wrote to regions that are not hydrated does no harm: they are copied, or zeroed, whatever they hold.
 *
 * Nothing can be told where others have a right to change it: after clients wrote to it, or the kernel went on with it (there
 * was a commit, as `settled-witness.ts` tells). After a changed source was accepted, samples tell nothing either.
 */
import * as fs from "node:fs";
import { promisify } from "node:util";
import { CloneError, DeviceError, errnoOf } from "../base/errors.ts";
import type { Region } from "../base/geometry.ts";
import type { BlockDevice } from "../device/block-device.ts";
import type { FileDevice } from "../device/file-device.ts";
import { statDescriptor } from "../device/file-identity.ts";
import { runParts } from "../engine/run-parts.ts";
import { isUnreadable } from "../engine/source-errors.ts";
import type { SettledState } from "../metadata/descriptor.ts";
import { checksumText, isAsLeft, recordFree, sinceLeft } from "../metadata/settled-witness.ts";
import type { Clone } from "./clone.ts";
import { digestOf } from "./content-samples.ts";
import { findData, type OpenedDestination } from "./open-devices.ts";

/** Hydrated regions that are compared, evenly spread, first and last included; and bytes of each. */
const SAMPLES = 32;
const SAMPLE_BYTES = 65536;
/** How often it is tried to compare half of them at least: each time others nearby stand for those that the source cannot give. */
const ROUNDS = 4;
/** Hydrated regions of which digests are kept. */
const DIGESTS = 16;
/** How many of them at a time: each may be a round trip. */
const SAMPLES_IN_FLIGHT = 8;

const fsync = promisify(fs.fsync);

/** The destination as it is left, durably, for the next run to compare with. @throws {DeviceError} */
export async function settledState(clone: Clone, { file, device }: OpenedDestination): Promise<SettledState> {
  if (file === undefined) {
    // It has been flushed, and has neither times nor a name of its own: what it holds is all that it is known by.
    const sample = await sampleDigests(clone, device);
    return { ...(await presentState(clone, file)), ...(await presentBits(clone)), sample };
  }
  // All of it: a flush of the data may leave the time of change behind, and after a power cut it would be another one.
  await fsync(file.fd).catch((cause: unknown) => {
    const errno = errnoOf(cause);
    throw new DeviceError(`Cannot flush "${file.name}": ${errno}`, { errno, cause });
  });
  return { ...(await presentState(clone, file)), ...(await presentBits(clone)) };
}

async function presentState({ metadataDevice }: Clone, file: FileDevice | undefined): Promise<SettledState> {
  const superblock = new Uint8Array(4);
  await metadataDevice.read(0, superblock);
  return { mtimeNs: file === undefined ? "0" : await lastChange(file), superblock: checksumText(superblock) };
}

/** As `SettledState.mtimeNs` records it. */
export async function lastChange({ fd }: FileDevice): Promise<string> {
  return String((await statDescriptor(fd, { bigint: true })).mtimeNs);
}

/** Which regions are hydrated, as far as a digest tells, and by what it will be known that nobody has gone on. */
async function presentBits({
  metadata,
  metadataDevice,
}: Clone): Promise<Pick<SettledState, "free" | "hydratedRegions" | "hydratedDigest">> {
  if (metadata.changed || metadata.failed) return {}; // what is on disk is something else
  const bits = { hydratedRegions: metadata.hydratedCount, hydratedDigest: metadata.hydratedDigest() }; // before anything waits
  return { ...(await recordFree(metadataDevice)), ...bits };
}

/** Digests of samples of the hydrated regions. Which they are follows from which regions are hydrated. */
async function sampleDigests(clone: Clone, destination: BlockDevice): Promise<string> {
  const digests: string[] = [];
  const samples = [...sampleRegions(clone, DIGESTS)].map((region, index) => ({ region, index }));
  await runParts(samples.values(), SAMPLES_IN_FLIGHT, async ({ region, index }) => {
    const { offset, length } = clone.geometry.bytesOf({ start: region, end: region + 1 });
    const end = Math.min(offset + length, clone.exactSize);
    const bytes = new Uint8Array(Math.min(end - offset, SAMPLE_BYTES));
    await destination.read(offset, bytes);
    digests[index] = digestOf(bytes);
  });
  return digests.join(" ");
}

/**
 * Whether every commit of the clone so far is known to be of this program, and nobody else was found to have written to the
 * destination. The kernel can go on with a clone, and leaves no other trace than its commits (`settled-witness.ts`), and none
 * at all of writes to what is hydrated but the file's time of change; after a run that was cut off neither tells anything.
 */
export async function isAlone(clone: Clone): Promise<boolean> {
  const { descriptor, metadata } = clone;
  if (descriptor?.alone !== true || descriptor.destination.touched === true) return false;
  const { settled } = descriptor.destination;
  if (settled === undefined) return metadata.hydratedCount === 0;
  return settled !== null && (await isAsLeft(clone.metadataDevice, settled));
}

/**
 * A disk behind NBD is known by what it holds alone. Where the last run has left samples of that, they must still be there,
 * whoever has written them, clients too.
 * @throws {CloneError} where they are not
 * @throws {DeviceError} where they cannot be read
 */
export async function refuseAnotherDisk(clone: Clone, destination: OpenedDestination): Promise<void> {
  const settled = clone.descriptor?.destination.settled;
  if (destination.file !== undefined || settled?.sample === undefined) return;
  if ((await sinceLeft(clone.metadataDevice, settled)) === "changed") return; // somebody else has gone on with the clone
  if (settled.sample === (await sampleDigests(clone, destination.device))) return;
  throw new CloneError(
    "failed",
    `Cannot use "${destination.device.name}" as the destination: it does not hold what the clone has left there`,
    {
      hint: "It is another disk, has lost what was flushed, or somebody has written to it. --accept-changed-source goes on all the same.",
    },
  );
}

/** Hydrated regions that stand for all of them, as bytes of the clone. */
export function sampleRanges(clone: Clone): { offset: number; length: number }[] {
  return [...sampleRegions(clone, DIGESTS)].map((region) => {
    const { offset, length } = clone.geometry.bytesOf({ start: region, end: region + 1 });
    return { offset, length: Math.min(length, clone.exactSize - offset) };
  });
}

/** What is known of a destination before it is looked at. */
export type DestinationTrust =
  /** Nobody but us has changed it, or there is nothing to compare with. */
  | "trusted"
  /** It must not hold anything. */
  | "empty"
  /** Samples must match the source. */
  | "compare"
  /** The same, because somebody else has written to it. */
  | "touched";

/** How far the destination can be trusted by what is recorded of it. @throws {DeviceError} */
export async function trustInDestination(clone: Clone, { file }: OpenedDestination): Promise<DestinationTrust> {
  const { descriptor, metadata } = clone;
  if (descriptor === null || descriptor.served) return "trusted";
  const { settled } = descriptor.destination;
  if (settled === undefined) {
    const byNameOnly = file === undefined || (file.kind === "block" && file.identity.serial === undefined);
    return byNameOnly && metadata.hydratedCount === 0 && descriptor.options.force !== true ? "empty" : "trusted";
  }
  if (descriptor.destination.touched) return "touched";
  const bySamples = descriptor.acceptedChange === undefined ? "compare" : "trusted";
  if (settled === null) return bySamples;
  // The kernel has gone on with the clone. Where it may have, and nothing tells, that is no excuse for what is found.
  if ((await sinceLeft(clone.metadataDevice, settled)) === "changed") return "trusted";
  if (file?.kind !== "file") return bySamples;
  return (await lastChange(file)) === settled.mtimeNs ? "trusted" : "touched";
}

/** @throws {CloneError} where a destination holds data that nobody has put there for this clone */
export async function refuseForeignData(destination: OpenedDestination): Promise<void> {
  const data = await findData(destination);
  if (data === undefined) return;
  throw new CloneError(
    "failed",
    `Cannot use "${destination.device.name}" as the destination: it was empty when the clone was created and holds ${data} now`,
    { hint: "`clone create --force` begins a clone that overwrites it." },
  );
}

/**
 * Compares samples of the hydrated regions. Where the source cannot be read at some, others nearby have to do.
 * @throws {CloneError} where one differs from the source, or nothing at all can be compared: nobody knows then what is there
 * @throws {DeviceError} where the destination cannot be read, or the source is gone, away or another
 */
export async function refuseDifferentSamples(
  clone: Clone,
  source: BlockDevice,
  destination: BlockDevice,
): Promise<void> {
  const samples = Math.min(SAMPLES, clone.metadata.hydratedCount);
  let missing = Array.from({ length: samples }, (_, sample) => sample);
  for (let round = 0; round < ROUNDS && missing.length * 2 > samples; round++) {
    const places = missing.map((sample) => ({ sample, number: sampleNumber(clone, { sample, samples, round }) }));
    places.sort((a, b) => a.number - b.number);
    const regions = hydratedRegions(
      clone,
      places.map(({ number }) => number),
    );
    const left: number[] = [];
    const parts = [...regions].map((region, index) => ({ region, sample: places[index]?.sample ?? 0 }));
    await runParts(parts.values(), SAMPLES_IN_FLIGHT, async ({ region, sample }) => {
      if (!(await isCompared(clone, { source, destination, region }))) left.push(sample);
    });
    missing = left;
  }
  const compared = samples - missing.length;
  if (samples > 0 && compared === 0) {
    throw new CloneError(
      "failed",
      `Cannot use "${destination.name}" as the destination: none of its samples could be compared with "${source.name}", which cannot be read there`,
      {
        hint: "Nobody knows whether it still holds what was copied. Try again later; --accept-changed-source goes on all the same.",
      },
    );
  }
  if (compared * 2 < samples) {
    clone.warn(
      `Only ${compared} of ${samples} samples of "${destination.name}" were compared with the source, which cannot be read at the others`,
    );
  }
}

/**
 * Compares the beginning of a region. False where a dying source has become unreadable in a place that was copied in time:
 * another sample has to do.
 * @throws {CloneError} where it differs
 * @throws {DeviceError}
 */
async function isCompared(
  { geometry }: Clone,
  { source, destination, region }: { source: BlockDevice; destination: BlockDevice; region: Region },
): Promise<boolean> {
  const { offset, length } = geometry.bytesOf({ start: region, end: region + 1 });
  const expected = new Uint8Array(Math.min(length, SAMPLE_BYTES));
  const actual = new Uint8Array(expected.length);
  const [isReadable] = await Promise.all([canRead(source, offset, expected), destination.read(offset, actual)]);
  if (!isReadable) return false;
  if (Buffer.compare(expected, actual) === 0) return true;
  throw new CloneError(
    "failed",
    `Cannot use "${destination.name}" as the destination: region ${region} is called hydrated, but differs from the source`,
    {
      hint: "It is another file or device, or somebody has written to it. --accept-changed-source goes on all the same.",
    },
  );
}

/** False where these bytes cannot be read. A source that is gone, away or another is no such place. @throws {DeviceError} */
async function canRead(source: BlockDevice, offset: number, buffer: Uint8Array): Promise<boolean> {
  try {
    await source.read(offset, buffer);
    return true;
  } catch (error) {
    if (isUnreadable(error)) return false;
    throw error;
  }
}

/**
 * Which of the hydrated regions a sample is, counted from 0: evenly spread, first and last included; in each further round a
 * part of the way towards the next sample, and the last one towards the one before. The same again where there is no other.
 */
function sampleNumber(
  { metadata }: Clone,
  { sample, samples, round = 0 }: { sample: number; samples: number; round?: number },
): number {
  if (samples === 1) return 0;
  const [steps, past] = [(samples - 1) * ROUNDS, sample === samples - 1 ? -round : round];
  return Math.floor(((metadata.hydratedCount - 1) * (sample * ROUNDS + past)) / steps);
}

/** Some of the hydrated regions, evenly spread over them. */
function sampleRegions(clone: Clone, most: number): Iterable<Region> {
  const samples = Math.min(most, clone.metadata.hydratedCount);
  const numbers = Array.from({ length: samples }, (_, sample) => sampleNumber(clone, { sample, samples }));
  return hydratedRegions(clone, numbers);
}

/** The regions that are the so manieth hydrated ones, counted from 0, in ascending order. */
function* hydratedRegions({ metadata }: Clone, numbers: readonly number[]): Generator<Region> {
  let [index, before] = [0, 0];
  for (const { start, end } of metadata.hydratedRanges()) {
    for (; index < numbers.length; index++) {
      const number = numbers[index] as number;
      if (number >= before + end - start) break;
      yield start + number - before;
    }
    before += end - start;
  }
}
