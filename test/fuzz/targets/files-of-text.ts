/** Files that others have written: traces, passwords, keys; and what programs and servers say in text. */
import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { Readable } from "node:stream";
import { Geometry } from "../../../src/base/geometry.ts";
import { explainWords } from "../../../src/clone/qemu-words.ts";
import { encodeTraceHeader, encodeTraceRange, TraceParser } from "../../../src/clone/trace-codec.ts";
import { orderOf, readTrace } from "../../../src/clone/trace-file.ts";
import { listenDescriptors, ServiceNotifier } from "../../../src/control/sd-notify.ts";
import { ChildOutput } from "../../../src/device/child-output.ts";
import { parseHeaderFile } from "../../../src/device/http/header-file.ts";
import { parseNetrc } from "../../../src/device/http/netrc.ts";
import { parseS3Error } from "../../../src/device/s3/s3-error.ts";
import { parsePskFile } from "../../../src/nbd/psk-file.ts";
import type { SeededRandom } from "../../support/random.ts";
import { scratchDirectory } from "../../support/scratch.ts";
import { mutate } from "../mutate.ts";
import {
  type FuzzTarget,
  mustHold,
  type Outcome,
  outcomeOf,
  outcomeOfAsync,
  readCorpus,
  textTarget,
} from "../target.ts";

function trace(random: SeededRandom): string {
  const range = () => ({ offset: random.integer(0, 2 ** 40), length: random.integer(1, 2 ** 20) });
  return (
    encodeTraceHeader(2 ** 41) + Array.from({ length: random.integer(0, 30) }, () => encodeTraceRange(range())).join("")
  );
}

/** `--order` files. */
export const traces: FuzzTarget = {
  name: "traces",
  weight: 30,
  mostBytes: 4 * 1024 * 1024,
  async open() {
    const place = await scratchDirectory();
    const path = join(place.path, "trace");
    const corpus = readCorpus("traces");
    const geometry = new Geometry({ size: 2 ** 30, regionSize: 65536 });
    return {
      generate(random) {
        const good = random.oneIn(2) ? Buffer.from(trace(random)) : random.pick(corpus);
        if (random.oneIn(8)) return { bytes: good, isGood: true };
        const dictionary = ["clone-trace 1\n", "size ", "\n0 4096\n", "#", "128s", "9007199254740991 1\n", "\n"];
        return { bytes: mutate(good, random, { others: corpus, dictionary, isText: true }), isGood: false };
      },
      run: (message) =>
        outcomeOfAsync(async () => {
          await writeFile(path, message);
          const read = await readTrace(path);
          const again = new TraceParser("again");
          const text = encodeTraceHeader(read.size ?? 0) + [...read.ranges()].map(encodeTraceRange).join("");
          for (const line of text.split("\n")) again.take(line);
          assert.deepEqual([...again.trace.ranges()], [...read.ranges()]);
          const warnings: string[] = [];
          orderOf(read, geometry, (warning) => warnings.push(warning));
          mustHold(warnings.length <= 2, "too many warnings");
        }),
      [Symbol.asyncDispose]: () => place[Symbol.asyncDispose](),
    };
  },
};

/** Netrc files, of which nothing is refused. */
export const netrcs: FuzzTarget = textTarget({
  name: "netrcs",
  weight: 50,
  dictionary: ["machine ", "default", "login ", "password ", "macdef x\n", '"', '\\"', "\n\n", "#", "account"],
  run(text) {
    const { machines } = parseNetrc(text);
    mustHold(machines.size <= text.length, "more machines than there is text for");
    for (const [name, { login, password }] of machines) {
      mustHold(
        [name, login, password].every((word) => typeof word === "string"),
        "an entry that is no text",
      );
    }
    return "accepted";
  },
});

/** Files of header fields: what is taken can be sent. */
export const headerFiles: FuzzTarget = textTarget({
  name: "header-files",
  weight: 50,
  dictionary: ["Authorization: ", ": ", "\nHost: x", "\r\n", "Range: bytes=0-1\n", "__proto__: x\n", "\nX: "],
  run: (text) =>
    outcomeOf(() => {
      const fields = parseHeaderFile(text, "headers");
      const lines = text.split(/\r?\n/).filter((line) => !/^\s*(#.*)?$/.test(line));
      assert.equal(Object.keys(fields).length, lines.length, "a field was lost");
      mustHold([...new Headers(Object.entries(fields)).keys()].length === lines.length, "fields that cannot be sent");
      const written = Object.entries(fields).map(([name, value]) => `${name}: ${value}`);
      assert.deepEqual(parseHeaderFile(written.join("\n"), "again"), fields);
    }),
});

/** Files of keys for TLS. */
export const pskFiles: FuzzTarget = textTarget({
  name: "psk-files",
  weight: 50,
  dictionary: ["alice:", "#61", ":00\n", "\r\n", "0g"],
  run: (text) =>
    outcomeOf(() => {
      const keys = parsePskFile(text, "keys");
      mustHold(keys.size > 0, "no keys");
      const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");
      const written = [...keys].map(([user, key]) => `#${hex(Buffer.from(user))}:${hex(key)}`);
      assert.deepEqual([...parsePskFile(written.join("\n"), "again")], [...keys]);
    }),
});

/** Errors of S3, of which nothing is refused: whatever it sends, what is shown is short and plain. */
export const s3Errors: FuzzTarget = textTarget({
  name: "s3-errors",
  weight: 50,
  dictionary: [
    "<Code>",
    "</Code>",
    "<Message>",
    "<Region>",
    "&amp;",
    "&#0;",
    "<![CDATA[",
    "<!ENTITY x SYSTEM 'file:///'>",
  ],
  run(text) {
    const { code, message } = parseS3Error(text);
    mustHold(/^[\x20-\x7e]*…?$/.test(message.replaceAll("…", "")), `control characters in "${message}"`);
    mustHold(message.length <= 201 && code.length <= 64, "it is too long");
    return "accepted";
  },
});

/** What programs print that were started; nothing of it is refused. */
export const childOutput: FuzzTarget = textTarget({
  name: "child-output",
  weight: 30,
  dictionary: ["\u001b[", "\r", "\n", "': ", "qemu-nbd: Failed to blk_new_open '", "Unknown protocol 'rbd'", "\u009b"],
  async run(_text, bytes): Promise<Outcome> {
    const told: string[] = [];
    const output = new ChildOutput((line) => told.push(line));
    const middle = Math.floor(bytes.length / 2);
    const stream = Readable.from([bytes.subarray(0, middle), bytes.subarray(middle)], { objectMode: false });
    output.take(stream);
    await new Promise((resolve) => stream.on("close", resolve));
    mustHold(output.lines.length <= 16, "too many lines are kept");
    for (const line of told) mustHold(line.length <= 500 && !/\p{Cc}/u.test(line), "a line that is not plain");
    explainWords(output.lines);
    return "accepted";
  },
});

/** What a service manager hands over in the environment: lines NAME=VALUE, where PID is our own. */
export const serviceEnvironments: FuzzTarget = textTarget({
  name: "service-environments",
  weight: 40,
  dictionary: ["LISTEN_FDS=", "LISTEN_PID=PID\n", "WATCHDOG_USEC=", "NOTIFY_SOCKET=", "@", "\nSTOPPING=1"],
  run(text) {
    const lines = text.replaceAll("PID\n", `${process.pid}\n`).split("\n");
    const environment = Object.fromEntries(lines.map((line) => [line.split("=", 1)[0], line.replace(/^[^=]*=?/, "")]));
    const sent: string[] = [];
    const outcome = outcomeOf(() => {
      const descriptors = listenDescriptors(environment);
      mustHold(descriptors.length <= 1024 && descriptors.every((fd) => fd >= 3), "impossible descriptors");
    });
    using notifier = new ServiceNotifier(environment, (_path, data) => sent.push(data));
    notifier.ready(text);
    notifier.status(text);
    notifier.stopping(text, { extraMs: 1000 });
    if (notifier.isHeard)
      assert.deepEqual(
        sent.map((data) => data.split("\n").length),
        [2, 1, 3],
        "a line of others' making",
      );
    mustHold(!("LISTEN_FDS" in environment) && !("NOTIFY_SOCKET" in environment), "they would be used again");
    return outcome;
  },
});
