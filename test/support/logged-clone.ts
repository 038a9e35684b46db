/** The life of a clone on a disk whose writes qemu logs: served to clients in rounds, then hydrated to the end. */
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { Checkpoint, LoggedClone, SentChange } from "./log-judge.ts";
import { type Flushes, startLoggedDisk } from "./logged-disk.ts";
import { NbdSession } from "./nbd-session.ts";
import { type SeededRandom, seededBytes } from "./random.ts";
import { clone, cloneOk } from "./run-clone.ts";
import { scratchDirectory } from "./scratch.ts";
import { type Server, startServe, stopServe } from "./serve.ts";
import { SECTOR, stampSectors } from "./stamped-sectors.ts";
import { readWriteLog } from "./write-log.ts";

/** What is to be lived through. */
export interface LifeRequest {
  flushes: Flushes;
  /** Rounds of clients; after each all is flushed and read. */
  rounds: number;
}

const KIB = 1024;
const CLIENTS = 3;

/** Lives through it, and resolves to what there is to judge. */
export async function liveOnLoggedDisk(request: LifeRequest, random: SeededRandom): Promise<LoggedClone> {
  await using place = await scratchDirectory();
  const cwd = place.path;
  const sectors = random.integer(2048, 6000);
  const regionSize = random.pick([4, 4, 16, 64]) * KIB;
  const source = sourceWithHoles(sectors, random);
  // What is not written is never mistaken for data.
  const destination = seededBytes(random, source.length);
  await writeFile(join(cwd, "disk.img"), source);

  await using disk = await startLoggedDisk({ cwd, destination, flushes: request.flushes });
  const made = ["--metadata", "made.clone", "--region-size", `${regionSize}`, "--force"];
  await cloneOk(["create", "disk.img", disk.uri, ...made], { cwd });
  const metadata = await readFile(join(cwd, "made.clone"));
  const path = await disk.log(metadata);

  const checkpoints: Checkpoint[] = [{ entries: 0, content: source, later: [] }];
  const clients = new Clients(sectors, random);
  {
    const how = [
      "--rate",
      random.pick(["50K", "500K", "2M"]),
      "--hydrate-on-read",
      random.pick(["off", "off", "auto"]),
    ];
    await using server = await startServe({ clone: path, cwd, args: how });
    for (let round = 0; round < request.rounds; round++) {
      await clients.round(server, (checkpoints.at(-1) as Checkpoint).later);
      const content = await clients.content(server);
      checkpoints.push({ entries: await disk.logged(), content, later: [] });
    }
    await clients.round(server, (checkpoints.at(-1) as Checkpoint).later); // which the end of the server makes durable
    const content = await clients.content(server, { flush: false });
    await stopServe(server);
    checkpoints.push({ entries: await disk.logged(), content, later: [] });
  }
  await cloneOk(["hydrate", path, "--progress", "none", "--rate", random.pick(["4M", "max"])], { cwd });
  const { code, stderr } = await clone(["check", path], { cwd });
  if (code !== 0) throw new Error(`check at the end: ${stderr}`);
  await disk[Symbol.asyncDispose]();
  const requests = await readWriteLog(disk.logPath);
  return { source, regionSize, destination, metadata, flushes: request.flushes, checkpoints, requests };
}

/** Sectors that tell where they are, and some runs of zeros. */
function sourceWithHoles(sectors: number, random: SeededRandom): Buffer {
  const source = stampSectors(Buffer.alloc(sectors * SECTOR), 0, 1);
  for (let hole = 0; hole < 3; hole++) {
    const start = random.integer(0, sectors - 1);
    source.fill(0, start * SECTOR, Math.min(sectors, start + random.integer(1, 400)) * SECTOR);
  }
  return source;
}

/** Clients of one server after the other; each change has a stamp of its own. */
class Clients {
  readonly #sectors: number;
  readonly #random: SeededRandom;
  #stamp = 1;
  readonly #inFlight = new Map<Promise<unknown>, SectorRange>();

  constructor(sectors: number, random: SeededRandom) {
    this.#sectors = sectors;
    this.#random = random;
  }

  /** Some changes at once, and flushes among them; resolves when all are answered. What was sent goes to `sent`. */
  async round(server: Server, sent: SentChange[]): Promise<void> {
    const random = this.#random;
    const sessions = await Promise.all(
      Array.from({ length: CLIENTS }, () => NbdSession.connect({ socket: server.socket })),
    );
    for (let left = random.integer(10, 60); left > 0; left--) {
      this.#one(random.pick(sessions), sent);
      if (random.oneIn(4)) await this.#answered();
    }
    await this.#answered();
    await Promise.all(sessions.map((session) => session.close()));
  }

  /** All that the clone holds, at rest. */
  async content(server: Server, { flush = true } = {}): Promise<Buffer> {
    await using session = await NbdSession.connect({ socket: server.socket });
    if (flush) await session.flush();
    const content = await session.read(0, session.size);
    await session.close();
    return content;
  }

  async #answered(): Promise<void> {
    await Promise.all(this.#inFlight.keys());
    this.#inFlight.clear();
  }

  /**
   * Sends one request. No two that are under way touch the same bytes: of them the log would not tell which the disk did last.
   */
  #one(session: NbdSession, sent: SentChange[]): void {
    const random = this.#random;
    const draw = random.integer(0, 19);
    if (draw < 2) {
      this.#inFlight.set(session.flush(), { start: 0, end: 0 });
      return;
    }
    const unit = random.pick([1, 8, 32, 128]);
    const length = Math.min(this.#sectors, unit * random.integer(1, 3));
    const start = Math.min(this.#sectors - length, Math.floor(random.integer(0, this.#sectors) / unit) * unit);
    const range = { start, end: start + length };
    for (const { start: other, end } of this.#inFlight.values()) if (other < range.end && start < end) return;
    const [offset, bytes] = [start * SECTOR, length * SECTOR];
    const fua = random.oneIn(8);
    let request: Promise<unknown>;
    if (draw < 6) request = session.read(offset, bytes);
    else if (draw < 8) {
      sent.push({ offset, data: Buffer.alloc(bytes) });
      request = session.trim(offset, bytes, { fua });
    } else if (draw < 10) {
      sent.push({ offset, data: Buffer.alloc(bytes) });
      request = session.zero(offset, bytes, { fua, noHole: random.oneIn(2) });
    } else {
      this.#stamp += 1;
      const data = stampSectors(Buffer.alloc(bytes), start, this.#stamp);
      sent.push({ offset, data });
      request = session.write(offset, data, { fua });
    }
    this.#inFlight.set(request, range);
  }
}

/** Half-open. */
interface SectorRange {
  start: number;
  end: number;
}
