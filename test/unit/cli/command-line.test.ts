import { join } from "node:path";
import { afterEach, expect, test, vi } from "vitest";
import { runCommandLine } from "../../../src/cli/command-line.ts";
import { ExitCode } from "../../../src/cli/exit-codes.ts";
import { Clone } from "../../../src/clone/clone.ts";
import { randomFile } from "../../support/files.ts";
import { scratchDirectory } from "../../support/scratch.ts";
import { create } from "../../support/whole-clone.ts";

afterEach(() => {
  vi.restoreAllMocks();
  process.exitCode = undefined;
});

test("an error is reported with its own exit code, also where letting the clone go fails after it", async () => {
  await using place = await scratchDirectory();
  const [source, copy] = [join(place.path, "disk.img"), join(place.path, "copy.img")];
  await randomFile(source, 65536);
  const metadata = await create(source, copy);
  const close = Clone.prototype[Symbol.asyncDispose];
  vi.spyOn(Clone.prototype, Symbol.asyncDispose).mockImplementation(async function (this: Clone) {
    await close.call(this);
    throw new Error("it could not be closed");
  });
  let said = "";
  vi.spyOn(process.stderr, "write").mockImplementation((text) => {
    said += text;
    return true;
  });
  await runCommandLine(["hydrate", copy, "--source", metadata]);
  expect(said).toMatch(/^clone: Cannot use "[^"]*copy\.img\.clone" as the source: it is the clone's metadata\n/);
  expect(said).not.toMatch(/fault of the program/);
  expect(process.exitCode).toBe(ExitCode.usage);
});
