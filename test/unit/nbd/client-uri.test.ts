// NBD URIs: what they name, how they are written, and what is refused. No refusal shows a password.
import { isIP } from "node:net";
import { resolve } from "node:path";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { UsageError } from "../../../src/base/errors.ts";
import { formatNbdUri, isNbdUri, type NbdAddress, parseNbdUri } from "../../../src/nbd/client/nbd-uri.ts";

const tcp = (host: string, port = 10809, exportName = ""): NbdAddress => ({ place: { host, port }, exportName });
const unix = (path: string, exportName = ""): NbdAddress => ({ place: { path }, exportName });
const x509 = { type: "x509", verifyPeer: true } as const;

/** Text, what it names, and its canonical form where that is another. */
const GOOD: [string, NbdAddress, string?][] = [
  ["nbd://example.com/disk", tcp("example.com", 10809, "disk")],
  ["nbd://example.com", tcp("example.com"), "nbd://example.com/"],
  ["nbd://example.com/", tcp("example.com")],
  ["nbd://example.com//disk", tcp("example.com", 10809, "/disk")],
  ["nbd://example.com/a/../b", tcp("example.com", 10809, "a/../b")],
  ["nbd://example.com/hello%20world", tcp("example.com", 10809, "hello world")],
  ["nbd://example.com/a%2Fb", tcp("example.com", 10809, "a/b"), "nbd://example.com/a/b"],
  ["nbd://example.com/snap@1:2", tcp("example.com", 10809, "snap@1:2"), "nbd://example.com/snap%401%3A2"],
  ["nbd://example.com/%E2%82%AC", tcp("example.com", 10809, "€")],
  ["nbd://example.com/€", tcp("example.com", 10809, "€"), "nbd://example.com/%E2%82%AC"],
  ["NBD://EXAMPLE.com:10810/", tcp("example.com", 10810), "nbd://example.com:10810/"],
  ["nbd://example.com:10809/x", tcp("example.com", 10809, "x"), "nbd://example.com/x"],
  ["nbd://example.com:/x", tcp("example.com", 10809, "x"), "nbd://example.com/x"],
  ["nbd:///x", tcp("localhost", 10809, "x"), "nbd://localhost/x"],
  ["nbd://[::1]:10811/x", tcp("::1", 10811, "x")],
  ["nbd://[FE80::1%25eth0]/", tcp("fe80::1%eth0"), "nbd://[fe80::1%25eth0]/"],
  ["nbd://192.0.2.1/", tcp("192.0.2.1")],
  ["nbd+unix:///?socket=/run/nbd.sock", unix("/run/nbd.sock")],
  ["nbd+unix:///disk?socket=/run/nbd.sock", unix("/run/nbd.sock", "disk")],
  [
    "nbd+unix:///disk?socket=%2Frun%2Fa%26b%3Fc%23d",
    unix("/run/a&b?c#d", "disk"),
    "nbd+unix:///disk?socket=/run/a%26b%3Fc%23d",
  ],
  ["nbd+unix:///?socket=/run/a+b", unix("/run/a+b"), "nbd+unix:///?socket=/run/a%2Bb"],
  ["nbd+unix:///?socket=nbd.sock", unix(resolve("nbd.sock")), `nbd+unix:///?socket=${resolve("nbd.sock")}`],
  ["nbds://example.com/", { ...tcp("example.com"), tls: x509 }],
  ["nbds://example.com/?tls-type=x509", { ...tcp("example.com"), tls: x509 }, "nbds://example.com/"],
  [
    "nbds://example.com/?tls-verify-peer=0&tls-hostname=other.example",
    { ...tcp("example.com"), tls: { type: "x509", verifyPeer: false, hostname: "other.example" } },
    "nbds://example.com/?tls-hostname=other.example&tls-verify-peer=0",
  ],
  [
    "nbds+unix:///d?socket=/s&tls-certificates=/etc/pki",
    { ...unix("/s", "d"), tls: { ...x509, certificates: "/etc/pki" } },
  ],
  [
    "nbds://al%20ice@example.com/?tls-psk-file=/k",
    { ...tcp("example.com"), tls: { type: "psk", verifyPeer: true, pskFile: "/k", username: "al ice" } },
  ],
  [
    "nbds+unix://alice@/d?socket=/s&tls-psk-file=/k&tls-type=psk",
    { ...unix("/s", "d"), tls: { type: "psk", verifyPeer: true, pskFile: "/k", username: "alice" } },
    "nbds+unix://alice@/d?socket=/s&tls-psk-file=/k",
  ],
  ["nbd:localhost:10809", tcp("localhost"), "nbd://localhost/"],
  ["nbd:localhost:1234:exportname=a b/%20", tcp("localhost", 1234, "a b/%20"), "nbd://localhost:1234/a%20b/%2520"],
  ["nbd:[::1]:1234:exportname=", tcp("::1", 1234), "nbd://[::1]:1234/"],
  ["nbd:unix:/run/nbd.sock", unix("/run/nbd.sock"), "nbd+unix:///?socket=/run/nbd.sock"],
  [
    "nbd:unix:/run/a:b:exportname=x:exportname=y",
    unix("/run/a:b", "x:exportname=y"),
    "nbd+unix:///x%3Aexportname%3Dy?socket=/run/a%3Ab",
  ],
];

const BAD: [string, RegExp][] = [
  ["nbd+vsock://2:10809/", /Node\.js has no vsock sockets/],
  ["nbds+vsock://2/", /no vsock/],
  ["nbd+tcp://host/", /is not nbd:\/\//],
  ["nbds:host:10809", /needs "\/\/"/],
  ["nbd+unix://host/?socket=/s", /a unix socket has no host/],
  ["nbd+unix:///disk", /needs socket=PATH/],
  ["nbd+unix:///?socket=", /its socket is empty/],
  ["nbd+unix:///?socket=%00abstract", /cannot reach abstract sockets/],
  ["nbd+unix:///?socket=/a%00b", /holds a NUL/],
  ["nbd://host/?socket=/s", /socket is for nbd\+unix/],
  ["nbd://host/?sokcet=/s", /not known: sokcet/],
  ["nbd+unix:///?socket=/a&socket=/b", /socket twice/],
  ["nbd://host/x?tls-verify-peer=1", /tls-verify-peer is of TLS/],
  ["nbd://alice@host/", /user's name is of TLS/],
  ["nbds://host/?tls-type=anon", /would not know who the server is/],
  ["nbds://host/?tls-type=ssh", /tls-type is not x509 or psk/],
  ["nbds://host/?tls-type=psk", /needs tls-psk-file/],
  ["nbds://host/?tls-type=x509&tls-psk-file=/k", /tls-psk-file is not for/],
  ["nbds://host/?tls-certificates=/c&tls-psk-file=/k", /tls-certificates is not for/],
  ["nbds://alice@host/", /a user's name is for tls-type=psk/],
  ["nbds://host/?tls-verify-peer=yes", /not 0 or 1/],
  ["nbds://@host/?tls-psk-file=/k", /no name stands before/],
  ["nbd://host:0/", /port is not from 1 to 65535/],
  ["nbd://host:65536/", /port is not from 1 to 65535/],
  ["nbd://host:ssh/", /HOST:PORT/],
  ["nbd://::1/", /HOST:PORT/],
  ["nbd://[::g]/", /no IPv6 address/],
  ["nbd://[127.0.0.1]/", /no IPv6 address/],
  ["nbd://a%2Fb/", /host is no name/],
  ["nbd://host/x#y", /%23/],
  ["nbd://host/%FF", /not UTF-8/],
  ["nbd://host/%4", /not UTF-8/],
  ["nbd://host/a%00b", /holds no NUL/],
  ["nbd://host/\ud800", /not Unicode/],
  [`nbd://host/${"x".repeat(4097)}`, /at most 4096 bytes/],
  ["nbd:localhost", /nbd:HOST:PORT/],
  ["nbd:", /nbd:HOST:PORT/],
  ["nbd:unix:", /no path/],
  ["nbd:host:99999", /port is not/],
];

/** Each of them with a password that nobody may see. */
const WITH_PASSWORD = [
  "nbd://bob:xyzzy@host/",
  "nbds://bob:xyzzy@host/?tls-psk-file=/k",
  "nbds://bob:xyzzy/x@host/?tls-psk-file=/k",
  "nbds://bob:xyz#zy@host/",
  "nbds://bob:xyzzy@@host/",
  "nbds://bob%3Axyzzy:xyzzy@host:99999/",
  "nbd+unix://bob:xyzzy@/?socket=/s",
  "nbd:bob:xyzzy@host:10809",
  "nbd+ftp://bob:xyzzy@host/",
  "nbds://host/?password=xyzzy",
  "nbds://host/?tls-type=psk&key=xyzzy&tls-psk-file=/k",
];

describe("parseNbdUri()", () => {
  test.each(GOOD)("%s names what it should", (text, address, canonical = text) => {
    expect(parseNbdUri(text)).toEqual(address);
    expect(formatNbdUri(address)).toBe(canonical);
    expect(parseNbdUri(canonical)).toEqual(address);
    expect(isNbdUri(text)).toBe(true);
  });

  test.each(BAD)("%s is refused, and told why", (text, reason) => {
    expect(() => parseNbdUri(text)).toThrow(UsageError);
    expect(() => parseNbdUri(text)).toThrow(reason);
  });

  test.each(WITH_PASSWORD)("%s is refused without its password", (text) => {
    try {
      parseNbdUri(text);
    } catch (error) {
      expect(error).toBeInstanceOf(UsageError);
      expect(`${(error as UsageError).message} ${(error as UsageError).hint}`).not.toMatch(/xyz|zy/);
      return;
    }
    expect.fail("it was taken");
  });

  test("what formatNbdUri() writes names the same again", () => {
    fc.assert(
      fc.property(address(), (wanted) => {
        const text = formatNbdUri(wanted);
        expect(text).toMatch(/^[\x21-\x7e]*$/);
        expect(parseNbdUri(text)).toEqual(wanted);
        expect(formatNbdUri(parseNbdUri(text))).toBe(text);
      }),
      { numRuns: 2000 },
    );
  });

  test("any text is taken or refused, and nothing else happens", () => {
    const soup = fc.string({ unit: fc.constantFrom(..."nbds+unix:/@[]?&=%#0129.socketls-\0 é\ud800".split("")) });
    fc.assert(
      fc.property(
        fc.constantFrom("nbd:", "nbd://", "nbds://", "nbd+unix:///", "nbds+unix://"),
        soup,
        (scheme, text) => {
          try {
            const parsed = parseNbdUri(scheme + text);
            expect(parseNbdUri(formatNbdUri(parsed))).toEqual(parsed);
          } catch (error) {
            if (!(error instanceof UsageError)) throw error;
          }
        },
      ),
      { numRuns: 5000 },
    );
  });
});

function address(): fc.Arbitrary<NbdAddress> {
  const name = fc.string({ unit: "grapheme", minLength: 1, maxLength: 20 }).filter((text) => !text.includes("\0"));
  const path = name.map((text) => resolve("/", text));
  const host = fc
    .oneof(
      fc.domain(),
      fc.ipV4(),
      fc.ipV6().filter((text) => isIP(text) === 6),
    )
    .map((text) => text.toLowerCase());
  const place = fc.oneof(
    fc.record({ host, port: fc.integer({ min: 1, max: 65535 }) }),
    path.filter((text) => text !== "/").map((text) => ({ path: text })),
  );
  const byCertificate = fc.record(
    { type: fc.constant("x509" as const), verifyPeer: fc.boolean(), hostname: fc.domain(), certificates: path },
    { requiredKeys: ["type", "verifyPeer"] },
  );
  const byKey = fc.record(
    { type: fc.constant("psk" as const), verifyPeer: fc.boolean(), pskFile: path, username: name },
    { requiredKeys: ["type", "verifyPeer", "pskFile"] },
  );
  return fc.record(
    { place, exportName: fc.oneof(fc.constant(""), name), tls: fc.oneof(byCertificate, byKey) },
    { requiredKeys: ["place", "exportName"] },
  );
}
