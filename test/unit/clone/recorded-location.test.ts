// What metadata says of where source and destination are. Metadata may come from anybody.
import { chmod, writeFile } from "node:fs/promises";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { commandText } from "../../../src/clone/command-text.ts";
import { uriOf } from "../../../src/clone/location.ts";
import { recordedLocation } from "../../../src/clone/recorded-location.ts";
import { scratchDirectory } from "../../support/scratch.ts";

describe("recordedLocation()", () => {
  test.for(["file:///a%20b", "nbd+unix:///x?socket=/s", "https://h/x", "s3://bucket/k", "ssh://h/x", "rbd:p/i:id=me"])(
    "takes %s, as it was recorded",
    async (uri) => {
      expect(uriOf(await recordedLocation(uri, "source"))).toBe(uri);
    },
  );

  test("never comes to the words of a command, whatever stands there", async () => {
    const texts = fc.oneof(
      fc.string(),
      fc.array(fc.string(), { minLength: 1 }).map(commandText),
      fc.array(fc.string(), { minLength: 1 }).map((words) => ` ${commandText(words)}`),
      fc.string().map((rest) => `command:${rest}`),
      fc.string().map((rest) => `command:${commandText([rest])}`),
    );
    await fc.assert(
      fc.asyncProperty(texts, async (text) => {
        const location = await recordedLocation(text, "source").catch(() => undefined);
        expect(location?.kind === "command" ? location.words : undefined).toBeUndefined();
        expect(location?.kind === "file" && !text.startsWith("file:")).toBe(false);
      }),
    );
  });

  test.for([
    [commandText(["sh", "-c", "true"]), "no URI"],
    ["/etc/passwd", "no URI"],
    ["a:b", "no URI"],
    ['json:{"driver":"file","filename":"/etc/passwd"}', "make qemu open anything"],
    ["rbd:p/i:rbd_plugins=x", 'sets "rbd_plugins"'],
    ["rbd:p/i:id=me:log_file=/x", 'sets "log_file"'],
    ["rbd:p/i\\:x:plugin_dir=/x", 'sets "plugin_dir"'],
  ])("refuses %s", async ([uri, why]) => {
    await expect(recordedLocation(uri as string, "source")).rejects.toThrow(why as string);
  });

  test("refuses a configuration that others may write to", async () => {
    await using directory = await scratchDirectory();
    const conf = join(directory.path, "ceph.conf");
    await writeFile(conf, "");
    await chmod(conf, 0o644);
    expect((await recordedLocation(`rbd:p/i:conf=${conf}`, "source")).kind).toBe("qemu");
    await chmod(conf, 0o666);
    await expect(recordedLocation(`rbd:p/i:conf=${conf}`, "source")).rejects.toThrow("somebody else may write to it");
  });
});
