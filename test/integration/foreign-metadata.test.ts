// Metadata may come from somebody else: it must not make a command run, whatever it says.
import { existsSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { commandText } from "../../src/clone/command-text.ts";
import { randomFile } from "../support/files.ts";
import { forgeDescriptor } from "../support/forged-descriptor.ts";
import { clone, cloneOk } from "../support/run-clone.ts";
import { scratchDirectory } from "../support/scratch.ts";

describe("Forged metadata that names a command", () => {
  for (const role of ["source", "destination"] as const) {
    test.for([
      ["hydrate", "x.clone"],
      ["verify", "x.clone"],
      ["finalize", "x.clone", "--verify"],
      ["serve", "x.clone", "--socket", "s.sock", "--exit-when-hydrated"],
    ])(`as its ${role} makes \`clone %s\` run nothing`, async (args) => {
      await using directory = await scratchDirectory();
      const cwd = directory.path;
      await randomFile(join(cwd, "source.img"), 1024 * 1024);
      await cloneOk(["create", "source.img", "copy.img", "--metadata", "x.clone"], { cwd });
      if (args[0] !== "hydrate" && args[0] !== "serve") await cloneOk(["hydrate", "x.clone"], { cwd });
      const uri = commandText(["sh", "-c", `touch ${join(cwd, "pwned")}`]);
      await forgeDescriptor(join(cwd, "x.clone"), (descriptor) => ({
        ...descriptor,
        [role]: { ...descriptor[role], uri },
      }));
      const { code, stderr } = await clone(args, { cwd });
      expect(existsSync(join(cwd, "pwned"))).toBe(false);
      expect(code).toBe(2);
      expect(stderr).toMatch(/is no URI\nName it again/);
    });
  }
});
