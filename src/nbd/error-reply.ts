/** What a failure is called on the wire. */
import { CloneError, errnoOf } from "../base/errors.ts";
import { NbdErrno } from "./protocol.ts";

const ERRNO = new Map<string, number>([
  ["EPERM", NbdErrno.EPERM],
  ["EROFS", NbdErrno.EPERM],
  ["ENOMEM", NbdErrno.ENOMEM],
  ["EINVAL", NbdErrno.EINVAL],
  ["ENOSPC", NbdErrno.ENOSPC],
  ["EDQUOT", NbdErrno.ENOSPC],
  ["EFBIG", NbdErrno.ENOSPC],
  ["EOVERFLOW", NbdErrno.EOVERFLOW],
  ["ESHUTDOWN", NbdErrno.ESHUTDOWN],
]);

/**
 * The number and the text that tell a client why its request failed. ENOTSUP is the answer to a fast zero that cannot be
 * fast, and to nothing else (NBD_CMD_FLAG_FAST_ZERO): a client may take it for "try the slow way".
 */
export function describeFailure(error: unknown, { fast = false } = {}): { errno: number; text: string } {
  const errno = errnoOf(error);
  const text = error instanceof CloneError ? error.message : "the server failed";
  if (fast && (errno === "ENOTSUP" || errno === "EOPNOTSUPP")) return { errno: NbdErrno.ENOTSUP, text };
  return { errno: (errno === undefined ? undefined : ERRNO.get(errno)) ?? NbdErrno.EIO, text };
}
