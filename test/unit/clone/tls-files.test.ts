import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { CloneError, UsageError } from "../../../src/base/errors.ts";
import { readPresharedKeys, readServerCertificates } from "../../../src/clone/tls-files.ts";
import { scratchDirectory } from "../../support/scratch.ts";

test("readPresharedKeys() reads what psktool writes", async () => {
  await using directory = await scratchDirectory();
  const path = join(directory.path, "keys.psk");
  await writeFile(path, "# keys\nalice:00ff10\nbob:abcdef\r\n");
  const keys = await readPresharedKeys(path);
  expect([...keys]).toEqual([
    ["alice", Buffer.from("00ff10", "hex")],
    ["bob", Buffer.from("abcdef", "hex")],
  ]);
});

test.for(["alice", "alice:0", "alice:xyz0", ":00ff", ""])(
  "readPresharedKeys() refuses %j without showing it",
  async (text) => {
    await using directory = await scratchDirectory();
    const path = join(directory.path, "keys.psk");
    await writeFile(path, text);
    const error = await readPresharedKeys(path).catch((caught: unknown) => caught);
    expect(error).toBeInstanceOf(UsageError);
    if (text !== "") expect((error as Error).message).not.toContain(text);
  },
);

test("readServerCertificates() does without an authority, not without a key", async () => {
  await using directory = await scratchDirectory();
  await writeFile(join(directory.path, "server-cert.pem"), "certificate");
  const error = await readServerCertificates(directory.path).catch((caught: unknown) => caught);
  expect(error).toBeInstanceOf(CloneError);
  expect((error as Error).message).toMatch(/^Cannot read ".*server-key.pem": no such file \(ENOENT\)$/);
  await writeFile(join(directory.path, "server-key.pem"), "key");
  expect(await readServerCertificates(directory.path)).toEqual({
    certificate: "certificate",
    key: "key",
    authority: undefined,
  });
});
