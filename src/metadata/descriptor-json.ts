/**
 * The descriptor's content and its JSON form, which a slot holds and `dump` prints. Limits on the strings make sure that
 * everything but the unreadable regions and fields unknown to this version fits a slot; see `encodeDescriptor()`.
 */
import { MetadataError } from "../base/errors.ts";
import { type Geometry, type RegionRange, SECTOR_SIZE } from "../base/geometry.ts";
import { TUNED_BOUNDS } from "./descriptor-bounds.ts";
import { MAX_PAYLOAD_BYTES } from "./descriptor-slot.ts";
import { coarsenRanges, encodedLength, normalizeRanges } from "./unreadable-ranges.ts";

/** What tells a device from a changed or another one. Each is there only where the device has it. */
export interface Fingerprint {
  /** `file`, `block`, or what other kind of device it is. */
  kind?: string;
  /** Bytes. */
  size?: number;
  /** Nanoseconds since 1970, decimal. */
  mtimeNs?: string;
  /** Inode number of a file, decimal. */
  inode?: string;
  /** When the file was made, ns since 1970, decimal: inode numbers are used again, on some file systems at once. */
  birthtimeNs?: string;
  /** HTTP's and S3's. */
  etag?: string;
  lastModified?: string;
  /** What a disk says it is: its device-mapper UUID, WWID or serial number. */
  serial?: string;
  /** Digest of samples of the content. */
  sample?: string;
}

/** The destination, or what source and destination have in common. */
export interface DeviceIdentity {
  /** Path or URI, at most 4096 bytes of UTF-8. Never holds a password. */
  uri: string;
  /** Bytes. */
  size: number;
  fingerprint: Fingerprint;
}

/** The destination as it was left, so that writes of others are noticed. */
export interface SettledState {
  /** Its time of last change, nanoseconds since 1970, decimal. */
  mtimeNs: string;
  /** The superblock's checksum then, hexadecimal: with another one, somebody else has gone on with the clone. */
  superblock: string;
  /**
   * The lowest free blocks of the metadata and a digest of them (`settled-witness.ts`): where these are others, too, somebody has
   * gone on. Absent where they could not be read, and where somebody is known to have gone on; then the rest proves nothing.
   */
  free?: string;
  /** Digests of samples of what it holds in hydrated regions, where nothing else tells it from another of its size. */
  sample?: string;
  /** How many regions were hydrated then, and the digest of which (`descriptor-digest.ts`). */
  hydratedRegions?: number;
  hydratedDigest?: string;
}

/** The destination. */
export interface DestinationIdentity extends DeviceIdentity {
  /** Absent where nothing was ever copied; null while copying is under way, or was cut off. */
  settled?: SettledState | null;
  /** True once somebody else was found to have written to it: only a comparison of everything can vouch for it again. */
  touched?: boolean;
}

/** The source: also in which format (`raw`, `qcow2`, …) it is read. */
export interface SourceIdentity extends DeviceIdentity {
  format: string;
}

/** Regions of the source that could not be read: half-open, ascending, not touching. */
export interface UnreadableRegions {
  ranges: RegionRange[];
  /** True where there were too many to keep: some regions listed are readable, none that is not is left out. */
  inexact: boolean;
  /** True where every region has been tried, so that all that is not hydrated is unreadable. */
  complete?: boolean;
}

/** What has been set for the hydration while it ran, and holds for the next one too. What is absent was never set. */
export interface TunedSettings {
  /** Bytes per second at most; null is unlimited. */
  rate?: number | null;
  /** Bytes per second that clients never take away; null is the default. */
  minRate?: number | null;
  /** Most regions being copied at once; null is automatic. */
  threshold?: number | null;
  /** Most neighbouring regions per copy; null is automatic. */
  batchSize?: number | null;
}

/** Says that the destination is complete and needs nothing else. */
export interface FinalizeRecord {
  /** ISO 8601, UTC. */
  finished: string;
  /** Whether the destination was compared with the source. */
  verified: boolean;
  /** How many regions were accepted as unreadable. */
  unreadableRegions: number;
  /** Whether the metadata was to stay; where not, and it is still there, its removal was cut off. */
  metadataKept?: boolean;
}

/**
 * What dm-clone's format has no room for. Objects read from a newer minor version carry fields that are not named
 * here; to keep them, change a copy: `{ ...descriptor, served: true }`.
 */
export interface Descriptor {
  /** Of this clone, random. */
  uuid: string;
  /** ISO 8601, UTC. */
  created: string;
  source: SourceIdentity;
  destination: DestinationIdentity;
  /** Bytes of the clone; target_size is this rounded up to whole sectors. */
  exactSize: number;
  /** The options given at creation, at most 4096 bytes as JSON. */
  options: Record<string, string | number | boolean | null>;
  unreadable: UnreadableRegions;
  /** Whether clients may have written to the clone, so that differences from the source are no error. */
  served: boolean;
  /** When a changed source was last accepted, ISO 8601: what was copied before may differ from it by right. */
  acceptedChange?: string;
  tuned?: TunedSettings;
  finalized: FinalizeRecord | null;
  /**
   * True where the place of the metadata was all zero when it was formatted: every block in it that is sound is then of this
   * clone. Absent where that is not known.
   */
  blank?: boolean;
  /**
   * True as long as every commit is known to be one of this program's, so that nobody can have written to the clone but
   * through `served`. Absent where the kernel, of which nothing is recorded, may have gone on with it.
   */
  alone?: boolean;
}

type JsonObject = Record<string, unknown>;

/** No URI that is recorded is longer, bytes of UTF-8. */
export const MAX_URI_BYTES = 4096;
const MAX_TEXT_BYTES = 256;
/** For what others make up: entity tags and serial numbers. */
const MAX_FOREIGN_TEXT_BYTES = 1024;
const MAX_OPTIONS_BYTES = 4096;
/** Far more than any version will nest, far less than overflows the stack of a recursive visitor. */
const MAX_NESTING = 32;

/** The descriptor as plain JSON data, ranges as pairs; fields unknown to this version included. */
export function descriptorToJson(descriptor: Descriptor): JsonObject {
  const { unreadable } = descriptor;
  return {
    ...descriptor,
    unreadable: { ...unreadable, ranges: unreadable.ranges.map(({ start, end }) => [start, end]) },
  };
}

/** The descriptor from plain JSON data. @throws {RangeError} naming the first field that is not as documented */
export function descriptorFromJson(value: unknown, geometry: Geometry): Descriptor {
  checkNesting(value);
  const top = new Fields(value, "");
  top.text("uuid", MAX_TEXT_BYTES);
  top.text("created", MAX_TEXT_BYTES);
  top.integer("exactSize", { least: geometry.size - SECTOR_SIZE + 1, most: geometry.size });
  top.boolean("served");
  checkOptions(top.object("options"));
  const source = top.object("source");
  checkIdentity(source);
  source.text("format", MAX_TEXT_BYTES);
  const destination = top.object("destination");
  checkIdentity(destination);
  if (destination.has("touched")) destination.boolean("touched");
  if (destination.has("settled") && destination.value("settled") !== null) {
    const settled = destination.object("settled");
    settled.text("mtimeNs", MAX_TEXT_BYTES);
    settled.text("superblock", MAX_TEXT_BYTES);
    if (settled.has("free")) settled.text("free", MAX_TEXT_BYTES);
    if (settled.has("sample")) settled.text("sample", MAX_FOREIGN_TEXT_BYTES);
    if (settled.has("hydratedRegions")) settled.integer("hydratedRegions", { most: geometry.regionCount });
    if (settled.has("hydratedDigest")) settled.text("hydratedDigest", MAX_TEXT_BYTES);
  }
  for (const name of ["blank", "alone"]) if (top.has(name)) top.boolean(name);
  if (top.has("acceptedChange")) top.text("acceptedChange", MAX_TEXT_BYTES);
  if (top.has("tuned")) {
    const tuned = top.object("tuned");
    for (const [name, bounds] of Object.entries(TUNED_BOUNDS)) {
      if (tuned.has(name) && tuned.value(name) !== null) tuned.integer(name, bounds);
    }
  }
  if (top.value("finalized") !== null) {
    const record = top.object("finalized");
    record.text("finished", MAX_TEXT_BYTES);
    record.boolean("verified");
    record.integer("unreadableRegions", { most: geometry.regionCount });
    if (record.has("metadataKept")) record.boolean("metadataKept");
  }
  const unreadable = top.object("unreadable");
  unreadable.boolean("inexact");
  if (unreadable.has("complete")) unreadable.boolean("complete");
  const ranges = checkRanges(unreadable.value("ranges"), geometry);
  return {
    ...(top.record as unknown as Descriptor),
    unreadable: { ...(unreadable.record as unknown as UnreadableRegions), ranges },
  };
}

/** A slot's payload. @throws {RangeError} as `descriptorFromJson()`, or for what is no JSON */
export function decodeDescriptor(payload: string, geometry: Geometry): Descriptor {
  let value: unknown;
  try {
    value = JSON.parse(payload);
  } catch (error) {
    throw new RangeError("is no JSON", { cause: error });
  }
  return descriptorFromJson(value, geometry);
}

/**
 * The payload for a slot. Unreadable regions are sorted and merged; where they do not fit, further merged and marked
 * inexact.
 *
 * @throws {RangeError} for a descriptor that could not be read back
 * @throws {MetadataError} if fields of a newer version leave no room
 */
export function encodeDescriptor(descriptor: Descriptor, geometry: Geometry): string {
  const ranges = normalizeRanges(descriptor.unreadable.ranges);
  const exact = withRanges(descriptor, ranges, descriptor.unreadable.inexact);
  descriptorFromJson(JSON.parse(exact), geometry);
  const excess = Buffer.byteLength(exact) - MAX_PAYLOAD_BYTES;
  if (excess <= 0) return exact;
  const coarse = withRanges(descriptor, coarsenRanges(ranges, encodedLength(ranges) - excess), true);
  if (Buffer.byteLength(coarse) > MAX_PAYLOAD_BYTES) {
    throw new MetadataError("Cannot write the descriptor: fields of a newer version leave no room");
  }
  return coarse;
}

function withRanges(descriptor: Descriptor, ranges: RegionRange[], inexact: boolean): string {
  return JSON.stringify(descriptorToJson({ ...descriptor, unreadable: { ...descriptor.unreadable, ranges, inexact } }));
}

/** @throws {RangeError} if objects and lists nest too deep; does not recurse itself */
function checkNesting(value: unknown): void {
  const pending = [{ value, depth: 0 }];
  for (let next = pending.pop(); next !== undefined; next = pending.pop()) {
    if (typeof next.value !== "object" || next.value === null) continue;
    const depth = next.depth + 1;
    if (depth > MAX_NESTING) throw new RangeError(`is nested more than ${MAX_NESTING} levels deep`);
    for (const child of Object.values(next.value)) pending.push({ value: child, depth });
  }
}

function checkIdentity(identity: Fields): void {
  const uri = identity.text("uri", MAX_URI_BYTES * 6 + 2); // a control character takes 6 bytes as JSON
  if (Buffer.byteLength(uri) > MAX_URI_BYTES) throw new RangeError(`has a URI of more than ${MAX_URI_BYTES} bytes`);
  if (/^[a-z][a-z0-9+.-]*:\/\/[^/?#]*:[^/?#@]*@/i.test(uri)) throw new RangeError("has a URI with a password in it");
  identity.integer("size");
  const fingerprint = identity.object("fingerprint");
  if (fingerprint.has("size")) fingerprint.integer("size");
  for (const name of ["mtimeNs", "birthtimeNs", "inode"]) {
    if (fingerprint.has(name) && !/^-?\d{1,20}$/.test(fingerprint.text(name, MAX_TEXT_BYTES))) {
      throw new RangeError(`has a fingerprint whose ${name} is no decimal number`);
    }
  }
  for (const name of ["kind", "lastModified", "sample"]) {
    if (fingerprint.has(name)) fingerprint.text(name, MAX_TEXT_BYTES);
  }
  for (const name of ["etag", "serial"]) {
    if (fingerprint.has(name)) fingerprint.text(name, MAX_FOREIGN_TEXT_BYTES);
  }
}

function checkOptions({ record: options }: Fields): void {
  for (const [name, value] of Object.entries(options)) {
    if (value !== null && !["string", "number", "boolean"].includes(typeof value)) {
      throw new RangeError(`has an option ${JSON.stringify(name)} that is no string, number or boolean`);
    }
  }
  if (Buffer.byteLength(JSON.stringify(options)) > MAX_OPTIONS_BYTES) {
    throw new RangeError(`has options of more than ${MAX_OPTIONS_BYTES} bytes`);
  }
}

function checkRanges(value: unknown, { regionCount }: Geometry): RegionRange[] {
  if (!Array.isArray(value)) throw new RangeError("has unreadable ranges that are no list");
  let last = -1;
  return value.map((pair: unknown) => {
    const [start, end] = Array.isArray(pair) && pair.length === 2 ? pair : [];
    const sound = Number.isInteger(start) && Number.isInteger(end) && start > last && end > start && end <= regionCount;
    if (!sound) throw new RangeError(`has an impossible unreadable range ${JSON.stringify(pair)}`);
    last = end;
    return { start, end };
  });
}

/** Typed access to the fields of something untrusted. */
class Fields {
  readonly record: JsonObject;
  readonly #path: string;

  constructor(value: unknown, path: string) {
    if (typeof value !== "object" || value === null || Array.isArray(value)) {
      throw new RangeError(path === "" ? "is no JSON object" : `has an unusable ${path}: not an object`);
    }
    this.record = value as JsonObject;
    this.#path = path;
  }

  has(name: string): boolean {
    return Object.hasOwn(this.record, name);
  }

  value(name: string): unknown {
    if (!this.has(name)) throw new RangeError(`has no ${this.#name(name)}`);
    return this.record[name];
  }

  object(name: string): Fields {
    return new Fields(this.value(name), this.#name(name));
  }

  /** @param maxBytes of the string as JSON */
  text(name: string, maxBytes: number): string {
    const value = this.value(name);
    if (typeof value !== "string") throw new RangeError(`has an unusable ${this.#name(name)}: not a string`);
    if (Buffer.byteLength(JSON.stringify(value)) > maxBytes) {
      throw new RangeError(`has an unusable ${this.#name(name)}: more than ${maxBytes} bytes`);
    }
    return value;
  }

  integer(name: string, { least = 0, most = Number.MAX_SAFE_INTEGER }: { least?: number; most?: number } = {}): number {
    const value = this.value(name);
    if (typeof value !== "number" || !Number.isInteger(value) || value < least || value > most) {
      throw new RangeError(`has an unusable ${this.#name(name)}: not an integer from ${least} to ${most}`);
    }
    return value;
  }

  boolean(name: string): boolean {
    const value = this.value(name);
    if (typeof value !== "boolean") throw new RangeError(`has an unusable ${this.#name(name)}: not a boolean`);
    return value;
  }

  #name(name: string): string {
    return this.#path === "" ? name : `${this.#path}.${name}`;
  }
}
