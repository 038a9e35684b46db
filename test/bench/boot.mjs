// @ts-check
/** A machine that boots from a clone, as far as its disk sees it: reads at random places, each sent when the one before is answered. */
import { execFileSync } from "node:child_process";
import { closeSync, openSync, readSync, rmSync } from "node:fs";
import { join } from "node:path";
import { run } from "./measure.mjs";
import { MemoryWatch } from "./memory.mjs";
import { startServer } from "./servers.mjs";

/** @typedef {import("./measure.mjs").Measured} Measured */

const READ_LENGTH = 16 * 1024;
const ALIGNMENT = 4096;
/** Every boot reads the same, in the same order. */
const SEED = 20;

export class BootBench {
  /** @type {string} */ #source;
  /** @type {string} */ #destination;
  /** @type {string} */ #socket;
  /** @type {string[]} */ #program;
  /** @type {AbortSignal} */ #signal;
  /** @type {number[]} */ #offsets;

  /**
   * @param {object} run
   * @param {string} run.folder where the socket is made
   * @param {string} run.source the image, to compare with
   * @param {string} run.destination the clone's
   * @param {number} run.size bytes of the image
   * @param {number} run.reads how many
   * @param {string[]} run.program `clone`
   * @param {AbortSignal} run.signal kills it all
   */
  constructor({ folder, source, destination, size, reads, program, signal }) {
    this.#source = source;
    this.#destination = destination;
    this.#socket = join(folder, "boot.socket");
    this.#program = program;
    this.#signal = signal;
    this.#offsets = offsets(size, reads);
  }

  /**
   * Boots from a new clone. Timed is what a user waits for: from the start of the server to the last read.
   * @param {string} uri of the source
   * @param {string[]} args further ones for `clone serve`
   * @returns {Promise<Measured & { hydrated: number }>} and which share was hydrated then
   */
  async boot(uri, args) {
    await run([...this.#program, "create", uri, this.#destination], this.#signal);
    const start = performance.now();
    const command = [...this.#program, "serve", this.#destination, "--socket", this.#socket, ...args];
    const server = await startServer(this.#socket, command, { signal: this.#signal });
    const watch = new MemoryWatch(server.pid);
    try {
      const reads = this.#offsets.flatMap((offset) => ["-c", `read -q ${offset} ${READ_LENGTH}`]);
      await run(["qemu-io", "-r", "-f", "raw", ...reads, server.uri], this.#signal);
      const seconds = (performance.now() - start) / 1000;
      const { hydratedRegions, regions } = this.#status();
      await server.stop();
      this.#check();
      return { seconds, peaks: watch.peaks, hydrated: hydratedRegions / regions };
    } finally {
      watch.stop();
      await server.stop();
    }
  }

  /** Removes the clone. */
  remove() {
    for (const path of [this.#destination, `${this.#destination}.clone`]) rmSync(path, { force: true });
  }

  /** @returns {{ hydratedRegions: number, regions: number }} */
  #status() {
    const [node = "", ...args] = [...this.#program, "status", this.#destination, "--json"];
    return JSON.parse(execFileSync(node, args, { encoding: "utf8" }));
  }

  /** What was read is at the destination, or nothing yet: but nothing else. */
  #check() {
    const [source, destination] = [openSync(this.#source, "r"), openSync(this.#destination, "r")];
    const [is, shouldBe] = [Buffer.alloc(READ_LENGTH), Buffer.alloc(READ_LENGTH)];
    try {
      for (const offset of this.#offsets) {
        readSync(source, shouldBe, 0, READ_LENGTH, offset);
        readSync(destination, is, 0, READ_LENGTH, offset);
        for (let at = 0; at < READ_LENGTH; at += ALIGNMENT) {
          const [piece, wanted] = [is.subarray(at, at + ALIGNMENT), shouldBe.subarray(at, at + ALIGNMENT)];
          if (!piece.equals(wanted) && piece.some((byte) => byte !== 0))
            throw new Error(`wrong bytes at ${offset + at}`);
        }
      }
    } finally {
      closeSync(source);
      closeSync(destination);
    }
  }
}

/**
 * Random places, none twice.
 * @param {number} size
 * @param {number} count
 */
function offsets(size, count) {
  const places = Math.floor((size - READ_LENGTH) / ALIGNMENT);
  const chosen = /** @type {Set<number>} */ (new Set());
  for (let state = SEED; chosen.size < count; ) {
    // Numerical Recipes' generator; its upper bits are good enough here.
    state = (state * 1664525 + 1013904223) % 2 ** 32;
    chosen.add(Math.floor((state / 2 ** 32) * places) * ALIGNMENT);
  }
  return [...chosen];
}
