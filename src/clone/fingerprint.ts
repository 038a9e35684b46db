/**
 * Whether a file or device is still the one a clone was made with. What is compared is what stays the same over a restart
 * of the machine; device numbers do not.
 */
import { createHash } from "node:crypto";
import { DeviceError } from "../base/errors.ts";
import type { FileDevice } from "../device/file-device.ts";
import { blockDeviceChanges, type FileIdentity, identify, statDescriptor } from "../device/file-identity.ts";
import type { Fingerprint } from "../metadata/descriptor.ts";

/** Samples taken of a block device, evenly spread, first and last included. */
const SAMPLES = 9;
const SAMPLE_BYTES = 16384;

/** The fingerprint of a source: everything that shows that it is another, or has changed. @throws {DeviceError} */
export async function sourceFingerprint(
  device: FileDevice,
  identity: FileIdentity = device.identity,
): Promise<Fingerprint> {
  if (identity.kind === "file") {
    return { kind: "file", size: identity.size, inode: identity.ino, mtimeNs: identity.mtimeNs };
  }
  const sample = await sampleDigest(device);
  return { ...destinationFingerprint(identity), ...(sample === undefined ? {} : { sample }) };
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

/** The fingerprint of a destination: who it is, whatever it holds by now. A file may grow, so its size is no part of that. */
export function destinationFingerprint(identity: FileIdentity): Fingerprint {
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
 * does not. Only what both know is compared.
 */
export function differenceFrom(pinned: Fingerprint, now: Fingerprint): string | undefined {
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
  if (differ(pinned.sample, now.sample)) return "its content is another";
  return undefined;
}

function differ<T>(a: T | undefined, b: T | undefined): boolean {
  return a !== undefined && b !== undefined && a !== b;
}

function describeKind({ kind }: Fingerprint): string {
  return { file: "regular file", block: "block device" }[kind ?? ""] ?? "thing of another kind";
}

function formatTime(ns: string | undefined): string {
  const nanoseconds = BigInt(ns ?? 0);
  const fraction = String(nanoseconds % 1_000_000_000n).padStart(9, "0");
  return new Date(Number(nanoseconds / 1_000_000n)).toISOString().replace(/\.\d+Z$/, `.${fraction}Z`);
}

/** Undefined where a sample cannot be read: a failing disk is still worth cloning. */
async function sampleDigest(device: FileDevice): Promise<string | undefined> {
  const hash = createHash("sha256");
  const length = Math.min(SAMPLE_BYTES, device.size);
  const buffer = new Uint8Array(length);
  const unit = device.blockSize;
  for (let index = 0; index < SAMPLES; index++) {
    const position = Math.floor(((device.size - length) * index) / (SAMPLES - 1));
    try {
      await device.read(position - (position % unit), buffer);
    } catch (error) {
      if (error instanceof DeviceError) return undefined;
      throw error;
    }
    hash.update(buffer);
  }
  return hash.digest("hex");
}
