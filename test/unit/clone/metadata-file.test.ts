import { expect, test } from "vitest";
import { holdsMetadata } from "../../../src/clone/metadata-file.ts";

// A regular file, as far as stat tells, nobody can read the first bytes of: the first page of a process is never mapped.
test("holdsMetadata() takes what cannot be read for no metadata, and leaves it to others to say so", async () => {
  expect(await holdsMetadata("/proc/self/mem")).toBe(false);
});
