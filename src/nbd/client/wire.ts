/**
 * A socket to a server, from the call to the end: first bytes are taken one message at a time, by whoever conducts the
 * handshake; perhaps TLS comes between; then a consumer gets them as they come.
 *
 *     calling ──► handshake ──► (TLS ──► handshake) ──► consumed
 *         └───────────┴─────────────────────┴───────────────┴──► failed, once, for whatever reason came first
 */
import { isIPv4, isIPv6, Socket } from "node:net";
import type { TLSSocket } from "node:tls";
import { wishSendBuffer } from "../../device/libc.ts";
import { ProtocolError } from "../protocol-error.ts";
import { type Consumer, type SharedBuffer, SocketInput } from "../socket-input.ts";
import { ConnectionLostError } from "./handshake-error.ts";
import type { NbdPlace } from "./nbd-uri.ts";
import type { HandshakeStream } from "./negotiation.ts";

/** What Node's handle of a socket tells, and what it has not sent of what it was given. */
interface Handle {
  readonly fd?: number;
  readonly writeQueueSize?: number;
}

/** What a unix socket may hold for its server, bytes; by itself that is less than one large write. */
const SEND_BUFFER = 2 ** 20;
/** After so long without a sign of the other side the system asks for one, ms. */
const KEEP_ALIVE_MS = 15_000;

/** A connection's bytes. */
export class Wire implements HandshakeStream {
  readonly #shared: SharedBuffer;
  #socket: Socket;
  #input: SocketInput;
  #consumer: Consumer | undefined;
  #want: { length: number; resolve: (bytes: Buffer) => void } | undefined;
  #failure: Error | undefined;
  readonly #failed: Promise<never>;
  #reject: (error: Error) => void = () => {};
  /** Told once, when the connection is lost. */
  onLost: (error: Error) => void = () => {};

  /**
   * Begins to call. @param byEvents for a connection that will take on TLS, which cannot read into buffers of ours
   */
  constructor(place: NbdPlace, { shared, byEvents }: { shared: SharedBuffer; byEvents: boolean }) {
    this.#shared = shared;
    this.#failed = new Promise((_, reject) => {
      this.#reject = reject;
    });
    this.#failed.catch(() => {}); // whoever waits for something is told; nobody has to
    this.#input = this.#newInput();
    const onread = {
      buffer: () => this.#input.next(),
      callback: (count: number, where: Uint8Array) => this.#input.received(count, where),
    };
    this.#socket = new Socket((byEvents ? {} : { onread }) as ConstructorParameters<typeof Socket>[0]);
    this.#listen(byEvents);
    if ("path" in place) this.#socket.connect({ path: place.path });
    else
      this.#socket.connect({
        host: place.host,
        port: place.port,
        noDelay: true,
        keepAlive: true,
        keepAliveInitialDelay: KEEP_ALIVE_MS,
      });
  }

  /** Why it is lost, if it is. */
  get failure(): Error | undefined {
    return this.#failure;
  }

  /** Grows with everything that comes. */
  get progress(): number {
    return this.#input.progress;
  }

  /** Bytes that the other side has not taken yet. */
  get unsent(): number {
    const handle = (this.#socket as unknown as { _handle?: Handle | null })._handle;
    return this.#socket.writableLength + (handle?.writeQueueSize ?? 0);
  }

  /** Resolves when the server has answered the call. */
  connected(): Promise<void> {
    const connected = new Promise<void>((resolve) => this.#socket.once("connect", resolve));
    return this.#unlessLost(connected.then(() => this.#enlarge()));
  }

  async take(length: number): Promise<Buffer> {
    if (this.#failure !== undefined) throw this.#failure;
    const taken = new Promise<Buffer>((resolve) => {
      this.#want = { length, resolve };
    });
    this.#input.unblock();
    return await this.#unlessLost(taken);
  }

  send(bytes: Uint8Array): void {
    if (this.#failure === undefined) this.#socket.write(bytes);
  }

  /** Goes on in TLS, as soon as `upgrade` has done the client's part of it. @throws whatever it throws */
  async secure(upgrade: (socket: Socket) => Promise<TLSSocket>): Promise<void> {
    if (this.#failure !== undefined) throw this.#failure;
    // What came behind the server's agreement came in the clear, from whoever is between.
    let leftover = 0;
    this.#consumer = {
      consume: (_bytes, start, end) => {
        leftover += end - start;
        return end;
      },
    };
    this.#input.unblock();
    if (leftover > 0) throw new ProtocolError("it went on in the clear after it had agreed to TLS");
    this.#input.close();
    const plain = this.#socket;
    plain.removeAllListeners("data");
    plain.pause();
    const upgraded = upgrade(plain);
    upgraded.catch(() => {}); // the connection may be lost before
    this.#socket = await this.#unlessLost(upgraded);
    if (this.#failure !== undefined) this.#socket.destroy();
    this.#consumer = undefined;
    this.#input = this.#newInput();
    for (const event of ["end", "close", "error"]) plain.removeAllListeners(event);
    plain.on("error", () => {}); // the stream over it tells
    this.#listen(true);
  }

  /** From now on all bytes go to a consumer, and nobody takes any. */
  consumeBy(make: (input: SocketInput) => Consumer): void {
    this.#consumer = make(this.#input);
    this.#input.unblock();
  }

  /** What is sent until the event loop turns goes out together. */
  cork(): void {
    this.#socket.cork();
  }

  uncork(): void {
    this.#socket.uncork();
  }

  /** Sends bytes that are the caller's, and tells when nobody reads from them any more; never where the connection is lost. */
  write(bytes: Uint8Array, whenSent: () => void): void {
    this.#socket.write(bytes, (error) => {
      if (error === undefined || error === null) whenSent();
    });
  }

  /** Ends the connection, at once and for a reason. */
  fail(error: Error): void {
    if (this.#failure !== undefined) return;
    this.#failure = error;
    this.#input.close();
    this.#socket.destroy();
    this.#reject(error);
    this.onLost(error);
  }

  /** Says its last and closes, once the system has taken it. */
  async end(last: Uint8Array): Promise<void> {
    if (this.#socket.destroyed) return;
    const closed = new Promise<void>((resolve) => this.#socket.once("close", () => resolve()));
    this.#socket.end(last, () => this.fail(new ConnectionLostError("it was closed")));
    await closed;
  }

  #newInput(): SocketInput {
    return new SocketInput(this.#shared, this, () => this.#socket.resume());
  }

  #listen(byEvents: boolean): void {
    const socket = this.#socket;
    socket.on("error", (error) => this.fail(lost(error)));
    socket.on("end", () => this.fail(new ConnectionLostError("the server hung up")));
    socket.on("close", () => this.fail(new ConnectionLostError("the connection was closed")));
    if (!byEvents) return;
    socket.on("data", (chunk: Buffer) => {
      if (!this.#input.push(chunk)) socket.pause();
    });
  }

  #enlarge(): void {
    const { _handle: handle } = this.#socket as unknown as { _handle?: Handle | null };
    const isUnix =
      this.#socket.remoteFamily === undefined ||
      !(isIPv4(this.#socket.remoteAddress ?? "") || isIPv6(this.#socket.remoteAddress ?? ""));
    if (isUnix && handle?.fd !== undefined && handle.fd >= 0) wishSendBuffer(handle.fd, SEND_BUFFER);
  }

  consume(bytes: Buffer, start: number, end: number): number {
    if (this.#consumer !== undefined) return this.#consumer.consume(bytes, start, end);
    const want = this.#want;
    if (want === undefined) {
      this.#input.block();
      return start;
    }
    if (end - start < want.length) return start;
    this.#want = undefined;
    this.#input.block(); // until the next is asked for: a server that says more than was asked fills no memory
    want.resolve(Buffer.from(bytes.subarray(start, start + want.length)));
    return start + want.length;
  }

  #unlessLost<T>(promise: Promise<T>): Promise<T> {
    return Promise.race([promise, this.#failed]);
  }
}

/** What became of a connection, in words. */
function lost(error: Error): ConnectionLostError {
  const code = "code" in error && typeof error.code === "string" ? error.code : "ECONNRESET";
  return new ConnectionLostError(WORDS[code] ?? `${code}`, { errno: code, cause: error });
}

const WORDS: Record<string, string> = {
  ECONNREFUSED: "nobody listens there (ECONNREFUSED)",
  ENOENT: "there is no such socket (ENOENT)",
  ENOTSOCK: "it is no socket (ENOTSOCK)",
  ENOTFOUND: "there is no such host (ENOTFOUND)",
  EAI_AGAIN: "the name of the host cannot be looked up at present (EAI_AGAIN)",
  EACCES: "permission denied (EACCES)",
  ECONNRESET: "the connection was reset (ECONNRESET)",
  EPIPE: "the server hung up (EPIPE)",
  EHOSTUNREACH: "there is no way to the host (EHOSTUNREACH)",
  ENETUNREACH: "there is no way to its network (ENETUNREACH)",
  ETIMEDOUT: "it does not answer (ETIMEDOUT)",
};
