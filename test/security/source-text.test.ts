// What must hold of every line of the program is looked for in every line: that it starts nothing but by words, in the few
// places that are known; that no certificate is taken unseen; that no secret is made by what can be foreseen.
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));

/** Every file of the program, by path from the root, without its comments. */
const sources = new Map(
  ["src", "bin"].flatMap((folder) =>
    readdirSync(join(ROOT, folder), { recursive: true, encoding: "utf8" })
      .filter((name) => /\.(ts|js|cjs)$/.test(name))
      .map((name): [string, string] => [
        join(folder, name),
        withoutComments(readFileSync(join(ROOT, folder, name), "utf8")),
      ]),
  ),
);

function withoutComments(text: string): string {
  return text.replaceAll(/\/\*[\s\S]*?\*\//g, "").replaceAll(/^\s*\/\/.*$/gm, "");
}

/** The files that hold something. */
function filesWith(pattern: RegExp): string[] {
  return [...sources].filter(([, text]) => pattern.test(text)).map(([name]) => name);
}

test("Processes are started in few places, and by a list of words", () => {
  expect(sources.size).toBeGreaterThan(200);
  expect(filesWith(/child_process|node:cluster|process\.binding/)).toEqual([
    "src/cli/captive-command.ts",
    "src/device/child-program.ts",
    "bin/clone.js", // builds a checkout that is not built yet
  ]);
  for (const name of ["src/cli/captive-command.ts", "src/device/child-program.ts"]) {
    const imported = /import \{([^}]*)\} from "node:child_process"/.exec(sources.get(name) as string)?.[1];
    expect(imported?.split(",").map((word) => word.trim())).toEqual(["type ChildProcess", "spawn"]);
  }
  expect(filesWith(/\bshell\s*:/)).toEqual([]);
  expect(filesWith(/execvp?\(/)).toEqual(["bin/child-launcher.cjs"]);
});

test("A shell is started for the command of --run alone, which is the user's from the first character to the last", () => {
  expect(filesWith(/["'`/](ba|da|k|z)?sh["'`]/)).toEqual(["src/cli/captive-command.ts"]);
  expect(sources.get("src/cli/captive-command.ts")).toContain(`spawn("/bin/sh", ["-c", command],`);
});

test("No text is run as a program", () => {
  expect(filesWith(/\beval\(|new Function\(|node:vm|runInContext|setTimeout\(["'`]/)).toEqual([]);
  // What is imported is named in the program itself.
  expect(filesWith(/\bimport\((?!\s*")/)).toEqual(["bin/clone.js"]); // what it has built
});

test("TLS is never below 1.2, and certificates are never taken unseen", () => {
  expect(filesWith(/rejectUnauthorized: false|TLSv1(\.1)?"|SSLv3|secureProtocol|secureOptions/)).toEqual([]);
  for (const [name, text] of sources) {
    for (const [call] of text.matchAll(/(createSecureContext|TlsOptions = )[^;]*;/g)) {
      if (call.includes("createSecureContext({ ca: text })")) continue; // thrown away: whether it is one
      if (call.includes("createSecureContext(context)")) continue; // the context above it
      if (/import|from "/.test(call)) continue;
      expect(call, name).toContain("TLSv1.2");
    }
  }
});

test("What must not be foreseen is not made by Math.random()", () => {
  expect(filesWith(/Math\.random\(\)/).filter((name) => /socket|file|tls|psk|uuid/i.test(name))).toEqual([]);
});
