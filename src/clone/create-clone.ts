/** `clone create`: checks source and destination, writes the metadata, copies nothing. */
import { randomUUID } from "node:crypto";
import { BusyError, UsageError } from "../base/errors.ts";
import { Geometry, MAX_REGION_COUNT, SECTOR_SIZE } from "../base/geometry.ts";
import { blockDeviceUser } from "../device/block-users.ts";
import { FileDevice } from "../device/file-device.ts";
import { findUser } from "../device/in-use.ts";
import { describeHolder, lockHolder } from "../device/lock.ts";
import { sharesStorage } from "../device/same-storage.ts";
import type { Descriptor } from "../metadata/descriptor.ts";
import { readStatus } from "./clone-status.ts";
import { destinationFingerprint, sourceFingerprint } from "./fingerprint.ts";
import { type Location, parseLocation, uriOf } from "./location.ts";
import {
  createMetadataFile,
  createMetadataOnDevice,
  defaultMetadataPath,
  holdsMetadata,
  isBlockDevice,
} from "./metadata-file.ts";
import { NewDestination } from "./new-destination.ts";
import { findData, openSource, refuseContainer } from "./open-devices.ts";

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
  /** `raw`: take the source's bytes as they are, even if they look like an image in a format of its own. */
  sourceFormat?: "raw" | undefined;
}

/** The clone that was made. */
export interface CreatedClone {
  metadata: string;
  source: string;
  destination: string;
  geometry: Geometry;
  /** Bytes of the source; the clone's size is this in whole sectors. */
  exactSize: number;
  /** What the user should know about it, sentences. */
  warnings: string[];
}

/** Bytes per region where nobody says otherwise. */
export const DEFAULT_REGION_SIZE = 65536;

/**
 * Makes a clone of which nothing is hydrated yet. If it throws, whatever it made is gone again.
 * @throws {UsageError} where the arguments cannot work together
 * @throws {BusyError} where the destination is in use
 * @throws {DeviceError} where something cannot be read or made
 */
export async function createClone(request: CreateRequest): Promise<CreatedClone> {
  const sourceLocation = parseLocation(request.source);
  const destinationLocation = parseLocation(request.destination);
  await using source = await openSource(sourceLocation);
  if (request.sourceFormat !== "raw") await refuseContainer(source);
  await refuseUnfinishedSource(source);
  const geometry = geometryOf(source, request.regionSize);
  const warnings = await warningsOf(source);
  await using opened = await NewDestination.open(destinationLocation, source.size);
  const { device: destination, isNew } = opened;
  await checkPair(source, destination, geometry);
  const metadata = await metadataPathOf(request, destination, source);
  await refuseMetadata(destination, metadata);
  if (!isNew && !request.force) await refuseData(destination);
  const descriptor = await describe(request, { source, destination, sourceLocation, destinationLocation });
  const content = { geometry, descriptor };
  if (await isBlockDevice(metadata)) {
    await using device = await FileDevice.open(metadata, { access: "read-write", direct: "off" });
    if ((await sharesStorage(device, source)) || (await sharesStorage(device, destination))) {
      throw new UsageError(`Cannot put the metadata on "${metadata}": it is the source or the destination`);
    }
    await createMetadataOnDevice(device, content);
  } else {
    await createMetadataFile(metadata, content);
  }
  opened.keep();
  return { metadata, source: source.path, destination: destination.path, geometry, exactSize: source.size, warnings };
}

/** The destination of an unfinished clone has holes where its data is not yet. @throws {UsageError | BusyError} */
async function refuseUnfinishedSource(source: FileDevice): Promise<void> {
  const holder = await lockHolder(source);
  if (holder !== undefined) {
    throw new BusyError(`Cannot clone "${source.path}": ${describeHolder(holder)} is writing to it`, {
      pid: holder.pid,
    });
  }
  const beside = await defaultMetadataPath(source.path);
  if (source.kind === "block" || !(await holdsMetadata(beside))) return;
  const { status } = await readStatus(beside);
  if (status.state === "finalized" || status.hydratedRegions === status.regions) return;
  throw new UsageError(
    `Cannot clone "${source.path}": it is itself an unfinished clone, ${status.regions - status.hydratedRegions} of its ${status.regions} regions are missing`,
    { hint: `\`clone hydrate ${source.path}\` finishes it.` },
  );
}

function geometryOf(source: FileDevice, regionSize: number): Geometry {
  if (source.kind === "block" && source.size % SECTOR_SIZE !== 0) {
    throw new UsageError(
      `Cannot clone "${source.path}": its ${source.size} bytes are not a multiple of ${SECTOR_SIZE}`,
    );
  }
  const size = Math.ceil(source.size / SECTOR_SIZE) * SECTOR_SIZE;
  if (Math.ceil(size / regionSize) > MAX_REGION_COUNT) {
    const least = 2 ** Math.ceil(Math.log2(size / MAX_REGION_COUNT));
    throw new UsageError(`Cannot clone "${source.path}": it has more than 2^31 regions of ${regionSize} bytes`, {
      hint: `--region-size ${least} is the smallest that fits.`,
    });
  }
  return new Geometry({ size, regionSize });
}

async function checkPair(source: FileDevice, destination: FileDevice, geometry: Geometry): Promise<void> {
  if (await sharesStorage(source, destination)) {
    throw new UsageError(`Cannot clone "${source.path}" to "${destination.path}": they are the same`);
  }
  if (destination.size < source.size) {
    throw new UsageError(
      `Cannot clone "${source.path}" to "${destination.path}": the destination has ${destination.size} bytes, the source ${source.size}`,
    );
  }
  for (const device of [source, destination]) {
    if (device.kind === "block" && geometry.regionSize % device.blockSize !== 0) {
      throw new UsageError(
        `Cannot clone in regions of ${geometry.regionSize} bytes: "${device.path}" has sectors of ${device.blockSize}`,
      );
    }
  }
}

/**
 * Never overridden: what the metadata says of regions that only its destination has would be lost with it.
 * @throws {UsageError} where the destination is metadata itself, or belongs to an unfinished clone
 */
async function refuseMetadata(destination: FileDevice, metadata: string): Promise<void> {
  if (await holdsMetadata(destination.path)) {
    throw new UsageError(`Cannot clone to "${destination.path}": it is the metadata of a clone`, {
      hint: "`clone delete` gives that clone up.",
    });
  }
  if (destination.kind === "block") return;
  const beside = await defaultMetadataPath(destination.path);
  if (beside === metadata || !(await holdsMetadata(beside))) return;
  const { status } = await readStatus(beside);
  if (status.state === "finalized") return;
  throw new UsageError(`Cannot clone to "${destination.path}": it belongs to the unfinished clone "${beside}"`, {
    hint: "`clone hydrate` goes on with that clone, `clone delete` gives it up.",
  });
}

async function refuseData(destination: FileDevice): Promise<void> {
  const data = await findData(destination);
  if (data === undefined) return;
  throw new UsageError(`Cannot clone to "${destination.path}": it holds ${data}`, {
    hint: "--force overwrites it. There is no way back.",
  });
}

async function metadataPathOf(request: CreateRequest, destination: FileDevice, source: FileDevice): Promise<string> {
  const given = request.metadata;
  if (given === undefined) {
    if (destination.kind === "file") return await defaultMetadataPath(destination.path);
    throw new UsageError(`Cannot clone to "${destination.path}": a block device needs --metadata FILE`, {
      hint: "A file beside the device would not survive a restart: name one on a disk.",
    });
  }
  const { path } = parseLocation(given);
  if (path === destination.path || path === source.path) {
    throw new UsageError(`Cannot put the metadata into "${path}": it is the source or the destination`);
  }
  return path;
}

async function describe(
  request: CreateRequest,
  devices: { source: FileDevice; destination: FileDevice; sourceLocation: Location; destinationLocation: Location },
): Promise<Descriptor> {
  const { source, destination, sourceLocation, destinationLocation } = devices;
  return {
    uuid: randomUUID(),
    created: new Date().toISOString(),
    source: {
      uri: uriOf(sourceLocation),
      size: source.size,
      format: "raw",
      fingerprint: await sourceFingerprint(source),
    },
    destination: {
      uri: uriOf(destinationLocation),
      size: destination.size,
      fingerprint: destinationFingerprint(destination.identity),
    },
    exactSize: source.size,
    options: { regionSize: request.regionSize, force: request.force },
    unreadable: { ranges: [], inexact: false },
    served: false,
    finalized: null,
  };
}

async function warningsOf(source: FileDevice): Promise<string[]> {
  const warnings = [];
  if (source.size % SECTOR_SIZE !== 0) {
    warnings.push(
      `"${source.path}" is not a whole number of 512-byte sectors: the kernel's dm-clone cannot take over this clone`,
    );
  }
  const mounted = source.identity.rdev === undefined ? undefined : await blockDeviceUser(source.identity.rdev);
  const user = (await findUser(source, "read"))?.description ?? mounted;
  if (user !== undefined) {
    warnings.push(`"${source.path}" is in use (${user}): a copy of what changes meanwhile is worth nothing`);
  }
  return warnings;
}
