import { CloneError, type CloneErrorOptions } from "../../base/errors.ts";

/**
 * A server is not there, or does not give what it is asked for, and says so. `message` is the end of a sentence: whoever
 * knows which device it was about makes a whole one of it.
 */
export class HandshakeError extends CloneError {
  /** The symbolic errno, where the system gave one. */
  readonly errno: string | undefined;

  constructor(reason: string, { errno, ...options }: CloneErrorOptions & { errno?: string | undefined } = {}) {
    super("failed", reason, options);
    this.errno = errno;
  }
}

/** A connection is gone, and with it every answer that was still to come. `message` is the end of a sentence. */
export class ConnectionLostError extends CloneError {
  readonly errno: string;

  constructor(reason: string, { errno = "ECONNRESET", ...options }: CloneErrorOptions & { errno?: string } = {}) {
    super("failed", reason, options);
    this.errno = errno;
  }
}

/** A server did not do a request, and says why. */
export class ServerError extends CloneError {
  /** As the system calls it: `EIO`. */
  readonly errno: string;

  constructor(errno: string, text: string) {
    super("failed", text);
    this.errno = errno;
  }
}
