/**
 * An existing clone, opened and locked: its metadata, its descriptor, and on request its source and destination, each
 * checked to be the one that the clone was made with.
 */
import assert from "node:assert";
import { CloneError, MetadataError, UsageError } from "../base/errors.ts";
import type { Geometry } from "../base/geometry.ts";
import type { BlockDevice } from "../device/block-device.ts";
import { FileDevice } from "../device/file-device.ts";
import { refuseInUse } from "../device/in-use.ts";
import { acquireLock, type Lock } from "../device/lock.ts";
import { sharesStorage } from "../device/same-storage.ts";
import { CloneMetadata } from "../metadata/clone-metadata.ts";
import { type Descriptor, DescriptorStore, type FinalizeRecord, type Fingerprint } from "../metadata/descriptor.ts";
import { destinationFingerprint, differenceFrom, sourceFingerprint } from "./fingerprint.ts";
import { displayUri, parseLocation, uriOf } from "./location.ts";
import { defaultMetadataPath, exists, findMetadata } from "./metadata-file.ts";
import { destinationView, openDestination, openSource, sourceView } from "./open-devices.ts";

/** How a clone is opened. */
export interface OpenRequest {
  /** What the user called it: its metadata, or its destination. */
  name: string;
  /** `exclusive` locks it to change it; `quiescent` reads it and refuses one in use; `any` reads it as it is. */
  access: "exclusive" | "quiescent" | "any";
  signal?: AbortSignal | undefined;
}

/** Where its devices are, as far as the command line says so. */
export interface DeviceRequest {
  source?: string | undefined;
  destination?: string | undefined;
  acceptChangedSource?: boolean | undefined;
}

/** A source as it was opened. */
export interface AttachedSource {
  device: FileDevice;
  /** In whole sectors. */
  view: BlockDevice;
  /** As of opening it. */
  fingerprint: Fingerprint;
  /** Whether changes since `create` were accepted, so that nobody should complain of them. */
  accepted: boolean;
}

/** A destination as it was opened. */
export interface AttachedDestination {
  device: FileDevice;
  /** The clone's bytes and no others, in whole sectors. */
  view: BlockDevice;
}

type DestinationAccess = "read-write" | "read-only";

/** An open clone. Dispose of it to let everything go; nothing is committed by that. */
export class Clone implements AsyncDisposable {
  readonly metadataDevice: FileDevice;
  readonly metadata: CloneMetadata;
  readonly #descriptors: DescriptorStore;
  /** The destination, where that is what the user named. */
  readonly #named: string | undefined;
  /** What was found odd but bearable, sentences. */
  readonly warnings: string[];
  #source: AttachedSource | undefined;
  #destination: (AttachedDestination & { access: DestinationAccess }) | undefined;
  #opened: AsyncDisposable[];

  private constructor(
    { device: metadataDevice, destination }: OpenedMetadata,
    metadata: CloneMetadata,
    descriptors: DescriptorStore,
    opened: AsyncDisposable[],
  ) {
    this.metadataDevice = metadataDevice;
    this.#named = destination;
    this.metadata = metadata;
    this.#descriptors = descriptors;
    this.#opened = opened;
    this.warnings = [
      ...metadata.warnings,
      ...descriptors.warnings.map((warning) => `The descriptor of "${metadataDevice.path}": ${warning}`),
    ];
  }

  /**
   * Opens a clone's metadata.
   * @throws {MetadataError} where it is damaged, or no clone's
   * @throws {BusyError} where another process uses it
   * @throws {DeviceError} where it cannot be read
   */
  static async open({ name, access, signal }: OpenRequest): Promise<Clone> {
    const opened: AsyncDisposable[] = [];
    try {
      const found = await openMetadataDevice(name, access);
      const { device } = found;
      opened.push(device);
      if (access !== "any") opened.push(await lockMetadata(device, access));
      const metadata = await CloneMetadata.open(device, { readOnly: access !== "exclusive", signal });
      opened.push(metadata);
      const place = { geometry: metadata.geometry, blockCount: metadata.totalBlocks };
      return new Clone(found, metadata, await DescriptorStore.open(device, place), opened);
    } catch (error) {
      await disposeAll(opened);
      if (!(error instanceof MetadataError)) throw error;
      const { hint, block } = error;
      throw new MetadataError(`Cannot open the clone "${name}": ${error.message}`, {
        cause: error,
        ...(hint === undefined ? {} : { hint }),
        ...(block === undefined ? {} : { block }),
      });
    }
  }

  /** Path of the metadata. */
  get path(): string {
    return this.metadataDevice.path;
  }

  get geometry(): Geometry {
    return this.metadata.geometry;
  }

  /** What dm-clone's format has no room for; null for a clone that the kernel made. */
  get descriptor(): Descriptor | null {
    return this.#descriptors.read();
  }

  /** Bytes of the source, which need not be whole sectors. */
  get exactSize(): number {
    return this.descriptor?.exactSize ?? this.geometry.size;
  }

  get finalized(): FinalizeRecord | null {
    return this.descriptor?.finalized ?? null;
  }

  /**
   * Changes the descriptor, durably. A clone that has none, or no room for one, stays without.
   * @throws {DeviceError}
   */
  async updateDescriptor(changes: Partial<Descriptor>): Promise<void> {
    const descriptor = this.descriptor;
    if (descriptor !== null) await this.#descriptors.write({ ...descriptor, ...changes });
  }

  /**
   * Opens the source; once, whoever asks.
   * @throws {CloneError} where it is not the one the clone was made with, or has changed since
   * @throws {UsageError} where nothing says where it is
   */
  async attachSource(request: DeviceRequest): Promise<AttachedSource> {
    this.#source ??= await this.#openSource(request);
    return this.#source;
  }

  async #openSource(request: DeviceRequest): Promise<AttachedSource> {
    const pinned = this.descriptor?.source;
    const location = parseLocation(request.source ?? this.#uri("source", pinned?.uri));
    const device = this.#own(await openSource(location));
    await this.#refuseShared(device, "source", this.#destination?.device);
    const accepted = request.acceptChangedSource ?? false;
    const now = await sourceFingerprint(device);
    const difference = pinned === undefined ? undefined : differenceFrom(pinned.fingerprint, now);
    if (difference !== undefined && !accepted) throw sourceChanged(device.path, difference);
    if (device.size < this.exactSize) {
      throw new CloneError(
        "failed",
        `Cannot use "${device.path}" as the source: it has ${device.size} bytes, fewer than the ${this.exactSize} of the clone`,
      );
    }
    if (difference !== undefined) {
      this.warnings.push(
        `"${device.path}" has changed since the clone was created (${difference}): regions copied from now on are from what it holds now, those copied before stay as they are`,
      );
    }
    if (pinned !== undefined && this.metadata.readOnly === false) {
      const uri = uriOf(location);
      if (difference !== undefined || uri !== pinned.uri) {
        await this.updateDescriptor({ source: { ...pinned, uri, size: device.size, fingerprint: now } });
      }
    }
    return { device, view: sourceView(device), fingerprint: now, accepted };
  }

  /**
   * Opens the destination, for writing under the lock, or for reading; once, whoever asks, and one opened for writing
   * serves readers too.
   * @throws {CloneError} where it is not the one the clone was made with
   * @throws {UsageError} where nothing says where it is
   * @throws {BusyError} where it is in use
   */
  async attachDestination(request: DeviceRequest, access: DestinationAccess): Promise<AttachedDestination> {
    assert(access === "read-only" || this.#destination?.access !== "read-only", "opened for reading only before");
    this.#destination ??= { ...(await this.#openDestination(request, access)), access };
    return this.#destination;
  }

  async #openDestination(request: DeviceRequest, access: DestinationAccess): Promise<AttachedDestination> {
    const pinned = this.descriptor?.destination;
    const location = parseLocation(request.destination ?? this.#named ?? this.#uri("destination", pinned?.uri));
    const device = this.#own(
      access === "read-write"
        ? await openDestination(location)
        : await FileDevice.open(location.path, { access: "read-only", directReads: true }),
    );
    await this.#refuseShared(device, "destination", this.#source?.device);
    if (access === "read-write") this.#own(await acquireLock(device));
    if (device.size < this.exactSize) {
      throw new CloneError(
        "failed",
        `Cannot use "${device.path}" as the destination: it has ${device.size} bytes, fewer than the ${this.exactSize} of the clone`,
      );
    }
    if (pinned !== undefined) await this.#checkDestination(device, request.destination !== undefined);
    return { device, view: destinationView(device, this.exactSize) };
  }

  /** A clone's destination may move, but only where the user says so, and the one it was made with is nowhere any more. */
  async #checkDestination(device: FileDevice, named: boolean): Promise<void> {
    const descriptor = this.descriptor;
    if (descriptor === null) return;
    const pinned = descriptor.destination;
    const now = destinationFingerprint(device.identity);
    const uri = uriOf({ path: device.path });
    const { size: _grown, ...who } = pinned.fingerprint;
    const difference = differenceFrom(who, now);
    if (difference !== undefined) {
      const path = displayUri(pinned.uri);
      if (!named || (device.path !== path && (await exists(path)))) {
        throw new CloneError(
          "failed",
          `Cannot use "${device.path}" as the destination: the clone belongs to "${path}", and ${difference}`,
          {
            hint: named
              ? "Where that one was moved or restored here, remove the other first."
              : "Where it was moved or restored, name it with --destination.",
          },
        );
      }
      this.warnings.push(`"${device.path}" is taken for the destination on your word: ${difference}`);
    }
    if ((difference !== undefined || uri !== pinned.uri) && !this.metadata.readOnly) {
      await this.updateDescriptor({ destination: { uri, size: device.size, fingerprint: now } });
    }
  }

  /** @throws {UsageError} where a device is the metadata in disguise, or source and destination are the same */
  async #refuseShared(
    device: FileDevice,
    role: "source" | "destination",
    other: FileDevice | undefined,
  ): Promise<void> {
    if (await sharesStorage(device, this.metadataDevice)) {
      throw new UsageError(`Cannot use "${device.path}" as the ${role}: it is the clone's metadata`);
    }
    if (other !== undefined && (await sharesStorage(device, other))) {
      throw new UsageError(`Cannot use "${device.path}" as the ${role}: source and destination are the same`);
    }
  }

  #uri(which: "source" | "destination", uri: string | undefined): string {
    if (uri !== undefined) return uri;
    throw new UsageError(`Cannot open the ${which} of "${this.path}": its metadata does not say where that is`, {
      hint: `Metadata made by the kernel names no devices: give --${which}.`,
    });
  }

  #own<T extends AsyncDisposable>(opened: T): T {
    this.#opened.push(opened);
    return opened;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const opened = this.#opened;
    this.#opened = [];
    await disposeAll(opened);
  }
}

/** The error for a source that is not what it was. `difference` is the end of a sentence about it. */
export function sourceChanged(path: string, difference: string): CloneError {
  return new CloneError(
    "failed",
    `Cannot use "${path}" as the source: it has changed since the clone was created, ${difference}`,
    {
      hint: "--accept-changed-source goes on all the same: what was copied stays, the rest comes from the source as it is now.",
    },
  );
}

/** Metadata, and the destination where it was that which was named. */
export interface OpenedMetadata {
  device: FileDevice;
  destination: string | undefined;
}

/**
 * Opens the metadata that a name means, without reading it. `exclusive` is for writing, and not locked yet.
 * @throws {CloneError} where there is none
 * @throws {BusyError} where it is in use
 */
export async function openMetadataDevice(name: string, access: OpenRequest["access"]): Promise<OpenedMetadata> {
  const location = parseLocation(name);
  const { path, destination } = await findMetadata(location.path);
  if (!(await exists(path))) {
    throw new CloneError(
      "failed",
      `Cannot open the clone "${name}": there is neither that file nor "${defaultMetadataPath(name)}"`,
    );
  }
  const device = await FileDevice.open(path, {
    access: access === "exclusive" ? "read-write" : "read-only",
    direct: "off",
  });
  if (access === "any") return { device, destination };
  try {
    await refuseInUse(device, access === "exclusive" ? "write" : "read");
    return { device, destination };
  } catch (error) {
    await device[Symbol.asyncDispose]();
    throw error;
  }
}

/** Locks metadata for what it was opened for. @throws {BusyError} where another process has it locked */
export function lockMetadata(device: FileDevice, access: "exclusive" | "quiescent"): Promise<Lock> {
  return acquireLock(device, access === "exclusive" ? "exclusive" : "shared");
}

async function disposeAll(opened: AsyncDisposable[]): Promise<void> {
  for (const thing of [...opened].reverse()) await thing[Symbol.asyncDispose]();
}
