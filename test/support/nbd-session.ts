/** A raw NBD connection with many requests in flight, which tells apart an error of one request from the server's end. */
import { once } from "node:events";
import { connect, type Socket } from "node:net";

const OPTION_MAGIC = 0x49484156454f5054n;
const OPTION_GO = 7;
const OPTION_STRUCTURED_REPLY = 8;
const REPLY_ACK = 1;
const REPLY_INFO = 3;
const REQUEST_MAGIC = 0x25609513;
const SIMPLE_MAGIC = 0x67446698;
const SIMPLE_LENGTH = 16;
const STRUCTURED_MAGIC = 0x668e33ef;
const CHUNK = { none: 0, data: 1, hole: 2, error: 0x8001, errorOffset: 0x8002 } as const;
const COMMAND = { read: 0, write: 1, disconnect: 2, flush: 3, trim: 4, cache: 5, zero: 6 } as const;
const FLAG = { fua: 1, noHole: 2, fastZero: 16 } as const;

/** The server's answer to a request is an error. */
export class NbdRequestError extends Error {
  /** As on the wire: 5 is EIO, 28 ENOSPC. */
  readonly errno: number;
  constructor(errno: number, message: string) {
    super(`NBD error ${errno}: ${message}`);
    this.errno = errno;
  }
}

/** The connection ended before the answer came. */
export class NbdConnectionLost extends Error {}

interface Pending {
  read: { offset: number; buffer: Buffer; filled: number } | undefined;
  error: NbdRequestError | undefined;
  resolve: (buffer: Buffer) => void;
  reject: (error: Error) => void;
}

/** How to connect. */
export interface NbdSessionRequest {
  socket: string;
  exportName?: string;
}

/** An export in its transmission phase, with structured replies. Disposed of, the connection is cut. */
export class NbdSession implements AsyncDisposable {
  /** Bytes. */
  readonly size: number;
  readonly #socket: Socket;
  readonly #pending = new Map<number, Pending>();
  #input: Buffer = Buffer.alloc(0);
  #lastCookie = 0;
  #lost: Error | undefined;

  private constructor(socket: Socket, size: number, rest: Buffer) {
    this.#socket = socket;
    this.size = size;
    this.#input = rest;
    socket.on("data", (data) => {
      try {
        this.#take(data);
      } catch (error) {
        this.#end(error as Error);
      }
    });
    socket.on("close", () => this.#end(new NbdConnectionLost("the connection has ended")));
    socket.on("error", () => undefined); // "close" follows
    if (socket.destroyed) this.#end(new NbdConnectionLost("the connection has ended"));
  }

  /** @throws {NbdConnectionLost} where the server is not there, or goes in the handshake */
  static async connect({ socket: path, exportName = "" }: NbdSessionRequest): Promise<NbdSession> {
    const socket = connect(path);
    try {
      const reader = new HandshakeReader(socket);
      const greeting = await reader.take(18);
      const flags = greeting.readUInt16BE(16);
      if (greeting.readBigUInt64BE(8) !== OPTION_MAGIC || flags % 4 !== 3) throw new Error("no fixed newstyle server");
      const clientFlags = Buffer.alloc(4);
      clientFlags.writeUInt32BE(3);
      socket.write(clientFlags);
      socket.write(option(OPTION_STRUCTURED_REPLY, Buffer.alloc(0)));
      const structured = await optionReply(reader);
      if (structured.type !== REPLY_ACK) throw new Error("the server has no structured replies");
      const name = Buffer.from(exportName);
      const go = Buffer.alloc(4 + name.length + 2);
      go.writeUInt32BE(name.length);
      name.copy(go, 4);
      socket.write(option(OPTION_GO, go));
      let size: number | undefined;
      for (;;) {
        const { type, data } = await optionReply(reader);
        if (type === REPLY_ACK) break;
        if (type !== REPLY_INFO) throw new NbdRequestError(type % 2 ** 31, data.toString());
        if (data.readUInt16BE(0) === 0) size = Number(data.readBigUInt64BE(2));
      }
      if (size === undefined) throw new Error("the server has told no size");
      return new NbdSession(socket, size, reader.rest());
    } catch (error) {
      socket.destroy();
      throw error;
    }
  }

  read(offset: number, length: number): Promise<Buffer> {
    return this.#request(COMMAND.read, 0, offset, length);
  }

  async write(offset: number, data: Buffer, { fua = false } = {}): Promise<void> {
    await this.#request(COMMAND.write, fua ? FLAG.fua : 0, offset, data.length, data);
  }

  async trim(offset: number, length: number, { fua = false } = {}): Promise<void> {
    await this.#request(COMMAND.trim, fua ? FLAG.fua : 0, offset, length);
  }

  async zero(offset: number, length: number, { fua = false, noHole = false, fast = false } = {}): Promise<void> {
    const flags = (fua ? FLAG.fua : 0) + (noHole ? FLAG.noHole : 0) + (fast ? FLAG.fastZero : 0);
    await this.#request(COMMAND.zero, flags, offset, length);
  }

  async cache(offset: number, length: number): Promise<void> {
    await this.#request(COMMAND.cache, 0, offset, length);
  }

  async flush(): Promise<void> {
    await this.#request(COMMAND.flush, 0, 0, 0);
  }

  /** Takes leave; requests that are in flight are answered first. */
  async close(): Promise<void> {
    if (this.#lost !== undefined) return;
    const closed = once(this.#socket, "close");
    this.#socket.end(requestHeader(COMMAND.disconnect, 0, 0, 0, 0));
    await closed;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#socket.destroy();
    this.#end(new NbdConnectionLost("the connection was cut"));
  }

  #request(command: number, flags: number, offset: number, length: number, data?: Buffer): Promise<Buffer> {
    if (this.#lost !== undefined) return Promise.reject(this.#lost);
    this.#lastCookie += 1;
    const cookie = this.#lastCookie;
    const read = command === COMMAND.read ? { offset, buffer: Buffer.alloc(length), filled: 0 } : undefined;
    return new Promise((resolve, reject) => {
      this.#pending.set(cookie, { read, error: undefined, resolve, reject });
      this.#socket.write(requestHeader(command, flags, cookie, offset, length));
      if (data !== undefined) this.#socket.write(data);
    });
  }

  #end(error: Error): void {
    if (this.#lost !== undefined) return;
    this.#lost = error;
    this.#socket.destroy();
    for (const { reject } of this.#pending.values()) reject(error);
    this.#pending.clear();
  }

  #take(data: Buffer): void {
    this.#input = this.#input.length === 0 ? data : Buffer.concat([this.#input, data]);
    let at = 0;
    for (;;) {
      const rest = this.#input.subarray(at);
      const length = replyLength(rest);
      if (length === undefined || rest.length < length) break;
      if (length === SIMPLE_LENGTH) this.#simple(rest);
      else this.#chunk(rest.subarray(0, length));
      at += length;
    }
    this.#input = this.#input.subarray(at);
  }

  /** Answers to requests that are no reads may be simple all the same. */
  #simple(reply: Buffer): void {
    const pending = this.#answered(reply);
    if (pending.read !== undefined) throw new Error("a read was answered with a simple reply");
    const errno = reply.readUInt32BE(4);
    this.#pending.delete(Number(reply.readBigUInt64BE(8)));
    if (errno === 0) pending.resolve(Buffer.alloc(0));
    else pending.reject(new NbdRequestError(errno, "a simple reply"));
  }

  #answered(reply: Buffer): Pending {
    const cookie = Number(reply.readBigUInt64BE(8));
    const pending = this.#pending.get(cookie);
    if (pending === undefined) throw new Error(`a reply to the unknown request ${cookie}`);
    return pending;
  }

  #chunk(chunk: Buffer): void {
    const pending = this.#answered(chunk);
    const done = chunk.readUInt16BE(4) % 2 === 1;
    const type = chunk.readUInt16BE(6);
    const payload = chunk.subarray(20);
    if (type === CHUNK.data || type === CHUNK.hole) {
      if (pending.read === undefined) throw new Error("data came for a request that is no read");
      const { offset, buffer } = pending.read;
      const start = Number(payload.readBigUInt64BE(0)) - offset;
      const length = type === CHUNK.data ? payload.length - 8 : payload.readUInt32BE(8);
      if (start < 0 || start + length > buffer.length) throw new Error("data came that was not asked for");
      // A hole is zeros, which the buffer holds already.
      if (type === CHUNK.data) payload.copy(buffer, start, 8);
      pending.read.filled += length;
    } else if (type === CHUNK.error || type === CHUNK.errorOffset) {
      const text = payload.subarray(6, 6 + payload.readUInt16BE(4)).toString();
      pending.error ??= new NbdRequestError(payload.readUInt32BE(0), text);
    } else if (type !== CHUNK.none) throw new Error(`an unknown chunk of type ${type}`);
    if (!done) return;
    this.#pending.delete(Number(chunk.readBigUInt64BE(8)));
    if (pending.error !== undefined) pending.reject(pending.error);
    else if (pending.read !== undefined && pending.read.filled !== pending.read.buffer.length) {
      pending.reject(new Error(`${pending.read.filled} of ${pending.read.buffer.length} bytes came`));
    } else pending.resolve(pending.read?.buffer ?? Buffer.alloc(0));
  }
}

/** Bytes of the reply that begins here; undefined where too little of it has come. */
function replyLength(input: Buffer): number | undefined {
  if (input.length < SIMPLE_LENGTH) return undefined;
  const magic = input.readUInt32BE(0);
  if (magic === SIMPLE_MAGIC) return SIMPLE_LENGTH;
  if (magic !== STRUCTURED_MAGIC) throw new Error(`no reply: ${input.toString("hex", 0, SIMPLE_LENGTH)}`);
  return input.length < 20 ? undefined : 20 + input.readUInt32BE(16);
}

/** Reads exact pieces of what a socket gives, until it is handed on with what is left over. */
class HandshakeReader {
  readonly #socket: Socket;
  #input: Buffer = Buffer.alloc(0);
  #ended = false;
  #wake: () => void = () => undefined;

  readonly #onData = (data: Buffer) => {
    this.#input = Buffer.concat([this.#input, data]);
    this.#wake();
  };
  readonly #onClose = () => {
    this.#ended = true;
    this.#wake();
  };

  constructor(socket: Socket) {
    this.#socket = socket;
    socket.on("data", this.#onData).on("close", this.#onClose).on("error", this.#onClose);
  }

  async take(length: number): Promise<Buffer> {
    while (this.#input.length < length) {
      if (this.#ended) throw new NbdConnectionLost("the connection ended in the handshake");
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    const taken = this.#input.subarray(0, length);
    this.#input = this.#input.subarray(length);
    return taken;
  }

  rest(): Buffer {
    this.#socket.off("data", this.#onData).off("close", this.#onClose).off("error", this.#onClose);
    return this.#input;
  }
}

function option(code: number, data: Buffer): Buffer {
  const header = Buffer.alloc(16);
  header.writeBigUInt64BE(OPTION_MAGIC);
  header.writeUInt32BE(code, 8);
  header.writeUInt32BE(data.length, 12);
  return Buffer.concat([header, data]);
}

async function optionReply(reader: HandshakeReader): Promise<{ type: number; data: Buffer }> {
  const header = await reader.take(20);
  return { type: header.readUInt32BE(12), data: await reader.take(header.readUInt32BE(16)) };
}

function requestHeader(command: number, flags: number, cookie: number, offset: number, length: number): Buffer {
  const header = Buffer.alloc(28);
  header.writeUInt32BE(REQUEST_MAGIC);
  header.writeUInt16BE(flags, 4);
  header.writeUInt16BE(command, 6);
  header.writeBigUInt64BE(BigInt(cookie), 8);
  header.writeBigUInt64BE(BigInt(offset), 16);
  header.writeUInt32BE(length, 24);
  return header;
}
