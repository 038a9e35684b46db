/**
 * An NBD client that speaks byte by byte, well-behaved or not, for tests of servers. It checks nothing but the shape of
 * what it reads: what a server says is for the test to judge.
 */
import { once } from "node:events";
import { createConnection, type Socket } from "node:net";
import type { Duplex } from "node:stream";
import {
  decodeInfo,
  decodeOptionReplyHeader,
  encodeContextQueries,
  encodeInfoRequest,
  encodeOption,
  type Info,
  isErrorReply,
} from "../../src/nbd/option-codec.ts";
import { ChunkType, Command, InfoType, Option, OptionReply, Size } from "../../src/nbd/protocol.ts";
import { decodeReplyHeader, encodeRequest, readOffset, replyKind } from "../../src/nbd/transmission-codec.ts";

/** Where to connect to. */
export type Address = { path: string } | { host: string; port: number };

/** One reply to an option. */
export interface OptionAnswer {
  type: number;
  data: Buffer;
}

/** One reply to a request, put together from its chunks where it has any. */
export interface Reply {
  cookie: number;
  /** 0 where the request was done. */
  error: number;
  /** What the server says of the error. */
  text: string;
  /** What was read, holes filled with zeros. */
  data: Buffer;
  /** The chunks' types in order; none of a simple reply. */
  chunks: number[];
  /** Block status by context. */
  status: Map<number, { length: number; flags: number }[]>;
}

/** How to send a request. */
export interface RequestOptions {
  type: number;
  offset?: number;
  length?: number;
  flags?: number;
  cookie?: number;
  data?: Uint8Array;
}

/** The bytes of a request. */
export function requestBytes({ type, offset = 0, flags = 0, cookie = 0, data, ...rest }: RequestOptions): Buffer {
  const header = Buffer.alloc(Size.request);
  const length = rest.length ?? data?.length ?? 0;
  encodeRequest(header, 0, { flags, type, cookieHigh: 0, cookieLow: cookie, offset, length });
  return data === undefined ? header : Buffer.concat([header, data]);
}

/** The client's flags, as nearly all send them. */
export const CLIENT_FLAGS = Buffer.from([0, 0, 0, 3]);

/** A client's side of one connection. */
export class NbdClient implements AsyncDisposable {
  socket: Duplex;
  structured = false;
  size = 0;
  flags = 0;
  infos: Info[] = [];
  readonly #reads = new Map<number, { offset: number; length: number }>();
  /** What came and was not taken yet. */
  #chunks: Buffer[] = [];
  #there = 0;
  #ended = false;
  #wake: () => void = () => {};
  #cookie = 1;

  constructor(socket: Duplex) {
    this.socket = socket;
    this.#attach();
  }

  static async connect(address: Address): Promise<NbdClient> {
    const socket: Socket = createConnection(address);
    await once(socket, "connect");
    return new NbdClient(socket);
  }

  /** Connects and gets as far as the transmission phase. */
  static async go(
    address: Address,
    { name = "", structured = true, contexts = [] as string[], types = [InfoType.blockSize as number] } = {},
  ): Promise<NbdClient> {
    const client = await NbdClient.connect(address);
    await client.greet();
    await client.negotiate({ name, structured, contexts, types });
    return client;
  }

  /** Reads the greeting and sends the flags. */
  async greet(flags: Uint8Array = CLIENT_FLAGS): Promise<Buffer> {
    const greeting = await this.take(Size.greeting);
    this.send(flags);
    return greeting;
  }

  async negotiate({ name = "", structured = true, contexts = [] as string[], types = [] as number[] }): Promise<void> {
    if (structured) {
      await this.option(Option.structuredReply);
      this.structured = true;
    }
    if (contexts.length > 0) await this.option(Option.setMetaContext, encodeContextQueries(name, contexts));
    const answers = await this.option(Option.go, encodeInfoRequest(name, types));
    const last = answers.at(-1);
    if (last?.type !== OptionReply.ack) throw new Error(`GO was answered with ${last?.type}: ${last?.data}`);
    this.infos = answers.slice(0, -1).flatMap(({ data }) => decodeInfo(data) ?? []);
    for (const info of this.infos) {
      if (info.type === InfoType.export) Object.assign(this, { size: info.size, flags: info.flags });
    }
  }

  /** Takes TLS on: what is on the old stream from now on is no concern of ours. */
  replaceStream(stream: Duplex): void {
    this.socket = stream;
    this.#chunks = [];
    this.#there = 0;
    this.#attach();
  }

  /** Stops reading from the socket; nothing but our own use of it listens from then on. */
  detach(): void {
    this.socket.removeAllListeners("data");
    this.socket.pause();
  }

  send(bytes: Uint8Array): void {
    this.socket.write(bytes);
  }

  /** Sends an option and reads its replies to the last. */
  async option(option: number, data?: Uint8Array): Promise<OptionAnswer[]> {
    this.send(encodeOption(option, data));
    return this.optionAnswers(option);
  }

  /** Reads the replies to an option to the last. */
  async optionAnswers(option: number): Promise<OptionAnswer[]> {
    const answers: OptionAnswer[] = [];
    for (;;) {
      const header = decodeOptionReplyHeader(await this.take(Size.optionReplyHeader), 0);
      if (header.option !== option) throw new Error(`option ${option} was answered as ${header.option}`);
      answers.push({ type: header.type, data: await this.take(header.length) });
      if (header.type === OptionReply.ack || isErrorReply(header.type)) return answers;
    }
  }

  /** Sends a request and returns its cookie. */
  post(request: RequestOptions): number {
    const cookie = request.cookie ?? this.#cookie++;
    if (request.type === Command.read) {
      this.#reads.set(cookie, { offset: request.offset ?? 0, length: request.length ?? 0 });
    }
    this.send(requestBytes({ ...request, cookie }));
    return cookie;
  }

  /** Sends a request and waits for its reply, which has to be the next. */
  async request(request: RequestOptions): Promise<Reply> {
    const cookie = this.post(request);
    const reply = await this.reply();
    if (reply.cookie !== cookie) throw new Error(`request ${cookie} was answered as ${reply.cookie}`);
    return reply;
  }

  read(offset: number, length: number, flags = 0): Promise<Reply> {
    return this.request({ type: Command.read, offset, length, flags });
  }

  write(offset: number, data: Uint8Array, flags = 0): Promise<Reply> {
    return this.request({ type: Command.write, offset, data, flags });
  }

  /** Reads one reply; chunks of several at the same time are more than it understands. */
  async reply(): Promise<Reply> {
    let reply: Reply | undefined;
    for (;;) {
      const head = await this.take(Size.simpleReply);
      const isSimple = replyKind(head, 0) === "simple";
      const header = decodeReplyHeader(isSimple ? head : Buffer.concat([head, await this.take(4)]), 0);
      const cookie = header.cookieLow;
      const asked = this.#reads.get(cookie);
      const length = asked?.length ?? 0;
      if (header.kind === "simple") {
        this.#reads.delete(cookie);
        const data = header.error === 0 ? await this.take(length) : Buffer.alloc(0);
        return { cookie, error: header.error, text: "", data, chunks: [], status: new Map() };
      }
      reply ??= { cookie, error: 0, text: "", data: Buffer.alloc(length, 0xee), chunks: [], status: new Map() };
      if (reply.cookie !== cookie) throw new Error("chunks of two replies are mixed");
      reply.chunks.push(header.type);
      takeChunk(reply, header.type, await this.take(header.length), asked?.offset ?? 0);
      if (header.done) {
        this.#reads.delete(cookie);
        return reply;
      }
    }
  }

  /** Reads exactly `length` bytes. Rejects where the stream ends before. */
  async take(length: number): Promise<Buffer> {
    while (this.#there < length) {
      if (this.#ended) throw new Error(`the connection ended ${length - this.#there} bytes early`);
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    if ((this.#chunks[0]?.length ?? 0) < length) this.#chunks = [Buffer.concat(this.#chunks)];
    const [first = Buffer.alloc(0)] = this.#chunks;
    this.#there -= length;
    if (first.length === length) this.#chunks.shift();
    else this.#chunks[0] = first.subarray(length);
    return first.subarray(0, length);
  }

  /** Resolves when the server has closed, with what it said before. */
  async closed(): Promise<Buffer> {
    while (!this.#ended) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    return Buffer.concat(this.#chunks);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.socket.destroyed) return;
    const closed = once(this.socket, "close");
    this.socket.destroy();
    await closed;
  }

  #attach(): void {
    const end = (): void => {
      this.#ended = true;
      this.#wake();
    };
    this.socket.on("data", (chunk: Buffer) => {
      this.#chunks.push(chunk);
      this.#there += chunk.length;
      this.#wake();
    });
    this.socket.resume();
    this.socket.on("end", end);
    this.socket.on("close", end);
    this.socket.on("error", () => {}); // "close" follows
  }
}

/** Puts a chunk's payload into the reply. */
function takeChunk(reply: Reply, type: number, payload: Buffer, offset: number): void {
  if (type === ChunkType.offsetData) {
    payload.copy(reply.data, readOffset(payload, 0) - offset, 8);
  } else if (type === ChunkType.offsetHole) {
    const start = readOffset(payload, 0) - offset;
    reply.data.fill(0, start, start + payload.readUInt32BE(8));
  } else if (type === ChunkType.error) {
    reply.error = payload.readUInt32BE(0);
    reply.text = payload.subarray(6, 6 + payload.readUInt16BE(4)).toString();
  } else if (type === ChunkType.blockStatus) {
    const runs = [];
    for (let at = 4; at < payload.length; at += 8) {
      runs.push({ length: payload.readUInt32BE(at), flags: payload.readUInt32BE(at + 4) });
    }
    reply.status.set(payload.readUInt32BE(0), runs);
  }
}
