/** What is asked of a clone, by whoever has it open, and what the clone must hold and have hydrated afterwards. */
import assert from "node:assert";
import type { Geometry } from "../../src/base/geometry.ts";
import type { SeededRandom } from "../support/random.ts";
import { SparseBytes } from "./sparse-bytes.ts";

const SECTOR = 512;

/** Offsets and lengths are bytes; `from` is where the bytes to write stand in the relay's data. */
export type CloneRequest =
  | { kind: "write" | "fua"; offset: number; length: number; from: number }
  | { kind: "discard" | "zero"; offset: number; length: number }
  | { kind: "flush" };

/** Who carries requests out: discards are where the two differ. */
export type Implementation = "kernel" | "ours";

/** How many bytes there are to write from. */
export const DATA_SIZE = 2 ** 20;

/** Requests of every kind given, some within a region, some whole regions, some across several. */
export function randomRequests(
  random: SeededRandom,
  geometry: Geometry,
  { count, kinds }: { count: number; kinds: readonly CloneRequest["kind"][] },
): CloneRequest[] {
  return Array.from({ length: count }, () => {
    const kind = random.pick(kinds);
    if (kind === "flush") return { kind };
    const { offset, length } = randomRange(random, geometry);
    if (kind === "discard" || kind === "zero") return { kind, offset, length };
    return { kind, offset, length, from: random.integer(0, (DATA_SIZE - length) / SECTOR) * SECTOR };
  });
}

/** Writes that do not overlap and flushes between them: after a crash each sector holds one of two things. */
export function disjointWrites(random: SeededRandom, geometry: Geometry, count: number): CloneRequest[] {
  const place = Math.floor(geometry.size / count / SECTOR) * SECTOR;
  const order = Array.from({ length: count }, (_, index) => ({ index, key: random.integer(0, 2 ** 30) }));
  order.sort((a, b) => a.key - b.key);
  return order.flatMap(({ index }): CloneRequest[] => {
    const most = Math.min(place, 64 * 1024);
    const length = random.integer(1, most / SECTOR) * SECTOR;
    const offset = index * place + random.integer(0, (place - length) / SECTOR) * SECTOR;
    const from = random.integer(0, (DATA_SIZE - length) / SECTOR) * SECTOR;
    const write: CloneRequest = { kind: random.oneIn(4) ? "fua" : "write", offset, length, from };
    return random.oneIn(3) ? [write, { kind: "flush" }] : [write];
  });
}

function randomRange(random: SeededRandom, { size, regionSize }: Geometry): { offset: number; length: number } {
  const unit = random.oneIn(2) ? Math.min(regionSize, size) : SECTOR;
  const offset = random.integer(0, Math.floor((size - 1) / unit)) * unit;
  const most = Math.min(size - offset, DATA_SIZE / 2, random.pick([regionSize, 3 * regionSize, 16 * regionSize]));
  const length = unit === SECTOR ? random.integer(1, most / SECTOR) * SECTOR : Math.ceil(most / unit) * unit;
  return { offset, length: Math.min(length, size - offset, DATA_SIZE / 2) };
}

/** Some of the bytes of a disk. */
export interface Piece {
  offset: number;
  bytes: Buffer;
}

/** A clone as it must be: its bytes, and which regions have been hydrated. */
export class ExpectedClone {
  readonly geometry: Geometry;
  readonly content: SparseBytes;
  /** 1 for each region that is known to be hydrated. */
  readonly hydrated: Uint8Array;
  /** What a sector may also hold, until `settle` knows: its bytes before a write that was not durable at a crash. */
  readonly #before = new Map<number, Buffer>();

  constructor(geometry: Geometry, source: readonly Piece[]) {
    this.geometry = geometry;
    this.content = new SparseBytes(geometry.size);
    for (const { offset, bytes } of source) this.content.write(offset, bytes);
    this.hydrated = new Uint8Array(geometry.regionCount);
  }

  /** Takes a request as carried out. */
  apply(request: CloneRequest, data: Buffer, by: Implementation): void {
    if (request.kind === "flush") return;
    const { regionSize } = this.geometry;
    let { offset, length } = request;
    if ("from" in request) {
      this.content.write(offset, data.subarray(request.from, request.from + length));
    } else {
      if (request.kind === "discard" && by === "kernel") {
        // The kernel discards whole regions only, of which the short last one is none.
        const start = Math.ceil(offset / regionSize);
        const end = Math.floor((offset + length) / regionSize);
        if (start >= end) return;
        [offset, length] = [start * regionSize, (end - start) * regionSize];
      }
      this.content.zero(offset, length);
    }
    this.hydrated.fill(1, Math.floor(offset / regionSize), Math.ceil((offset + length) / regionSize));
  }

  /** Takes writes as lost or not, sector by sector. They must not overlap. */
  applyPerhaps(requests: readonly CloneRequest[], data: Buffer): void {
    for (const request of requests) {
      if (!("from" in request)) continue;
      const { offset, length, from } = request;
      for (let at = offset; at < offset + length; at += SECTOR) this.#before.set(at, this.content.read(at, SECTOR));
      this.content.write(offset, data.subarray(from, from + length));
    }
  }

  /**
   * The first byte that is not what it may be, or undefined, in pieces that hold all that was ever written. Sectors in doubt are
   * what is found there from then on.
   */
  settle(found: readonly Piece[]): number | undefined {
    for (const { offset, bytes } of found) {
      for (let at = 0; at < bytes.length; at += SECTOR) {
        const before = this.#before.get(offset + at);
        if (before?.equals(bytes.subarray(at, at + SECTOR))) this.content.write(offset + at, before);
        this.#before.delete(offset + at);
      }
    }
    assert.equal(this.#before.size, 0);
    for (const { offset, bytes } of found) {
      const difference = firstDifference(bytes, this.content.read(offset, bytes.length));
      if (difference !== undefined) return offset + difference;
    }
    return undefined;
  }

  /** The runs of regions known to be hydrated. */
  ranges(): [start: number, end: number][] {
    return runsOf(this.hydrated);
  }
}

/** Runs of ones, half-open. */
export function runsOf(bits: Uint8Array): [start: number, end: number][] {
  const runs: [number, number][] = [];
  for (let start = bits.indexOf(1); start >= 0; ) {
    const zero = bits.indexOf(0, start);
    const end = zero < 0 ? bits.length : zero;
    runs.push([start, end]);
    start = bits.indexOf(1, end);
  }
  return runs;
}

/** The first byte that differs, or undefined. */
function firstDifference(actual: Buffer, expected: Buffer): number | undefined {
  if (actual.equals(expected)) return undefined;
  const length = Math.min(actual.length, expected.length);
  for (let at = 0; at < length; at++) if (actual[at] !== expected[at]) return at;
  return length;
}
