/** Short texts that people write: sizes, places, addresses, messages. */
import assert from "node:assert/strict";
import { isIP } from "node:net";
import {
  formatDuration,
  formatElapsed,
  formatExactSize,
  formatSize,
  parseRate,
  parseSize,
} from "../../../src/base/units.ts";
import { parseDmMessage } from "../../../src/cli/dm-message.ts";
import { countOf, minRateOf } from "../../../src/cli/options.ts";
import { commandText, commandWords, displayCommand } from "../../../src/clone/command-text.ts";
import { parseJsonImage, refuseCredentials } from "../../../src/clone/image-location.ts";
import { hostAndPort, isLoopback, parseListenAddress } from "../../../src/clone/listen-address.ts";
import {
  displayName,
  displayUri,
  isReopenable,
  type Location,
  parseLocation,
  parsePath,
  uriOf,
} from "../../../src/clone/location.ts";
import { recordedLocation } from "../../../src/clone/recorded-location.ts";
import { parseFinalize, parseNothing, parseTuning } from "../../../src/control/tuning.ts";
import { proxyFor } from "../../../src/device/http/proxy-choice.ts";
import { safeUrl } from "../../../src/device/http/safe-url.ts";
import { formatNbdUri, isNbdUri, type NbdAddress, parseNbdUri } from "../../../src/nbd/client/nbd-uri.ts";
import type { SeededRandom } from "../../support/random.ts";
import { type FuzzTarget, mustHold, outcomeOf, outcomeOfAsync, textTarget } from "../target.ts";

const NAMES = [
  "disk",
  "a b",
  "é",
  "../x",
  "a%2Fb",
  "ü/ö",
  "",
  "#1",
  "?",
  "&=",
  "\\",
  '"',
  "x".repeat(300),
  "\u{1f600}",
];

function number(random: SeededRandom, most: number): number {
  return random.oneIn(2) ? random.integer(0, Math.min(most, 1000)) : random.integer(0, most);
}

/** Sizes, rates and counts: what is understood is exact, and comes back from its own text. */
export const sizes: FuzzTarget = textTarget({
  name: "sizes",
  weight: 120,
  dictionary: ["KiB", "MB", "s", "/s", "max", "T", "p", "auto"],
  make: (random) => `${number(random, 4096)}${random.pick(["", "K", "KB", "KiB", "s", "m", "G", "TB", "b"])}`,
  run(text) {
    const outcome = outcomeOf(() => {
      const bytes = parseSize(text);
      mustHold(Number.isSafeInteger(bytes) && bytes >= 0, `"${text}" is ${bytes} bytes`);
      assert.equal(parseSize(formatExactSize(bytes)), bytes);
      for (const format of [formatSize, formatElapsed, formatDuration]) mustHold(!/NaN/.test(format(bytes)), "NaN");
    }, RangeError);
    const rate = outcomeOf(() => {
      const bytes = parseRate(text);
      mustHold(bytes === null || (Number.isSafeInteger(bytes) && bytes > 0), `the rate "${text}" is ${bytes}`);
    }, RangeError);
    mustHold(outcome === "refused" || rate === "accepted", `"${text}" is a size, and no rate`);
    outcomeOf(() => void minRateOf(text));
    outcomeOf(() => mustHold(countOf("--count", 1)(text) >= 1, `the count "${text}"`));
    return rate;
  },
});

/** What SOURCE and DEST name. */
export const locations: FuzzTarget = textTarget({
  name: "locations",
  weight: 60,
  dictionary: [
    "://",
    "file:",
    "nbd:",
    "json:",
    "rbd:",
    "s3://",
    "command:",
    "http://",
    "?socket=",
    ":conf=",
    "@",
    '["',
  ],
  async run(text) {
    let location: Location | undefined;
    const outcome = outcomeOf(() => {
      location = parseLocation(text);
    });
    outcomeOf(() => void parsePath(text));
    await outcomeOfAsync(async () => void (await recordedLocation(text, "source")));
    mustHold(typeof displayUri(text) === "string", "no text");
    const words = commandWords(text);
    if (words !== undefined) assert.deepEqual(commandWords(commandText(words)), words);
    if (words !== undefined) displayCommand(words);
    if (location === undefined) return outcome;
    if (location.kind === "file") mustHold(!location.path.includes("\0"), "a path with a NUL, which nothing opens");
    mustHold(!/\n/.test(uriOf(location)) || location.kind !== "http", "a line break in a URI");
    const uri = uriOf(location);
    displayUri(uri);
    displayName(location);
    if (!isReopenable(location)) return outcome;
    const again = parseLocation(uri);
    assert.equal(uriOf(again), uri, `"${text}" is "${uri}", which is another place`);
    if (location.kind !== "http") assert.deepEqual(again, location);
    return outcome;
  },
});

function nbdAddress(random: SeededRandom): NbdAddress {
  const exportName = random.pick(NAMES);
  const host = random.pick(["localhost", "example.com", "::1", "192.0.2.1", "fe80::1%eth0", "xn--d1acufc.example"]);
  const place = random.oneIn(2)
    ? { path: `/run/${random.pick(NAMES)}.sock` }
    : { host, port: random.integer(1, 65535) };
  if (random.oneIn(2)) return { place, exportName };
  const verifyPeer = random.oneIn(2);
  const tls = random.oneIn(2)
    ? { type: "psk" as const, verifyPeer, pskFile: `/etc/${random.pick(NAMES)}x`, username: `u${random.pick(NAMES)}` }
    : { type: "x509" as const, verifyPeer, hostname: "other.example", certificates: "/etc/pki/é" };
  return { place, exportName, tls };
}

/** NBD's URIs. */
export const nbdUris: FuzzTarget = textTarget({
  name: "nbd-uris",
  weight: 80,
  dictionary: [
    "socket=",
    "tls-type=",
    "tls-psk-file=",
    "tls-hostname=",
    "tls-verify-peer=",
    "+unix",
    "nbds",
    "%25",
    "]",
  ],
  make: (random) => formatNbdUri(nbdAddress(random)),
  run: (text) =>
    outcomeOf(() => {
      const address = parseNbdUri(text);
      const uri = formatNbdUri(address);
      mustHold(isNbdUri(uri), `"${uri}" is no URI of NBD's`);
      assert.deepEqual(parseNbdUri(uri), address);
      if ("host" in address.place) mustHold(address.place.port >= 1 && address.place.port <= 65535, "its port");
    }),
});

/** Whether an object of qemu's holds a password in the plain, at any depth. */
function holdsPassword(value: unknown): boolean {
  if (typeof value !== "object" || value === null) return false;
  return Object.entries(value).some(
    ([name, inner]) =>
      (/^(file\.)?(password|secret|key)$/.test(name) && typeof inner === "string") || holdsPassword(inner),
  );
}

/** What qemu opens by a text of its own. */
export const jsonImages: FuzzTarget = textTarget({
  name: "images-as-json",
  weight: 60,
  dictionary: [
    '"driver":',
    '"file":{',
    '"password":"x"',
    '{"a":',
    "json:{",
    "[[[[[[[[",
    '\\"',
    ":password=",
    "%70assword",
    "}",
  ],
  make: (random) => {
    const depth = random.integer(0, 10);
    return `json:${'{"driver":"raw","file":'.repeat(depth)}{"driver":"file","filename":"x"}${"}".repeat(depth)}`;
  },
  run: (text) =>
    outcomeOf(() => {
      refuseCredentials(text);
      if (!/^json:/i.test(text)) return;
      mustHold(!holdsPassword(parseJsonImage(text)), "a password is kept");
    }),
});

/** Proxies of the environment: the first line is the proxy, the others say who has none. */
export const proxies: FuzzTarget = textTarget({
  name: "proxies",
  weight: 60,
  run: (text) =>
    outcomeOf(() => {
      const [http_proxy = "", ...rest] = text.split("\n");
      for (const origin of ["http://a.internal.example", "https://[::1]:8080", "http://10.0.0.1"]) {
        const proxy = proxyFor(origin, { http_proxy, https_proxy: http_proxy, no_proxy: rest.join("\n") });
        if (proxy !== undefined) mustHold(/^https?:\/\/[^/@?#]+$/.test(proxy.origin), `the proxy ${proxy.origin}`);
      }
    }),
});

/** URLs that may hold secrets, of which nothing is refused: whatever is shown of one, it is no password. */
export const urls: FuzzTarget = textTarget({
  name: "urls",
  weight: 80,
  dictionary: ["token=", "sig=", "user:hunter2hunter2@", "X-Amz-Signature=", "eyJhbGciOiJIUzI1NiJ9."],
  run(text) {
    const shown = safeUrl(text);
    if (!URL.canParse(text)) return "accepted"; // it is made plain all the same
    const { password } = new URL(text);
    const [authority = ""] = shown.text.replace(/^[^/]*\/\//, "").split("/", 1);
    if (password !== "") mustHold(!authority.includes(`:${password}@`), `a password is shown: ${shown.text}`);
    if (shown.isComplete && !text.includes("#")) assert.equal(new URL(shown.text).href, new URL(text).href);
    return "accepted";
  },
});

/** Where a server listens. */
export const listenAddresses: FuzzTarget = textTarget({
  name: "listen-addresses",
  weight: 60,
  run: (text) =>
    outcomeOf(() => {
      const { host, port } = parseListenAddress(text);
      mustHold(Number.isInteger(port) && port >= 0 && port <= 65535, `port ${port}`);
      isLoopback(host);
      if (host !== "" && !(isIP(host) === 0 && /^\d+$/.test(host))) {
        assert.deepEqual(parseListenAddress(hostAndPort(host, port)), { host, port });
      }
    }),
});

/** Messages of dm-clone, words parted by NULs. */
export const dmMessages: FuzzTarget = textTarget({
  name: "dm-messages",
  weight: 60,
  run: (text) =>
    outcomeOf(() => {
      const changes = parseDmMessage(text.split("\0"));
      assert.deepEqual(parseTuning(JSON.parse(JSON.stringify(changes))), changes);
    }),
});

/** Bodies of requests to the control socket. */
export const tunings: FuzzTarget = textTarget({
  name: "tunings",
  weight: 80,
  dictionary: ['"rate":', "null", "true", '"paused":', "1e308", "-0", '"__proto__":{"rate":1}', '"hydrateOnRead":"on"'],
  run(text) {
    let value: unknown;
    try {
      value = JSON.parse(text);
    } catch {
      return "refused";
    }
    outcomeOf(() => parseNothing(value));
    const finalize = outcomeOf(() => {
      for (const flag of Object.values(parseFinalize(value))) mustHold(typeof flag === "boolean", "no boolean");
    });
    const tune = outcomeOf(() => {
      const { rate, threshold, batchSize } = parseTuning(value);
      for (const count of [rate, threshold, batchSize]) {
        mustHold(count === undefined || count === null || (Number.isSafeInteger(count) && count >= 0), `${count}`);
      }
    });
    return finalize === "accepted" || tune === "accepted" ? "accepted" : "refused";
  },
});
