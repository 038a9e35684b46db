import { CloneError } from "../base/errors.ts";

/** The peer broke the NBD protocol: what it said cannot be answered, or cannot be understood. */
export class ProtocolError extends CloneError {
  override readonly name = "ProtocolError";

  constructor(message: string, options: ErrorOptions = {}) {
    super("failed", message, options);
  }
}
