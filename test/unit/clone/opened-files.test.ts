// What a program has open, looked at while it opens and closes: what is gone between two looks of ours says nothing of what it
// reads. The program does nothing else all the time, so that some looks fall between.
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { openFilesOf } from "../../../src/clone/opened-files.ts";
import { scratchDirectory } from "../../support/scratch.ts";

const LOOKS = 400;

async function busyProgram(path: string): Promise<ChildProcess> {
  const text = `
    const { openSync, closeSync } = require("node:fs");
    process.stdout.write("ready");
    for (;;) closeSync(openSync(${JSON.stringify(path)}));`;
  const child = spawn(process.execPath, ["-e", text], { stdio: ["ignore", "pipe", "inherit"] });
  await once(child.stdout as NonNullable<typeof child.stdout>, "data");
  return child;
}

async function end(child: ChildProcess): Promise<void> {
  const ended = once(child, "close");
  child.kill("SIGKILL");
  await ended;
}

test("a file that a program closes meanwhile is none that it reads from", async () => {
  await using place = await scratchDirectory();
  const path = join(place.path, "disk.img");
  await writeFile(path, "data");
  const child = await busyProgram(path);
  try {
    for (let look = 0; look < LOOKS; look++) {
      for (const file of await openFilesOf(child.pid, "it")) {
        await file[Symbol.asyncDispose]();
      }
    }
  } finally {
    await end(child);
  }
});

test("of a program that has ended nothing is told, and it is away, not absent", async () => {
  await using place = await scratchDirectory();
  const path = join(place.path, "disk.img");
  await writeFile(path, "data");
  const child = await busyProgram(path);
  await end(child);
  await expect(openFilesOf(child.pid, "it")).rejects.toMatchObject({ errno: "EIO", away: true });
});
