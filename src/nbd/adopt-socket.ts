import { Socket } from "node:net";
import { wishSendBuffer } from "../device/libc.ts";

/** Where a socket's bytes go. */
export interface SocketTarget {
  /** Where the next bytes are to be written. */
  next(): Uint8Array;
  /** They were written there; false to read no more until the socket's `resume()`. */
  received(count: number, where: Uint8Array): boolean;
}

/** What a handle of Node has where `onread` works with it. */
interface Handle {
  useUserBuffer(buffer: Uint8Array): void;
  readonly fd: number;
}

/**
 * What a unix socket may hold for its client, bytes; the kernel doubles it. By itself that is 208 KiB in all, so that a reply of
 * 256 KiB takes two turns with a wait for the client in between, and a fifth more processor time.
 */
const SEND_BUFFER = 2 ** 18;

/**
 * Gives an accepted socket, from which nothing was read yet (`pauseOnConnect`), a new life as one that reads into buffers
 * of ours: `onread` is an option of a socket's constructor only, and a server constructs its sockets itself. Without it
 * every read costs a buffer of 64 KiB. Undefined where this Node has no such handle: then `data` events have to do.
 */
export function adoptSocket(accepted: Socket, target: SocketTarget): Socket | undefined {
  const holder = accepted as unknown as { _handle: (Handle & object) | null };
  const handle = holder._handle;
  if (handle === null || typeof handle?.useUserBuffer !== "function") return undefined;
  if (accepted.remoteAddress === undefined && handle.fd >= 0) wishSendBuffer(handle.fd, SEND_BUFFER); // no TCP
  const options = {
    handle,
    allowHalfOpen: true,
    onread: {
      buffer: () => target.next(),
      callback: (count: number, where: Uint8Array) => target.received(count, where),
    },
  };
  const socket = new Socket(options as ConstructorParameters<typeof Socket>[0]);
  holder._handle = null; // the handle has one owner, and its server is told that the old one is gone
  accepted.destroy();
  return socket;
}
