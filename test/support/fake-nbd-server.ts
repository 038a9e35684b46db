/**
 * An NBD server for tests of clients: it keeps its bytes in memory, can lack what servers may lack, can be told to do
 * anything else with an option or a request, and can go away and come back.
 */
import { once } from "node:events";
import { createServer, type Server, type Socket } from "node:net";
import { join } from "node:path";
import { MemoryDevice } from "../../src/device/memory-device.ts";
import type { NbdAddress } from "../../src/nbd/client/nbd-uri.ts";
import {
  decodeContextQueries,
  decodeInfoRequest,
  decodeOptionHeader,
  encodeContext,
  encodeExportReply,
  encodeGreeting,
  encodeInfo,
  encodeOptionReply,
  encodeServer,
} from "../../src/nbd/option-codec.ts";
import {
  ChunkType,
  Command,
  HandshakeFlag,
  InfoType,
  OPTION_MAGIC,
  Option,
  OptionReply,
  Size,
  TransmissionFlag,
} from "../../src/nbd/protocol.ts";
import {
  decodeRequest,
  encodeChunkHeader,
  encodeDataChunk,
  encodeErrorChunk,
  encodeSimpleReply,
  encodeStatusChunk,
  type Request,
} from "../../src/nbd/transmission-codec.ts";
import { scratchDirectory } from "./scratch.ts";

/** All that an export can offer. */
export const ALL_FLAGS =
  TransmissionFlag.hasFlags +
  TransmissionFlag.sendFlush +
  TransmissionFlag.sendFua +
  TransmissionFlag.sendTrim +
  TransmissionFlag.sendWriteZeroes +
  TransmissionFlag.sendFastZero +
  TransmissionFlag.sendDf +
  TransmissionFlag.canMultiConn;

/** How a server is, and what it does otherwise than it should. Any of it may be changed while it runs. */
export interface FakeServerOptions {
  size: number;
  /** TransmissionFlag. Default all. */
  flags: number;
  structured: boolean;
  /** Whether it tells block status. */
  contexts: boolean;
  /** Whether it knows GO. */
  go: boolean;
  /** Whether it sends the 124 zeroes. */
  zeroes: boolean;
  /** What it tells of block sizes; undefined for nothing. */
  sizes: { minimum: number; preferred: number; maximum: number } | undefined;
  exports: string[];
  handshakeFlags: number;
  /** Most clients at the same time; more are closed at once. */
  mostConnections: number;
  /** Called with each option; true where it has been dealt with. */
  onOption?: ((option: number, data: Buffer, peer: FakePeer) => boolean | Promise<boolean>) | undefined;
  /** Called with each request and a write's data; true where it has been dealt with. */
  onRequest?: ((request: Request, data: Buffer, peer: FakePeer) => boolean | Promise<boolean>) | undefined;
  /** Does everything there is to do with a client. */
  onConnection?: ((peer: FakePeer) => Promise<void>) | undefined;
}

const DEFAULTS: FakeServerOptions = {
  size: 1024 * 1024,
  flags: ALL_FLAGS,
  structured: true,
  contexts: true,
  go: true,
  zeroes: false,
  sizes: { minimum: 1, preferred: 4096, maximum: 32 * 1024 * 1024 },
  exports: ["disk"],
  handshakeFlags: HandshakeFlag.fixedNewstyle + HandshakeFlag.noZeroes,
  mostConnections: 100,
};

/** Its side of one connection. */
export class FakePeer {
  readonly socket: Socket;
  structured = false;
  contextId: number | undefined;
  #chunks: Buffer[] = [];
  #there = 0;
  #ended = false;
  #wake: () => void = () => {};

  constructor(socket: Socket) {
    this.socket = socket;
    socket.on("data", (chunk: Buffer) => {
      this.#chunks.push(chunk);
      this.#there += chunk.length;
      this.#wake();
    });
    const end = (): void => {
      this.#ended = true;
      this.#wake();
    };
    socket.on("end", end);
    socket.on("close", end);
    socket.on("error", () => {}); // "close" follows
  }

  send(...parts: Uint8Array[]): void {
    this.socket.write(Buffer.concat(parts));
  }

  /** Exactly `length` bytes; undefined where the client goes before. */
  async take(length: number): Promise<Buffer | undefined> {
    while (this.#there < length) {
      if (this.#ended) return undefined;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    const all = this.#chunks.length === 1 ? (this.#chunks[0] as Buffer) : Buffer.concat(this.#chunks);
    this.#chunks = all.length === length ? [] : [all.subarray(length)];
    this.#there -= length;
    return all.subarray(0, length);
  }

  /** Resolves when the client has gone. */
  async gone(): Promise<void> {
    while (!this.#ended) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }

  /** Answers a request that has nothing to tell. */
  done(request: Request): void {
    if (this.structured) this.send(chunkBytes({ done: true, type: ChunkType.none }, request));
    else this.send(simpleBytes(0, request));
  }

  error(request: Request, error: number, text = ""): void {
    if (this.structured) this.send(encodeErrorChunk(error, Buffer.from(text), request));
    else this.send(simpleBytes(error, request));
  }

  data(request: Request, bytes: Uint8Array): void {
    if (this.structured) this.send(dataBytes(request, bytes, { offset: request.offset, done: true }));
    else this.send(simpleBytes(0, request), bytes);
  }

  end(): void {
    this.socket.destroy();
  }
}

/** A simple reply. */
export function simpleBytes(error: number, cookie: Pick<Request, "cookieHigh" | "cookieLow">): Buffer {
  const bytes = Buffer.alloc(Size.simpleReply);
  encodeSimpleReply(bytes, 0, error, cookie);
  return bytes;
}

/** A chunk of a structured reply. */
export function chunkBytes(
  {
    done,
    type,
    payload = Buffer.alloc(0),
    length = payload.length,
  }: {
    done: boolean;
    type: number;
    payload?: Buffer;
    /** What it says that its length is. */
    length?: number;
  },
  cookie: Pick<Request, "cookieHigh" | "cookieLow">,
): Buffer {
  const header = Buffer.alloc(Size.chunkHeader);
  encodeChunkHeader(header, 0, { done, type, length }, cookie);
  return Buffer.concat([header, payload]);
}

/** A chunk of data. */
export function dataBytes(
  cookie: Pick<Request, "cookieHigh" | "cookieLow">,
  bytes: Uint8Array,
  { offset, done }: { offset: number; done: boolean },
): Buffer {
  const header = Buffer.alloc(Size.dataChunkHeader);
  encodeDataChunk(header, 0, { done, offset, length: bytes.length }, cookie);
  return Buffer.concat([header, bytes]);
}

/** A server on a socket in a directory of its own. */
export class FakeNbdServer implements AsyncDisposable {
  readonly options: FakeServerOptions;
  readonly path: string;
  /** What clients read. */
  disk: MemoryDevice;
  /** Requests as `type offset length flags`. */
  readonly log: string[] = [];
  /** Clients that came. */
  connections = 0;
  readonly peers = new Set<FakePeer>();
  readonly #directory: AsyncDisposable;
  #server: Server | undefined;

  static async start(options: Partial<FakeServerOptions> = {}): Promise<FakeNbdServer> {
    const directory = await scratchDirectory();
    const server = new FakeNbdServer({ ...DEFAULTS, ...options }, join(directory.path, "fake.sock"), directory);
    await server.listen();
    return server;
  }

  private constructor(options: FakeServerOptions, path: string, directory: AsyncDisposable) {
    this.options = options;
    this.path = path;
    this.#directory = directory;
    this.disk = new MemoryDevice({ size: options.size });
  }

  get address(): NbdAddress {
    return { place: { path: this.path }, exportName: this.options.exports[0] ?? "" };
  }

  async listen(): Promise<void> {
    const server = createServer((socket) => void this.#serve(socket));
    this.#server = server;
    server.listen(this.path);
    await once(server, "listening");
  }

  /** Goes away: nobody can call, everybody is cut off. */
  async stop(): Promise<void> {
    const server = this.#server;
    this.#server = undefined;
    const closed = server === undefined ? undefined : once(server, "close");
    server?.close();
    this.cut();
    await closed;
  }

  /** Cuts off everybody who is connected. */
  cut(): void {
    for (const peer of this.peers) peer.end();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
    await this.#directory[Symbol.asyncDispose]();
  }

  async #serve(socket: Socket): Promise<void> {
    this.connections += 1;
    const peer = new FakePeer(socket);
    if (this.peers.size >= this.options.mostConnections) return peer.end();
    this.peers.add(peer);
    socket.once("close", () => this.peers.delete(peer));
    if (this.options.onConnection !== undefined) return await this.options.onConnection(peer);
    await this.serve(peer);
  }

  /** What it does with a client, from greeting to end. */
  async serve(peer: FakePeer): Promise<void> {
    const { zeroes, handshakeFlags } = this.options;
    peer.send(encodeGreeting(zeroes ? HandshakeFlag.fixedNewstyle : handshakeFlags));
    if ((await peer.take(Size.clientFlags)) === undefined) return;
    if (await this.#haggle(peer)) await this.#transmit(peer);
  }

  async #haggle(peer: FakePeer): Promise<boolean> {
    for (;;) {
      const header = await peer.take(Size.optionHeader);
      if (header === undefined) return false;
      if (header.readBigUInt64BE(0) !== OPTION_MAGIC) {
        peer.end();
        return false;
      }
      const { option, length } = decodeOptionHeader(header, 0);
      const data = await peer.take(length);
      if (data === undefined) return false;
      if (await this.options.onOption?.(option, data, peer)) continue;
      if (option === Option.exportName) {
        peer.send(encodeExportReply(this.options.size, this.options.flags, this.options.zeroes));
        return true;
      }
      if (this.#answer(peer, option, data)) return true;
    }
  }

  /** Whether transmission begins. */
  #answer(peer: FakePeer, option: number, data: Buffer): boolean {
    const { options } = this;
    const reply = (type: number, bytes?: Buffer): void => peer.send(encodeOptionReply(option, type, bytes));
    if (option === Option.structuredReply && options.structured) {
      peer.structured = true;
      reply(OptionReply.ack);
    } else if (option === Option.setMetaContext && options.contexts) {
      if (options.exports.includes(decodeContextQueries(data).name)) {
        peer.contextId = 7;
        reply(OptionReply.metaContext, encodeContext(7, "base:allocation"));
      }
      reply(OptionReply.ack);
    } else if (option === Option.list) {
      for (const name of options.exports) reply(OptionReply.server, encodeServer(name));
      reply(OptionReply.ack);
    } else if (option === Option.go && options.go) {
      if (!options.exports.includes(decodeInfoRequest(data).name)) {
        reply(OptionReply.errUnknown);
        return false;
      }
      reply(OptionReply.info, encodeInfo({ type: InfoType.export, size: options.size, flags: options.flags }));
      if (options.sizes !== undefined)
        reply(OptionReply.info, encodeInfo({ type: InfoType.blockSize, ...options.sizes }));
      reply(OptionReply.ack);
      return true;
    } else reply(OptionReply.errUnsupported);
    return false;
  }

  async #transmit(peer: FakePeer): Promise<void> {
    for (;;) {
      const header = await peer.take(Size.request);
      if (header === undefined) return;
      const request: Request = { flags: 0, type: 0, cookieHigh: 0, cookieLow: 0, offset: 0, length: 0 };
      if (!decodeRequest(header, 0, request)) return peer.end();
      if (request.type === Command.disconnect) return peer.end();
      const data = request.type === Command.write ? await peer.take(request.length) : Buffer.alloc(0);
      if (data === undefined) return;
      this.log.push(`${request.type} ${request.offset} ${request.length} ${request.flags}`);
      if (await this.options.onRequest?.(request, data, peer)) continue;
      await this.answer(peer, request, data);
    }
  }

  /** Does a request as it should be done. */
  async answer(peer: FakePeer, request: Request, data: Buffer): Promise<void> {
    const { disk } = this;
    const { offset, length, type } = request;
    const { minimum } = this.options.sizes ?? { minimum: 1 };
    if (offset + length > disk.size) return peer.error(request, 22, "outside");
    const isTail = offset + length === disk.size;
    if (offset % minimum > 0 || (length % minimum > 0 && !isTail)) return peer.error(request, 22, "not aligned");
    if (type === Command.read) {
      const bytes = Buffer.alloc(length);
      await disk.read(offset, bytes);
      return peer.data(request, bytes);
    }
    if (type === Command.blockStatus) return await this.#tellStatus(peer, request);
    if (type === Command.write) await disk.write(offset, data);
    if (type === Command.writeZeroes) await disk.zero(offset, length);
    if (type === Command.trim) await disk.discard(offset, length);
    peer.done(request);
  }

  async #tellStatus(peer: FakePeer, request: Request): Promise<void> {
    if (peer.contextId === undefined) return peer.error(request, 22, "no context");
    const extents = await this.disk.extents(request.offset, request.length);
    const runs = extents.map(({ length, hole, zero }) => ({ length, flags: (hole ? 1 : 0) + (zero ? 2 : 0) }));
    peer.send(encodeStatusChunk(peer.contextId, runs, true, request));
  }
}
