import { chmod, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { readCredentialFile } from "../../../src/device/credential-file.ts";
import { scratchDirectory } from "../../support/scratch.ts";

describe("readCredentialFile()", () => {
  test("reads no more than credentials have, however long what it is named is", async () => {
    await expect(readCredentialFile("/dev/zero", { most: 100_000 })).rejects.toThrow(
      'Cannot read "/dev/zero": it is longer than 100000 bytes, too long for credentials',
    );
    await expect(readCredentialFile("/dev/zero")).rejects.toThrow("too long for credentials");
  });

  test("reads files of any length up to that", async () => {
    await using directory = await scratchDirectory();
    const path = join(directory.path, "secret");
    for (const length of [0, 1, 65_535, 65_536, 65_537, 200_000]) {
      await writeFile(path, "é".repeat(length));
      expect(await readCredentialFile(path)).toBe("é".repeat(length));
    }
    await expect(readCredentialFile(path, { most: 399_999 })).rejects.toThrow("too long");
    expect((await readCredentialFile(path, { most: 400_000 })).length).toBe(200_000);
  });

  test.for([
    ["600", false, false],
    ["640", false, true],
    ["640", true, false],
    ["604", true, true],
    ["644", false, true],
  ] as const)(
    "tells of a secret of mode %s that others can read; its group may: %s",
    async ([mode, groupMayRead, told]) => {
      await using directory = await scratchDirectory();
      const path = join(directory.path, "secret");
      await writeFile(path, "hunter2");
      await chmod(path, Number.parseInt(mode, 8));
      const sentences: string[] = [];
      await readCredentialFile(path, { groupMayRead, onExposed: (sentence) => sentences.push(sentence) });
      expect(sentences.length).toBe(told ? 1 : 0);
      expect(sentences.join()).not.toContain("hunter2");
    },
  );
});
