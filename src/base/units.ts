/**
 * Sizes and rates as people write and read them. A bare suffix is a power of 1024, as qemu, nbdkit and lvm take it; `KB`
 * and its kin are powers of 1000; `s` counts 512-byte sectors.
 */

const FACTORS: ReadonlyMap<string, number> = new Map([
  ["", 1],
  ["b", 1],
  ["s", 512],
  ...["k", "m", "g", "t", "p"].flatMap((letter, index): [string, number][] => [
    [letter, 1024 ** (index + 1)],
    [`${letter}ib`, 1024 ** (index + 1)],
    [`${letter}b`, 1000 ** (index + 1)],
  ]),
]);

/**
 * Bytes from text such as `65536`, `64K`, `64KiB`, `1MB` or `128s`; case does not matter.
 * @throws {RangeError} saying what is wrong, without naming the option it stood at.
 */
export function parseSize(text: string): number {
  const match = /^(\d+)([a-z]*)$/i.exec(text.trim());
  const factor = match === null ? undefined : FACTORS.get((match[2] ?? "").toLowerCase());
  if (match === null || factor === undefined) {
    throw new RangeError(`"${text}" is not a size (a whole number, then nothing, B, s, K, M, G, T, P or KB, MB, …)`);
  }
  const bytes = Number(match[1]) * factor;
  if (!Number.isSafeInteger(bytes)) throw new RangeError(`"${text}" is too large`);
  return bytes;
}

/**
 * Bytes per second from `100M`, `100M/s`, or null (unlimited) from `0` and `max`.
 * @throws {RangeError} saying what is wrong, without naming the option it stood at.
 */
export function parseRate(text: string): number | null {
  const trimmed = text.trim().replace(/\/s$/i, "");
  if (trimmed.toLowerCase() === "max") return null;
  try {
    return parseSize(trimmed) || null;
  } catch {
    throw new RangeError(`"${text}" is not a rate (bytes per second, as 100M or 100M/s; 0 or max is unlimited)`);
  }
}

const BINARY_UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/** Bytes for people, three figures and a binary unit: `1.50 GiB`, `64.0 KiB`, `512 B`. */
export function formatSize(bytes: number): string {
  let value = bytes;
  let unit = 0;
  // 1023.5 would print as "1024": the next unit starts there.
  while (value >= (unit === 0 ? 1024 : 1023.5) && unit < BINARY_UNITS.length - 1) {
    value /= 1024;
    unit++;
  }
  const digits = unit === 0 ? 0 : value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
  return `${value.toFixed(digits)} ${BINARY_UNITS[unit]}`;
}

/** A size for a command line, exact, with the largest suffix that divides it: `64K`, `1G`, `1000`. */
export function formatExactSize(bytes: number): string {
  const suffixes = ["", "K", "M", "G", "T", "P"];
  let value = bytes;
  let unit = 0;
  while (value > 0 && value % 1024 === 0 && unit < suffixes.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${value}${suffixes[unit]}`;
}

/** How long something took, for people: `0.8 s`, and from a minute on as `formatDuration`. */
export function formatElapsed(seconds: number): string {
  return seconds < 59.95 ? `${seconds.toFixed(1)} s` : formatDuration(seconds);
}

/** Seconds for people: `0:07`, `12:34`, `3:25:07`, `2d 03:25:07`. */
export function formatDuration(seconds: number): string {
  const total = Math.round(seconds);
  const two = (value: number): string => String(value).padStart(2, "0");
  const days = Math.floor(total / 86400);
  const hours = Math.floor((total % 86400) / 3600);
  const minutes = Math.floor((total % 3600) / 60);
  if (days > 0) return `${days}d ${two(hours)}:${two(minutes)}:${two(total % 60)}`;
  if (hours > 0) return `${hours}:${two(minutes)}:${two(total % 60)}`;
  return `${minutes}:${two(total % 60)}`;
}
