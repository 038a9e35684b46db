/** Which requests a server refuses before its device hears of them: what the protocol, and the agreement, forbid. */
import { blockSizesOf, isReadOnly } from "./export.ts";
import type { Session } from "./handshake.ts";
import { Command, CommandFlag, NbdErrno } from "./protocol.ts";
import type { Request } from "./transmission-codec.ts";

/** The flags that each command may have besides FUA. */
const FLAGS = new Map<number, number>([
  [Command.read, CommandFlag.df],
  [Command.write, 0],
  [Command.flush, 0],
  [Command.trim, 0],
  [Command.cache, 0],
  [Command.writeZeroes, CommandFlag.noHole + CommandFlag.fastZero],
  [Command.blockStatus, CommandFlag.requestOne],
]);

/** Why a request is refused. */
export interface Refusal {
  /** The protocol's number. */
  errno: number;
  /** For people. */
  text: string;
}

/** What the requests of one connection have to keep to. */
export class RequestRules {
  readonly #size: number;
  readonly #structured: boolean;
  readonly #readOnly: boolean;
  readonly #maximum: number;
  /** What offsets and lengths have to be multiples of. */
  readonly #alignment: number;
  readonly #hasContexts: boolean;

  constructor({ served, structured, knowsBlockSizes, contexts }: Session) {
    const sizes = blockSizesOf(served);
    this.#size = served.device.size;
    this.#structured = structured;
    this.#readOnly = isReadOnly(served);
    this.#maximum = sizes.maximum;
    this.#alignment = knowsBlockSizes ? sizes.minimum : 1;
    this.#hasContexts = contexts.length > 0;
  }

  /** Why the request cannot be done, or undefined. Not for NBD_CMD_DISC, which is no request for anything. */
  refusal(request: Request): Refusal | undefined {
    const { type, flags, offset, length } = request;
    const allowed = FLAGS.get(type);
    if (allowed === undefined) return invalid(`command ${type} is not known`);
    if (!this.#flagsFit(request, allowed)) return invalid(`command ${type} has no flags ${flags}`);
    if (type === Command.flush) return undefined;
    const changes = type === Command.write || type === Command.trim || type === Command.writeZeroes;
    if (changes && this.#readOnly) return { errno: NbdErrno.EPERM, text: "the export is read-only" };
    const hasPayload = type === Command.read || type === Command.write;
    if (hasPayload && length > this.#maximum) {
      return invalid(`${length} bytes are more than the ${this.#maximum} of one request`);
    }
    if (offset + length > this.#size) {
      const errno = type === Command.write || type === Command.writeZeroes ? NbdErrno.ENOSPC : NbdErrno.EINVAL;
      return { errno, text: `the export ends at ${this.#size}` };
    }
    if (this.#alignment > 1 && (offset % this.#alignment > 0 || length % this.#alignment > 0)) {
      return invalid(`offset or length is no multiple of ${this.#alignment}`);
    }
    if (type === Command.blockStatus && (!this.#hasContexts || length === 0)) {
      return invalid("no block status was negotiated, or of no bytes");
    }
    return undefined;
  }

  #flagsFit({ type, flags }: Request, allowed: number): boolean {
    if (flags <= CommandFlag.fua) return true; // what nearly all have
    const known = type === Command.read && !this.#structured ? 0 : allowed;
    return (flags & ~(known | CommandFlag.fua)) === 0;
  }
}

function invalid(text: string): Refusal {
  return { errno: NbdErrno.EINVAL, text };
}
