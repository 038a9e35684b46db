/**
 * Whether a file or device is still the one a clone was made with. What is compared is what stays the same over a restart
 * of the machine; device numbers do not.
 *
 *     file            inode, size, time of change        asked at every commit
 *     block device    size, serial number, samples       its write counters at every commit
 *     HTTP, S3        size and entity tag, or time       every reply tells
 *     NBD, and HTTP   size, samples                      samples once more through each connection that is
 *     without tags                                       made anew, before anything else is read
 */
import { createHash } from "node:crypto";
import { ChangedError, DeviceError } from "../base/errors.ts";
import type { BlockDevice } from "../device/block-device.ts";
import type { FileDevice } from "../device/file-device.ts";
import { blockDeviceChanges, type FileIdentity, identify, statDescriptor } from "../device/file-identity.ts";
import type { Probe, RemoteDevice } from "../device/remote-device.ts";
import type { Fingerprint } from "../metadata/descriptor.ts";
import { RecheckedSource } from "./rechecked-source.ts";

/** Samples taken of a block device, evenly spread, first and last included. */
const SAMPLES = 9;
const SAMPLE_BYTES = 16384;
/** Of each, how often it is tried, and what stands for one that cannot be read. */
const SAMPLE_ATTEMPTS = 3;
const UNREADABLE = "-";
const OTHER_CONTENT = "its content is another";
/** Hexadecimal digits kept of a sample's SHA-256. */
const DIGEST_LENGTH = 16;

/** The fingerprint of a source: everything that shows that it is another, or has changed. @throws {DeviceError} */
export async function sourceFingerprint(
  device: FileDevice,
  identity: FileIdentity = device.identity,
): Promise<Fingerprint> {
  if (identity.kind === "file") {
    return { kind: "file", size: identity.size, inode: identity.ino, mtimeNs: identity.mtimeNs };
  }
  return { ...fileFingerprint(identity), sample: await sampleDigests(device) };
}

/**
 * Watches an open source for changes from now on. The answer of what it returns is the end of a sentence about it, or
 * undefined as long as nothing changed; it is cheap enough to be asked for at every commit.
 */
export async function watchSource(
  device: FileDevice,
  fingerprint: Fingerprint,
): Promise<() => Promise<string | undefined>> {
  const { rdev } = device.identity;
  if (rdev === undefined) {
    return async () => {
      const stats = await statDescriptor(device.fd, { bigint: true });
      return differenceFrom(fingerprint, await sourceFingerprint(device, await identify(stats, Number(stats.size))));
    };
  }
  const before = await blockDeviceChanges(rdev);
  return async () => ((await blockDeviceChanges(rdev)) === before ? undefined : "it has been written to");
}

/**
 * The fingerprint of a remote source. Its samples are part of that where there is nothing else, or it is asked for them.
 * @throws {DeviceError} where it cannot be reached
 */
export async function remoteSourceFingerprint(
  device: RemoteDevice,
  { sample = false }: { sample?: boolean | undefined } = {},
): Promise<Fingerprint> {
  const { kind, size, etag, lastModified } = device.identity;
  return {
    kind,
    size,
    ...(etag === undefined ? {} : { etag }),
    ...(lastModified === undefined ? {} : { lastModified }),
    ...(isTagged(device) && !sample ? {} : { sample: await sampleDigests(device) }),
  };
}

/**
 * Sees to it that nothing is read any more from what is not as `fingerprint` says, that of the open device. Where replies tell
 * nothing of what they are from, samples are compared after each loss of a connection, before anything else is read: a server
 * may come back with something else.
 * @returns the device to read from; disposing of it disposes of `device`
 */
export function verifiedSource(device: RemoteDevice, fingerprint: Fingerprint): RemoteDevice {
  if (isTagged(device)) return device;
  const differenceOf = async (read: Probe): Promise<string | undefined> => {
    const { size, blockSize } = device;
    const now = await sampleDigests({ size, blockSize, read });
    return samplesDiffer(fingerprint.sample, now) ? OTHER_CONTENT : undefined;
  };
  if (device.verifyBy === undefined) return new RecheckedSource(device, differenceOf);
  device.verifyBy(differenceOf);
  return device;
}

/** Whether every reply of it tells that it is still the same. */
function isTagged({ identity: { etag, lastModified } }: RemoteDevice): boolean {
  return etag !== undefined || lastModified !== undefined;
}

/** The fingerprint of a destination: who it is, whatever it holds by now. A file may grow, so its size is no part of that. */
export function destinationFingerprint({
  device,
  file,
}: {
  device: BlockDevice;
  file: FileDevice | undefined;
}): Fingerprint {
  return file === undefined ? { kind: "nbd", size: device.size } : fileFingerprint(file.identity);
}

function fileFingerprint(identity: FileIdentity): Fingerprint {
  const { birthtimeNs } = identity;
  if (identity.kind === "file") {
    return { kind: "file", inode: identity.ino, ...(birthtimeNs === undefined ? {} : { birthtimeNs }) };
  }
  return {
    kind: "block",
    size: identity.size,
    ...(identity.serial === undefined ? {} : { serial: identity.serial }),
  };
}

/**
 * The first way in which a thing differs from what was pinned, as the end of a sentence about it, or undefined where it
 * does not. What a file or block device is known by must all be pinned, and something of what a remote source is known by: or
 * nobody could tell that it has changed, and metadata made up by a stranger would fit whatever it names.
 */
export function differenceFrom(pinned: Fingerprint, now: Fingerprint): string | undefined {
  if (isVague(pinned, now)) return "the metadata does not say enough to know it again";
  if (differ(pinned.kind, now.kind)) return `it is a ${describeKind(now)} now and was a ${describeKind(pinned)}`;
  if (differ(pinned.size, now.size)) return `its size is ${now.size} bytes now and was ${pinned.size}`;
  if (differ(pinned.inode, now.inode)) return `it is another file (inode ${now.inode}, not ${pinned.inode})`;
  if (differ(pinned.birthtimeNs, now.birthtimeNs)) {
    return `it is another file (made at ${formatTime(now.birthtimeNs)}, not at ${formatTime(pinned.birthtimeNs)})`;
  }
  if (differ(pinned.serial, now.serial)) return `it is another device (${now.serial}, not ${pinned.serial})`;
  if (differ(pinned.mtimeNs, now.mtimeNs)) {
    return `it was last written at ${formatTime(now.mtimeNs)}, not at ${formatTime(pinned.mtimeNs)}`;
  }
  if (differ(pinned.etag, now.etag)) {
    if (now.kind === "file" || now.kind === "block") return "a file that it refers to is another, or has changed";
    return `its entity tag is ${now.etag} now and was ${pinned.etag}`;
  }
  if (differ(pinned.lastModified, now.lastModified)) {
    return `it was last modified at ${now.lastModified}, not at ${pinned.lastModified}`;
  }
  if (samplesDiffer(pinned.sample, now.sample)) return OTHER_CONTENT;
  return isRecognisable(pinned, now) ? undefined : `its server no longer tells its ${describeTag(pinned)}`;
}

const OF_REMOTE = ["etag", "lastModified", "sample"] as const;

/** Whether what a thing is known by was not pinned. */
function isVague(pinned: Fingerprint, now: Fingerprint): boolean {
  const isLocal = now.kind === "file" || now.kind === "block";
  if (!isLocal) return hasAny(now, OF_REMOTE) && !hasAny(pinned, OF_REMOTE);
  const kinds = ["kind", "inode", "birthtimeNs", "mtimeNs", "serial", "sample"] as const;
  return kinds.some((key) => now[key] !== undefined && pinned[key] === undefined);
}

function hasAny(fingerprint: Fingerprint, keys: readonly (keyof Fingerprint)[]): boolean {
  return keys.some((key) => fingerprint[key] !== undefined);
}

/** Files and block devices always tell what they are known by. */
function isRecognisable(pinned: Fingerprint, now: Fingerprint): boolean {
  if (pinned.kind === "file" || pinned.kind === "block") return true;
  const keys = OF_REMOTE.filter((key) => pinned[key] !== undefined);
  return keys.length === 0 || keys.some((key) => now[key] !== undefined);
}

function describeTag({ etag }: Fingerprint): string {
  return etag === undefined ? "time of last change" : "entity tag";
}

function differ<T>(a: T | undefined, b: T | undefined): boolean {
  return a !== undefined && b !== undefined && a !== b;
}

function describeKind({ kind }: Fingerprint): string {
  const kinds: Record<string, string> = {
    file: "regular file",
    block: "block device",
    nbd: "disk served over NBD",
    http: "file on a web server",
    s3: "object in S3",
  };
  return kinds[kind ?? ""] ?? "thing of another kind";
}

function formatTime(ns: string | undefined): string {
  const nanoseconds = BigInt(ns ?? 0);
  const fraction = String(nanoseconds % 1_000_000_000n).padStart(9, "0");
  return new Date(Number(nanoseconds / 1_000_000n)).toISOString().replace(/\.\d+Z$/, `.${fraction}Z`);
}

/** What samples are taken of. */
interface Sampled {
  readonly size: number;
  readonly blockSize: number;
  read(offset: number, buffer: Uint8Array): Promise<void>;
}

/**
 * Digests of samples, in order, a hyphen for one that cannot be read: a failing disk is still worth cloning, and what can
 * be read of it still tells.
 */
async function sampleDigests(device: Sampled): Promise<string> {
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
      // A device that cannot be reached has told nothing of itself.
      if (!(error instanceof DeviceError) || error.away) throw error;
      if (error instanceof ChangedError || attempt === SAMPLE_ATTEMPTS) return UNREADABLE;
    }
  }
}

/** The digest of a sample, as it is kept. */
export function digestOf(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex").slice(0, DIGEST_LENGTH);
}

/** Whether samples that could be read both times differ. */
function samplesDiffer(pinned: string | undefined, now: string | undefined): boolean {
  if (pinned === undefined || now === undefined) return false;
  const present = now.split(" ");
  return pinned.split(" ").some((digest, index) => {
    const other = present[index];
    return digest !== UNREADABLE && other !== UNREADABLE && digest !== other;
  });
}
