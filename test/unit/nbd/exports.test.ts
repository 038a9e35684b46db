// The exports of a server, the keys of its clients, and the buffers it lends.
import { describe, expect, test } from "vitest";
import { UsageError } from "../../../src/base/errors.ts";
import { ExportTable, type NbdExport } from "../../../src/nbd/export.ts";
import { PayloadBuffers } from "../../../src/nbd/payload-buffers.ts";
import { parsePskFile } from "../../../src/nbd/psk-file.ts";
import { ServedMemory } from "../../support/served-devices.ts";

const device = new ServedMemory(4096);
const named = (name: string, more: Partial<NbdExport> = {}): NbdExport => ({ name, device, readOnly: false, ...more });

describe("ExportTable", () => {
  test("finds exports by name; the empty name is the default, the one so named, or the only one", () => {
    const two = [named("a"), named("b")];
    expect(new ExportTable(two).find("b")?.name).toBe("b");
    expect(new ExportTable(two).find("")).toBeUndefined();
    expect(new ExportTable(two).find("c")).toBeUndefined();
    expect(new ExportTable(two, "b").find("")?.name).toBe("b");
    expect(new ExportTable([...two, named("")]).find("")?.name).toBe("");
    expect(new ExportTable([named("a")]).find("")?.name).toBe("a");
    expect([...new ExportTable(two)].map(({ name }) => name)).toEqual(["a", "b"]);
  });

  test("refuses two of one name, and a default that is not there", () => {
    expect(() => new ExportTable([named("a"), named("a")])).toThrow(TypeError);
    expect(() => new ExportTable([named("a")], "b")).toThrow(TypeError);
  });

  test.for([
    { minimum: 3, preferred: 4096, maximum: 33554432 },
    { minimum: 131072, preferred: 131072, maximum: 33554432 },
    { minimum: 1, preferred: 256, maximum: 33554432 },
    { minimum: 4096, preferred: 512, maximum: 33554432 },
    { minimum: 1, preferred: 4096, maximum: 65536 },
    { minimum: 4096, preferred: 4096, maximum: 33554431 },
    { minimum: 1, preferred: 4096, maximum: 67108864 },
  ])("refuses block sizes that the protocol forbids: %j", (blockSizes) => {
    expect(() => new ExportTable([named("a", { blockSizes })])).toThrow(RangeError);
  });
});

describe("parsePskFile()", () => {
  test("reads users and keys as psktool writes them", () => {
    const keys = parsePskFile("alice:00ff\nbob:ABCD\r\n\n#6576653a:01\n", "keys");
    expect([...keys.keys()]).toEqual(["alice", "bob", "eve:"]);
    expect(Buffer.from(keys.get("bob") ?? []).toString("hex")).toBe("abcd");
  });

  test.for(["", "alice", "alice:", "alice:0", "alice:secret", ":00", "#zz:00", "alice:00:11"])(
    "refuses %o, without showing it",
    (text) => {
      const parse = () => parsePskFile(text, "keys");
      expect(parse).toThrow(UsageError);
      if (text !== "") expect(parse).not.toThrow(/alice|secret/);
    },
  );
});

describe("PayloadBuffers", () => {
  test("lends buffers with room for a header, keeps them, and keeps no more than it may", () => {
    const buffers = new PayloadBuffers(600 * 1024);
    for (const length of [1, 16384, 16384 + 28, 65536 + 28, 262144, 4 * 1024 * 1024 + 28, 32 * 1024 * 1024]) {
      expect(buffers.take(length).length).toBeGreaterThanOrEqual(length);
    }
    const lent = [buffers.take(262144), buffers.take(262144), buffers.take(262144)];
    for (const buffer of lent) buffers.give(buffer);
    const again = [buffers.take(262144), buffers.take(262144), buffers.take(262144)];
    expect(again.filter((buffer) => lent.includes(buffer)).length).toBe(2);
    expect(new Set(again).size).toBe(3);
    buffers.give(Buffer.alloc(777)); // none of its own
    expect(buffers.take(777).length).toBeGreaterThan(777);
  });
});
