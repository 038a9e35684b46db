/**
 * Mutations of messages: what makes a decoder trip. A message is taken apart without knowing its format, so that every
 * target has the same ones: bits, bytes, numbers in either order of bytes, numbers in decimal, lengths that lie, pieces left
 * out, said twice, taken from another message, or put in from a dictionary.
 */
import type { SeededRandom } from "../support/random.ts";

/** Values at which something begins, ends or overflows. */
const INTERESTING = [
  ...[0, 1, 2, 3, 7, 8, 15, 16, 63, 64, 100, 127, 128, 254, 255, 256, 511, 512, 513, 1023, 1024, 4095, 4096, 4097],
  ...[32767, 32768, 65535, 65536, 2 ** 20, 2 ** 24, 2 ** 25, 2 ** 25 + 1, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1],
  ...[2 ** 32, 2 ** 53 - 1, 2 ** 53, 2 ** 63, 2 ** 64 - 1024],
];
/** The same and others, as text has them. */
const INTERESTING_TEXT = [
  ...INTERESTING.map((value) => BigInt(value).toString()),
  ...["-1", "00", "+1", "1e9", "1e400", "0x10", "NaN", "Infinity", "18446744073709551615", "18446744073709551616"],
  ...["9007199254740993", "99999999999999999999999999999999999999", "", "1.5", "٣", "1_000", " 1"],
];
/** What means something in one of the languages that are read here, and what does not belong into any. */
const TOKENS = [
  ...["\0", "\n", "\r\n", "\t", " ", "  ", "\v", "\u001b[2J", "\u0085", "\u00a0", "\u2028", "\ufeff", "\u202e", "…"],
  ...[
    "%00",
    "%0a",
    "%",
    "%zz",
    "%ff",
    "%2e%2e%2f",
    "%25",
    "../",
    "./",
    "/",
    "//",
    "\\",
    "\\\\",
    ":",
    "::",
    "@",
    "#",
    "?",
  ],
  ...["&", "=", ";", ",", '"', "'", "`", "[", "]", "{", "}", "<", ">", "|", "$(x)", "*", "~", "-", "--", "+", "."],
  ...["__proto__", "constructor", "toString", "hasOwnProperty", "null", "true", "undefined"],
  ...["é", "ß", "İ", "\u{1f600}", "\ud800", "A\u0301"],
];
/** Messages do not grow beyond this by mutation, bytes. */
const LONGEST = 262_144;

/** What else messages of a kind are made of. */
export interface MutationMaterial {
  /** Other good messages, to splice in. */
  others?: readonly Buffer[];
  /** Words of the language. */
  dictionary?: readonly string[];
  /** Whether the message is text: then bytes above 127 are put in as characters. */
  isText?: boolean;
}

/** A message with one to five mutations; the message itself stays as it is. */
export function mutate(message: Buffer, random: SeededRandom, material: MutationMaterial = {}): Buffer {
  let bytes: Buffer = Buffer.from(message);
  for (let count = random.oneIn(3) ? random.integer(2, 5) : 1; count > 0; count--) {
    const changed = mutateOnce(bytes, random, material);
    bytes = changed.length > LONGEST ? changed.subarray(0, LONGEST) : changed;
  }
  return bytes;
}

function mutateOnce(bytes: Buffer, random: SeededRandom, material: MutationMaterial): Buffer {
  const kinds = material.isText ? TEXT_MUTATIONS : BYTE_MUTATIONS;
  return random.pick(kinds)(bytes, random, material);
}

type Mutation = (bytes: Buffer, random: SeededRandom, material: MutationMaterial) => Buffer;

/** A place in a message; its beginning, where headers are, comes more often. */
function place(bytes: Buffer, random: SeededRandom): number {
  if (bytes.length === 0) return 0;
  const end = random.oneIn(3) ? Math.min(bytes.length, 64) : bytes.length;
  return random.integer(0, end - 1);
}

/** A piece of a message, mostly a short one. */
function piece(bytes: Buffer, random: SeededRandom): [start: number, end: number] {
  const start = place(bytes, random);
  const most = random.oneIn(4) ? bytes.length : 16;
  return [start, Math.min(bytes.length, start + random.integer(1, Math.max(1, most)))];
}

function spliced(bytes: Buffer, start: number, end: number, inserted: Uint8Array): Buffer {
  return Buffer.concat([bytes.subarray(0, start), inserted, bytes.subarray(end)]);
}

const flipBit: Mutation = (bytes, random) => {
  const at = place(bytes, random);
  if (at < bytes.length) bytes[at] = (bytes[at] as number) ^ (1 << random.integer(0, 7));
  return bytes;
};

const setByte: Mutation = (bytes, random) => {
  const at = place(bytes, random);
  if (at < bytes.length) bytes[at] = random.oneIn(3) ? random.integer(0, 255) : random.pick([0, 1, 0x7f, 0x80, 0xff]);
  return bytes;
};

/** A number of 2, 4 or 8 bytes; of one that is there, a near one: lengths that lie by a little. */
const setNumber: Mutation = (bytes, random) => {
  const width = random.pick([2, 4, 8]);
  if (bytes.length < width) return bytes;
  const at = Math.min(place(bytes, random), bytes.length - width);
  const start = random.oneIn(2) ? at - (at % width) : at;
  const limit = 2n ** BigInt(8 * width);
  const isLittle = random.oneIn(2);
  const field = bytes.subarray(start, start + width);
  const before = BigInt(`0x${Buffer.from(isLittle ? field.toReversed() : field).toString("hex")}`);
  const wanted = random.oneIn(2)
    ? BigInt(random.pick(INTERESTING))
    : before + BigInt(random.pick([-512, -8, -4, -2, -1, 1, 2, 4, 8, 512]));
  const hex = (((wanted % limit) + limit) % limit).toString(16).padStart(2 * width, "0");
  const written = Buffer.from(hex, "hex");
  field.set(isLittle ? written.reverse() : written);
  return bytes;
};

const remove: Mutation = (bytes, random) => spliced(bytes, ...piece(bytes, random), new Uint8Array(0));

const repeat: Mutation = (bytes, random) => {
  const [start, end] = piece(bytes, random);
  const times = random.oneIn(8) ? random.integer(2, 300) : 1;
  return spliced(bytes, end, end, Buffer.concat(Array.from({ length: times }, () => bytes.subarray(start, end))));
};

const truncate: Mutation = (bytes, random) => bytes.subarray(0, random.integer(0, bytes.length));

const swap: Mutation = (bytes, random) => {
  const [start, middle] = piece(bytes, random);
  const end = Math.min(bytes.length, middle + random.integer(1, 16));
  return Buffer.concat([
    bytes.subarray(0, start),
    bytes.subarray(middle, end),
    bytes.subarray(start, middle),
    bytes.subarray(end),
  ]);
};

const noise: Mutation = (bytes, random) => {
  const inserted = Buffer.from(Array.from({ length: random.integer(1, 24) }, () => random.integer(0, 255)));
  const at = place(bytes, random);
  return spliced(bytes, at, random.oneIn(2) ? at : Math.min(bytes.length, at + inserted.length), inserted);
};

const splice: Mutation = (bytes, random, { others = [] }) => {
  if (others.length === 0) return repeat(bytes, random, {});
  const other = random.pick(others);
  const [start, end] = piece(bytes, random);
  const [from, to] = random.oneIn(2) ? piece(other, random) : [place(other, random), other.length];
  return spliced(bytes, start, random.oneIn(2) ? end : bytes.length, other.subarray(from, to));
};

const insertToken: Mutation = (bytes, random, { dictionary = [] }) => {
  const token = Buffer.from(random.pick(dictionary.length > 0 && random.oneIn(2) ? dictionary : TOKENS));
  const [start, end] = piece(bytes, random);
  const times = random.oneIn(20) ? random.integer(2, 2000) : 1;
  const inserted = times === 1 ? token : Buffer.concat(Array.from({ length: times }, () => token));
  return spliced(bytes, start, random.oneIn(2) ? start : end, inserted);
};

/** Another number in place of one that stands there in decimal. */
const setDecimal: Mutation = (bytes, random) => {
  const numbers = [...bytes.toString("latin1").slice(0, 65_536).matchAll(/\d+/g)];
  if (numbers.length === 0) return insertToken(bytes, random, { dictionary: INTERESTING_TEXT });
  const found = random.pick(numbers);
  return spliced(bytes, found.index, found.index + found[0].length, Buffer.from(random.pick(INTERESTING_TEXT)));
};

const toggleCase: Mutation = (bytes, random) => {
  const [start, end] = piece(bytes, random);
  for (let at = start; at < end; at++) {
    const byte = bytes[at] as number;
    if ((byte >= 65 && byte <= 90) || (byte >= 97 && byte <= 122)) bytes[at] = byte ^ 32;
  }
  return bytes;
};

const BYTE_MUTATIONS: readonly Mutation[] = [
  ...[flipBit, setByte, setNumber, setNumber, setNumber, remove, repeat, truncate, swap, noise, splice],
  ...[insertToken, setDecimal],
];
const TEXT_MUTATIONS: readonly Mutation[] = [
  ...[insertToken, insertToken, insertToken, setDecimal, setDecimal, remove, remove, repeat, swap, splice, splice],
  ...[truncate, toggleCase, flipBit, noise],
];
