import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { CloneError } from "../../../src/base/errors.ts";
import { readPresharedKeys, readServerCertificates } from "../../../src/clone/tls-files.ts";
import { scratchDirectory } from "../../support/scratch.ts";

test("readPresharedKeys() reads what psktool writes", async () => {
  await using directory = await scratchDirectory();
  const path = join(directory.path, "keys.psk");
  await writeFile(path, "alice:00ff10\nbob:abcdef\r\n");
  const keys = await readPresharedKeys(path);
  expect([...keys].map(([user, key]) => [user, Buffer.from(key).toString("hex")])).toEqual([
    ["alice", "00ff10"],
    ["bob", "abcdef"],
  ]);
});

test("readPresharedKeys() names a file that is not there", async () => {
  await expect(readPresharedKeys("/nowhere/keys")).rejects.toThrow(
    'Cannot read "/nowhere/keys": no such file (ENOENT)',
  );
});

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
