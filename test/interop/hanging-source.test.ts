// A source that hangs takes a thread of the pool for each question, for as long as it hangs. However many clients and
// whatever else of the server ask it at the same time, the destination must still be read, written, flushed and committed.
import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { truncate, writeFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect } from "vitest";
import { holds, randomFile } from "../support/files.ts";
import { hangingSource } from "../support/hanging-source.ts";
import { noNbdLoop } from "../support/nbd-loop.ts";
import { NbdSession } from "../support/nbd-session.ts";
import { testWith } from "../support/needs.ts";
import { cloneOk, eventually } from "../support/run-clone.ts";
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

  // The server waits 5 s for what hangs, closes its books, and waits again for the source: what comes then still lands.
  testWith(
    { programs: ["nbdkit", "nbdfuse"], machine: noNbdLoop },
    "until the server has closed its books makes nobody think that somebody else has written to the destination",
    async () => {
      await using place = await scratchDirectory();
      const cwd = place.path;
      const bytes = await randomFile(`${cwd}/real.img`, 4 * MIB);
      await using source = await hangingSource(`${cwd}/real.img`);
      await cloneOk(["create", source.path, "copy.img"], { cwd });
      const args = ["--source-timeout", "1", "--hydrate-on-read", "on", "--no-hydrate", "--read-only"];
      await using server = await startServe({ clone: "copy.img", cwd, args });
      await using client = await NbdSession.connect(server);
      await client.read(0, 4096);
      await source.hang();
      await expect(client.read(MIB, 4096)).rejects.toMatchObject({ errno: 5 });
      await client.close();
      const stopped = server.stop();
      await sleep(6500);
      await source.heal();
      expect(await stopped).toMatchObject({ code: 0 });
      await cloneOk(["hydrate", "copy.img", "--progress", "none"], { cwd });
      await cloneOk(["finalize", "copy.img"], { cwd });
      expect(await holds(`${cwd}/copy.img`, bytes)).toBe(true);
    },
  );

  testWith(
    { programs: ["nbdkit", "nbdfuse"], machine: noNbdLoop },
    "until it is closed is no failure of the clone",
    async () => {
      await using place = await scratchDirectory();
      const cwd = place.path;
      await randomFile(`${cwd}/real.img`, 4 * MIB);
      await using source = await hangingSource(`${cwd}/real.img`);
      await cloneOk(["create", source.path, "copy.img"], { cwd });
      const args = ["--source-timeout", "1", "--no-hydrate"];
      await using server = await startServe({ clone: "copy.img", cwd, args });
      await using client = await NbdSession.connect(server);
      await source.hang();
      // More of them than may ask the source at once: some ask it when it is closed.
      const writes = Array.from({ length: 8 }, (_, index) => client.write(index * 65536 + 512, Buffer.alloc(512)));
      for (const { status } of await Promise.allSettled(writes)) expect(status).toBe("rejected");
      await client.close();
      const stopped = server.stop();
      await sleep(6500);
      await source.heal();
      const run = await stopped;
      expect(run).toMatchObject({ code: 0 });
      expect(run.stderr).not.toMatch(/has failed/);
    },
  );

  testWith(
    { programs: ["nbdkit", "nbdfuse"], machine: noNbdLoop },
    "until the server flushes for the last time leaves a destination that is known again",
    async () => {
      await using place = await scratchDirectory();
      const cwd = place.path;
      await randomFile(`${cwd}/real.img`, 4 * MIB);
      await writeFile(`${cwd}/disk.raw`, "");
      await truncate(`${cwd}/disk.raw`, 4 * MIB);
      const plugin = [
        "thread_model=echo parallel",
        `get_size=echo ${4 * MIB}`,
        "can_write=exit 0",
        "can_flush=exit 0",
        `pread=dd if='${cwd}/disk.raw' skip=$4 count=$3 iflag=skip_bytes,count_bytes status=none`,
        `pwrite=dd of='${cwd}/disk.raw' seek=$4 oflag=seek_bytes conv=notrunc status=none`,
        `flush=if [ -e '${cwd}/slow' ]; then sleep 3; fi`,
      ];
      const nbdkit = spawn("nbdkit", ["-f", "-U", `${cwd}/disk.sock`, "eval", ...plugin], { stdio: "ignore" });
      try {
        await eventually("nbdkit listens", () => existsSync(`${cwd}/disk.sock`));
        await using source = await hangingSource(`${cwd}/real.img`);
        const destination = `nbd+unix:///?socket=${cwd}/disk.sock`;
        await cloneOk(["create", source.path, destination, "--metadata", "copy.meta"], { cwd });
        const args = ["--source-timeout", "1", "--hydrate-on-read", "on", "--no-hydrate"];
        await using server = await startServe({ clone: "copy.meta", cwd, args });
        await using client = await NbdSession.connect(server);
        await client.read(0, 4096);
        await client.flush();
        await source.hang();
        await expect(client.read(MIB, 4096)).rejects.toMatchObject({ errno: 5 });
        await client.close();
        await writeFile(`${cwd}/slow`, "");
        const stopped = server.stop();
        await sleep(6000);
        await source.heal();
        expect(await stopped).toMatchObject({ code: 0 });
        await cloneOk(["hydrate", "copy.meta", "--progress", "none"], { cwd });
      } finally {
        nbdkit.kill();
      }
    },
  );
});
