/** Opens sources and destinations, and refuses what must not be read or written. */
import * as fs from "node:fs";
import { promisify } from "node:util";
import { DeviceError, errnoOf, UsageError } from "../base/errors.ts";
import type { BlockDevice } from "../device/block-device.ts";
import { FileDevice } from "../device/file-device.ts";
import { PaddedDevice } from "../device/filters/padded.ts";
import { SliceDevice } from "../device/filters/slice.ts";
import { refuseInUse } from "../device/in-use.ts";
import { FADV_SEQUENTIAL, fadvise } from "../device/libc.ts";
import type { RemoteDevice, RemoteOptions } from "../device/remote-device.ts";
import { sharesStorage } from "../device/same-storage.ts";
import type { Fingerprint } from "../metadata/descriptor.ts";
import { describeContent } from "../metadata/foreign-content.ts";
import type { NbdAddress } from "../nbd/client/nbd-uri.ts";
import type { ChildDevice } from "./child-device.ts";
import { remoteSourceFingerprint, sourceFingerprint, verifiedSource, watchSource } from "./fingerprint.ts";
import { detectImageFormat } from "./image-formats.ts";
import type { ImageRequest } from "./image-source.ts";
import { displayName, type Location, uriOf } from "./location.ts";

const fdatasync = promisify(fs.fdatasync);

/** How long after the wish to stop requests to a remote device may still take, ms. */
const SOURCE_GRACE_MS = 2000;
/** How long a destination may be away after the wish to stop, ms. */
const DESTINATION_GRACE_MS = 10_000;
/** How often either is looked at, ms. */
const LOOK_MS = 500;

/** How a source is opened. */
export interface SourceOptions extends RemoteOptions {
  /** How its bytes are to be understood: `raw`, or a format that qemu knows; undefined to find that out. */
  format?: string | undefined;
  /** Whether the user has named the format, and with it means what the image refers to. Default: whether there is one. */
  isFormatGiven?: boolean | undefined;
  /** Whether its samples are part of the fingerprint in any case. Default: where nothing else tells what it is. */
  sample?: boolean | undefined;
  /** A file of headers to send, for HTTP. */
  headerFile?: string | undefined;
}

/** A source as it was opened, wherever it is. Disposing of it closes it. */
export interface OpenedSource extends AsyncDisposable {
  /** Path or URI, without credentials. */
  readonly uri: string;
  readonly device: BlockDevice;
  /** The local file or block device, where that is what is read. */
  readonly file: FileDevice | undefined;
  /**
   * The local files and block devices that its bytes come from, as far as that can be told: `file`; of an image all of its files,
   * backing files included; of what is served by something else none.
   */
  readonly files: readonly FileDevice[];
  /** The device, where it is not of this process. */
  readonly remote: RemoteDevice | undefined;
  /** `raw`, or the format that it is read as. */
  readonly format: string;
  readonly fingerprint: Fingerprint;
  /** How it has changed since it was opened, as the end of a sentence about it; undefined as long as it has not. */
  change(): Promise<string | undefined>;
}

/**
 * Opens a source, read-only, always.
 * @throws {DeviceError} where it cannot be opened
 * @throws {UsageError} where it is nothing that can be copied
 */
export async function openSource(location: Location, options: SourceOptions = {}): Promise<OpenedSource> {
  const opened = await openAs(location, options);
  if (opened.device.size > 0) return opened;
  await opened[Symbol.asyncDispose]();
  throw new UsageError(`Cannot clone "${opened.device.name}": it is empty`);
}

async function openAs(location: Location, options: SourceOptions): Promise<OpenedSource> {
  if (options.headerFile !== undefined && location.kind !== "http") {
    throw new UsageError(`Cannot send headers to "${displayName(location)}": --header-file is for web servers`);
  }
  const uri = uriOf(location);
  if (location.kind === "qemu") {
    const format = options.format ?? "raw"; // never guessed: what its user writes into it is not to choose the driver
    const image = await openImage({ kind: "qemu", filename: location.filename, format }, options);
    return await ending(image, async () => {
      const pinned = await pin(image, options);
      return openedRemote(pinned, { uri, format, files: await image.openFiles() });
    });
  }
  const { format = "raw" } = options;
  if (location.kind === "file") {
    const file = await FileDevice.open(location.path, { access: "read-only" });
    const found = await formatOf(file, options.format);
    return found === "raw" ? await openedFile(file, uri) : await openedImageFile(file, uri, found, options);
  }
  const raw = await openRemote(location, options);
  return await ending(raw, async () => {
    const pinned = await pin(raw, options);
    const { device } = pinned;
    const found = await formatOf(device, options.format);
    if (found === "raw") return openedRemote(pinned, { uri, format });
    return openedRemote(
      pinned,
      { uri, format: found },
      await openImage({ kind: "device", device, format: found, ...given(options) }, options),
    );
  });
}

function given({ format, isFormatGiven = format !== undefined }: SourceOptions): { isGiven: boolean } {
  return { isGiven: isFormatGiven };
}

async function openRemote(
  location: Exclude<Location, { kind: "file" | "qemu" }>,
  options: SourceOptions,
): Promise<RemoteDevice> {
  const { signal } = options;
  switch (location.kind) {
    case "nbd":
      return closeInTime(await openNbd(location.address, { ...options, access: "read-only" }), signal);
    case "http": {
      const { HttpDevice } = await import("../device/http/http-device.ts");
      return closeInTime(await HttpDevice.open(location.url, options), signal);
    }
    case "s3": {
      const { openS3 } = await import("../device/s3/s3-device.ts");
      return closeInTime(await openS3({ bucket: location.bucket, key: location.key }, options), signal);
    }
    case "command": {
      const { words, program } = location;
      if (words !== undefined) return await openImage({ kind: "command", words }, options);
      throw new UsageError(`Cannot open the source: it is what the command "${program}" serves`, {
        hint: "Metadata never makes a command run: name it again with --source [ COMMAND … ].",
      });
    }
  }
}

async function openedFile(file: FileDevice, uri: string): Promise<OpenedSource> {
  return await ending(file, async () => {
    await fadvise(file.fd, 0, 0, FADV_SEQUENTIAL); // doubles what the kernel reads ahead
    const fingerprint = await sourceFingerprint(file);
    const change = await watchSource(file, fingerprint);
    const close = (): Promise<void> => file[Symbol.asyncDispose]();
    return {
      uri,
      device: file,
      file,
      files: [file],
      remote: undefined,
      format: "raw",
      fingerprint,
      change,
      [Symbol.asyncDispose]: close,
    };
  });
}

/** An image in a format of its own: what is copied is the disk inside, and what is watched is the file. */
async function openedImageFile(
  file: FileDevice,
  uri: string,
  format: string,
  options: SourceOptions,
): Promise<OpenedSource> {
  return await ending(file, async () => {
    const image = await openImage({ kind: "file", path: file.path, format, ...given(options) }, options);
    return await ending(image, async () => {
      const ofFile = await sourceFingerprint(file);
      const changeOfFile = await watchSource(file, ofFile);
      const { etag } = image.identity;
      // Also the image itself, which may have been exchanged under its name since.
      const files = await image.openFiles();
      const close = async (): Promise<void> => {
        await disposeAll(files);
        await image[Symbol.asyncDispose]();
        await file[Symbol.asyncDispose]();
      };
      return {
        uri,
        device: image,
        file: undefined,
        files,
        remote: image,
        format,
        // The tag is of the other files that it is read from, backing files above all.
        fingerprint: { ...ofFile, size: image.size, ...(etag === undefined ? {} : { etag }) },
        change: async () => (await changeOfFile()) ?? (await image.change()),
        [Symbol.asyncDispose]: close,
      };
    });
  });
}

/** A remote device that gives nothing but what it held when its fingerprint was taken. */
interface PinnedSource {
  device: RemoteDevice;
  fingerprint: Fingerprint;
}

/** How often a fingerprint is taken anew because a connection was lost meanwhile. */
const MOST_FINGERPRINTS = 5;

async function pin(device: RemoteDevice, { sample }: SourceOptions): Promise<PinnedSource> {
  for (let attempt = 1; ; attempt++) {
    const { incarnation } = device;
    const fingerprint = await remoteSourceFingerprint(device, { sample });
    if (device.incarnation !== incarnation && attempt < MOST_FINGERPRINTS) continue;
    return { device: verifiedSource(device, fingerprint), fingerprint };
  }
}

/** `image` is what is read, where that is the disk in an image that the pinned device holds. */
function openedRemote(
  { device, fingerprint }: PinnedSource,
  { uri, format, files = [] }: { uri: string; format: string; files?: readonly FileDevice[] },
  image?: RemoteDevice,
): OpenedSource {
  const remote = image ?? device;
  return {
    uri,
    device: remote,
    file: undefined,
    files,
    remote,
    format,
    // What an image is read from knows best whether it has changed; its size is not that of the disk.
    fingerprint: { ...fingerprint, size: remote.size },
    change: async () => device.changed,
    async [Symbol.asyncDispose]() {
      await disposeAll(files);
      await image?.[Symbol.asyncDispose]();
      await device[Symbol.asyncDispose]();
    },
  };
}

/** The format of a device: as it is said to be, else as its first bytes tell. */
async function formatOf(device: BlockDevice, said: string | undefined): Promise<string> {
  if (said !== undefined || device.size === 0) return said ?? "raw";
  return await ending(device, async () => (await detectImageFormat(device)) ?? "raw");
}

/**
 * Who wants to stop does not wait for a source that is away, or silent: what is still asked of it after a while fails, as if
 * it had been closed. Nothing is lost of that.
 */
function closeInTime<T extends RemoteDevice>(source: T, signal: AbortSignal | undefined): T {
  const begin = (): void => {
    let leftMs = SOURCE_GRACE_MS; // in looks, which leave out the time in which the process was stopped
    const look = (): void => {
      leftMs -= LOOK_MS;
      if (leftMs > 0) return;
      clearInterval(watch);
      void source[Symbol.asyncDispose]();
    };
    const watch = setInterval(look, LOOK_MS).unref();
  };
  signal?.addEventListener("abort", begin, { once: true });
  return source;
}

/**
 * A destination is still to be flushed, however long that takes; it is given up only where it is away, and does not come back
 * soon. Returns what ends the watch.
 */
function closeWhileAway(remote: RemoteDevice, signal: AbortSignal | undefined): () => void {
  let watch: NodeJS.Timeout | undefined;
  let awayMs = 0;
  const look = (): void => {
    awayMs = remote.isAway === true ? awayMs + LOOK_MS : 0;
    if (awayMs < DESTINATION_GRACE_MS) return;
    clearInterval(watch);
    void remote[Symbol.asyncDispose]();
  };
  const begin = (): void => {
    watch = setInterval(look, LOOK_MS).unref();
  };
  signal?.addEventListener("abort", begin, { once: true });
  return () => {
    signal?.removeEventListener("abort", begin);
    clearInterval(watch);
  };
}

// What most clones do without is loaded when it is needed: it would double the time that a command takes to start.

async function openNbd(
  address: NbdAddress,
  options: RemoteOptions & { access: "read-write" | "read-only" },
): Promise<RemoteDevice> {
  const { NbdDevice } = await import("../nbd/client/nbd-device.ts");
  return await NbdDevice.open(address, options);
}

async function openImage(request: ImageRequest, options: RemoteOptions): Promise<ChildDevice> {
  const images = await import("./image-source.ts");
  return closeInTime(await images.openImage(request, options), options.signal);
}

async function disposeAll(files: readonly FileDevice[]): Promise<void> {
  for (const file of files) await file[Symbol.asyncDispose]();
}

/** Disposes of `owner` where `use` fails. */
export async function ending<T>(owner: AsyncDisposable, use: () => Promise<T>): Promise<T> {
  try {
    return await use();
  } catch (error) {
    await owner[Symbol.asyncDispose]();
    throw error;
  }
}

/**
 * Makes the kernel write out what it still has to of a source file, so that where its holes are is settled: file systems
 * have told wrong holes of data that was not on the disk yet. @throws {DeviceError}
 */
export async function settleSource({ file }: { file: FileDevice | undefined }): Promise<void> {
  if (file === undefined || file.kind === "block") return;
  try {
    await fdatasync(file.fd);
  } catch (error) {
    const errno = errnoOf(error);
    if (errno === "EINVAL" || errno === "EROFS") return; // nothing can be outstanding where nothing can be written
    throw new DeviceError(`Cannot flush "${file.path}": ${errno}`, { errno, cause: error });
  }
}

/** A destination as it was opened, wherever it is. Disposing of it closes it. */
export interface OpenedDestination extends AsyncDisposable {
  /** Path or URI, without credentials. */
  readonly uri: string;
  readonly device: BlockDevice;
  /** The local file or block device that it is. */
  readonly file: FileDevice | undefined;
  readonly remote: RemoteDevice | undefined;
}

/**
 * Opens a destination.
 * @throws {BusyError} where somebody else uses it and it is to be written to
 * @throws {UsageError} where it is nothing that can be written to
 */
export async function openDestination(
  location: Location,
  { access, ...options }: RemoteOptions & { access: "read-write" | "read-only" },
): Promise<OpenedDestination> {
  const uri = uriOf(location);
  if (location.kind === "nbd") {
    const remote = await openNbd(location.address, { ...options, access });
    const unwatched = closeWhileAway(remote, options.signal);
    const close = async (): Promise<void> => {
      unwatched();
      await remote[Symbol.asyncDispose]();
    };
    return { uri, device: remote, file: undefined, remote, [Symbol.asyncDispose]: close };
  }
  if (location.kind !== "file") {
    throw new UsageError(`Cannot write to "${displayName(location)}": a destination is a path or an nbd URI`, {
      hint: "qemu-nbd serves what qemu can write to, as `qemu-nbd -f raw -t -k SOCKET rbd:POOL/IMAGE`: name nbd+unix:///?socket=SOCKET then.",
    });
  }
  const file = await FileDevice.open(location.path, { access, directReads: true });
  return await ending(file, async () => {
    if (access === "read-write") await refuseInUse(file, "write");
    return { uri, device: file, file, remote: undefined, [Symbol.asyncDispose]: () => file[Symbol.asyncDispose]() };
  });
}

/**
 * Whether a write to the destination may change what the source reads: as they are `same`, or as the destination is a `part` of
 * what the source is read from, an image's backing file above all. Of what is remote only its name tells.
 */
export async function shareStorage(
  source: OpenedSource,
  destination: OpenedDestination,
): Promise<"same" | "part" | undefined> {
  const { file } = destination;
  if (source.file !== undefined && file !== undefined) {
    return (await sharesStorage(source.file, file)) ? "same" : undefined;
  }
  if (source.uri === destination.uri) return "same";
  return file !== undefined && (await isReadFrom(source, file)) ? "part" : undefined;
}

/** Whether a write to a file or block device may change what the source reads. */
export async function isReadFrom(source: OpenedSource, file: FileDevice): Promise<boolean> {
  for (const part of source.files) if (await sharesStorage(part, file)) return true;
  return false;
}

/** A source as the clone sees it: a whole number of sectors. */
export function sourceView(source: BlockDevice): BlockDevice {
  return new PaddedDevice(source);
}

/** A destination as the clone sees it: the clone's bytes and no others, in whole sectors. `exactSize` in bytes. */
export function destinationView(destination: BlockDevice, exactSize: number): BlockDevice {
  return new PaddedDevice(new SliceDevice(destination, { start: 0, size: exactSize }));
}

/** Looked at first; then twice as much each time, since what is empty so far is likely empty further on. */
const FIRST_LOOK_BYTES = 64 * 2 ** 20;
const EDGE_BYTES = 2 ** 20;

/**
 * What shows that a destination holds data, in words, or undefined where nothing does: any allocated extent of a file; on
 * a device a byte that is not zero in its first or last MiB, where every partition table, file system and RAID leaves one.
 */
export async function findData({
  device,
  file,
}: Pick<OpenedDestination, "device" | "file">): Promise<string | undefined> {
  if (file?.kind === "file") {
    for (let offset = 0, length = FIRST_LOOK_BYTES; offset < device.size; offset += length, length *= 2) {
      const extents = await device.extents(offset, Math.min(length, device.size - offset));
      if (extents.some(({ hole }) => !hole)) return await describeHead(device, "data");
    }
    return undefined;
  }
  const length = Math.min(EDGE_BYTES, device.size);
  for (const offset of [0, device.size - length]) {
    const bytes = new Uint8Array(length);
    await device.read(offset, bytes);
    if (bytes.some((byte) => byte !== 0)) return await describeHead(device, "data");
  }
  return undefined;
}

async function describeHead(device: BlockDevice, otherwise: string): Promise<string> {
  const head = new Uint8Array(Math.min(EDGE_BYTES, device.size));
  await device.read(0, head);
  return describeContent(head) ?? otherwise;
}
