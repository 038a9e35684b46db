/** `clone create`: checks source and destination, writes the metadata, copies nothing. */
import { randomUUID } from "node:crypto";
import { stat } from "node:fs/promises";
import { UsageError } from "../base/errors.ts";
import { Geometry, MAX_REGION_COUNT, SECTOR_SIZE } from "../base/geometry.ts";
import type { BlockDevice } from "../device/block-device.ts";
import { blockDeviceUser } from "../device/block-users.ts";
import { FileDevice } from "../device/file-device.ts";
import { findUser } from "../device/in-use.ts";
import { sharesStorage } from "../device/same-storage.ts";
import { type Descriptor, MAX_URI_BYTES } from "../metadata/descriptor.ts";
import { readStatus } from "./clone-status.ts";
import { areAllUnreadable } from "./content-samples.ts";
import { destinationFingerprint } from "./fingerprint.ts";
import type { Permissions } from "./like-file.ts";
import { displayName, isReopenable, type Location, parseLocation, parsePath } from "./location.ts";
import { createMetadataFile, createMetadataOnDevice, defaultMetadataPath, isBlockDevice } from "./metadata-file.ts";
import { NewDestination } from "./new-destination.ts";
import {
  findData,
  isReadFrom,
  type OpenedDestination,
  type OpenedSource,
  openSource,
  shareStorage,
} from "./open-devices.ts";
import { holdsMetadata, holdsSoundMetadata, probeMetadata, unknownClone } from "./standing-metadata.ts";
import { refuseUnfinishedSource } from "./unfinished-source.ts";

/** What to clone, and how. */
export interface CreateRequest {
  /** Path or URI. */
  source: string;
  /** Path or URI; a path where nothing stands becomes a sparse file. */
  destination: string;
  /** Path of the metadata; by default beside a destination file. */
  metadata?: string | undefined;
  /** Bytes. */
  regionSize: number;
  /** Overrides one thing: a destination that holds data. */
  force: boolean;
  /** How the source's bytes are to be understood: `raw`, as they are, or a format that qemu knows; else found out. */
  sourceFormat?: string | undefined;
  /** A file of headers to send to a web server. */
  headerFile?: string | undefined;
  signal?: AbortSignal | undefined;
  /** Told what only the curious want. */
  onDetail?: ((line: string) => void) | undefined;
  /** Told of connections that are lost and there again. */
  onNote?: ((line: string) => void) | undefined;
}

/** The clone that was made. */
export interface CreatedClone {
  metadata: string;
  source: string;
  destination: string;
  /** How the source is read: `raw`, or as an image. */
  format: string;
  geometry: Geometry;
  /** Bytes of the source; the clone's size is this in whole sectors. */
  exactSize: number;
  /** What the user should know about it, sentences. */
  warnings: string[];
  /** What has to be named again by whoever goes on with it, sentences. */
  reminders: string[];
}

/** Bytes per region where nobody says otherwise. */
export const DEFAULT_REGION_SIZE = 65536;

/**
 * Makes a clone of which nothing is hydrated yet. If it throws, whatever it made is gone again.
 * @throws {UsageError} where the arguments cannot work together
 * @throws {BusyError} where the destination is in use
 * @throws {MetadataError} where source or destination may belong to a clone whose metadata is damaged
 * @throws {DeviceError} where something cannot be read or made
 */
export async function createClone(request: CreateRequest): Promise<CreatedClone> {
  const sourceLocation = parseLocation(request.source);
  const destinationLocation = parseLocation(request.destination);
  const { onNote, onDetail, signal } = request;
  const remoteOptions = { onNote, onDetail, signal };
  const { headerFile, sourceFormat: format } = request;
  await using source = await openSource(sourceLocation, { ...remoteOptions, format, headerFile });
  refuseLongName(source);
  await refuseUnfinishedSource(source);
  const geometry = geometryOf(source, request.regionSize);
  const options = { ...remoteOptions, permissions: await permissionsAt(sourceLocation) };
  await using made = await NewDestination.open(destinationLocation, source.device.size, options);
  const destination = made.opened;
  refuseLongName(destination);
  const warnings = [...(await warningsOfSource(source)), ...warningsOfDestination(destination)];
  await checkPair(source, destination, geometry);
  const metadata = await metadataPathOf(request, destination, source);
  await refuseMetadata(destination, metadata);
  if (!made.isNew && !request.force) await refuseData(destination);
  const descriptor = describe(request, source, destination);
  const content = { geometry, descriptor };
  if (await isBlockDevice(metadata)) {
    await using device = await FileDevice.open(metadata, { access: "read-write", direct: "off" });
    await refuseSharedMetadata(device, source, destination);
    await createMetadataOnDevice(device, content);
  } else {
    await createMetadataFile(metadata, content);
  }
  made.keep();
  const exactSize = source.device.size;
  const names = { source: displayName(sourceLocation), destination: displayName(destinationLocation) };
  const reminders = unkept(sourceLocation, headerFile);
  return { metadata, ...names, format: source.format, geometry, exactSize, warnings, reminders };
}

/** @throws {UsageError} where the device that metadata is to be on is another part of the clone */
async function refuseSharedMetadata(
  device: FileDevice,
  source: OpenedSource,
  { file }: OpenedDestination,
): Promise<void> {
  const isDestination = file !== undefined && (await sharesStorage(device, file));
  if (!isDestination && !(await isReadFrom(source, device))) return;
  const what =
    isDestination || source.file !== undefined ? "it is the source or the destination" : "the source is read from it";
  throw new UsageError(`Cannot put the metadata on "${device.path}": ${what}`);
}

/** The permissions of a file or block device; undefined of what is elsewhere. */
async function permissionsAt(location: Location): Promise<Permissions | undefined> {
  return location.kind === "file" ? await stat(location.path) : undefined;
}

/** @throws {UsageError} where metadata has no room for a name */
function refuseLongName({ uri, device }: { uri: string; device: BlockDevice }): void {
  if (Buffer.byteLength(uri) <= MAX_URI_BYTES) return;
  throw new UsageError(`Cannot clone "${device.name.slice(0, 80)}…": its name has more than ${MAX_URI_BYTES} bytes`);
}

function geometryOf({ device, file }: OpenedSource, regionSize: number): Geometry {
  if (file?.kind === "block" && device.size % SECTOR_SIZE !== 0) {
    throw new UsageError(
      `Cannot clone "${device.name}": its ${device.size} bytes are not a multiple of ${SECTOR_SIZE}`,
    );
  }
  const size = Math.ceil(device.size / SECTOR_SIZE) * SECTOR_SIZE;
  if (Math.ceil(size / regionSize) > MAX_REGION_COUNT) {
    const least = 2 ** Math.ceil(Math.log2(size / MAX_REGION_COUNT));
    throw new UsageError(`Cannot clone "${device.name}": it has more than 2^31 regions of ${regionSize} bytes`, {
      hint: `--region-size ${least} is the smallest that fits.`,
    });
  }
  return new Geometry({ size, regionSize });
}

async function checkPair(source: OpenedSource, destination: OpenedDestination, geometry: Geometry): Promise<void> {
  const [from, to] = [source.device, destination.device];
  const shared = await shareStorage(source, destination);
  if (shared !== undefined) {
    const why = shared === "same" ? "they are the same" : "the source is read from the destination";
    throw new UsageError(`Cannot clone "${from.name}" to "${to.name}": ${why}`);
  }
  if (to.size < from.size) {
    throw new UsageError(
      `Cannot clone "${from.name}" to "${to.name}": the destination has ${to.size} bytes, the source ${from.size}`,
    );
  }
  for (const file of [source.file, destination.file]) {
    if (file?.kind === "block" && geometry.regionSize % file.blockSize !== 0) {
      throw new UsageError(
        `Cannot clone in regions of ${geometry.regionSize} bytes: "${file.path}" has sectors of ${file.blockSize}`,
      );
    }
  }
}

/**
 * Never overridden: what the metadata says of regions that only its destination has would be lost with it.
 * @throws {UsageError} where the destination is metadata itself, or belongs to an unfinished clone
 * @throws {MetadataError | DeviceError} where that cannot be known
 */
async function refuseMetadata({ file }: OpenedDestination, metadata: string): Promise<void> {
  if (file === undefined) return;
  if (await holdsMetadata(file.path)) {
    throw new UsageError(`Cannot clone to "${file.path}": it is the metadata of a clone`, {
      hint: "`clone delete` gives that clone up.",
    });
  }
  // What is left on a device of metadata that was deleted there is not to make it useless.
  if (file.kind === "block") return;
  await refuseRemains(file.path);
  const beside = await defaultMetadataPath(file.path);
  const refusal = `Cannot clone to "${file.path}": it may belong to an unfinished clone`;
  if (!(await holdsSoundMetadata(beside, refusal)) || beside === metadata) return;
  const { status, descriptorFailure } = await readStatus(beside);
  if (descriptorFailure !== null) throw descriptorFailure;
  if (status.state === "finalized") return;
  throw new UsageError(`Cannot clone to "${file.path}": it belongs to the unfinished clone "${beside}"`, {
    hint: "`clone hydrate` goes on with that clone, `clone delete` gives it up.",
  });
}

/** @throws {MetadataError} where a file is what a lost superblock has left of metadata */
async function refuseRemains(path: string): Promise<void> {
  const found = await probeMetadata(path);
  if (found?.verdict !== "damaged" && !(found?.verdict === "unformatted" && found.orphans)) return;
  throw unknownClone(found, `Cannot clone to "${path}": it may be the metadata of an unfinished clone`);
}

async function refuseData(destination: OpenedDestination): Promise<void> {
  const data = await findData(destination);
  if (data === undefined) return;
  throw new UsageError(`Cannot clone to "${destination.device.name}": it holds ${data}`, {
    hint: "--force overwrites it. There is no way back.",
  });
}

async function metadataPathOf(
  request: CreateRequest,
  { file, device }: OpenedDestination,
  source: OpenedSource,
): Promise<string> {
  const given = request.metadata;
  if (given === undefined) {
    if (file?.kind === "file") return await defaultMetadataPath(file.path);
    const what = file === undefined ? "a URI" : "a block device";
    throw new UsageError(`Cannot clone to "${device.name}": ${what} needs --metadata FILE`, {
      hint:
        file === undefined
          ? "The metadata stays on this machine: name a file on a disk that survives a restart."
          : "A file beside the device would not survive a restart: name one on a disk.",
    });
  }
  const path = parsePath(given);
  if (path === file?.path || path === source.file?.path) {
    throw new UsageError(`Cannot put the metadata into "${path}": it is the source or the destination`);
  }
  if (source.files.some((part) => part.path === path)) {
    throw new UsageError(`Cannot put the metadata into "${path}": the source is read from it`);
  }
  return path;
}

function describe(request: CreateRequest, source: OpenedSource, destination: OpenedDestination): Descriptor {
  const { regionSize, force, sourceFormat } = request;
  return {
    uuid: randomUUID(),
    created: new Date().toISOString(),
    source: {
      uri: source.uri,
      size: source.device.size,
      format: source.format,
      fingerprint: source.fingerprint,
    },
    destination: {
      uri: destination.uri,
      size: destination.device.size,
      fingerprint: destinationFingerprint(destination),
    },
    exactSize: source.device.size,
    options: {
      regionSize,
      force,
      ...(sourceFormat === undefined ? {} : { sourceFormat }),
    },
    unreadable: { ranges: [], inexact: false },
    served: false,
    finalized: null,
    alone: true,
  };
}

/** What of it metadata does not keep, and has to be named with each command that needs the source. Sentences. */
function unkept(location: Location, headerFile: string | undefined): string[] {
  const words = [];
  if (location.kind === "command") {
    words.push(
      "The command is not kept, since metadata must never make one run: name it again, as --source [ COMMAND … ]",
    );
  } else if (location.kind === "qemu" && !isReopenable(location)) {
    words.push("Metadata must never choose qemu's drivers: name the source again, as --source json:…");
  } else if (!isReopenable(location)) {
    words.push("The rest of the URL is a credential, and is not kept: name all of it again, as --source URL");
  }
  if (headerFile !== undefined) {
    words.push(
      "The header file is not kept, since metadata must never make a file be sent: name it again, as --header-file",
    );
  }
  return words;
}

async function warningsOfSource({ device, files, fingerprint }: OpenedSource): Promise<string[]> {
  const warnings = [];
  if (device.size % SECTOR_SIZE !== 0) {
    warnings.push(
      `"${device.name}" is not a whole number of 512-byte sectors: the kernel's dm-clone cannot take over this clone`,
    );
  }
  if (fingerprint.sample !== undefined && areAllUnreadable(fingerprint.sample)) {
    warnings.push(
      `No sample of "${device.name}" can be read: another source in its place, of the same size, would not be noticed by what it holds`,
    );
  }
  for (const file of files) {
    const mounted = file.identity.rdev === undefined ? undefined : await blockDeviceUser(file.identity.rdev);
    const user = (await findUser(file, "read"))?.description ?? mounted;
    if (user === undefined) continue;
    const which =
      file.path === device.name ? `"${device.name}"` : `"${file.path}", which "${device.name}" is read from,`;
    warnings.push(`${which} is in use (${user}): a copy of what changes meanwhile is worth nothing`);
  }
  return warnings;
}

/** A server that cannot be told to flush may have everything in memory when it says that it is done. */
function warningsOfDestination({ device, remote }: OpenedDestination): string[] {
  if (remote === undefined || remote.canFlush !== false) return [];
  return [
    `"${device.name}" cannot be told to make anything durable: the metadata may vouch for data that is lost with it`,
  ];
}
