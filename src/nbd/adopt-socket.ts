import { Socket } from "node:net";

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
}

/**
 * Gives an accepted socket, from which nothing was read yet (`pauseOnConnect`), a new life as one that reads into buffers
 * of ours: `onread` is an option of a socket's constructor only, and a server constructs its sockets itself. Without it
 * every read costs a buffer of 64 KiB. Undefined where this Node has no such handle: then `data` events have to do.
 */
export function adoptSocket(accepted: Socket, target: SocketTarget): Socket | undefined {
  const holder = accepted as unknown as { _handle: (Handle & object) | null };
  const handle = holder._handle;
  if (handle === null || typeof handle?.useUserBuffer !== "function") return undefined;
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
