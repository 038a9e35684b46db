/** How errors travel over the control socket. */
import { CloneError, type CloneErrorCode } from "../base/errors.ts";

/** The body of an answer that is no success. */
export interface ErrorBody {
  error: string;
  code: CloneErrorCode;
  hint: string | null;
}

/** A request that is wrong as HTTP, before it reaches the clone. */
export class HttpError extends CloneError {
  override readonly name = "HttpError";
  /** The HTTP status to answer with. */
  readonly status: number;

  constructor(status: number, message: string, hint?: string) {
    super("usage", message, hint === undefined ? {} : { hint });
    this.status = status;
  }
}

const OF_CODE: Record<CloneErrorCode, number> = { usage: 400, busy: 409, differs: 409, damaged: 500, failed: 500 };

/** The HTTP status that an error is answered with. */
export function statusOf(error: unknown): number {
  if (error instanceof HttpError) return error.status;
  return error instanceof CloneError ? OF_CODE[error.code] : 500;
}
