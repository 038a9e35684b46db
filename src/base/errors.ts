/**
 * The errors this program reports to people. `code` is the contract with callers and with `cli/exit-codes.ts`,
 * `message` is one sentence for people (`Cannot X: Y`), `cause` keeps what was caught. A caller's mistake is a
 * TypeError or RangeError instead, and a broken invariant an AssertionError: neither is ever caught.
 */

/**
 * What kind of failure it was, as far as somebody can act on it:
 *
 * - `failed`: I/O, network, no space, a file that does not exist, a source that changed, not yet hydrated
 * - `usage`: an argument that cannot work
 * - `damaged`: the metadata is damaged, or is no clone's metadata
 * - `busy`: in use by another process
 * - `differs`: a comparison ran to its end and found a difference
 */
export type CloneErrorCode = "failed" | "usage" | "damaged" | "busy" | "differs";

/** What all operating errors accept. `hint` is a second line: what the user can do about it. */
export interface CloneErrorOptions extends ErrorOptions {
  hint?: string;
}

/** An operating error: something outside the program is not as it has to be. */
export class CloneError extends Error {
  override readonly name: string = "CloneError";
  /** What the user can do about it, or undefined. */
  readonly hint: string | undefined;
  readonly code: CloneErrorCode;

  constructor(code: CloneErrorCode, message: string, options: CloneErrorOptions = {}) {
    super(message, options);
    this.code = code;
    this.hint = options.hint;
  }
}

/** Where and why a device refused an operation. `errno` is the symbolic name, as `EIO`. Units: bytes. */
export interface DeviceErrorOptions extends CloneErrorOptions {
  errno?: string | undefined;
  offset?: number;
  length?: number;
  /** See `DeviceError`. Default: what `errno` says. */
  away?: boolean | undefined;
}

/** Errnos of a device that cannot be reached: of a connection, not of bytes. */
const AWAY = new Set([
  "ECONNABORTED",
  "ECONNREFUSED",
  "ECONNRESET",
  "EHOSTDOWN",
  "EHOSTUNREACH",
  "ENETDOWN",
  "ENETRESET",
  "ENETUNREACH",
  "ENOTCONN",
  "EPIPE",
  "ETIMEDOUT",
]);

/** A device failed: `Cannot read 65536 bytes at 1048576 from "disk.img": EIO`. */
export class DeviceError extends CloneError {
  override readonly name = "DeviceError";
  readonly errno: string | undefined;
  readonly offset: number | undefined;
  readonly length: number | undefined;
  /**
   * The device as a whole cannot be reached at present, though it was called for as long as it should be: any other request
   * would fare the same, and it may be there again later. As opposed to bytes that cannot be read or written, which are
   * nobody's fault but their own.
   */
  readonly away: boolean;

  constructor(message: string, options: DeviceErrorOptions = {}) {
    super("failed", message, options);
    this.errno = options.errno;
    this.offset = options.offset;
    this.length = options.length;
    this.away = options.away ?? (options.errno !== undefined && AWAY.has(options.errno));
  }
}

/**
 * A device went away and came back, and what was written to it since its last flush may be lost; what was flushed is
 * there, and the device can be used again. Thrown by the writes that were under way, and by the next flush, once.
 */
export class LostWritesError extends DeviceError {}

/**
 * A source is not what it was when it was opened: another entity tag, size or time. Nothing that is read from it any more
 * may be mixed with what was read before, so it is final. `difference` is the end of a sentence about it.
 */
export class ChangedError extends DeviceError {
  readonly difference: string;

  constructor(message: string, options: DeviceErrorOptions & { difference: string }) {
    super(message, { errno: "ESTALE", ...options });
    this.difference = options.difference;
  }
}

/** The metadata is damaged, truncated or of another kind. `block` is the 4096-byte block that shows it. */
export class MetadataError extends CloneError {
  override readonly name = "MetadataError";
  readonly block: number | undefined;

  constructor(message: string, options: CloneErrorOptions & { block?: number } = {}) {
    super("damaged", message, options);
    this.block = options.block;
  }
}

/** An argument that cannot work, found before anything was changed. */
export class UsageError extends CloneError {
  override readonly name = "UsageError";

  constructor(message: string, options: CloneErrorOptions = {}) {
    super("usage", message, options);
  }
}

/** Another process uses the thing. `pid` is its process id where that could be found out. */
export class BusyError extends CloneError {
  override readonly name = "BusyError";
  readonly pid: number | undefined;

  constructor(message: string, options: CloneErrorOptions & { pid?: number | undefined } = {}) {
    super("busy", message, options);
    this.pid = options.pid;
  }
}

/** The same failure, with what else the user can do about it. */
export function withHint(error: CloneError, more: string): CloneError {
  const options = { cause: error, hint: error.hint === undefined ? more : `${error.hint} ${more}` };
  if (!(error instanceof DeviceError)) return new CloneError(error.code, error.message, options);
  const { message, errno, away, offset, length } = error;
  const where = { ...(offset === undefined ? {} : { offset }), ...(length === undefined ? {} : { length }) };
  return new DeviceError(message, { ...options, ...where, errno, away });
}

/** The symbolic errno (`ENOSPC`) of anything caught, or undefined where it has none. */
export function errnoOf(error: unknown): string | undefined {
  if (error instanceof DeviceError) return error.errno;
  if (error instanceof Error && "code" in error && typeof error.code === "string" && /^E[A-Z0-9]+$/.test(error.code)) {
    return error.code;
  }
  return undefined;
}
