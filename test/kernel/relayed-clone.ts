/**
 * One clone that goes from hand to hand, from this program to the kernel's dm-clone and back: its three files, what it must
 * hold, and what this program does to it. (kernel-session.ts has what the kernel does.)
 */
import { createHash } from "node:crypto";
import { open, readFile, stat, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect } from "vitest";
import { Geometry } from "../../src/base/geometry.ts";
import { FileDevice } from "../../src/device/file-device.ts";
import { checkMetadata, formatFinding } from "../../src/metadata/check.ts";
import { CloneMetadata } from "../../src/metadata/clone-metadata.ts";
import { DESCRIPTOR_BYTES } from "../../src/metadata/descriptor.ts";
import { Command, CommandFlag } from "../../src/nbd/protocol.ts";
import { NbdClient } from "../support/nbd-client.ts";
import { type SeededRandom, seededBytes } from "../support/random.ts";
import { clone, cloneOk, oneJson } from "../support/run-clone.ts";
import { type Server, startServe, stopServe } from "../support/serve.ts";
import { type CloneRequest, DATA_SIZE, ExpectedClone, type Piece, runsOf } from "./requests.ts";
import type { SparseBytes } from "./sparse-bytes.ts";

/** How a clone is cut out; sizes in sectors, as dm-clone counts. */
export interface Shape {
  sectors: number;
  regionSectors: number;
  /** Of metadata that the kernel formats. */
  metadataBlocks?: number;
  /** Bytes at which the source holds something; all of it by default. */
  islands?: readonly number[];
}

/** What metadata says, by the code of this program. */
export interface OurView {
  ranges: [start: number, end: number][];
  /** `clone status --dm` up to the number of features. */
  status: string;
}

/** Where the superblock says which block that is: clone-metadata(5). */
const SPACE_MAP_INDEX = 60;
const ISLAND_SIZE = 100 * 1024;
const BLOCK_SIZE = 4096;
const NAMES = ["--source", "source.img", "--destination", "destination.img"];

export class RelayedClone {
  readonly cwd: string;
  readonly shape: Shape;
  readonly expected: ExpectedClone;
  readonly data: Buffer;
  readonly #source: SparseBytes;
  /** A block that is none. */
  readonly #damage: Buffer;
  /** Metadata that the kernel has made names no devices. */
  #named: readonly string[] = [];
  #hydratedExactly = true;

  private constructor(cwd: string, shape: Shape, source: readonly Piece[], bytes: { data: Buffer; damage: Buffer }) {
    this.cwd = cwd;
    this.shape = shape;
    this.data = bytes.data;
    this.#damage = bytes.damage;
    const geometry = new Geometry({ size: shape.sectors * 512, regionSize: shape.regionSectors * 512 });
    this.expected = new ExpectedClone(geometry, source);
    this.#source = new ExpectedClone(geometry, source).content;
  }

  /** Source, an empty destination and data to write, in an empty directory. */
  static async prepare(cwd: string, shape: Shape, random: SeededRandom): Promise<RelayedClone> {
    const size = shape.sectors * 512;
    const islands = shape.islands?.map((offset) => ({ offset, length: Math.min(ISLAND_SIZE, size - offset) }));
    const source = (islands ?? [{ offset: 0, length: size }]).map(({ offset, length }) => ({
      offset,
      bytes: seededBytes(random, length),
    }));
    await writeFile(join(cwd, "source.img"), "");
    await truncate(join(cwd, "source.img"), size);
    const file = await open(join(cwd, "source.img"), "r+");
    for (const { offset, bytes } of source) await file.write(bytes, 0, bytes.length, offset);
    await file.close();
    const data = seededBytes(random, DATA_SIZE);
    await writeFile(join(cwd, "data.img"), data);
    return new RelayedClone(cwd, shape, source, { data, damage: seededBytes(random, BLOCK_SIZE) });
  }

  path(name: "source.img" | "destination.img" | "metadata" | "data.img" | "out.img"): string {
    return join(this.cwd, name);
  }

  /** Makes it by `clone create`. */
  async create(): Promise<void> {
    const regionSize = String(this.shape.regionSectors * 512);
    const files = ["source.img", "destination.img", "--metadata", "metadata"];
    await cloneOk(["create", ...files, "--region-size", regionSize], { cwd: this.cwd });
  }

  /** Makes the files that the kernel formats. */
  async makeForKernel(): Promise<void> {
    await writeFile(this.path("destination.img"), "");
    await truncate(this.path("destination.img"), this.shape.sectors * 512);
    await writeFile(this.path("metadata"), "");
    await truncate(this.path("metadata"), (this.shape.metadataBlocks ?? 1024) * 4096);
    this.#named = NAMES;
  }

  /** Serves it and carries out requests, with nothing copied in the background. */
  async request(requests: readonly CloneRequest[]): Promise<void> {
    await using server = await this.#serve("--no-hydrate");
    await using client = await NbdClient.go({ path: server.socket });
    for (const request of requests) {
      await carryOut(client, request, this.data);
      this.expected.apply(request, this.data, "ours");
    }
    await stopServe(server);
  }

  /**
   * Serves it while it hydrates, writes, and kills the server in the middle of it: after `acknowledged` requests, with some
   * more on their way.
   */
  async requestAndKill(requests: readonly CloneRequest[], { acknowledged }: { acknowledged: number }): Promise<void> {
    await using server = await this.#serve("--rate", "16M");
    await using client = await NbdClient.go({ path: server.socket });
    for (const request of requests.slice(0, acknowledged)) await carryOut(client, request, this.data);
    for (const request of requests.slice(acknowledged)) client.post(onTheWire(request, this.data));
    await server.kill9();
    this.takeCrash(requests, requests.slice(0, acknowledged).findLastIndex(({ kind }) => kind === "flush") + 1);
  }

  /** Whoever had it open has been killed; the first `durable` of the requests were flushed. */
  takeCrash(requests: readonly CloneRequest[], durable: number): void {
    // Whatever was hydrated in between is known from the metadata alone.
    for (const request of requests.slice(0, durable)) this.expected.apply(request, this.data, "kernel");
    this.expected.applyPerhaps(requests.slice(durable), this.data);
    this.#hydratedExactly = false;
  }

  /** `clone dump`, and `clone restore` in the place of what was dumped. */
  async dumpAndRestore(): Promise<void> {
    await writeFile(join(this.cwd, "dump.json"), await cloneOk(["dump", "metadata"], { cwd: this.cwd }));
    await cloneOk(["restore", "--input", "dump.json", "--output", "metadata", "--force"], { cwd: this.cwd });
  }

  /** Breaks the index of the space map, which nobody can go on without, and has `clone repair` make it anew. */
  async damageAndRepair(): Promise<void> {
    const file = await open(this.path("metadata"), "r+");
    const root = Buffer.alloc(8);
    await file.read(root, 0, 8, SPACE_MAP_INDEX);
    await file.write(this.#damage, 0, BLOCK_SIZE, Number(root.readBigUInt64LE()) * BLOCK_SIZE);
    await file.close();
    await cloneOk(["repair", "--in-place", "metadata"], { cwd: this.cwd });
  }

  /**
   * Takes away the superblock and all that tells what the clone is, and has `clone repair` make it of what it is told, and of what
   * source and destination have in common: what was hydrated, and nothing else, where no client has written and nothing is zeros.
   */
  async loseAndRepair(): Promise<void> {
    const { size } = await stat(this.path("metadata"));
    const file = await open(this.path("metadata"), "r+");
    await file.write(this.#damage, 0, BLOCK_SIZE, 0);
    await file.write(Buffer.alloc(DESCRIPTOR_BYTES), 0, DESCRIPTOR_BYTES, size - DESCRIPTOR_BYTES);
    await file.close();
    const { geometry } = this.expected;
    const shape = ["--size", String(geometry.size), "--region-size", String(geometry.regionSize)];
    const told = [...shape, ...NAMES, "--compare", "--assume", "unhydrated", "-q"];
    await cloneOk(["repair", "--in-place", "metadata", ...told], { cwd: this.cwd });
    this.#named = NAMES;
  }

  /** `clone hydrate`, all of it or some of it. */
  async hydrate(limitBytes?: number): Promise<void> {
    const limit = limitBytes === undefined ? [] : ["--limit", String(limitBytes)];
    await cloneOk(["hydrate", "metadata", ...this.#named, ...limit, "-q"], { cwd: this.cwd });
    this.#hydratedExactly = false;
  }

  /** What was hydrated without requests, by the other one. */
  takeHydration(): void {
    this.#hydratedExactly = false;
  }

  /** All that was ever written, as a client of `clone serve` reads it. */
  async read(): Promise<Piece[]> {
    await using server = await this.#serve("--no-hydrate", "--read-only");
    await using client = await NbdClient.go({ path: server.socket });
    const pieces: Piece[] = [];
    for (const { offset, length } of this.expected.content.extents()) {
      const { error, text, data } = await client.read(offset, length);
      if (error !== 0) throw new Error(`the server cannot read at ${offset}: ${text}`);
      pieces.push({ offset, bytes: data });
    }
    await stopServe(server);
    return pieces;
  }

  /** All that was ever written, as a file of the clone's size holds it. */
  async readFile(name: "destination.img" | "out.img"): Promise<Piece[]> {
    const file = await open(this.path(name));
    const pieces: Piece[] = [];
    for (const { offset, length } of this.expected.content.extents()) {
      const bytes = Buffer.alloc(length);
      await file.read(bytes, 0, length, offset);
      pieces.push({ offset, bytes });
    }
    await file.close();
    return pieces;
  }

  /** `clone verify`: it must list exactly the regions in which the clone is not what the source is. */
  async verify(): Promise<void> {
    const { geometry, content } = this.expected;
    const differs = new Uint8Array(geometry.regionCount);
    for (const { offset, length } of content.extents()) {
      for (let at = offset; at < offset + length; at += 512) {
        const same = content.read(at, 512).equals(this.#source.read(at, 512));
        if (!same) differs[Math.floor(at / geometry.regionSize)] = 1;
      }
    }
    const run = await clone(["verify", "metadata", ...this.#named, "--json"], { cwd: this.cwd });
    const told = oneJson<{ equal: boolean; differing: [number, number][] }>(run.stdout);
    expect(told.differing).toEqual(runsOf(differs));
    expect(run.code, run.stderr).toBe(told.equal ? 0 : 1);
  }

  /** `clone finalize`: the destination stands alone afterwards, and is compared. */
  async finalize(): Promise<void> {
    await cloneOk(["finalize", "metadata", ...this.#named, "--accept-changed-source", "-q"], { cwd: this.cwd });
    expect(this.expected.settle(await this.readFile("destination.img"))).toBeUndefined();
  }

  /**
   * Checks the metadata, which must be clean and say what is expected, and resolves to what it says. What was hydrated in the
   * background is taken over from it.
   */
  async inspect(): Promise<OurView> {
    await using device = await FileDevice.open(this.path("metadata"), { access: "read-only", direct: "off" });
    const report = await checkMetadata(device);
    expect([...report.fatal, ...report.warnings].map(formatFinding)).toEqual([]);
    await using metadata = await CloneMetadata.open(device, { readOnly: true });
    const { regionCount, size, regionSize } = this.expected.geometry;
    expect(metadata.geometry).toMatchObject({ regionCount, size, regionSize });
    const ranges = [...metadata.hydratedRanges()].map(({ start, end }): [number, number] => [start, end]);
    if (this.#hydratedExactly) expect(ranges).toEqual(this.expected.ranges());
    const found = new Uint8Array(regionCount);
    for (const [start, end] of ranges) found.fill(1, start, end);
    expect(this.expected.hydrated.findIndex((bit, region) => bit === 1 && found[region] === 0)).toBe(-1);
    this.expected.hydrated.set(found);
    this.#hydratedExactly = true;
    const status = await cloneOk(["status", "metadata", "--dm"], { cwd: this.cwd });
    return { ranges, status: upToFeatures(status.trimEnd()) };
  }

  /** SHA-256 of the metadata, to see whether it was touched. */
  async metadataHash(): Promise<string> {
    return createHash("sha256")
      .update(await readFile(this.path("metadata")))
      .digest("hex");
  }

  #serve(...args: string[]): Promise<Server> {
    return startServe({ clone: "metadata", cwd: this.cwd, args: [...this.#named, ...args] });
  }
}

/** What two status lines have in common: features and core arguments are settings of who has it open. */
export function upToFeatures(line: string): string {
  return line.split(" ").slice(0, 8).join(" ");
}

function onTheWire(request: CloneRequest, data: Buffer) {
  if (request.kind === "flush") return { type: Command.flush };
  const { offset, length } = request;
  if (!("from" in request)) {
    return { type: request.kind === "discard" ? Command.trim : Command.writeZeroes, offset, length };
  }
  const flags = request.kind === "fua" ? CommandFlag.fua : 0;
  return { type: Command.write, offset, flags, data: data.subarray(request.from, request.from + length) };
}

async function carryOut(client: NbdClient, request: CloneRequest, data: Buffer): Promise<void> {
  const { error, text } = await client.request(onTheWire(request, data));
  if (error !== 0) throw new Error(`${JSON.stringify(request)} fails with ${error}: ${text}`);
}
