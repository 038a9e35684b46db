/** Devices to serve in tests. */
import { fdatasyncSync, fstatSync, openSync, readSync, writeSync } from "node:fs";
import { DeviceError } from "../../src/base/errors.ts";
import type { Extent, ZeroOptions } from "../../src/device/block-device.ts";
import type { ServedDevice, ServedZeroOptions, StatusContext } from "../../src/device/served-device.ts";

/** Unit of allocation, bytes. */
const PAGE_SIZE = 4096;
const ZEROS = Buffer.alloc(PAGE_SIZE);

/** How a device is to serve. */
export interface ServedOptions {
  /** Whether requests are done at once, where the device can. Default true. */
  immediate?: boolean;
  /** Called before each read, write, flush, …; what it throws is the answer, and a promise delays it. */
  before?: (verb: string, offset: number, length: number) => void | Promise<void>;
  contexts?: StatusContext[];
  /** Whether a fast zero is possible. Default true. */
  fastZero?: boolean;
}

/** A device in memory that answers at once, or not, and remembers what it was asked. Pages of zeros are its holes. */
export class ServedMemory implements ServedDevice {
  readonly name = "memory";
  readonly blockSize = 512;
  readonly readOnly: boolean;
  readonly size: number;
  readonly contexts: readonly StatusContext[];
  /** `verb offset length`, with ` fua` and the like behind it. */
  readonly log: string[] = [];
  /** The bytes. */
  readonly bytes: Buffer;
  readonly #options: ServedOptions;

  constructor(size: number, options: ServedOptions & { readOnly?: boolean } = {}) {
    this.size = size;
    this.readOnly = options.readOnly ?? false;
    this.contexts = options.contexts ?? [];
    this.bytes = Buffer.alloc(size);
    this.#options = options;
  }

  tryRead(offset: number, buffer: Uint8Array): boolean {
    if (this.#options.immediate === false || this.#options.before !== undefined) return false;
    this.#note("tryRead", offset, buffer.length);
    this.bytes.copy(buffer, 0, offset, offset + buffer.length);
    return true;
  }

  tryWrite(offset: number, data: Uint8Array): boolean {
    if (this.#options.immediate === false || this.#options.before !== undefined) return false;
    this.#note("tryWrite", offset, data.length);
    this.bytes.set(data, offset);
    return true;
  }

  async read(offset: number, buffer: Uint8Array): Promise<void> {
    await this.#begin("read", offset, buffer.length);
    this.bytes.copy(buffer, 0, offset, offset + buffer.length);
  }

  async write(offset: number, data: Uint8Array, { fua = false } = {}): Promise<void> {
    await this.#begin("write", offset, data.length, fua ? " fua" : "");
    this.bytes.set(data, offset);
  }

  async flush(): Promise<void> {
    await this.#begin("flush", 0, 0);
  }

  async zero(offset: number, length: number, options: ServedZeroOptions & ZeroOptions = {}): Promise<void> {
    const { fua, fast, mayPunch } = options;
    const how = `${fua ? " fua" : ""}${fast ? " fast" : ""}${mayPunch === false ? " no-hole" : ""}`;
    await this.#begin("zero", offset, length, how);
    if (fast && this.#options.fastZero === false) throw new DeviceError("not fast", { errno: "ENOTSUP" });
    this.bytes.fill(0, offset, offset + length);
  }

  async discard(offset: number, length: number, { fua = false } = {}): Promise<void> {
    await this.#begin("discard", offset, length, fua ? " fua" : "");
    this.bytes.fill(0, offset, offset + length);
  }

  async extents(offset: number, length: number): Promise<Extent[]> {
    await this.#begin("extents", offset, length);
    const extents: Extent[] = [];
    for (let at = offset; at < offset + length; ) {
      const end = Math.min(offset + length, at - (at % PAGE_SIZE) + PAGE_SIZE);
      const hole = this.bytes.compare(ZEROS, 0, end - at, at, end) === 0;
      const last = extents.at(-1);
      if (last?.hole === hole) last.length += end - at;
      else extents.push({ offset: at, length: end - at, hole, zero: hole });
      at = end;
    }
    return extents;
  }

  hint(offset: number, length: number): void {
    this.#note("hint", offset, length);
  }

  async [Symbol.asyncDispose](): Promise<void> {}

  async #begin(verb: string, offset: number, length: number, how = ""): Promise<void> {
    this.#note(verb, offset, length, how);
    await this.#options.before?.(verb, offset, length);
  }

  #note(verb: string, offset: number, length: number, how = ""): void {
    if (this.log.length < 100_000) this.log.push(`${verb} ${offset} ${length}${how}`);
  }
}

/** A file whose reads and writes are done at once, as is right for one in memory. For measurements. */
export class ServedFile implements ServedDevice {
  readonly name: string;
  readonly blockSize = 4096;
  readonly readOnly = false;
  readonly size: number;
  readonly contexts = [];
  readonly #fd: number;

  constructor(path: string) {
    this.name = path;
    this.#fd = openSync(path, "r+");
    this.size = fstatSync(this.#fd).size;
  }

  tryRead(offset: number, buffer: Uint8Array): boolean {
    return readSync(this.#fd, buffer, 0, buffer.length, offset) === buffer.length;
  }

  tryWrite(offset: number, data: Uint8Array): boolean {
    return writeSync(this.#fd, data, 0, data.length, offset) === data.length;
  }

  async read(offset: number, buffer: Uint8Array): Promise<void> {
    this.tryRead(offset, buffer);
  }

  async write(offset: number, data: Uint8Array): Promise<void> {
    this.tryWrite(offset, data);
  }

  async flush(): Promise<void> {
    fdatasyncSync(this.#fd);
  }

  async zero(offset: number, length: number): Promise<void> {
    this.tryWrite(offset, Buffer.alloc(length));
  }

  async discard(): Promise<void> {}

  async extents(offset: number, length: number): Promise<Extent[]> {
    return [{ offset, length, hole: false, zero: false }];
  }

  hint(): void {}

  async [Symbol.asyncDispose](): Promise<void> {}
}
