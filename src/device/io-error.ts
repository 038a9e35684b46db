import { DeviceError } from "../base/errors.ts";

/** What was tried, on what, and the symbolic errno it ended with. Offsets and lengths are bytes. */
export interface IoFailure {
  /** `read`, `write`, `flush`, `zero`, … */
  verb: string;
  /** The device's name. */
  name: string;
  offset?: number | undefined;
  length?: number | undefined;
  errno: string;
  cause?: unknown;
  /** See `DeviceError`. */
  away?: boolean;
}

/** A device's failure in the words all devices use: `Cannot read 65536 bytes at 1048576 from "disk.img": EIO`. */
export function ioError({ verb, name, offset, length, errno, cause, away }: IoFailure): DeviceError {
  const where = {
    errno,
    cause,
    away,
    ...(offset === undefined ? {} : { offset }),
    ...(length === undefined ? {} : { length }),
  };
  if (offset === undefined || length === undefined) return new DeviceError(`Cannot ${verb} "${name}": ${errno}`, where);
  const preposition = { read: "from", write: "to" }[verb] ?? "of";
  return new DeviceError(`Cannot ${verb} ${length} bytes at ${offset} ${preposition} "${name}": ${errno}`, where);
}
