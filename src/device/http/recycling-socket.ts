/**
 * A TCP connection whose large reads all arrive in the same memory. Otherwise each is given memory of its own, 64 KiB that
 * live for a moment, and the collector runs for every few MiB: half of the time that a fast source takes.
 *
 *     kernel ──► one buffer ──► read(), on the spot ──► undici's parser ──► the reader's memory
 *
 * What `read()` returns is good until the next turn. undici uses up a body in that time. Of a *head* that has not come to its
 * end it keeps views; but a head that lies in a large read ends in it, since heads are bounded (`MAX_HEAD`) and no reply
 * follows another without having been asked for. Small reads are copied, and so is what the parser gives back.
 */
import { type OnReadOpts, Socket, type SocketConstructorOpts } from "node:net";
import type { buildConnector } from "undici";
import { type Clock, systemClock } from "../../base/clock.ts";
import { startDeadline } from "../../base/deadline.ts";

/** Most bytes of a reply's head; undici refuses longer ones. */
export const MAX_HEAD = 16_384;

/** Most bytes that are read at once. */
const READ_SIZE = 256 * 1024;

/** Connects, calls back, and returns the socket that is being connected, as those of undici do. */
export type Connector = (...args: Parameters<buildConnector.connector>) => Socket;

/** A connector for undici's pools, for connections without TLS. Connecting is given up after `timeoutMs`. */
export function recyclingConnector({
  timeoutMs,
  clock = systemClock,
}: {
  timeoutMs: number;
  clock?: Clock;
}): Connector {
  return ({ hostname, port }, callback) => {
    const socket = new RecyclingSocket();
    const connected = startDeadline(clock, timeoutMs, () =>
      socket.destroy(Object.assign(new Error("connecting takes too long"), { code: "ETIMEDOUT" })),
    );
    const fail = (error: Error): void => {
      connected();
      callback(error, null);
    };
    socket.once("error", fail);
    socket.once("connect", () => {
      connected();
      socket.off("error", fail); // undici listens from here on
      socket.setNoDelay(true);
      socket.setKeepAlive(true, 60_000);
      callback(null, socket);
    });
    return socket.connect({ host: hostname.replace(/^\[(.*)\]$/, "$1"), port: Number(port || 80) });
  };
}

/** Not connected yet. */
export class RecyclingSocket extends Socket {
  /** What is being read, until somebody takes it. */
  #arrived: Uint8Array | undefined;

  constructor() {
    const onread: OnReadOpts = {
      buffer: Buffer.allocUnsafeSlow(READ_SIZE),
      callback: (length, buffer) => this.#receive(buffer.subarray(0, length)),
    };
    super({ onread } as SocketConstructorOpts); // documented for whoever connects, which is the same options
  }

  // biome-ignore lint/suspicious/noExplicitAny: as the class above declares it
  override read(size?: number): any {
    const arrived = this.#arrived;
    if (arrived === undefined || size !== undefined) return super.read(size);
    this.#arrived = undefined;
    return arrived;
  }

  override unshift(chunk: Uint8Array): void {
    super.unshift(Buffer.from(chunk));
  }

  /** Whether to go on reading. */
  #receive(bytes: Uint8Array): boolean {
    if (bytes.length > 2 * MAX_HEAD && this.readableLength === 0) {
      this.#arrived = bytes;
      this.emit("readable");
      if (this.#arrived === undefined) return true;
      this.#arrived = undefined; // nobody has taken it: then it is kept, as streams do
    }
    return this.push(Buffer.from(bytes));
  }
}
