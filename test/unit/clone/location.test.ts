// What SOURCE and DEST name. Whatever a location keeps or shows of itself must open the same thing again, or say that it
// does not, and must hold no credential.
import { resolve } from "node:path";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { UsageError } from "../../../src/base/errors.ts";
import { printable } from "../../../src/base/printable.ts";
import { commandText } from "../../../src/clone/command-text.ts";
import {
  displayName,
  displayUri,
  isReopenable,
  type Location,
  parseLocation,
  parsePath,
  recordedPath,
  uriOf,
} from "../../../src/clone/location.ts";

const KINDS: [string, Location["kind"]][] = [
  ["disk.img", "file"],
  ["/dev/sdb", "file"],
  ["./http://x", "file"],
  ["a:b.img", "file"],
  ["C:disk", "file"],
  ["file:///tmp/a%20b", "file"],
  ["nbd://host/export", "nbd"],
  ["NBD://host/export", "nbd"],
  ["nbds+unix:///?socket=/s", "nbd"],
  ["nbd:host:10809", "nbd"],
  ["http://host/x.img", "http"],
  ["https://host/x.img?part=1", "http"],
  ["s3://bucket/key", "s3"],
  ["rbd:pool/image", "qemu"],
  ["ssh://host/x.img", "qemu"],
  ["iscsi://host/target/0", "qemu"],

  [commandText(["nbdkit", "memory", "1M"]), "command"],
  ["command:nbdkit", "command"],
];

describe("parseLocation()", () => {
  test.for(KINDS)("takes %s for a %s", ([text, kind]) => {
    expect(parseLocation(text).kind).toBe(kind);
  });

  test.for([
    ["", "a path is needed"],
    ["gopher://host/x", 'no kind of URI begins with "gopher:"'],
    ["s3://bucket", "s3://BUCKET/KEY is needed"],
    ["s3:///key", "s3://BUCKET/KEY is needed"],
    ["http://", "it is no URL"],
    ["http:///x", "it names no host"],
    ["HTTPS:////x", "it names no host"],
    ["http://\t/x", "it names no host"],
    ["http://\\x", "it names no host"],
    ["file://host/x", "File URL host"],
    ["nbd://host/x?colour=red", "colour"],
  ])("refuses %s, saying why", ([text, why]) => {
    expect(() => parseLocation(text as string)).toThrow(UsageError);
    expect(() => parseLocation(text as string)).toThrow(why as string);
  });

  test.for([
    "http://user:hunter2@host/x",
    "https://hunter2@host/x",
    "nbd://user:hunter2@host/x",
    "nbds://user:hunter2@host/x",
    "s3://user:hunter2@bucket/key",
    "rbd:pool/image:key=hunter2",
    "ssh://user:hunter2@host/x",
    "iscsi://user%25hunter2@host/target/0",
    'json:{"driver":"ssh","password":"hunter2"}',
    "gopher://user:hunter2@host/x",
  ])("refuses the password in %s without repeating it", (text) => {
    let refused: unknown;
    try {
      parseLocation(text);
    } catch (error) {
      refused = error;
    }
    expect(refused).toBeInstanceOf(UsageError);
    const { message, hint } = refused as UsageError;
    expect(`${message} ${hint}`).not.toContain("hunter2");
  });

  test("an S3 key is taken as it stands, whatever it holds", () => {
    expect(parseLocation("s3://bucket/a b/ü%20+?x#y")).toEqual({ kind: "s3", bucket: "bucket", key: "a b/ü%20+?x#y" });
  });

  test("a relative path is made absolute", () => {
    expect(parseLocation("x.img")).toEqual({ kind: "file", path: resolve("x.img") });
  });
});

describe("The URI of a location", () => {
  test.for(KINDS.filter(([, kind]) => kind !== "command"))("of %s opens the same again", ([text]) => {
    const location = parseLocation(text);
    expect(isReopenable(location)).toBe(true);
    expect(parseLocation(uriOf(location))).toEqual(location);
  });

  test("of any path opens the same file again", () => {
    fc.assert(
      fc.property(fc.string({ minLength: 1, unit: "binary" }), (name) => {
        const path = `/x${name.replaceAll("\0", "").replaceAll("/", "_")}`;
        const location = parseLocation(path);
        expect(location).toEqual({ kind: "file", path });
        expect(parseLocation(uriOf(location))).toEqual(location);
        expect(recordedPath(uriOf(location))).toBe(path);
        expect(displayUri(uriOf(location))).toBe(printable(path));
      }),
    );
  });

  test("of a file whose name ends in a control character names that file (fuzz, seed 6, message 654)", () => {
    const path = "/var/lib/imag\v";
    expect(uriOf({ kind: "file", path })).toBe("file:///var/lib/imag%0B");
    expect(parseLocation("file:///var/lib/imag%0B")).toEqual({ kind: "file", path });
  });

  test.for(["file://host/disk.img", "file:///disk%zz.img", "file:///a%2Fb"])(
    "that names no file, as metadata of others may record it, is shown as it is: %s (fuzz, seed 5)",
    (uri) => {
      expect(displayUri(uri)).toBe(uri);
      expect(() => parseLocation(uri)).toThrow(UsageError);
    },
  );

  test("of a presigned URL has no signature, and says that it cannot be opened again", () => {
    const text = "https://host/x.img?X-Amz-Signature=deadbeef&X-Amz-Credential=AKIA";
    const location = parseLocation(text);
    expect(isReopenable(location)).toBe(false);
    expect(uriOf(location)).not.toMatch(/deadbeef|AKIA/);
    expect(() => parseLocation(uriOf(location))).toThrow(/credential, which is kept nowhere/);
  });

  test("of drivers of qemu's says that it cannot be opened again", () => {
    const location = parseLocation('json:{"driver":"null-co","size":"1M"}');
    expect(location.kind).toBe("qemu");
    expect(isReopenable(location)).toBe(false);
  });

  test("of a command names the program alone, and runs nothing", () => {
    const location = parseLocation(commandText(["/usr/bin/nbdkit", "ssh", "password=hunter2"]));
    expect(uriOf(location)).toBe("command:nbdkit");
    expect(displayName(location)).toBe("[ nbdkit … ]");
    expect(displayName(parseLocation(commandText(["/bin/false"])))).toBe("[ false ]");
    expect(isReopenable(location)).toBe(false);
    expect(parseLocation(uriOf(location))).toEqual({ kind: "command", program: "nbdkit", words: undefined });
  });
});

test.for(["a\0b", "file:///a%00b"])("a file whose name holds a NUL is refused: %j (fuzz, seed 5)", (text) => {
  expect(() => parseLocation(text)).toThrow(/Cannot open ".*": the name of a file holds no NUL/);
});

test("parsePath() takes paths alone", () => {
  expect(parsePath("file:///a")).toBe("/a");
  expect(() => parsePath("nbd://host/x")).toThrow(/only a path can be used here/);
});
