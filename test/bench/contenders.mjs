// @ts-check
/** Who serves the image that is benchmarked: `clone serve` in several states, and others. Each starts with a file of its own. */
import { execFileSync } from "node:child_process";
import { copyFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { startServer } from "./servers.mjs";

/** @typedef {import("./servers.mjs").Server} Server */

/**
 * Somebody who serves an image.
 * @typedef {object} Contender
 * @property {string} name
 * @property {() => Promise<Server>} start from the beginning, whatever was before
 */

/** The contenders of one run. */
export class Contenders {
  /** @type {string} */ #folder;
  /** @type {string} */ #source;
  /** @type {string} */ #program;
  /** @type {AbortSignal} */ #signal;
  /** @type {Set<Server>} */ #running = new Set();

  /**
   * @param {object} run
   * @param {string} run.folder where files and sockets are made; not removed
   * @param {string} run.source the image
   * @param {string} run.program `bin/clone.js`
   * @param {AbortSignal} run.signal kills them all
   */
  constructor({ folder, source, program, signal }) {
    this.#folder = folder;
    this.#source = source;
    this.#program = program;
    this.#signal = signal;
  }

  /** Ends whoever still runs. */
  async stop() {
    for (const server of [...this.#running]) await server.stop();
  }

  /**
   * Runs `clone` to its end, and returns what it printed.
   * @param {string[]} args
   */
  clone(...args) {
    const stdio = /** @type {const} */ (["ignore", "pipe", "pipe"]);
    return execFileSync(process.execPath, [this.#program, ...args], { encoding: "utf8", stdio: [...stdio] });
  }

  /** @returns {Contender} */
  hydratedClone() {
    const destination = join(this.#folder, "hydrated.img");
    return {
      name: "clone",
      start: async () => {
        this.#createClone(destination);
        this.clone("hydrate", destination, "--progress", "none");
        return await this.#serve(destination);
      },
    };
  }

  /**
   * A clone of which nothing is there yet, and whose background rests until it is told to go on.
   * @param {"on" | "off"} onRead whether what is read is kept
   * @returns {Contender & { destination: string }}
   */
  unhydratedClone(onRead) {
    const destination = join(this.#folder, `unhydrated-${onRead}.img`);
    return {
      name: "clone",
      destination,
      start: async () => {
        this.#createClone(destination);
        return await this.#serve(destination, "--no-hydrate", `--hydrate-on-read=${onRead}`);
      },
    };
  }

  /** @returns {Contender} */
  nbdkitFile() {
    return {
      name: "nbdkit file",
      start: () => this.#start("nbdkit", (socket) => ["nbdkit", "-f", "-U", socket, "file", this.#copy("nbdkit")]),
    };
  }

  /** @returns {Contender} */
  qemuNbd() {
    return {
      name: "qemu-nbd",
      start: () =>
        this.#start("qemu-nbd", (socket) => {
          return ["qemu-nbd", "-t", "-e", "8", "-f", "raw", "-k", socket, this.#copy("qemu-nbd")];
        }),
    };
  }

  /** @returns {Contender} */
  nbdkitCow() {
    return {
      name: "nbdkit cow-on-read",
      start: () =>
        this.#start(
          "nbdkit-cow",
          (socket) => ["nbdkit", "-f", "-r", "-U", socket, "--filter=cow", "file", this.#source, "cow-on-read=true"],
          { TMPDIR: this.#folder }, // where it keeps what was read, in a file without a name
        ),
    };
  }

  /** @returns {Contender} */
  qemuCopyOnRead() {
    const overlay = join(this.#folder, "overlay.qcow2");
    return {
      name: "qemu copy-on-read",
      start: async () => {
        rmSync(overlay, { force: true });
        execFileSync("qemu-img", ["create", "-q", "-f", "qcow2", "-b", this.#source, "-F", "raw", overlay]);
        return await this.#start("qemu-cor", (socket) => [
          "qemu-storage-daemon",
          ...["--blockdev", `driver=file,node-name=backing,filename=${this.#source},read-only=on`],
          ...["--blockdev", `driver=file,node-name=file,filename=${overlay}`],
          ...["--blockdev", "driver=qcow2,node-name=overlay,file=file,backing=backing"],
          ...["--blockdev", "driver=copy-on-read,node-name=cor,file=overlay"],
          ...["--nbd-server", `addr.type=unix,addr.path=${socket}`],
          ...["--export", "type=nbd,id=export,node-name=cor,name="],
        ]);
      },
    };
  }

  /** @param {string} name */
  #copy(name) {
    const path = join(this.#folder, `${name}.img`);
    copyFileSync(this.#source, path);
    return path;
  }

  /** @param {string} destination */
  #createClone(destination) {
    for (const path of [destination, `${destination}.clone`]) rmSync(path, { force: true });
    this.clone("create", this.#source, destination);
  }

  /**
   * @param {string} destination
   * @param {string[]} args
   */
  #serve(destination, ...args) {
    const program = [process.execPath, this.#program];
    return this.#start("clone", (socket) => [...program, "serve", destination, "--socket", socket, ...args]);
  }

  /**
   * @param {string} name
   * @param {(socket: string) => string[]} command
   * @param {Record<string, string>} [env]
   */
  async #start(name, command, env = {}) {
    const socket = join(this.#folder, `${name}.socket`);
    const server = await startServer(socket, command(socket), { signal: this.#signal, env });
    const tracked = {
      ...server,
      stop: async () => {
        this.#running.delete(tracked);
        await server.stop();
      },
    };
    this.#running.add(tracked);
    return tracked;
  }
}
