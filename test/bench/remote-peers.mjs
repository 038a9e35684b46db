// @ts-check
/** Who stands at the other end in the benchmark of remote sources: slow and fast NBD servers, a web server, and qemu's block-stream. */
import { execFileSync } from "node:child_process";
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { connect, createServer } from "node:net";
import { basename, dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { assertSame, findProgram } from "./images.mjs";
import { noPeaks } from "./memory.mjs";
import { startServer } from "./servers.mjs";

/** @typedef {import("./servers.mjs").Server} Server */
/** @typedef {import("./measure.mjs").Measured} Measured */

/** The others of one run. */
export class RemotePeers {
  /** @type {string} */ #folder;
  /** @type {AbortSignal} */ #signal;
  /** @type {Set<Server>} */ #running = new Set();

  /**
   * @param {object} run
   * @param {string} run.folder where files and sockets are made; not removed
   * @param {AbortSignal} run.signal kills them all
   */
  constructor({ folder, signal }) {
    this.#folder = folder;
    this.#signal = signal;
  }

  /** Ends whoever still runs. */
  async stop() {
    for (const server of [...this.#running]) await server.stop();
  }

  /**
   * nbdkit with a file.
   * @param {string} image
   * @param {{ delayMs?: number, bitsPerSecond?: string }} [link] each read takes at least so long; all of them together get so much
   */
  nbdkit(image, { delayMs, bitsPerSecond } = {}) {
    const socket = join(this.#folder, "nbdkit.socket");
    const [filters, parameters] = [/** @type {string[]} */ ([]), /** @type {string[]} */ ([])];
    if (delayMs !== undefined) {
      filters.push("--filter=delay");
      parameters.push(`delay-read=${delayMs}ms`);
    }
    if (bitsPerSecond !== undefined) {
      filters.push("--filter=rate");
      // By default a quarter of a gibibyte would come for free at first.
      parameters.push(`rate=${bitsPerSecond}`, "burstiness=0.1");
    }
    return this.#start(socket, ["nbdkit", "-f", "-r", "-U", socket, ...filters, "file", image, ...parameters]);
  }

  /**
   * nginx with a file, and nothing else, as Debian configures it: with sendfile and connections that are kept.
   * @param {string} image
   * @returns {Promise<{ url: string }>}
   */
  async nginx(image) {
    const port = await freePort();
    const state = join(this.#folder, "nginx");
    mkdirSync(state);
    const temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    const lines = [
      "daemon off;",
      "worker_processes 1;",
      `pid ${state}/pid;`,
      `error_log ${state}/error.log;`,
      "events {}",
      "http {",
      "  access_log off;",
      "  sendfile on;",
      "  tcp_nopush on;",
      ...temporary.map((what) => `  ${what}_temp_path ${state}/${what};`),
      `  server { listen 127.0.0.1:${port}; root ${dirname(image)}; }`,
      "}",
    ];
    // As root, nginx would read as nobody, whom the folder does not let in.
    if (process.getuid?.() === 0) lines.unshift("user root;");
    writeFileSync(join(state, "nginx.conf"), `${lines.join("\n")}\n`);
    const nginx = findProgram("nginx") ?? "nginx";
    await this.#start(port, [nginx, "-e", join(state, "error.log"), "-c", join(state, "nginx.conf")]);
    return { url: `http://127.0.0.1:${port}/${basename(image)}` };
  }

  /**
   * qemu-storage-daemon fills an overlay from an NBD server. Only the job is timed.
   * @param {Server} source
   * @param {string} image what the source serves, to compare with
   * @param {number} size bytes
   * @returns {Promise<Measured>}
   */
  async blockStream(source, image, size) {
    const overlay = join(this.#folder, "overlay.qcow2");
    const control = join(this.#folder, "qmp.socket");
    const nbd = new URL(source.uri).searchParams.get("socket") ?? "";
    rmSync(overlay, { force: true });
    execFileSync("qemu-img", ["create", "-q", "-f", "qcow2", overlay, String(size)]);
    const daemon = await this.#start(control, [
      "qemu-storage-daemon",
      ...["--blockdev", `driver=nbd,node-name=backing,server.type=unix,server.path=${nbd},read-only=on`],
      ...["--blockdev", `driver=file,node-name=file,filename=${overlay}`],
      ...["--blockdev", "driver=qcow2,node-name=overlay,file=file,backing=backing"],
      ...["--chardev", `socket,id=control,path=${control},server=on,wait=off`, "--monitor", "chardev=control"],
    ]);
    const qmp = new Qmp(control);
    try {
      await qmp.command("qmp_capabilities");
      const start = performance.now();
      await qmp.command("block-stream", { "job-id": "stream", device: "overlay" });
      const { data } = await qmp.event("BLOCK_JOB_COMPLETED");
      const seconds = (performance.now() - start) / 1000;
      if (data.error !== undefined || data.offset !== data.len)
        throw new Error(`block-stream: ${JSON.stringify(data)}`);
      qmp.close();
      await daemon.stop();
      const filled = join(this.#folder, "streamed.img");
      execFileSync("qemu-img", ["convert", "-f", "qcow2", "-O", "raw", overlay, filled]);
      assertSame(image, filled);
      rmSync(filled);
      return { seconds, peaks: noPeaks() };
    } finally {
      qmp.close();
      await daemon.stop();
      rmSync(overlay, { force: true });
    }
  }

  /**
   * @param {string | number} place
   * @param {string[]} command
   */
  async #start(place, command) {
    const server = await startServer(place, command, { signal: this.#signal });
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

/** @returns {Promise<number>} */
function freePort() {
  return new Promise((resolve, reject) => {
    const server = createServer().on("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const { port } = /** @type {import("node:net").AddressInfo} */ (server.address());
      server.close(() => resolve(port));
    });
  });
}

/** qemu's control protocol: lines of JSON, one answer to each command, and events in between. */
class Qmp {
  /** @type {import("node:net").Socket} */ #socket;
  /** Who waits for the answer to a command, and for an event. @type {Map<string, (message: any) => void>} */
  #waiting = new Map();
  /** Events that nobody has waited for yet. @type {Map<string, any>} */
  #events = new Map();
  /** @type {Promise<never>} */ #ended;

  /** @param {string} path */
  constructor(path) {
    this.#socket = connect(path);
    this.#ended = new Promise((_, reject) => {
      this.#socket.on("error", reject).on("close", () => reject(new Error("qemu-storage-daemon has ended")));
    });
    this.#ended.catch(() => {}); // whoever waits is told
    createInterface({ input: this.#socket }).on("line", (line) => this.#take(JSON.parse(line)));
  }

  /**
   * @param {string} name
   * @param {Record<string, unknown>} [parameters]
   */
  async command(name, parameters = {}) {
    const answer = this.#wait("answer");
    this.#socket.write(`${JSON.stringify({ execute: name, arguments: parameters })}\n`);
    const { error } = await answer;
    if (error !== undefined) throw new Error(`${name}: ${error.desc}`);
  }

  /**
   * @param {string} name
   * @returns {Promise<any>}
   */
  event(name) {
    const came = this.#events.get(name);
    return came === undefined ? this.#wait(name) : Promise.resolve(came);
  }

  close() {
    this.#socket.destroy();
  }

  /** @param {string} what */
  #wait(what) {
    /** @type {Promise<any>} */
    const come = new Promise((resolve) => {
      this.#waiting.set(what, resolve);
    });
    return Promise.race([come, this.#ended]);
  }

  /** @param {any} message */
  #take(message) {
    const what = message.event ?? ("return" in message || "error" in message ? "answer" : "greeting");
    const resolve = this.#waiting.get(what);
    this.#waiting.delete(what);
    if (resolve !== undefined) resolve(message);
    else if (message.event !== undefined) this.#events.set(what, message);
  }
}
