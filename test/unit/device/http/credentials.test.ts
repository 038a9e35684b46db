// netrc and header files: what is read from them, and to whom it is sent.
import { chmod, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { UsageError } from "../../../../src/base/errors.ts";
import { Credentials } from "../../../../src/device/http/credentials.ts";
import { parseHeaderFile } from "../../../../src/device/http/header-file.ts";
import { parseNetrc } from "../../../../src/device/http/netrc.ts";
import { scratchDirectory } from "../../../support/scratch.ts";

const basic = (text: string) => `Basic ${Buffer.from(text).toString("base64")}`;

describe("parseNetrc()", () => {
  test.each([
    ["on one line", "machine a.example login me password pass"],
    ["on many", "machine a.example\n\tlogin me\n\n\tpassword\n pass\n"],
    ["quoted", 'machine "a.example" login "me" password "pass"'],
    ["among comments", "# machine a.example login no\nmachine a.example login me password pass\n# end"],
    [
      "after a macro",
      "macdef init\nmachine a.example login no password no\n\nmachine a.example login me password pass",
    ],
    ["with an account", "machine a.example login me account login password pass"],
    ["twice: the first counts", "machine A.Example login me password pass machine a.example login x password y"],
    ["among words nobody knows", "machine a.example port 21 login me password pass"],
  ])("finds a machine %s", (_, text) => {
    expect(parseNetrc(text).machines.get("a.example")).toEqual({ login: "me", password: "pass" });
  });

  test("finds a default, and what is quoted with spaces and escapes", () => {
    const { machines, fallback } = parseNetrc(
      'machine a login "a b" password "\\"x\\\\y\\t" default login d password e',
    );
    expect(machines.get("a")).toEqual({ login: "a b", password: '"x\\y\t' });
    expect(fallback).toEqual({ login: "d", password: "e" });
  });

  test.each(["", "login me password pass", "machine", "machine a login", "default", '"', "macdef x\nmachine a"])(
    "survives %j",
    (text) => {
      const { machines, fallback } = parseNetrc(text);
      expect(
        [...machines.values(), fallback ?? {}].every((entry) => !("password" in entry) || entry.password === ""),
      ).toBe(true);
    },
  );
});

describe("parseHeaderFile()", () => {
  test("loses no field, whatever its name is (fuzz, seed 22, message 6 of header-files)", () => {
    expect(Object.entries(parseHeaderFile("__proto__: x\nConstructor: y\n", "f"))).toEqual([
      ["__proto__", "x"],
      ["constructor", "y"],
    ]);
    expect(() => parseHeaderFile("__proto__: x\n__proto__: y\n", "f")).toThrow(/line 2: __proto__ is there twice/);
  });

  test("reads lines like curl", () => {
    const text = "# comment\r\nAuthorization: Bearer a:b=c\r\n\r\n  \nX-Empty-Before:value\nCookie:  a=b; c=d  \n";
    expect(parseHeaderFile(text, "f")).toEqual({
      authorization: "Bearer a:b=c",
      "x-empty-before": "value",
      cookie: "a=b; c=d",
    });
  });

  test.each([
    ["SECRET", "it is not `Name: value`"],
    ["SEC RET: x", "it is not `Name: value`"],
    [": SECRET", "it is not `Name: value`"],
    ["X-A: SECRET\0", "X-A has characters that no header may hold"],
    ["X-A: SECRET\rHost: x", "it is not `Name: value`"],
    ["X-A: SECRET€", "X-A has characters that no header may hold"],
    ["X-A:", "X-A has no value"],
    ["Range: SECRET", "Range is for this program to set"],
    ["If-Match: SECRET", "If-Match is for this program to set"],
    ["Accept-Encoding: SECRET", "Accept-Encoding is for this program to set"],
    ["Transfer-Encoding: SECRET", "Transfer-Encoding is for this program to set"],
    ["Content-Length: 5", "Content-Length is for this program to set"],
    ["Host: SECRET", "Host is for this program to set"],
    ["Proxy-Authorization: SECRET", "Proxy-Authorization is for this program to set"],
  ])("refuses %j without repeating it", (line, why) => {
    const parse = () => parseHeaderFile(`X-First: 1\n${line}\n`, "file");
    expect(parse).toThrow(UsageError);
    expect(parse).toThrow(`Cannot use "file": line 2: ${why}`);
    expect(parse).not.toThrow(/SECRET/);
  });

  test("refuses a field that is there twice", () => {
    expect(() => parseHeaderFile("X-A: 1\nx-a: 2\n", "file")).toThrow('Cannot use "file": line 2: x-a is there twice');
  });
});

describe("Credentials", () => {
  test("come from ~/.netrc, from the file that NETRC names before it, and from the header file before both", async () => {
    await using home = await scratchDirectory();
    const [named, headerFile] = [join(home.path, "named"), join(home.path, "headers")];
    await writeFile(join(home.path, ".netrc"), "machine a.example login home password 1", { mode: 0o600 });
    await writeFile(named, "machine a.example login named password 2", { mode: 0o600 });
    await writeFile(headerFile, "Authorization: Bearer 3", { mode: 0o600 });
    const origin = "https://a.example";
    const HOME = home.path;
    const load = async (NETRC: string | undefined, file?: string) =>
      (await Credentials.load({ origin, headerFile: file, environment: { HOME, NETRC } })).fieldsFor(origin);
    expect(await load(undefined)).toEqual({ authorization: basic("home:1") });
    expect(await load("")).toEqual({ authorization: basic("home:1") });
    expect(await load(named)).toEqual({ authorization: basic("named:2") });
    expect(await load(named, headerFile)).toEqual({ authorization: "Bearer 3" });
    await expect(load(join(HOME, "none"))).rejects.toThrow("no such file (ENOENT)");
    await expect(load(HOME)).rejects.toThrow(`Cannot read "${HOME}": EISDIR`);
  });

  test("that are not there are none", async () => {
    const origin = "https://a.example";
    const credentials = await Credentials.load({ origin, environment: { HOME: "/nonexistent" } });
    expect(credentials.fieldsFor(origin)).toEqual({});
  });

  test("are for the host; the default and the header file are for the origin that was given alone", async () => {
    await using home = await scratchDirectory();
    const NETRC = join(home.path, "n");
    const headerFile = join(home.path, "h");
    await writeFile(NETRC, "machine b.example login b password b default login d password d", { mode: 0o600 });
    await writeFile(headerFile, "X-Key: k", { mode: 0o600 });
    const credentials = await Credentials.load({ origin: "https://a.example", headerFile, environment: { NETRC } });
    expect(credentials.fieldsFor("https://a.example")).toEqual({ authorization: basic("d:d"), "x-key": "k" });
    for (const other of ["http://a.example", "https://a.example:8443", "https://sub.a.example", "https://c.example"]) {
      expect(credentials.fieldsFor(other)).toEqual({});
    }
    expect(credentials.fieldsFor("https://b.example")).toEqual({ authorization: basic("b:b") });
    expect(credentials.fieldsFor("https://b.example:443")).toEqual({ authorization: basic("b:b") });
  });

  test("kept for a host are not sent to another port of it, nor in the clear, unless that is what was given", async () => {
    await using home = await scratchDirectory();
    const NETRC = join(home.path, "n");
    await writeFile(NETRC, "machine b.example login b password b", { mode: 0o600 });
    const load = (origin: string) => Credentials.load({ origin, environment: { NETRC } });
    const sent = { authorization: basic("b:b") };
    for (const origin of ["http://b.example", "http://b.example:8080", "https://b.example:8443"]) {
      expect((await load("https://a.example")).fieldsFor(origin)).toEqual({});
      expect((await load("https://b.example")).fieldsFor(origin)).toEqual({});
      const given = await load(origin);
      expect(given.fieldsFor(origin)).toEqual(sent);
      expect(given.fieldsFor("https://b.example")).toEqual(sent); // as where http: only leads on to https:
    }
  });

  test("that others can read are told of", async () => {
    await using home = await scratchDirectory();
    const NETRC = join(home.path, "n");
    await writeFile(NETRC, "machine a login SECRET password SECRET", { mode: 0o600 });
    const notes: string[] = [];
    const load = () =>
      Credentials.load({ origin: "http://a", environment: { NETRC }, onNote: (line) => void notes.push(line) });
    await load();
    expect(notes).toEqual([]);
    await chmod(NETRC, 0o640);
    await load();
    expect(notes).toEqual([`"${NETRC}" holds credentials and can be read by other users: chmod 600 it`]);
  });
});
