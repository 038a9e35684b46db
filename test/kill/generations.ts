/** The generations of a clone: what runs, is killed at some moment, and runs again. */
import { existsSync } from "node:fs";
import { lstat, readFile, rm } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { expect } from "vitest";
import { NbdSession } from "../support/nbd-session.ts";
import type { SeededRandom } from "../support/random.ts";
import { eventually, type StartedClone } from "../support/run-clone.ts";
import { type Server, startServe } from "../support/serve.ts";
import { SECTOR, stampSectors } from "../support/stamped-sectors.ts";
import type { KilledClone } from "./killed-clone.ts";

const MIB = 1024 * 1024;
/** The longest request of NBD clients everywhere. */
const HUGE = 32 * MIB;
/** Stamps of huge writes; those of the random clients count up from 2. */
let hugeStamp = 1_000_000;

/** What a generation does, as it is counted. */
export type Kind =
  | "a server under load"
  | "a server that opens"
  | "a server in a huge write"
  | "a server that finalizes"
  | "a server told to finalize"
  | "a server told to end"
  | "the parent of a command"
  | "a hydration"
  | "a hydration that opens"
  | "a hydration told to end";

/** Drawn as often as they stand here. */
const KINDS: readonly Kind[] = [
  ...new Array<Kind>(8).fill("a server under load"),
  ...new Array<Kind>(5).fill("a hydration"),
  "a server that opens",
  "a server in a huge write",
  "a server in a huge write",
  "a server that finalizes",
  "a server told to finalize",
  "a server told to end",
  "the parent of a command",
  "a hydration that opens",
  "a hydration told to end",
];

/** Who is killed while clients or a hydration keep it busy; all others are killed on their way there, or in something else. */
export function isUnderLoad(what: string): boolean {
  return UNDER_LOAD.some((kind) => kind === what);
}

const UNDER_LOAD: readonly Kind[] = [
  "a server under load",
  "a server in a huge write",
  "a server that finalizes",
  "a server told to finalize",
  "the parent of a command",
  "a hydration",
];

/** A kind that this clone can have: a huge write needs a disk that is, finalizing a destination that is a file. */
export function drawKind(clone: KilledClone, random: SeededRandom, { finalizes = true } = {}): Kind {
  const kinds = KINDS.filter((kind) => {
    if (kind === "a server in a huge write") return clone.size > HUGE;
    if (kind === "a server that finalizes" || kind === "a server told to finalize") return finalizes;
    return true;
  });
  return random.pick(kinds);
}

/** Runs a generation to its end, by a kill or before it. Resolves to whether it was killed. */
export async function generation(clone: KilledClone, kind: Kind, random: SeededRandom): Promise<boolean> {
  switch (kind) {
    case "a hydration":
    case "a hydration that opens":
    case "a hydration told to end":
      return await hydration(clone, kind, random);
    case "a server that opens":
      return await openingServer(clone, random);
    case "the parent of a command":
      return await captive(clone, random);
    default:
      return await server(clone, kind, random);
  }
}

/** Kills a process after a while. Resolves to whether that ended it: it may have done its work before. */
export async function killAfter(process: StartedClone, ms: number): Promise<boolean> {
  await Promise.race([process.done, sleep(ms)]);
  return await kill9(process);
}

/** Resolves to whether the kill ended it; a failure of its own is none of what is expected. */
async function kill9({ child, done }: StartedClone, codes: readonly number[] = [0]): Promise<boolean> {
  child.kill("SIGKILL");
  const { code, signal, stdout, stderr } = await done;
  if (signal === null) expect(codes, `exit ${code}: ${stdout}${stderr}`).toContain(code);
  else expect(signal).toBe("SIGKILL");
  return signal !== null;
}

async function hydration(clone: KilledClone, kind: Kind, random: SeededRandom): Promise<boolean> {
  const rate = random.pick(["1M", "4M", "16M", "max"]);
  const more = random.pick([[], ["--verify"], ["--no-extents"], ["--limit", "1M"]]);
  const args = ["hydrate", clone.disks.metadata, "--rate", rate, ...more, "--progress", "none"];
  const before = await controlSocket(clone);
  const running = clone.start(args);
  if (kind === "a hydration that opens") return await crashed(clone, killAfter(running, random.integer(0, 220)));
  if (kind === "a hydration") {
    // It listens when all is open, and then begins to copy.
    let ended = false;
    void running.done.then(() => {
      ended = true;
    });
    await eventually("it hydrates", async () => ended || (await controlSocket(clone)) !== before);
    return await crashed(clone, killAfter(running, random.integer(0, 500)));
  }
  await Promise.race([running.done, sleep(random.integer(200, 500))]);
  running.child.kill("SIGTERM");
  await sleep(random.integer(0, 40));
  // Where it did not listen yet the signal itself has ended it.
  running.child.kill("SIGKILL");
  const { code, signal, stderr } = await running.done;
  if (signal === null) expect([0, 143], stderr).toContain(code);
  clone.model.crashed();
  return signal !== null;
}

/** Which socket stands beside the clone, be it that of somebody who was killed; or undefined. */
async function controlSocket(clone: KilledClone): Promise<string | undefined> {
  const path = `${clone.disks.metadataFile}.sock`;
  try {
    const { ino, ctimeMs } = await lstat(path);
    return `${ino} ${ctimeMs}`;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
}

async function openingServer(clone: KilledClone, random: SeededRandom): Promise<boolean> {
  const running = clone.start(["serve", clone.disks.metadata, "--socket", "nbd.sock", ...serveArgs(random)]);
  return await crashed(clone, killAfter(running, random.integer(0, 300)));
}

/** A command that a server runs goes on when the server is killed, and finds nobody at its socket. */
async function captive(clone: KilledClone, random: SeededRandom): Promise<boolean> {
  const told = clone.path("uri");
  await rm(told, { force: true });
  // Told in one piece, and then it only waits: its process is the shell's.
  const command = `echo "$$ $unixsocket" > uri.new && mv uri.new uri && exec sleep 120`;
  const running = clone.start(["serve", clone.disks.metadata, ...serveArgs(random), "--run", command]);
  let ended = false;
  void running.done.then(() => {
    ended = true;
  });
  await eventually("the command runs", () => ended || existsSync(told));
  if (ended) throw new Error(`serve --run: ${(await running.done).stderr}`);
  const [pid = "", socket = ""] = (await readFile(told, "utf8")).trim().split(" ");
  try {
    await load(clone, socket, random);
    running.child.kill("SIGKILL");
    // Its output is the command's, too, and ends with both.
    process.kill(Number(pid), "SIGTERM");
    return await crashed(clone, kill9(running));
  } finally {
    await rm(told);
  }
}

async function server(clone: KilledClone, kind: Kind, random: SeededRandom): Promise<boolean> {
  const finalizes = kind === "a server that finalizes";
  const args = finalizes ? ["--finalize-when-hydrated", "--rate", random.pick(["16M", "max"])] : serveArgs(random);
  const request = { clone: clone.disks.metadata, cwd: clone.cwd, env: clone.env, socket: "nbd.sock", args };
  await using started: Server = await startServe(request);
  const { socket, process } = started;
  if (random.oneIn(2)) await clone.clients.settle(socket, { mayEnd: finalizes });
  const longestMs = finalizes || kind === "a server told to finalize" ? 900 : 300;
  const running = load(clone, socket, random, { longestMs, mayEnd: finalizes });
  let beside: Promise<unknown> = Promise.resolve();
  if (kind === "a server in a huge write") beside = hugeWrite(clone, socket, random);
  if (kind === "a server told to finalize") {
    await Promise.race([running, sleep(random.integer(0, 200))]);
    // It may be told that regions are missing, lose who told it, or find nobody.
    beside = clone.start(["finalize", clone.disks.metadata, "--progress", "none"]).done;
  }
  await running;
  if (kind === "a server told to end") {
    process.child.kill("SIGTERM");
    await sleep(random.integer(0, 40));
  }
  process.child.kill("SIGKILL");
  const { code, signal, stderr } = await process.done;
  if (signal === null) {
    expect(["a server told to end", "a server that finalizes"], stderr).toContain(kind);
    expect(code, stderr).toBe(0);
  }
  await beside;
  await clone.clients.disconnect();
  if (signal === null) clone.model.stopped();
  else clone.model.crashed();
  return signal !== null;
}

/**
 * Clients do what they like for some time; from then on their answers may fail to come. They are still connected. A server that
 * `mayEnd` by itself, when it has finalized, may do so before the first of them came.
 */
async function load(
  clone: KilledClone,
  socket: string,
  random: SeededRandom,
  { longestMs = 300, mayEnd = false } = {},
): Promise<void> {
  try {
    await clone.clients.connect(socket, { mayEnd });
  } catch (error) {
    if (mayEnd) return;
    throw error;
  }
  const running = clone.clients.run(Number.MAX_SAFE_INTEGER);
  await Promise.race([running, sleep(random.integer(1, longestMs))]);
  clone.clients.expectEnd();
  clone.clients.note(0, clone.model.sectors, "killed");
  await running;
}

/** Writes as much as one request may, and does not wait for the answer long. */
async function hugeWrite({ model, size }: KilledClone, socket: string, random: SeededRandom): Promise<void> {
  const start = random.integer(0, (size - HUGE) / SECTOR);
  const end = start + HUGE / SECTOR;
  hugeStamp += 1;
  const bytes = stampSectors(Buffer.alloc(HUGE), start, hugeStamp);
  const fua = random.oneIn(2);
  await using session = await NbdSession.connect({ socket });
  const write = model.sendWrite(start, end, hugeStamp);
  await session.write(start * SECTOR, bytes, { fua }).then(
    () => model.wrote(write, { fua }),
    () => model.failed(write),
  );
}

async function crashed(clone: KilledClone, kill: Promise<boolean>): Promise<boolean> {
  const killed = await kill;
  await clone.clients.disconnect();
  clone.model.crashed();
  return killed;
}

function serveArgs(random: SeededRandom): string[] {
  return [
    ...random.pick([["--no-hydrate"], ["--rate", "4M"], ["--rate", "max"]]),
    ...["--hydrate-on-read", random.pick(["auto", "on", "off"])],
    ...(random.oneIn(4) ? ["--no-discard-passdown"] : []),
  ];
}
