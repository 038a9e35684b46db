/** What an HTTP server holds, as a device that can be read. */
import { type Clock, systemClock } from "../../base/clock.ts";
import type { Extent } from "../block-device.ts";
import { checkRange, checkWritable } from "../range-check.ts";
import type { RemoteDevice, RemoteIdentity, RemoteOptions } from "../remote-device.ts";
import { Connections } from "./connections.ts";
import type { Environment } from "./credentials.ts";
import type { HttpService } from "./http-service.ts";
import { PlainHttp } from "./plain-http.ts";
import { RemoteObject } from "./remote-object.ts";

/** How to open something at a server, and what tests replace. */
export interface HttpDeviceOptions extends RemoteOptions {
  /** Where proxies, certificates and the netrc file are named. Default: the process's. */
  environment?: Environment | undefined;
  /** Most connections, and requests at once. */
  connections?: number | undefined;
  clock?: Clock;
  /** Uniformly from 0 to 1. */
  random?: () => number;
}

/** How to open a URL. */
export interface HttpOpenOptions extends HttpDeviceOptions {
  /** A file of lines `Name: value`, sent to the origin of the URL with every request. */
  headerFile?: string | undefined;
}

const DEFAULT_CONNECTIONS = 6;
const DEFAULT_TIMEOUT_MS = 60_000;

/** Most bytes asked for by one request. */
const MOST_AT_ONCE = 4 * 1024 * 1024;

/** An object at a server, for reading. Reads longer than `mostAtOnce` are split, and their parts got side by side. */
export class HttpDevice implements RemoteDevice {
  readonly name: string;
  readonly size: number;
  readonly readOnly = true;
  readonly blockSize = 512;
  readonly mostAtOnce = MOST_AT_ONCE;
  readonly requestsAtOnce: number;
  readonly identity: RemoteIdentity;
  readonly #object: RemoteObject;
  readonly #underWay = new Set<Promise<void>>();
  #closed: Promise<void> | undefined;

  private constructor(service: HttpService, object: RemoteObject, requestsAtOnce: number) {
    const { size, etag, lastModified } = object.pinned;
    this.name = service.name;
    this.size = size;
    this.requestsAtOnce = requestsAtOnce;
    this.#object = object;
    this.identity = {
      kind: service.kind,
      size,
      ...(etag === undefined ? {} : { etag }),
      ...(lastModified === undefined ? {} : { lastModified }),
    };
  }

  /**
   * Finds what is at an http: or https: URL, through redirects, and pins it.
   * @throws {UsageError} where the URL, the header file or the proxy cannot be used
   * @throws {CloneError} where a file of credentials or certificates cannot be read
   * @throws {DeviceError} where it is not to be had, is empty, or cannot be read in ranges
   */
  static async open(url: string, options: HttpOpenOptions = {}): Promise<HttpDevice> {
    const { environment = process.env, headerFile, onNote } = options;
    return await HttpDevice.openService(await PlainHttp.open(url, { environment, headerFile, onNote }), options);
  }

  /** The same for an object that a kind of server knows. @throws {CloneError} */
  static async openService(service: HttpService, options: HttpDeviceOptions = {}): Promise<HttpDevice> {
    const { environment = process.env, clock = systemClock, random = Math.random, onNote, signal } = options;
    const requests = options.connections ?? DEFAULT_CONNECTIONS;
    const silenceMs = options.requestTimeoutMs ?? DEFAULT_TIMEOUT_MS;
    const patienceMs = options.reconnectTimeoutMs ?? DEFAULT_TIMEOUT_MS;
    const connections = new Connections({ environment, connections: requests, clock, silenceMs });
    const object = { service, connections, requests, patienceMs, clock, random, onNote };
    return new HttpDevice(service, await RemoteObject.find(object, signal), requests);
  }

  get incarnation(): number {
    return this.#object.reconnections;
  }

  get changed(): string | undefined {
    return this.#object.changed;
  }

  async read(offset: number, buffer: Uint8Array): Promise<void> {
    checkRange(this, offset, buffer.length);
    this.#checkOpen();
    if (buffer.length === 0) return;
    const reading = buffer.length <= MOST_AT_ONCE ? this.#object.read(offset, buffer) : this.#readParts(offset, buffer);
    this.#underWay.add(reading);
    try {
      await reading;
    } finally {
      this.#underWay.delete(reading);
    }
  }

  async write(offset: number, data: Uint8Array): Promise<void> {
    checkRange(this, offset, data.length);
    checkWritable(this);
  }

  /** There is nothing to be flushed. */
  async flush(): Promise<void> {}

  async zero(offset: number, length: number): Promise<void> {
    checkRange(this, offset, length);
    checkWritable(this);
  }

  async discard(offset: number, length: number): Promise<void> {
    checkRange(this, offset, length);
    checkWritable(this);
  }

  /** HTTP tells nothing of holes: all of it is data. */
  async extents(offset: number, length: number): Promise<Extent[]> {
    checkRange(this, offset, length);
    this.#checkOpen();
    return length === 0 ? [] : [{ offset, length, hole: false, zero: false }];
  }

  /** Cuts the connections; reads under way end with an error. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed ??= this.#close();
    await this.#closed;
  }

  async #close(): Promise<void> {
    await this.#object.close();
    await Promise.allSettled(this.#underWay);
  }

  /** In parts of the same length, as nearly as can be. All have let go of the buffer when it settles. */
  async #readParts(offset: number, buffer: Uint8Array): Promise<void> {
    const count = Math.ceil(buffer.length / MOST_AT_ONCE);
    const partLength = Math.ceil(buffer.length / count / this.blockSize) * this.blockSize;
    const parts: Promise<void>[] = [];
    for (let at = 0; at < buffer.length; at += partLength) {
      parts.push(this.#object.read(offset + at, buffer.subarray(at, at + partLength)));
    }
    const failed = (await Promise.allSettled(parts)).find((part) => part.status === "rejected");
    if (failed !== undefined) throw failed.reason;
  }

  #checkOpen(): void {
    if (this.#closed !== undefined) throw new TypeError(`"${this.name}" is closed`);
  }
}
