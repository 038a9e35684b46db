/** What becomes of a request that fails, in the words of all devices: `Cannot read 512 bytes at 0 from "nbd://…": EIO`. */
import { ChangedError, DeviceError, LostWritesError } from "../../base/errors.ts";
import { ioError } from "../../device/io-error.ts";
import { UnreachableError } from "./connection-pool.ts";
import { ConnectionLostError, ServerError } from "./handshake-error.ts";

/** A request, as a message names it; a flush is of no range. Bytes. */
export interface RequestName {
  /** `read`, `write`, `zero`, … */
  readonly verb: string;
  readonly offset?: number;
  readonly length?: number;
}

/** Makes errors of one device. */
export class RequestFailures {
  readonly #name: string;
  readonly #changed: () => string | undefined;

  /** @param changed how the export has changed, if it has: then that is why everything fails */
  constructor(name: string, changed: () => string | undefined) {
    this.#name = name;
    this.#changed = changed;
  }

  /** The error of a request that was not done, from what a connection or the pool has thrown. */
  of(request: RequestName, cause: unknown): unknown {
    const { verb, offset, length } = request;
    if (cause instanceof ServerError) {
      const { errno, message: words } = cause;
      const plain = ioError({ verb, name: this.#name, offset, length, errno, cause, away: false });
      if (words === "") return plain;
      const message = `${plain.message} (the server says: ${words})`;
      return new DeviceError(message, { errno, cause, away: false, ...whereOf(request) });
    }
    if (!(cause instanceof ConnectionLostError)) return cause;
    const difference = this.#changed();
    const what = `Cannot ${this.#whatOf(request)}: ${difference ?? cause.message}`;
    if (difference !== undefined) return new ChangedError(what, { difference, cause, ...whereOf(request) });
    // Who breaks the protocol at one request may do well at the next; who is called no more for it does not.
    const away = cause instanceof UnreachableError || cause.errno !== "EPROTO";
    return new DeviceError(what, { errno: cause.errno, away, cause, ...whereOf(request) });
  }

  /** The error of a change of which nobody knows what became of it, or of a flush that cannot vouch for all before it. */
  lost(request: RequestName, cause?: unknown): LostWritesError {
    const why = cause instanceof Error ? ` (${cause.message})` : "";
    const what = `Cannot ${this.#whatOf(request)}: the connection was lost${why}, and with it perhaps what was written`;
    const errno = cause instanceof ConnectionLostError ? cause.errno : "ECONNRESET";
    // It may be there again by now, and what was to be written can be written again.
    return new LostWritesError(what, { errno, away: false, cause, ...whereOf(request) });
  }

  #whatOf({ verb, offset, length }: RequestName): string {
    if (offset === undefined) return `${verb} "${this.#name}"`;
    const preposition = { read: "from", write: "to" }[verb] ?? "of";
    return `${verb} ${length} bytes at ${offset} ${preposition} "${this.#name}"`;
  }
}

function whereOf({ offset, length }: RequestName): { offset?: number; length?: number } {
  return offset === undefined || length === undefined ? {} : { offset, length };
}
