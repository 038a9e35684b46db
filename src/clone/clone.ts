/**
 * An existing clone, opened and locked: its metadata, its descriptor, and on request its source and destination, each
 * checked to be the one that the clone was made with.
 */
import assert from "node:assert";
import { CloneError, DeviceError, MetadataError, UsageError } from "../base/errors.ts";
import type { Geometry } from "../base/geometry.ts";
import type { BlockDevice } from "../device/block-device.ts";
import { FileDevice } from "../device/file-device.ts";
import { sysfsAttribute } from "../device/file-identity.ts";
import { refuseClaimed, refuseInUse } from "../device/in-use.ts";
import { acquireLock } from "../device/lock.ts";
import type { RemoteOptions } from "../device/remote-device.ts";
import { sharesStorage } from "../device/same-storage.ts";
import { CloneMetadata } from "../metadata/clone-metadata.ts";
import { type Descriptor, DescriptorStore, type FinalizeRecord } from "../metadata/descriptor.ts";
import {
  type DestinationTrust,
  isAlone,
  refuseAnotherDisk,
  refuseDifferentSamples,
  refuseForeignData,
  sampleRanges,
  settledState,
  trustInDestination,
} from "./destination-state.ts";
import { destinationFingerprint, differenceFrom, renewedFingerprint, UNRECOGNISED } from "./fingerprint.ts";
import { displayUri, type Location, parseLocation, parsePath, recordedPath } from "./location.ts";
import { defaultMetadataPath, exists, findMetadata, metadataName } from "./metadata-file.ts";
import { refuseStrangersWord, warningOfWriters } from "./metadata-owner.ts";
import {
  destinationView,
  isReadFrom,
  type OpenedDestination,
  type OpenedSource,
  openDestination,
  openSource,
  shareStorage,
  sourceView,
} from "./open-devices.ts";
import { isStillThere, type MetadataAccess, type OpenedMetadata, openMetadata } from "./open-metadata.ts";
import { recordedLocation } from "./recorded-location.ts";
import { SampledDevice } from "./sampled-device.ts";
import { refuseOtherBits } from "./settled-bits.ts";
import { holdsMetadata } from "./standing-metadata.ts";

/** How a clone is opened. */
export interface OpenRequest {
  /** What the user called it: its metadata, or its destination. */
  name: string;
  access: MetadataAccess;
  signal?: AbortSignal | undefined;
  /** Told of what is odd but bearable when it is found; sentences. */
  onWarning?: ((warning: string) => void) | undefined;
  /** Told what only the curious want. */
  onDetail?: ((line: string) => void) | undefined;
}

/** Where its devices are, as far as the command line says so. */
export interface DeviceRequest {
  source?: string | undefined;
  destination?: string | undefined;
  acceptChangedSource?: boolean | undefined;
  /** A file of headers to send to a web server. Metadata names none: it could name any file, and any server. */
  headerFile?: string | undefined;
}

/** A source of the clone, open. */
export interface AttachedSource extends OpenedSource {
  /** In whole sectors. */
  view: BlockDevice;
}

/** The destination of the clone, open. */
export interface AttachedDestination extends OpenedDestination {
  /** The clone's bytes and no others, in whole sectors. */
  view: BlockDevice;
  /** What it is known by when its connection was lost and made anew. Beneath the view. */
  sampled?: SampledDevice;
}

/** `beside-the-kernel`: as `read-only`, but the kernel's clone may be what uses it. */
type DestinationAccess = "read-write" | "read-only" | "beside-the-kernel";

/** An open clone. Dispose of it to let everything go; nothing is committed by that. */
export class Clone implements AsyncDisposable {
  readonly metadataDevice: FileDevice;
  readonly metadata: CloneMetadata;
  readonly #descriptors: DescriptorStore;
  /** The destination, where that is what the user named. */
  readonly #named: string | undefined;
  readonly #onWarning: (warning: string) => void;
  /** What the devices of this clone are opened with. */
  readonly #remoteOptions: RemoteOptions;
  #source: AttachedSource | undefined;
  /** What closes it. */
  #sourceOwner: AsyncDisposable | undefined;
  #destination: (AttachedDestination & { access: DestinationAccess }) | undefined;
  /** Settles, never rejects, when the last change to the descriptor has been made. */
  #updated: Promise<unknown> = Promise.resolve();
  /** Whether the destination is another file than the one the clone was made with. */
  #takenOnWord = false;
  /** Whether the destination is written to though it could not be compared: the next run has to. */
  #isUncompared = false;
  /** What the devices turned out to be, to be kept once both are found to be right. */
  #findings: Partial<Descriptor> = {};
  /** The metadata's file with its lock, and the metadata; apart from the rest, which may outlive them. */
  #metadataParts: AsyncDisposable[];
  /** Source, destination, the destination's lock. */
  #opened: AsyncDisposable[] = [];

  private constructor(parts: {
    found: OpenedMetadata;
    metadata: CloneMetadata;
    descriptors: DescriptorStore;
    opened: AsyncDisposable[];
    onWarning: (warning: string) => void;
    remoteOptions: RemoteOptions;
  }) {
    this.metadataDevice = parts.found.device;
    this.#named = parts.found.destination;
    this.metadata = parts.metadata;
    this.#descriptors = parts.descriptors;
    this.#metadataParts = parts.opened;
    this.#onWarning = parts.onWarning;
    this.#remoteOptions = parts.remoteOptions;
  }

  /**
   * Opens a clone's metadata.
   * @throws {MetadataError} where it is damaged, or no clone's
   * @throws {BusyError} where another process uses it
   * @throws {DeviceError} where it cannot be read
   */
  static async open({ name, access, signal, onDetail, onWarning = () => {} }: OpenRequest): Promise<Clone> {
    const opened: AsyncDisposable[] = [];
    try {
      const found = await openMetadata(name, access);
      opened.push(found);
      const { device } = found;
      const metadata = await CloneMetadata.open(device, { readOnly: access !== "exclusive", signal });
      opened.push(metadata);
      const place = { geometry: metadata.geometry, blockCount: metadata.totalBlocks };
      const descriptors = await DescriptorStore.open(device, place);
      if (access !== "any" && descriptors.unreadable !== null) throw descriptors.unreadable;
      const warning = access === "exclusive" ? await warningOfWriters(device) : undefined;
      if (warning !== undefined) onWarning(warning);
      const older = access === "any" ? undefined : await refuseOtherBits(device, metadata, descriptors.read());
      if (older !== undefined) onWarning(older);
      for (const warning of metadata.warnings) onWarning(warning);
      for (const warning of descriptors.warnings) onWarning(`The descriptor of "${device.path}": ${warning}`);
      const remoteOptions = { signal, onDetail, onNote: onWarning };
      return new Clone({ found, metadata, descriptors, opened, onWarning, remoteOptions });
    } catch (error) {
      await disposeAll(opened);
      if (!(error instanceof MetadataError)) throw error;
      const hint = error.hint ?? (await elsewhereHint(name)) ?? (await repairHint(name));
      throw new MetadataError(`Cannot open the clone "${name}": ${error.message}`, {
        cause: error,
        ...(hint === undefined ? {} : { hint }),
        ...(error.block === undefined ? {} : { block: error.block }),
      });
    }
  }

  /**
   * A clone as a sound image of its metadata shows it, where its own cannot be opened: for looking at its devices.
   * Nothing of it is to be written. `found` and `image` stay the caller's.
   * @throws {MetadataError | DeviceError}
   */
  static async ofImage(
    image: BlockDevice,
    found: OpenedMetadata,
    { signal, onDetail, onWarning = () => {} }: Omit<OpenRequest, "name" | "access">,
  ): Promise<Clone> {
    const metadata = await CloneMetadata.open(image, { readOnly: true, signal });
    const place = { geometry: metadata.geometry, blockCount: metadata.totalBlocks };
    const descriptors = await DescriptorStore.open(image, place);
    const remoteOptions = { signal, onDetail, onNote: onWarning };
    return new Clone({ found, metadata, descriptors, opened: [metadata], onWarning, remoteOptions });
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

  /** Why the descriptor is not to be acted on, where some of it cannot be read; only of a clone opened with access `any`. */
  get descriptorFailure(): CloneError | null {
    return this.#descriptors.unreadable;
  }

  /** Bytes of the source, which need not be whole sectors. */
  get exactSize(): number {
    return this.descriptor?.exactSize ?? this.geometry.size;
  }

  /** Whether every region is hydrated. */
  get isComplete(): boolean {
    return this.metadata.hydratedCount === this.geometry.regionCount;
  }

  get finalized(): FinalizeRecord | null {
    return this.descriptor?.finalized ?? null;
  }

  /**
   * Changes the descriptor, durably.
   * @returns false for a clone that has none: it stays without
   * @throws {DeviceError}
   */
  async updateDescriptor(changes: Partial<Descriptor>): Promise<boolean> {
    // One after the other, each from what the one before has left: a server may finalize and stop at the same time.
    const update = this.#updated.then(async () => {
      const descriptor = this.descriptor;
      if (descriptor === null) return false;
      await this.#descriptors.write({ ...descriptor, ...changes });
      return true;
    });
    this.#updated = update.catch(() => {}); // whoever asked for it hears of it
    return await update;
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
    const location = request.source === undefined ? await this.#recorded("source") : parseLocation(request.source);
    const opened = this.#own(
      await openSource(location, {
        ...this.#remoteOptions,
        format: pinned?.format ?? "raw", // the kernel knows no other
        isFormatGiven: this.#option("sourceFormat") !== undefined,
        headerFile: request.headerFile,
        // A server may have learnt to tell tags since: they say nothing of what was there before.
        sample: pinned?.fingerprint.sample !== undefined,
      }),
    );
    this.#sourceOwner = opened;
    const { device, fingerprint: now, uri } = opened;
    await this.#refuseShared("source", opened, this.#destination);
    const difference = pinned === undefined ? undefined : differenceFrom(pinned.fingerprint, now);
    if (difference !== undefined && !request.acceptChangedSource) throw sourceChanged(device.name, difference);
    this.#refuseSmall(device, "source");
    if (difference !== undefined) {
      const has = difference === UNRECOGNISED ? "may have" : "has";
      this.#onWarning(
        `"${device.name}" ${has} changed since the clone was created (${difference}): regions copied from now on are from what it holds now, those copied before stay as they are`,
      );
      this.#findings.acceptedChange = new Date().toISOString();
    }
    if (pinned !== undefined && (difference !== undefined || uri !== pinned.uri)) {
      // Of a thing that is known to be another one nothing that was pinned holds any more.
      const isOther = difference !== undefined && difference !== UNRECOGNISED;
      const fingerprint = isOther ? now : renewedFingerprint(pinned.fingerprint, now);
      this.#findings.source = { ...pinned, uri, size: device.size, fingerprint };
    }
    return { ...opened, view: sourceView(device) };
  }

  /**
   * Opens the destination, for writing under the lock, or for reading; once, whoever asks, and one opened for writing
   * serves readers too.
   * @throws {CloneError} where it is not the one the clone was made with
   * @throws {UsageError} where nothing says where it is
   * @throws {BusyError} where it is in use
   */
  async attachDestination(request: DeviceRequest, access: DestinationAccess): Promise<AttachedDestination> {
    assert((this.#destination?.access ?? access) === access || access === "read-only", "opened for less before");
    this.#destination ??= { ...(await this.#openDestination(request, access)), access };
    return this.#destination;
  }

  async #openDestination(request: DeviceRequest, access: DestinationAccess): Promise<AttachedDestination> {
    const named = request.destination ?? this.#named;
    const location = named === undefined ? await this.#recorded("destination") : parseLocation(named);
    if (location.kind === "file" && !(await exists(location.path))) {
      throw new CloneError("failed", `Cannot open "${location.path}": no such file (ENOENT)`, {
        hint: "Where it was moved, name it with --destination.",
      });
    }
    const writes = access === "read-write";
    const options = { ...this.#remoteOptions, access: writes ? ("read-write" as const) : ("read-only" as const) };
    const opened = this.#own(await openDestination(location, options));
    await this.#refuseShared("destination", this.#source, opened);
    if (opened.file !== undefined) await this.#lockDestination(opened.file, access);
    this.#refuseSmall(opened.device, "destination");
    if (access !== "beside-the-kernel" || !(await this.#isBehindLoop(opened))) {
      await this.#checkDestination(opened, request.destination !== undefined);
    }
    const { remote } = opened;
    if (remote?.verifyBy === undefined || !writes) {
      return { ...opened, view: destinationView(opened.device, this.exactSize) };
    }
    const sampled = new SampledDevice(remote);
    remote.verifyBy((probe) => sampled.difference(probe));
    return { ...opened, sampled, view: destinationView(sampled, this.exactSize) };
  }

  /** Of what is remote only the metadata is locked: nobody else's is about it. */
  async #lockDestination(file: FileDevice, access: DestinationAccess): Promise<void> {
    if (access === "read-only") {
      await refuseInUse(file, "read");
      await refuseClaimed(file);
    }
    this.#own(await acquireLock(file, access === "read-write" ? "exclusive" : "shared"));
    if (!(await isStillThere(file))) {
      throw new CloneError("failed", `Cannot use "${file.path}" as the destination: it was replaced just now`);
    }
  }

  /** Whether this is a loop device of the very file that the clone belongs to, from its first byte on. @throws {DeviceError} */
  async #isBehindLoop({ file }: OpenedDestination): Promise<boolean> {
    const pinned = this.descriptor?.destination;
    const path = pinned === undefined ? undefined : recordedPath(pinned.uri);
    if (file?.identity.rdev === undefined || path === undefined || !(await exists(path))) return false;
    if ((await sysfsAttribute(`/sys/dev/block/${file.identity.rdev}`, "loop/offset")) !== "0") return false;
    await using recorded = await FileDevice.open(path, { access: "read-only", direct: "off" });
    const now = destinationFingerprint({ file: recorded, device: recorded });
    return differenceFrom(pinned?.fingerprint ?? {}, now) === undefined && (await sharesStorage(file, recorded));
  }

  /** A clone's destination may move, but only where the user says so, and the one it was made with is nowhere any more. */
  async #checkDestination(opened: OpenedDestination, named: boolean): Promise<void> {
    const pinned = this.descriptor?.destination;
    if (pinned === undefined) return;
    const { device, file, uri } = opened;
    const now = destinationFingerprint(opened);
    const difference = differenceFrom(pinned.fingerprint, now);
    if (difference === undefined) {
      if (uri !== pinned.uri) this.#findings.destination = { ...pinned, uri, size: device.size };
      return;
    }
    const path = recordedPath(pinned.uri);
    const isStanding = path !== undefined && file?.path !== path && (await exists(path));
    if (!named || isStanding) {
      throw new CloneError(
        "failed",
        `Cannot use "${device.name}" as the destination: the clone belongs to "${displayUri(pinned.uri)}", and ${difference}`,
        {
          hint: named
            ? "Where that one was moved or restored here, remove the other first."
            : "Where it was moved or restored, name it with --destination.",
        },
      );
    }
    this.#onWarning(`"${device.name}" is taken for the destination on your word: ${difference}`);
    this.#takenOnWord = true;
    const touched = pinned.touched ? { touched: true } : {};
    this.#findings.destination = { uri, size: device.size, fingerprint: now, ...touched };
  }

  /**
   * The last check before the destination is written to: it must hold what the metadata says, as far as that can be told
   * without reading all of it. Then what was found out of the devices is kept, and the destination counts as being at work
   * until `settle()`. A clone that is complete can do without its source; then nothing can be compared.
   * @throws {CloneError} where it holds something else
   */
  async beginWriting(request: DeviceRequest): Promise<void> {
    const [source, destination] = [this.#source, this.#destination];
    assert(destination !== undefined, "the destination must be attached before");
    assert(source !== undefined || this.isComplete, "the source must be attached before");
    // What it shows may be in the cache of a server that can lose it, of a run that never came to flush it: from here on it is
    // believed, and what is lost of it later is nothing that this run has written, so nobody would tell.
    if (destination.remote !== undefined) await destination.view.flush();
    await this.refuseAnotherDisk(destination, request);
    const trust = await this.trustIn(destination);
    if (trust === "empty") await refuseForeignData(destination);
    if (trust === "touched") {
      this.#onWarning(
        `Somebody else has written to "${destination.device.name}" since the clone last did: \`clone verify\` compares all of it`,
      );
    }
    const accepted = this.#findings.acceptedChange ?? this.descriptor?.acceptedChange;
    if ((trust === "compare" || trust === "touched") && accepted === undefined) {
      this.#isUncompared = source === undefined;
      if (source === undefined) this.warnNotCompared(destination);
      else await this.#unlessAccepted(request, () => refuseDifferentSamples(this, source.view, destination.view));
    }
    await destination.sampled?.remember(sampleRanges(this));
    const isAloneStill = trust !== "touched" && (await isAlone(this));
    if (this.descriptor?.alone === true && !isAloneStill) this.#findings.alone = false;
    await this.unsettle(trust === "touched" ? { touched: true } : {});
  }

  /** @throws {CloneError} where a disk without an identity is not as it was left, unless that is accepted */
  async refuseAnotherDisk(destination: OpenedDestination, request: DeviceRequest): Promise<void> {
    await this.#unlessAccepted(request, () => refuseAnotherDisk(this, destination));
  }

  /** Makes a check whose refusal is only said aloud, and recorded, where the user accepts what has changed. */
  async #unlessAccepted({ acceptChangedSource }: DeviceRequest, check: () => Promise<void>): Promise<void> {
    try {
      await check();
    } catch (error) {
      if (!(error instanceof CloneError) || error instanceof DeviceError || !acceptChangedSource) throw error;
      this.#onWarning(error.message);
      this.#findings.acceptedChange = new Date().toISOString();
    }
  }

  /** How far a destination can be trusted before it is looked at. @throws {DeviceError} */
  async trustIn(destination: OpenedDestination): Promise<DestinationTrust> {
    if (!this.#takenOnWord) return await trustInDestination(this, destination);
    return this.metadata.hydratedCount === 0 ? "empty" : "compare";
  }

  /** Records that the destination is being written to, so that its time of change means nothing. @throws {DeviceError} */
  async unsettle(changes: { touched?: true } = {}): Promise<void> {
    const pinned = this.#findings.destination ?? this.descriptor?.destination;
    if (pinned === undefined) return;
    await this.updateDescriptor({ ...this.#findings, destination: { ...pinned, ...changes, settled: null } });
    this.#findings = {};
  }

  /** Records the destination as it is now, everything flushed and committed. @throws {DeviceError} */
  async settle(changes: Partial<Descriptor> = {}): Promise<boolean> {
    const destination = this.#destination;
    if (destination === undefined) return false;
    const settled = this.#isUncompared ? null : await settledState(this, destination);
    const pinned = this.#findings.destination ?? this.descriptor?.destination; // as it is after the wait
    if (pinned === undefined) return false;
    return await this.updateDescriptor({ ...this.#findings, ...changes, destination: { ...pinned, settled } });
  }

  /** Says that a destination, which may have been changed by somebody else, is taken as it is. */
  warnNotCompared({ device }: OpenedDestination): void {
    this.warn(`Not even samples of "${device.name}" were compared with the source.`);
  }

  /** Says what is odd but bearable, a sentence. */
  warn(warning: string): void {
    this.#onWarning(warning);
  }

  #refuseSmall(device: BlockDevice, role: "source" | "destination"): void {
    if (device.size >= this.exactSize) return;
    throw new CloneError(
      "failed",
      `Cannot use "${device.name}" as the ${role}: it has ${device.size} bytes, fewer than the ${this.exactSize} of the clone`,
    );
  }

  /**
   * What has just been opened as `role`, against all else.
   * @throws {UsageError} where a device is the metadata in disguise, or source and destination are the same, or one is read from it
   */
  async #refuseShared(
    role: "source" | "destination",
    source: OpenedSource | undefined,
    destination: OpenedDestination | undefined,
  ): Promise<void> {
    const name = (role === "source" ? source : destination)?.device.name;
    const { metadataDevice } = this;
    if (role === "source" && source !== undefined && (await isReadFrom(source, metadataDevice))) {
      const what = source.file === undefined ? "it is read from" : "it is";
      throw new UsageError(`Cannot use "${name}" as the source: ${what} the clone's metadata`);
    }
    const file = role === "destination" ? destination?.file : undefined;
    if (file !== undefined && (await sharesStorage(file, metadataDevice))) {
      throw new UsageError(`Cannot use "${name}" as the destination: it is the clone's metadata`);
    }
    if (source === undefined || destination === undefined) return;
    const shared = await shareStorage(source, destination);
    if (shared === undefined) return;
    const why = shared === "same" ? "source and destination are the same" : "the source is read from the destination";
    throw new UsageError(`Cannot use "${name}" as the ${role}: ${why}`);
  }

  /** A text among the options that the clone was made with. */
  #option(name: string): string | undefined {
    const value = this.descriptor?.options[name];
    return typeof value === "string" ? value : undefined;
  }

  /** Where the metadata says that a device is. @throws {CloneError} where it does not, or is not to be believed */
  async #recorded(which: "source" | "destination"): Promise<Location> {
    const uri = this.descriptor?.[which].uri;
    if (uri !== undefined) {
      await refuseStrangersWord(this.metadataDevice, which);
      return await recordedLocation(uri, which);
    }
    throw new UsageError(`Cannot open the ${which} of "${this.path}": its metadata does not say where that is`, {
      hint: `Metadata made by the kernel names no devices: give --${which}.`,
    });
  }

  #own<T extends AsyncDisposable>(opened: T): T {
    this.#opened.push(opened);
    return opened;
  }

  /**
   * Closes the metadata, lets its lock go and its memory; source and destination stay open, the latter locked. Nothing but
   * disposal is to be called afterwards.
   */
  async releaseMetadata(): Promise<void> {
    const parts = this.#metadataParts;
    this.#metadataParts = [];
    await disposeAll(parts);
  }

  /** Closes the source, which may then be detached. */
  async releaseSource(): Promise<void> {
    const owned = this.#sourceOwner;
    this.#source = undefined;
    this.#sourceOwner = undefined;
    if (owned === undefined) return;
    this.#opened = this.#opened.filter((opened) => opened !== owned);
    await owned[Symbol.asyncDispose]();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const opened = this.#opened;
    this.#opened = [];
    await disposeAll(opened);
    await this.releaseMetadata();
  }
}

/** The error for a source that is not what it was. `difference` is the end of a sentence about it. */
export function sourceChanged(path: string, difference: string): CloneError {
  if (difference === UNRECOGNISED) {
    return new CloneError("failed", `Cannot use "${path}" as the source: ${difference}`, {
      hint: "It may do better later. --accept-changed-source takes it for the same at your word.",
    });
  }
  return new CloneError(
    "failed",
    `Cannot use "${path}" as the source: it has changed since the clone was created, ${difference}`,
    {
      hint: "--accept-changed-source goes on all the same: what was copied stays, the rest comes from the source as it is now.",
    },
  );
}

/** For a name that turned out to be no metadata: it may be a destination whose metadata is somewhere else. */
async function elsewhereHint(name: string): Promise<string | undefined> {
  const path = parsePath(name);
  const beside = await defaultMetadataPath(path);
  if (path.endsWith(metadataName("")) || (await exists(beside)) || (await holdsMetadata(path))) return undefined;
  return `There is no "${metadataName(name)}" either: where --metadata put it elsewhere, name that.`;
}

/** For a name that is metadata without doubt, which only cannot be opened. */
async function repairHint(name: string): Promise<string | undefined> {
  const { path } = await findMetadata(parsePath(name));
  if (!(await holdsMetadata(path))) return undefined;
  return "`clone check` says all that is wrong with it, `clone repair` makes new metadata of what it still proves.";
}

async function disposeAll(opened: AsyncDisposable[]): Promise<void> {
  for (const thing of [...opened].reverse()) await thing[Symbol.asyncDispose]();
}
