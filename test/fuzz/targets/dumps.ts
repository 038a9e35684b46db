/** Dumps, as `restore` reads them: whatever is taken prints the same again, and is read again to the same. */
import assert from "node:assert/strict";
import { Geometry, type RegionRange } from "../../../src/base/geometry.ts";
import { type DumpContent, dumpMetadata } from "../../../src/metadata/dump.ts";
import { readDump } from "../../../src/metadata/restore-dump.ts";
import type { SeededRandom } from "../../support/random.ts";
import { mutate } from "../mutate.ts";
import { type FuzzTarget, outcomeOfAsync } from "../target.ts";
import { goodDescriptor, PLACE } from "./descriptors.ts";

const DICTIONARY = [
  ...[
    '"format": 1,',
    '"regions": 5,',
    '"hydrated": [[0, 1]],',
    "[0, 1],",
    '"descriptor": null',
    "}",
    "]",
    "[[[[",
    '{"a":',
  ],
  ...[
    "1e0",
    "-0",
    "0.0",
    "1E400",
    '"__proto__": {},',
    "\\u0000",
    "\\ud800",
    "//",
    "/* */",
    "\ufeff",
    "'",
    "NaN",
    "true",
  ],
];

function textOf(content: DumpContent, style: "pretty" | "line"): string {
  return [...dumpMetadata(content, style)].join("");
}

function dump(random: SeededRandom): Buffer {
  const style = random.pick(["pretty", "line"] as const);
  if (random.oneIn(3)) {
    const ranges = random.oneIn(2) ? [] : [{ start: 5, end: PLACE.geometry.regionCount }];
    const descriptor = goodDescriptor(random);
    return Buffer.from(textOf({ geometry: PLACE.geometry, hydratedRanges: ranges, descriptor }, style));
  }
  const geometry = new Geometry({
    size: 512 * random.integer(1, 2 ** 22),
    regionSize: 4096 * 2 ** random.integer(0, 8),
  });
  const hydratedRanges: RegionRange[] = [];
  for (let start = 0; start < geometry.regionCount && hydratedRanges.length < 40; ) {
    const end = Math.min(geometry.regionCount, start + random.integer(1, 500));
    hydratedRanges.push({ start, end });
    start = end + random.integer(1, 300);
  }
  return Buffer.from(textOf({ geometry, hydratedRanges, descriptor: null }, style));
}

async function* inPieces(bytes: Uint8Array, length: number): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += length) yield bytes.subarray(at, at + length);
}

/** Dumps. */
export const dumps: FuzzTarget = {
  name: "dumps",
  weight: 20,
  // Where the sizes stand behind the regions, bits for all that can be: what is not touched of them takes no memory.
  mostBytes: 2 ** 28,
  open: () => ({
    generate(random) {
      const good = dump(random);
      if (random.oneIn(8)) return { bytes: good, isGood: true };
      const material = { dictionary: DICTIONARY, others: [dump(random)], isText: !random.oneIn(4) };
      return { bytes: mutate(good, random, material), isGood: false };
    },
    run: (message) =>
      outcomeOfAsync(async () => {
        const { geometry, bits, descriptor } = await readDump(inPieces(message, 1 + (message.length % 977)), "dump");
        const text = textOf({ geometry, hydratedRanges: bits.ranges(), descriptor }, "line");
        const again = await readDump(inPieces(Buffer.from(text), 65_536), "again");
        const { geometry: same, bits: sameBits, descriptor: sameDescriptor } = again;
        const printed = textOf(
          { geometry: same, hydratedRanges: sameBits.ranges(), descriptor: sameDescriptor },
          "line",
        );
        assert.equal(printed, text);
      }),
    async [Symbol.asyncDispose]() {},
  }),
};
