// What `dump` prints, `restore` reads: of random bits the dump, cut into pieces at random, gives the same bits and descriptor,
// and dumped again the same bytes. A dump with any change to its text is refused with a MetadataError, or says what a plain
// reading by JSON.parse says, too.
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { MetadataError } from "../../src/base/errors.ts";
import { Geometry } from "../../src/base/geometry.ts";
import type { Descriptor } from "../../src/metadata/descriptor.ts";
import { type DumpStyle, dumpMetadata } from "../../src/metadata/dump.ts";
import { RegionBitmap } from "../../src/metadata/region-bitmap.ts";
import { type RestoredDump, readDump } from "../../src/metadata/restore-dump.ts";

const descriptor: Descriptor = {
  uuid: "12954880-dcd8-4fee-a479-37857fe06e58",
  created: "2026-01-02T03:04:05Z",
  source: { uri: 'file:///a "quoted" \u{1F4BF}\n', size: 4096, format: "raw", fingerprint: { inode: "12" } },
  destination: { uri: "/b", size: 4096, fingerprint: {}, settled: { mtimeNs: "1", superblock: "01020304" } },
  exactSize: 4096,
  options: { force: true, ratio: 1.5e-3, nothing: null },
  unreadable: { ranges: [{ start: 0, end: 1 }], inexact: false },
  served: false,
  finalized: null,
};

async function* inPieces(bytes: Uint8Array, cuts: readonly number[] = []): AsyncGenerator<Uint8Array> {
  let at = 0;
  for (const cut of [...cuts].map((cut) => cut % (bytes.length + 1)).sort((a, b) => a - b)) {
    yield bytes.subarray(at, cut);
    at = cut;
  }
  yield bytes.subarray(at);
}

const read = (text: string | Uint8Array, cuts?: readonly number[]) =>
  readDump(inPieces(typeof text === "string" ? Buffer.from(text) : text, cuts), "x.json");

const print = ({ geometry, bits, descriptor }: RestoredDump, style: DumpStyle) =>
  [...dumpMetadata({ geometry, hydratedRanges: bits.ranges(), descriptor }, style)].join("");

const dump = fc
  .record({
    regions: fc.integer({ min: 1, max: 200_000 }),
    draws: fc.array(fc.tuple(fc.nat(), fc.integer({ min: 1, max: 3000 })), { maxLength: 40 }),
    described: fc.boolean(),
    style: fc.constantFrom<DumpStyle>("pretty", "line"),
  })
  .map(({ regions, draws, described, style }) => {
    const bits = new RegionBitmap(regions);
    for (const [start, length] of draws) {
      bits.setRange({ start: start % regions, end: Math.min((start % regions) + length, regions) });
    }
    const geometry = new Geometry({ size: regions * 4096, regionSize: 4096 });
    return {
      style,
      content: { geometry, bits, descriptor: described ? { ...descriptor, exactSize: geometry.size } : null },
    };
  });

describe("readDump()", () => {
  test("reads what dumpMetadata() prints, wherever it is cut, and it is printed again byte for byte", () =>
    fc.assert(
      fc.asyncProperty(dump, fc.array(fc.nat(), { maxLength: 20 }), async ({ content, style }, cuts) => {
        const text = print(content, style);
        const restored = await read(text, cuts);
        expect(print(restored, style)).toBe(text);
        expect(restored.bits.count()).toBe(content.bits.count());
      }),
    ));

  test("reads it with its fields in any order", () =>
    fc.assert(
      fc.asyncProperty(dump, fc.integer(), async ({ content, style }, seed) => {
        const text = print(content, style);
        const fields = Object.entries(JSON.parse(text) as object);
        for (let i = fields.length - 1, state = seed >>> 0; i > 0; i--) {
          state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
          const j = state % (i + 1);
          [fields[i], fields[j]] = [fields[j], fields[i]] as [(typeof fields)[0], (typeof fields)[0]];
        }
        expect(print(await read(JSON.stringify(Object.fromEntries(fields))), style)).toBe(text);
      }),
      { numRuns: 30 },
    ));

  test("reads no other bits than JSON.parse does from a dump whose text was changed anywhere, or refuses it", () =>
    fc.assert(
      fc.asyncProperty(
        dump,
        fc.array(fc.record({ at: fc.nat(), byte: fc.constantFrom(...'0129,:[]{}" -.eE\\nt\u0000\u00ff') }), {
          minLength: 1,
          maxLength: 3,
        }),
        async ({ content, style }, edits) => {
          const bytes = Buffer.from(print(content, style));
          for (const { at, byte } of edits) bytes[at % bytes.length] = byte.charCodeAt(0);
          const restored = await read(bytes).catch((error: unknown) => {
            expect(error).toBeInstanceOf(MetadataError);
            expect((error as Error).message).toMatch(/^Cannot restore "x.json": [^\n]+ \(near byte \d+\)$/);
            return undefined;
          });
          if (restored === undefined) return;
          const plain = JSON.parse(bytes.toString()) as { size: number; regions: number; hydrated: [number, number][] };
          expect(plain.size).toBe(restored.geometry.size);
          expect(plain.regions).toBe(restored.geometry.regionCount);
          const bits = new RegionBitmap(plain.regions);
          for (const [start, end] of plain.hydrated) bits.setRange({ start, end });
          expect([...restored.bits.ranges()]).toEqual([...bits.ranges()]);
        },
      ),
      { numRuns: 500 },
    ));
});

describe("readDump() refuses", () => {
  const good = {
    format: 1,
    size: 67108864,
    regionSize: 4096,
    regions: 16384,
    hydrated: [
      [0, 12],
      [64, 65],
    ],
    descriptor: null,
  };
  const nested = (depth: number) => `${'{"a":'.repeat(depth)}1${"}".repeat(depth)}`;
  const withText = (field: string, text: string) => {
    const { [field as "size"]: _, ...rest } = good;
    return JSON.stringify(rest).replace(/\}$/, `,"${field}":${text}}`);
  };
  const hydrated = (text: string) => withText("hydrated", text);
  const described = (change: object) =>
    withText(
      "descriptor",
      JSON.stringify({ ...descriptor, exactSize: good.size, unreadable: { ranges: [], inexact: false }, ...change }),
    );

  test("nothing of the sound one", async () => {
    expect([...(await read(JSON.stringify(good))).bits.ranges()]).toEqual([
      { start: 0, end: 12 },
      { start: 64, end: 65 },
    ]);
    expect((await read(described({}))).descriptor?.uuid).toBe(descriptor.uuid);
  });

  test.for<[what: string, text: string, message: RegExp]>([
    ["an empty file", "", /ends too early \(near byte 0\)/],
    ["a cut one", JSON.stringify(good).slice(0, 60), /ends too early \(near byte 60\)/],
    ["one cut in a word", JSON.stringify(good).slice(0, 62), /ends too early \(near byte 62\)/],
    ["a list", "[]", /"\[" stands where an object belongs/],
    ["a word", "true", /"true" stands where an object belongs/],
    ["no JSON", "clone", /it is no JSON/],
    ["two dumps", JSON.stringify(good).repeat(2), /something follows its end/],
    ["rubbish behind it", `${JSON.stringify(good)}x`, /it is no JSON/],
    ["a number behind it", `${JSON.stringify(good)} 1`, /something follows its end/],
    ["a comma behind the last field", JSON.stringify(good).replace(/\}$/, ",}"), /"\}" stands where a name belongs/],
    ["a field that is missing", JSON.stringify({ ...good, descriptor: undefined }), /it has no field "descriptor"/],
    ["a field that is not known", JSON.stringify({ ...good, more: 1 }), /its field "more" is not known here/],
    [
      "a field that is there twice",
      JSON.stringify(good).replace(/\}$/, ',"size":67108864}'),
      /has the name "size" twice/,
    ],
    ["another format", JSON.stringify({ ...good, format: 2 }), /it has format 2, this program knows 1/],
    ["a size that is a string", JSON.stringify({ ...good, size: "67108864" }), /its size has the string "67108864"/],
    [
      "a size that is no whole number of sectors",
      JSON.stringify({ ...good, size: 67108865 }),
      /not a positive multiple of 512/,
    ],
    ["a size beyond 2^53", withText("size", "1e300"), /its size has 1e\+300 for a number/],
    ["a negative size", withText("size", "-512"), /its size has -512/],
    ["a region size that is no power of two", JSON.stringify({ ...good, regionSize: 5000 }), /not a power of two/],
    [
      "a wrong number of regions",
      JSON.stringify({ ...good, regions: 16385 }),
      /says there are 16385 regions, where its sizes make 16384/,
    ],
    ["more regions than there can be", JSON.stringify({ ...good, regions: 2 ** 31 + 1 }), /its regions is 2147483649/],
    ["ranges that overlap", hydrated("[[0,12],[11,13]]"), /\[11, 13\] begins before the one before it ends, at 12/],
    ["ranges that are not ascending", hydrated("[[64,65],[0,12]]"), /\[0, 12\] begins before/],
    ["an empty range", hydrated("[[5,5]]"), /\[5, 5\] is impossible/],
    ["a backward range", hydrated("[[5,3]]"), /\[5, 3\] is impossible/],
    [
      "a range behind the last region",
      hydrated("[[5,16385]]"),
      /\[5, 16385\] is impossible where there are 16384 regions/,
    ],
    ["a range of three", hydrated("[[1,2,3]]"), /"," stands where the end of a pair/],
    ["a range of one", hydrated("[[1]]"), /"\]" stands where the second of a pair/],
    ["a range of fractions", hydrated("[[1,2.5]]"), /range of hydrated regions has 2.5 for a number/],
    ["a range of nothing", hydrated("[null]"), /"null" stands where a pair of regions belongs/],
    ["nested ranges", hydrated("[".repeat(100_000)), /"\[" for a number/],
    ["hydrated regions that are an object", hydrated("{}"), /"\{" stands where a list of hydrated regions belongs/],
    ["a descriptor that is a string", withText("descriptor", '"x"'), /its descriptor is no JSON object/],
    ["a descriptor without a source", described({ source: undefined }), /its descriptor has no source/],
    ["a descriptor with a password", described({ source: { ...descriptor.source, uri: "nbd://u:p@h/" } }), /password/],
    ["a descriptor of another size", described({ exactSize: 67108865 }), /unusable exactSize/],
    ["a descriptor nested too deep", withText("descriptor", nested(100_000)), /nested more than 32 deep/],
    ["a descriptor that is too long", withText("descriptor", `[${"1,".repeat(300_000)}1]`), /longer than any can be/],
    ["a descriptor with a name twice", withText("descriptor", '{"a":1,"a":2}'), /has the name "a" twice/],
    ["a word without end", `{"${"x".repeat(2 ** 21)}`, /without an end/],
    ["white space without end", " ".repeat(2 ** 21), /without an end/],
  ])("%s", async ([, text, message]) => {
    const refused = read(text);
    await expect(refused).rejects.toThrow(MetadataError);
    await expect(refused).rejects.toThrow(message);
  });

  test("bytes that are no UTF-8, in one line", async () => {
    const bytes = Buffer.concat([Buffer.from('{"'), Buffer.from([0xff, 0xfe, 0xc3]), Buffer.from('":1}')]);
    await expect(read(bytes)).rejects.toThrow(/it is no JSON|not known here/);
  });

  test("metadata itself, and says so", async () => {
    const bytes = Buffer.alloc(4096);
    bytes.writeUInt32LE(0x8af27f64, 32);
    await expect(read(bytes)).rejects.toThrow(/it is metadata itself, not a dump of it/);
    await expect(read(bytes, [1, 20, 30])).rejects.toThrow(MetadataError);
  });

  test("a last range behind the end also where the sizes come after it", async () => {
    const { size, ...rest } = { ...good, hydrated: [[5, 16385]] };
    await expect(read(JSON.stringify({ ...rest, size }))).rejects.toThrow(/ends at 16385, behind region 16383/);
  });
});
