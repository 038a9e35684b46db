/** The exit codes, and the only place that gives them. clone(1) lists them. */
import { CloneError, type CloneErrorCode } from "../base/errors.ts";

/** What a caller of the program can tell from its exit code. */
export const ExitCode = {
  done: 0,
  failed: 1,
  usage: 2,
  damaged: 3,
  busy: 4,
  unreadable: 5,
  interrupted: 130,
  terminated: 143,
} as const;

/** One of the exit codes. */
export type ExitCode = (typeof ExitCode)[keyof typeof ExitCode];

const OF_ERROR: Record<CloneErrorCode, ExitCode> = {
  failed: ExitCode.failed,
  usage: ExitCode.usage,
  damaged: ExitCode.damaged,
  busy: ExitCode.busy,
  differs: ExitCode.failed,
};

/** The exit code for whatever was thrown: a programming error counts as failed. */
export function exitCodeOf(error: unknown): ExitCode {
  return error instanceof CloneError ? OF_ERROR[error.code] : ExitCode.failed;
}
