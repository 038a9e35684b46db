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
import type { BlockDevice } from "../device/block-device.ts";
import type { FileDevice } from "../device/file-device.ts";
import { blockDeviceChanges, type FileIdentity, identify, statDescriptor } from "../device/file-identity.ts";
import type { Probe, RemoteDevice } from "../device/remote-device.ts";
import type { Fingerprint } from "../metadata/descriptor.ts";
import { compareSamples, contentSamples, mergeSamples, notRecognised } from "./content-samples.ts";
import { RecheckedSource } from "./rechecked-source.ts";

const OTHER_CONTENT = "its content is another";
/** What `differenceFrom` says where nothing differs, and too little can be read: it may well be the same. */
export const UNRECOGNISED = "too few of its samples can be read to know it again";

/** The fingerprint of a source: everything that shows that it is another, or has changed. @throws {DeviceError} */
export async function sourceFingerprint(
  device: FileDevice,
  identity: FileIdentity = device.identity,
): Promise<Fingerprint> {
  if (identity.kind === "file") {
    return { kind: "file", size: identity.size, inode: identity.ino, mtimeNs: identity.mtimeNs };
  }
  return { ...fileFingerprint(identity), sample: await contentSamples(device) };
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
    ...(isTagged(device) && !sample ? {} : { sample: await contentSamples(device) }),
  };
}

/**
 * Sees to it that nothing is read any more from what is not as `fingerprint` says, that of the open device. Where replies tell
 * nothing of what they are from, samples are compared after each loss of a connection, before anything else is read: a server
 * may come back with something else. Where too few of them can be read, it counts as away until they can.
 * @returns the device to read from; disposing of it disposes of `device`
 */
export function verifiedSource(device: RemoteDevice, fingerprint: Fingerprint): RemoteDevice {
  if (isTagged(device)) return device;
  const differenceOf = async (read: Probe): Promise<string | undefined> => {
    const { size, blockSize } = device;
    const now = await contentSamples({ size, blockSize, read });
    const verdict = fingerprint.sample === undefined ? "same" : compareSamples(fingerprint.sample, now);
    if (verdict === "unknown") throw notRecognised(device.name, UNRECOGNISED);
    return verdict === "other" ? OTHER_CONTENT : undefined;
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
  if (pinned.sample !== undefined && now.sample !== undefined) {
    const verdict = compareSamples(pinned.sample, now.sample, { isKnownBesides: isKnownBesides(pinned, now) });
    if (verdict !== "same") return verdict === "other" ? OTHER_CONTENT : UNRECOGNISED;
  }
  return isRecognisable(pinned, now) ? undefined : `its server no longer tells its ${describeTag(pinned)}`;
}

/** Whether something tells it from all others that is not in what it holds; it is known not to differ. */
function isKnownBesides(pinned: Fingerprint, now: Fingerprint): boolean {
  const keys = ["serial", "etag", "lastModified"] as const;
  return keys.some((key) => pinned[key] !== undefined && now[key] !== undefined);
}

/** What is to be pinned of a thing that is the same, or is taken for it: what was known of it is never forgotten. */
export function renewedFingerprint(pinned: Fingerprint, now: Fingerprint): Fingerprint {
  if (pinned.sample === undefined || now.sample === undefined) return now;
  return { ...now, sample: mergeSamples(pinned.sample, now.sample) };
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
