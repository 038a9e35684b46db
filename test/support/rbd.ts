/** Images in the tests' Ceph, and qemu-nbd that serves one for writing. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { rm } from "node:fs/promises";
import { connect } from "node:net";
import { join } from "node:path";
import type { Ceph } from "./ceph.ts";
import { eventually } from "./run-clone.ts";
import { run } from "./scratch.ts";

let images = 0;
let servers = 0;

/** An RBD image of the pool `rbd`. */
export class RbdImage {
  readonly name: string;
  readonly size: number;
  readonly #ceph: Ceph;

  private constructor(ceph: Ceph, name: string, size: number) {
    this.#ceph = ceph;
    this.name = name;
    this.size = size;
  }

  /** A new one: empty, of `size` bytes. Without the exclusive lock, whose owner is waited for when it was killed. */
  static async create(ceph: Ceph, size: number): Promise<RbdImage> {
    const image = new RbdImage(ceph, newName(), size);
    await image.#rbd("create", "--size", `${size}B`, "--image-feature", "layering", image.name);
    return image;
  }

  /** A new one with the content of a file, of all features that are usual. */
  static async import(ceph: Ceph, file: string, size: number): Promise<RbdImage> {
    const image = new RbdImage(ceph, newName(), size);
    await image.#rbd("import", "--no-progress", file, image.name);
    return image;
  }

  /** As qemu and `clone` name it; a snapshot of it where one is named. */
  uri(snapshot?: string): string {
    const which = snapshot === undefined ? this.name : `${this.name}@${snapshot}`;
    return `rbd:rbd/${which}:conf=${this.#ceph.conf}`;
  }

  async snapshot(name: string): Promise<void> {
    await this.#rbd("snap", "create", "--no-progress", `${this.name}@${name}`);
  }

  /** Writes its content to a new file, by Ceph's own means. */
  async export(file: string): Promise<void> {
    await this.#rbd("export", "--no-progress", this.name, file);
  }

  /** Bytes that are taken up, in whole objects of 4 MiB. */
  async usedBytes(): Promise<number> {
    const { images } = JSON.parse(await this.#rbd("du", "--format", "json", this.name)) as {
      images: { used_size: number }[];
    };
    return images.reduce((sum, image) => sum + image.used_size, 0);
  }

  #rbd(...args: string[]): Promise<string> {
    return run("rbd", "-c", this.#ceph.conf, "--pool", "rbd", ...args);
  }
}

function newName(): string {
  images += 1;
  return `image-${process.pid}-${images}`;
}

/** qemu-nbd behind one socket, for writing, which can be killed and started again. Disposed of, it is killed. */
export class QemuNbd implements AsyncDisposable {
  readonly socket: string;
  readonly uri: string;
  readonly #filename: string;
  #process: ChildProcess | undefined;

  /** @param filename as qemu names the image @param cwd directory of the socket */
  constructor(filename: string, cwd: string) {
    servers += 1;
    this.socket = join(cwd, `qemu-nbd${servers}.sock`);
    this.uri = `nbd+unix:///?socket=${this.socket}`;
    this.#filename = filename;
  }

  /** Resolves when it takes connections. */
  async start(): Promise<void> {
    await rm(this.socket, { force: true });
    const args = ["--persistent", "--shared=16", "--format=raw", "--discard=unmap", `--socket=${this.socket}`];
    const child = spawn("qemu-nbd", [...args, this.#filename], { stdio: ["ignore", "ignore", "pipe"] });
    this.#process = child;
    let said = "";
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      said += text;
    });
    await eventually("qemu-nbd listens", () => {
      if (child.exitCode !== null || child.signalCode !== null) throw new Error(`qemu-nbd has ended: ${said}`);
      return listens(this.socket);
    });
  }

  /** SIGKILL: what it had not flushed may be lost. */
  async kill9(): Promise<void> {
    const child = this.#process;
    this.#process = undefined;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const ended = once(child, "exit");
    child.kill("SIGKILL");
    await ended;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill9();
  }
}

function listens(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path, () => {
      socket.destroy();
      resolve(true);
    });
    socket.on("error", () => resolve(false));
  });
}
