import { describe, expect, test } from "vitest";
import { UsageError } from "../../../src/base/errors.ts";
import { hostAndPort, isLoopback, parseListenAddress, resolveHost } from "../../../src/clone/listen-address.ts";

describe("parseListenAddress()", () => {
  test.for([
    ["localhost:10809", { host: "localhost", port: 10809 }],
    ["localhost", { host: "localhost", port: 10809 }],
    ["127.0.0.1:0", { host: "127.0.0.1", port: 0 }],
    [":10809", { host: "", port: 10809 }],
    ["[::1]:5000", { host: "::1", port: 5000 }],
    ["[::]", { host: "::", port: 10809 }],
  ] as const)("takes %s", ([text, address]) => {
    expect(parseListenAddress(text)).toEqual(address);
  });

  test.for(["", "10809", "host:", "host:x", "host:65536", "::1", "[::1", "[host]:1", "a b:1", "a:1:2"])(
    "refuses %j, naming the option",
    (text) => {
      expect(() => parseListenAddress(text)).toThrow(UsageError);
      expect(() => parseListenAddress(text)).toThrow(/^Cannot use --listen: /);
    },
  );
});

describe("isLoopback()", () => {
  test.for(["127.0.0.1", "127.255.0.9", "::1", "::ffff:127.0.0.1"])("lets %s pass", (address) => {
    expect(isLoopback(address)).toBe(true);
  });

  test.for(["0.0.0.0", "::", "10.0.0.1", "128.0.0.1", "::2", "fe80::1", "127.example.org"])("not %s", (address) => {
    expect(isLoopback(address)).toBe(false);
  });
});

test("resolveHost() takes an address as it is, and no host as all addresses", async () => {
  expect(await resolveHost("::1")).toEqual(["::1"]);
  expect(await resolveHost("")).toEqual(["::", "0.0.0.0"]);
  expect((await resolveHost("localhost")).every(isLoopback)).toBe(true);
});

test("hostAndPort() writes what a URI takes", () => {
  expect(hostAndPort("::1", 10809)).toBe("[::1]");
  expect(hostAndPort("::1", 99)).toBe("[::1]:99");
  expect(hostAndPort("localhost", 10810)).toBe("localhost:10810");
});
