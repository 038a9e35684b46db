// Makes the golden metadata of a release: clones in several states, by the program as users run it. Run once for each release.
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

const [release] = process.argv.slice(2);
if (!/^\d+\.\d+\.\d+$/.test(release ?? "")) throw new Error("usage: node test/golden/make.mjs RELEASE");
const folder = fileURLToPath(new URL(".", import.meta.url));
const program = fileURLToPath(new URL("../../bin/clone.js", import.meta.url));
const cwd = mkdtempSync(join(tmpdir(), "clone-golden-"));
const clone = (...args) => execFileSync(process.execPath, [program, ...args], { cwd, maxBuffer: 2 ** 26 });

/** Name, bytes of the source, and the commands that lead to the state. */
const STATES = [
  ["fresh", 2 ** 24, [["create", "fresh.src", "fresh.img"]]],
  ["one-region", 4096, [["create", "one-region.src", "one-region.img"]]],
  [
    "half",
    2 ** 24 - 1536,
    [
      ["create", "half.src", "half.img", "--region-size", "4K"],
      ["hydrate", "half.img", "--limit", "5M", "--no-extents", "--threshold", "1", "--batch-size", "64"],
    ],
  ],
  [
    "finalized",
    2 ** 22 + 100,
    [
      ["create", "finalized.src", "finalized.img"],
      ["hydrate", "finalized.img"],
      ["finalize", "finalized.img", "--keep-metadata"],
    ],
  ],
  // 40,000 regions: two array blocks.
  [
    "two-arrays",
    40_000 * 4096,
    [
      ["create", "two-arrays.src", "two-arrays.img", "--region-size", "4K"],
      ["hydrate", "two-arrays.img", "--limit", "20M", "--no-extents", "--threshold", "1", "--batch-size", "64"],
    ],
  ],
];

try {
  for (const [name, size, commands] of STATES) {
    writeFileSync(join(cwd, `${name}.src`), Buffer.alloc(size, "golden"));
    for (const command of commands) clone(...command);
    writeFileSync(join(folder, `${release}-${name}.dump`), clone("dump", `${name}.img`));
    const packed = gzipSync(readFileSync(join(cwd, `${name}.img.clone`)), { level: 9 });
    writeFileSync(join(folder, `${release}-${name}.clone.gz`), packed);
  }
} finally {
  rmSync(cwd, { recursive: true });
}
