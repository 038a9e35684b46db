/** What an error of the source says about asking again. */
import { ChangedError, DeviceError } from "../base/errors.ts";

/**
 * The source itself is gone, refused, is another one, or does not keep to its protocol (EPROTO): whatever else is asked of it
 * ends in the same way.
 */
const SOURCE_GONE = new Set([
  "EACCES",
  "EBADF",
  "ENODEV",
  "ENOENT",
  "ENOMEDIUM",
  "ENXIO",
  "EPERM",
  "EPROTO",
  "ESHUTDOWN",
  "ESTALE",
]);

/**
 * There is nothing any more by that name, or behind it. No medium (ENOMEDIUM), no right to it (EACCES, EPERM), another one or
 * a server that ends (ESTALE, ESHUTDOWN) say only that it is not to be had at present.
 */
const GONE_FOR_GOOD = new Set(["ENODEV", "ENOENT", "ENXIO"]);

/**
 * Whether an error says that there is no source any more, so that what is missing can be had from nowhere: a file that does not
 * exist, a device that was taken out, an object that its server does not know. Whoever is away may come back.
 */
export function isGoneForGood(error: unknown): boolean {
  return error instanceof DeviceError && !error.away && GONE_FOR_GOOD.has(error.errno ?? "");
}

/** Whether the source will not be as it was by itself. */
export function isSourceGone(error: DeviceError): boolean {
  return error instanceof ChangedError || (error.errno !== undefined && SOURCE_GONE.has(error.errno));
}

/**
 * Whether an error is of the source as a whole, and not of the bytes that were asked for: it is gone, or away, and was called
 * for as long as it should be. Trying region after region would only waste hours, and list them all as unreadable.
 */
export function isOfWholeSource(error: DeviceError): boolean {
  return error.away || isSourceGone(error);
}

/** Whether these bytes alone cannot be read, as opposed to a device that is gone, away or another one. */
export function isUnreadable(error: unknown): error is DeviceError {
  return error instanceof DeviceError && !isOfWholeSource(error);
}

/** Whether the same question may well be answered a moment later. What is no error of a device is not the device's. */
export function isTransient(error: unknown): error is DeviceError {
  return error instanceof DeviceError && !isSourceGone(error);
}

const FIRST_PAUSE_MS = 50;
const LONGEST_PAUSE_MS = 5000;

/**
 * How long to wait before trying again what somebody waits for, ms: 50, 100, 200, … `attempt` counts from 0, `random` is
 * from 0 to 1. Up to half of it is left to chance, or all who failed together would ask together.
 */
export function retryPauseMs(attempt: number, random: number): number {
  return Math.min(FIRST_PAUSE_MS * 2 ** attempt, LONGEST_PAUSE_MS) * (0.5 + random / 2);
}
