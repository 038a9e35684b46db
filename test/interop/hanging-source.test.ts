// A source that hangs takes a thread of the pool for each question, for as long as it hangs. However many clients and
// whatever else of the server ask it at the same time, the destination must still be read, written, flushed and committed.
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect } from "vitest";
import { randomFile } from "../support/files.ts";
import { hangingSource } from "../support/hanging-source.ts";
import { noNbdLoop } from "../support/nbd-loop.ts";
import { NbdSession } from "../support/nbd-session.ts";
import { testWith } from "../support/needs.ts";
import { cloneOk } from "../support/run-clone.ts";
import { scratchDirectory } from "../support/scratch.ts";
import { startServe, stopServe } from "../support/serve.ts";

const MIB = 2 ** 20;

describe("A source that hangs", () => {
  testWith(
    { programs: ["nbdkit", "nbdfuse"], machine: noNbdLoop },
    "while the server is stopped has not been asked for longer than the server ran",
    async () => {
      await using place = await scratchDirectory();
      const cwd = place.path;
      const bytes = await randomFile(`${cwd}/real.img`, 4 * MIB);
      await using source = await hangingSource(`${cwd}/real.img`);
      await cloneOk(["create", source.path, "copy.img"], { cwd });
      await using server = await startServe({ clone: "copy.img", cwd, args: ["--source-timeout", "5", "--rate", "1"] });
      await using client = await NbdSession.connect(server);
      await source.hang();
      const reading = client.read(3 * MIB + 512, 4096);
      await sleep(500);
      process.kill(server.pid, "SIGSTOP");
      await sleep(7000);
      await source.heal();
      process.kill(server.pid, "SIGCONT");
      expect((await reading).equals(bytes.subarray(3 * MIB + 512, 3 * MIB + 4608))).toBe(true);
      await client.close();
      await stopServe(server);
    },
  );

  testWith(
    { programs: ["nbdkit", "nbdfuse"], machine: noNbdLoop },
    "under reads, writes and copies without number leaves the destination to those who do not need it",
    async () => {
      await using place = await scratchDirectory();
      const cwd = place.path;
      await randomFile(`${cwd}/real.img`, 32 * MIB);
      await using source = await hangingSource(`${cwd}/real.img`);
      await cloneOk(["create", source.path, "copy.img"], { cwd });
      const args = ["--source-timeout", "30", "--hydrate-on-read", "on", "--rate", "1M"];
      await using server = await startServe({ clone: "copy.img", cwd, args });
      await using client = await NbdSession.connect(server);
      await using other = await NbdSession.connect(server);
      await client.write(30 * MIB, Buffer.alloc(2 * MIB, 4), { fua: true });
      await source.hang();
      await server.tune("--rate", "max"); // the background asks for all it can
      const hanging: Promise<unknown>[] = [];
      for (let index = 0; index < 12; index++) {
        hanging.push(other.read((4 + index) * MIB + 512, 4096));
        hanging.push(other.write((16 + index) * MIB + 512, Buffer.alloc(512, 1)));
      }
      const answers = Promise.allSettled(hanging);
      let answered = false;
      void answers.then(() => {
        answered = true;
      });
      await sleep(1000);
      await client.write(30 * MIB, Buffer.alloc(MIB, 5), { fua: true });
      await client.write(29 * MIB, Buffer.alloc(MIB, 6)); // whole regions that were not hydrated
      await client.flush();
      expect((await client.read(29 * MIB, 4096)).equals(Buffer.alloc(4096, 6))).toBe(true);
      expect(answered).toBe(false);
      await source.heal();
      for (const answer of await answers) expect(answer.status).toBe("fulfilled");
      await Promise.all([client.close(), other.close()]);
      await stopServe(server);
    },
  );
});
