/**
 * Reads what `dumpMetadata` prints, as a stream: 2^31 regions can be millions of ranges, of which none is kept but as bits.
 *
 *     bytes ─► Tokenizer ─► token by token into a generator that descends through the one shape that a dump has
 *
 * A dump is untrusted. Everything is held against what `dump` promises: names once each, integers, ranges ascending and
 * within the clone, the number of regions that the sizes make, nothing left out, nothing more, nothing behind it. Memory is
 * bounded by the bits and the descriptor, whatever the text holds.
 */
import { type ParsedTokenInfo, Tokenizer, TokenizerError, TokenType } from "@streamparser/json";
import { MetadataError } from "../base/errors.ts";
import { Geometry, MAX_REGION_COUNT } from "../base/geometry.ts";
import { type Descriptor, descriptorFromJson } from "./descriptor.ts";
import { DUMP_FORMAT } from "./dump.ts";
import { RegionBitmap } from "./region-bitmap.ts";
import { hasSuperblockMagic } from "./superblock.ts";

/** What a dump says. */
export interface RestoredDump {
  geometry: Geometry;
  /** The hydrated regions. */
  bits: RegionBitmap;
  descriptor: Descriptor | null;
}

/** Bytes without a token after which this is no dump: no string of one is as long. */
const MAX_TOKEN_BYTES = 2 ** 20;
/** Bytes handed to the tokenizer at a time. */
const PIECE_BYTES = 65536;
/** Tokens and characters of strings that a descriptor may have: more than fits a slot, and some white space. */
const MAX_DESCRIPTOR_LENGTH = 2 ** 18;
/** As `descriptorFromJson` allows. */
const MAX_DESCRIPTOR_DEPTH = 32;

/** A parser that is handed a token wherever it yields. */
type Parser<Result> = Generator<undefined, Result, ParsedTokenInfo>;

/**
 * Reads a dump to its end.
 *
 * @param pieces the text, UTF-8, in pieces of any size
 * @param name of the file, for messages
 * @throws {MetadataError} saying what is not as in a dump, and near which byte
 * @throws whatever `pieces` throws
 */
export async function readDump(pieces: AsyncIterable<Uint8Array>, name: string): Promise<RestoredDump> {
  const reader = new DumpReader(name);
  for await (const piece of pieces) {
    for (let at = 0; at < piece.length; at += PIECE_BYTES) reader.write(piece.subarray(at, at + PIECE_BYTES));
  }
  return reader.end();
}

/** What is wrong with a dump, a sentence's end. */
class Refusal extends Error {}

/** Fields of a dump that are integers, with the largest they can be. */
const INTEGERS = { format: 2 ** 31, size: Number.MAX_SAFE_INTEGER, regionSize: 2 ** 31, regions: MAX_REGION_COUNT };
type IntegerField = keyof typeof INTEGERS;

class DumpReader {
  readonly #name: string;
  readonly #tokenizer = new Tokenizer();
  readonly #parser: Parser<RestoredDump>;
  #result: RestoredDump | undefined;
  #start = new Uint8Array(0);
  /** Bytes taken in, and how many of them up to the last token. */
  #read = 0;
  #lastToken = 0;

  readonly #integers = new Map<IntegerField, number>();
  #bits: RegionBitmap | undefined;
  /** The end of the last range. */
  #hydratedEnd = 0;
  #descriptor: unknown;

  constructor(name: string) {
    this.#name = name;
    this.#parser = this.#dump();
    this.#parser.next();
    this.#tokenizer.onToken = (token) => this.#take(token);
  }

  write(piece: Uint8Array): void {
    if (this.#start.length < 64) this.#start = Uint8Array.from([...this.#start, ...piece.subarray(0, 64)]);
    this.#guard(() => this.#tokenizer.write(piece));
    this.#read += piece.length;
    if (this.#read - this.#lastToken > MAX_TOKEN_BYTES) this.#fail("it goes on for ever without an end of a word");
  }

  end(): RestoredDump {
    if (this.#result === undefined) this.#fail("it ends too early", this.#read);
    this.#guard(() => this.#tokenizer.end()); // a number behind the end is only now one
    return this.#result;
  }

  #take(token: ParsedTokenInfo): void {
    this.#lastToken = token.offset;
    if (this.#result !== undefined) throw new Refusal("something follows its end");
    const { done, value } = this.#parser.next(token);
    if (done === true) this.#result = value;
  }

  #guard(step: () => void): void {
    try {
      step();
    } catch (error) {
      if (error instanceof Refusal) this.#fail(error.message);
      if (!(error instanceof TokenizerError || isNotUtf8(error))) throw error;
      if (hasSuperblockMagic(this.#start)) {
        throw new MetadataError(`Cannot restore "${this.#name}": it is metadata itself, not a dump of it`, {
          hint: "`clone dump` prints it as the text that is read here.",
        });
      }
      this.#fail("it is no JSON");
    }
  }

  #fail(why: string, at = Math.max(this.#lastToken, 0)): never {
    throw new MetadataError(`Cannot restore "${this.#name}": ${why} (near byte ${at})`, {
      hint: "Only what `clone dump` prints can be restored.",
    });
  }

  *#dump(): Parser<RestoredDump> {
    const self = this;
    expect(yield, TokenType.LEFT_BRACE, "an object");
    const names = yield* members(function* (name): Parser<void> {
      if (Object.hasOwn(INTEGERS, name)) self.#setInteger(name as IntegerField, expectInteger(yield, name));
      else if (name === "hydrated") yield* self.#hydrated();
      else if (name === "descriptor") self.#descriptor = yield* value(yield, { length: 0 }, 0);
      else throw new Refusal(`its field ${JSON.stringify(name.slice(0, 40))} is not known here`);
    });
    for (const name of [...Object.keys(INTEGERS), "hydrated", "descriptor"]) {
      if (!names.has(name)) throw new Refusal(`it has no field "${name}"`);
    }
    const geometry = this.#geometry();
    if (geometry === undefined || this.#bits === undefined) throw new Refusal("it has no sizes");
    const regions = this.#integers.get("regions");
    if (regions !== geometry.regionCount) {
      throw new Refusal(`it says there are ${regions} regions, where its sizes make ${geometry.regionCount}`);
    }
    if (this.#hydratedEnd > geometry.regionCount) {
      throw new Refusal(
        `its last hydrated range ends at ${this.#hydratedEnd}, behind region ${geometry.regionCount - 1}`,
      );
    }
    const wide = this.#bits;
    const bits = wide.size === geometry.regionCount ? wide : wide.narrowedTo(geometry.regionCount);
    return { geometry, bits, descriptor: readDescriptor(this.#descriptor, geometry) };
  }

  #setInteger(name: IntegerField, number: number): void {
    if (number > INTEGERS[name]) throw new Refusal(`its ${name} is ${number}`);
    if (name === "format" && number !== DUMP_FORMAT) {
      throw new Refusal(`it has format ${number}, this program knows ${DUMP_FORMAT}`);
    }
    this.#integers.set(name, number);
  }

  /** Undefined as long as not both sizes are known. */
  #geometry(): Geometry | undefined {
    const [size, regionSize] = [this.#integers.get("size"), this.#integers.get("regionSize")];
    if (size === undefined || regionSize === undefined) return undefined;
    try {
      return new Geometry({ size, regionSize });
    } catch (error) {
      if (error instanceof RangeError) throw new Refusal(`no clone is like that: ${error.message}`);
      throw error;
    }
  }

  *#hydrated(): Parser<void> {
    // Who has sorted the fields by name has put the sizes behind: then there must be room for all there can be. What is not
    // touched of it takes no memory.
    const regions = this.#geometry()?.regionCount ?? MAX_REGION_COUNT;
    const bits = new RegionBitmap(regions);
    this.#bits = bits;
    expect(yield, TokenType.LEFT_BRACKET, "a list of hydrated regions");
    let token = yield;
    if (token.token === TokenType.RIGHT_BRACKET) return;
    for (;;) {
      expect(token, TokenType.LEFT_BRACKET, "a pair of regions");
      const start = expectInteger(yield, "range of hydrated regions");
      expect(yield, TokenType.COMMA, "the second of a pair of regions");
      const end = expectInteger(yield, "range of hydrated regions");
      expect(yield, TokenType.RIGHT_BRACKET, "the end of a pair of regions");
      if (start >= end || end > regions) {
        throw new Refusal(`its hydrated range [${start}, ${end}] is impossible where there are ${regions} regions`);
      }
      if (start < this.#hydratedEnd) {
        throw new Refusal(
          `its hydrated range [${start}, ${end}] begins before the one before it ends, at ${this.#hydratedEnd}`,
        );
      }
      bits.setRange({ start, end });
      this.#hydratedEnd = end;
      token = yield;
      if (token.token === TokenType.RIGHT_BRACKET) return;
      expect(token, TokenType.COMMA, "a comma or the end of the hydrated regions");
      token = yield;
    }
  }
}

/** TextDecoder, with which the tokenizer reads strings, says it with a TypeError. */
function isNotUtf8(error: unknown): boolean {
  return error instanceof TypeError && "code" in error && error.code === "ERR_ENCODING_INVALID_ENCODED_DATA";
}

function readDescriptor(json: unknown, geometry: Geometry): Descriptor | null {
  if (json === null) return null;
  try {
    return descriptorFromJson(json, geometry);
  } catch (error) {
    if (error instanceof RangeError) throw new Refusal(`its descriptor ${error.message}`);
    throw error;
  }
}

function expect(token: ParsedTokenInfo, type: TokenType, what: string): void {
  if (token.token !== type) throw new Refusal(`${describe(token)} stands where ${what} belongs`);
}

function expectInteger({ token, value }: ParsedTokenInfo, what: string): number {
  if (token === TokenType.NUMBER && Number.isSafeInteger(value) && (value as number) >= 0) return value as number;
  throw new Refusal(`its ${what} has ${describe({ token, value })} for a number`);
}

function describe({ token, value }: Pick<ParsedTokenInfo, "token" | "value">): string {
  if (token === TokenType.STRING) return `the string ${JSON.stringify((value as string).slice(0, 40))}`;
  return token === TokenType.NUMBER ? String(value) : `"${value}"`;
}

/** The members of an object whose brace has been read. Returns their names. */
function* members(member: (name: string) => Parser<void>): Parser<Set<string>> {
  const names = new Set<string>();
  let token = yield;
  if (token.token === TokenType.RIGHT_BRACE) return names;
  for (;;) {
    expect(token, TokenType.STRING, "a name");
    const name = token.value as string;
    if (names.has(name)) throw new Refusal(`it has the name ${JSON.stringify(name.slice(0, 40))} twice in one object`);
    names.add(name);
    expect(yield, TokenType.COLON, "a colon");
    yield* member(name);
    token = yield;
    if (token.token === TokenType.RIGHT_BRACE) return names;
    expect(token, TokenType.COMMA, "a comma or the end of an object");
    token = yield;
  }
}

/** Any value, of a descriptor; `first` is its first token. `used` counts what the descriptor has taken so far. */
function* value(first: ParsedTokenInfo, used: { length: number }, depth: number): Parser<unknown> {
  used.length += 1 + (first.token === TokenType.STRING ? (first.value as string).length : 0);
  if (used.length > MAX_DESCRIPTOR_LENGTH) throw new Refusal("its descriptor is longer than any can be");
  if (depth > MAX_DESCRIPTOR_DEPTH)
    throw new Refusal(`its descriptor is nested more than ${MAX_DESCRIPTOR_DEPTH} deep`);
  switch (first.token) {
    case TokenType.LEFT_BRACE: {
      const object = {};
      yield* members(function* (name): Parser<void> {
        used.length += 1 + name.length;
        // Also a name that means something to JavaScript is only a name.
        const property = {
          value: yield* value(yield, used, depth + 1),
          enumerable: true,
          writable: true,
          configurable: true,
        };
        Object.defineProperty(object, name, property);
      });
      return object;
    }
    case TokenType.LEFT_BRACKET: {
      const list: unknown[] = [];
      let token = yield;
      if (token.token === TokenType.RIGHT_BRACKET) return list;
      for (;;) {
        list.push(yield* value(token, used, depth + 1));
        token = yield;
        if (token.token === TokenType.RIGHT_BRACKET) return list;
        expect(token, TokenType.COMMA, "a comma or the end of a list");
        token = yield;
      }
    }
    case TokenType.STRING:
    case TokenType.NUMBER:
    case TokenType.TRUE:
    case TokenType.FALSE:
    case TokenType.NULL:
      return first.value;
    default:
      throw new Refusal(`${describe(first)} stands where a value belongs`);
  }
}
