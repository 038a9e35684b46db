/** Several clients of one NBD server that do random things at once, all of it held against a model of the disk. */
import type { DiskModel } from "./disk-model.ts";
import { NbdConnectionLost, NbdRequestError, NbdSession } from "./nbd-session.ts";
import type { SeededRandom } from "./random.ts";
import { SECTOR, stampSectors, ZEROS } from "./stamped-sectors.ts";

const CLIENTS = 3;
/** Requests of one client that may be in flight. */
const DEPTH = 8;
const ENOTSUP = 95;
const ESHUTDOWN = 108;
/** Of the requests told where something is wrong. */
const TOLD = 40;

/** The clients of one run, which go from one server to the next. */
export class RandomClients {
  readonly #model: DiskModel;
  readonly #random: SeededRandom;
  #sessions: NbdSession[] = [];
  #inFlight: Set<Promise<void>>[] = [];
  /** The server is being ended: its answers may fail to come. */
  #ending = false;
  /** It may end by itself at any time; who meets that is through. */
  #mayEnd = false;
  #wrong: Error | undefined;
  #stamp: number;
  /** A place where requests meet more often than elsewhere; it moves. */
  #meeting = 0;
  /** How often they flush, once in so many requests, and how many of their changes are FUA. */
  #flushes = 20;
  #fuas = 12;
  readonly #discards: boolean;
  readonly #log: { start: number; end: number; text: string }[] = [];

  /**
   * @param firstStamp stamps from here on are the clients' own
   * @param options `discards`: whether they discard; what that leaves is known of files, not of every disk
   */
  constructor(model: DiskModel, random: SeededRandom, firstStamp: number, { discards = true } = {}) {
    this.#model = model;
    this.#discards = discards;
    this.#random = random;
    this.#stamp = firstStamp;
  }

  /** @param options `mayEnd`: whether the server may end by itself at any time, which is no fault then */
  async connect(socket: string, { mayEnd = false } = {}): Promise<void> {
    this.#ending = false;
    this.#mayEnd = mayEnd;
    // Where all of them flush all the time, little is left for FUA to prove.
    this.#flushes = this.#random.pick([10, 30, 300]);
    this.#fuas = this.#random.pick([4, 12, 50]);
    this.#sessions = await Promise.all(Array.from({ length: CLIENTS }, () => NbdSession.connect({ socket })));
    this.#inFlight = this.#sessions.map(() => new Set());
    this.note(0, this.#model.sectors, "connected");
  }

  /** Does `count` requests, or what of them comes before the end is expected. @throws {Error} for a wrong answer */
  async run(count: number): Promise<void> {
    for (let done = 0; done < count && !this.#ending; done++) {
      const client = this.#random.integer(0, CLIENTS - 1);
      const inFlight = this.#inFlight[client] as Set<Promise<void>>;
      while (inFlight.size >= DEPTH) await Promise.race(inFlight);
      if (this.#random.oneIn(50)) await Promise.all(this.#inFlight.flatMap((set) => [...set]));
      if (this.#wrong !== undefined) throw this.#wrong;
      const request = this.#send(this.#sessions[client] as NbdSession, client).finally(() => inFlight.delete(request));
      inFlight.add(request);
    }
  }

  /** From here on answers may fail to come. */
  expectEnd(): void {
    this.#ending = true;
  }

  /** Resolves when nothing is in flight any more, and every client has gone. */
  async disconnect(): Promise<void> {
    await Promise.all(this.#inFlight.flatMap((set) => [...set]));
    await Promise.all(this.#sessions.map((session) => session.close()));
    if (this.#wrong !== undefined) throw this.#wrong;
  }

  /** Reads the whole disk, at rest, and holds it against the model; not where a server that may end by itself has. */
  async settle(socket: string, { mayEnd = false } = {}): Promise<void> {
    let content: Buffer;
    try {
      content = await readAll(socket);
    } catch (error) {
      if (mayEnd && (!(error instanceof NbdRequestError) || isEnd(error))) return;
      throw error;
    }
    this.hold(this.#model.settle(content), "at rest");
  }

  /** Remembers what was done to the disk, for the account of what went wrong. */
  note(start: number, end: number, text: string): void {
    this.#log.push({ start, end, text });
  }

  /** @throws {Error} with an account of what was done to the sector, where there is one that is wrong */
  hold(wrong: { sector: number; why: string } | undefined, when: string): void {
    if (wrong === undefined) return;
    const account = this.#log.filter(({ start, end }) => start <= wrong.sector && wrong.sector < end).slice(-TOLD);
    const told = account.map(({ text }) => `\n  ${text}`).join("");
    throw new Error(`sector ${wrong.sector} ${wrong.why}, ${when}. What was done to it:${told}`);
  }

  async #send(session: NbdSession, client: number): Promise<void> {
    try {
      await this.#one(session, client);
    } catch (error) {
      if (isEnd(error) && this.#mayEnd) this.#ending = true;
      if (!isEnd(error) || !this.#ending) this.#wrong ??= error as Error;
    }
  }

  async #one(session: NbdSession, client: number): Promise<void> {
    if (this.#random.oneIn(this.#flushes)) return await this.#flush(session, client);
    const { start, end } = this.#range();
    const [offset, length] = [start * SECTOR, (end - start) * SECTOR];
    const fua = this.#random.oneIn(this.#fuas);
    const told = (what: string) => `client ${client} ${what}${fua ? " fua" : ""} [${start}, ${end})`;
    const draw = this.#random.integer(0, 99);
    if (draw < 32) {
      const read = this.#model.sendRead(start, end);
      let bytes: Buffer;
      try {
        bytes = await session.read(offset, length);
      } catch (error) {
        this.#model.forget(read);
        throw error;
      }
      this.hold(this.#model.didRead(read, bytes), `read by client ${client}`);
    } else if (draw < 68) {
      this.#stamp += 1;
      const stamp = this.#stamp;
      const bytes = stampSectors(Buffer.alloc(length), start, stamp);
      await this.#change(start, end, stamp, told(`writes ${stamp}`), fua, () => session.write(offset, bytes, { fua }));
    } else if (draw < 80 && this.#discards) {
      await this.#change(start, end, ZEROS, told("discards"), fua, () => session.trim(offset, length, { fua }));
    } else if (draw < 94) {
      const [noHole, fast] = [this.#random.oneIn(3), this.#random.oneIn(4)];
      const what = `zeroes${noHole ? " no-hole" : ""}${fast ? " fast" : ""}`;
      const zero = () =>
        session.zero(offset, length, { fua, noHole, fast }).catch((error: unknown) => {
          if (!(fast && error instanceof NbdRequestError && error.errno === ENOTSUP)) throw error;
          throw new NotFast();
        });
      await this.#change(start, end, ZEROS, told(what), fua, zero);
    } else await session.cache(offset, length);
  }

  async #flush(session: NbdSession, client: number): Promise<void> {
    const flush = this.#model.sendFlush();
    try {
      await session.flush();
    } catch (error) {
      this.#model.unflushed(flush);
      throw error;
    }
    this.#model.flushed(flush);
    this.note(0, this.#model.sectors, `client ${client}: flushed`);
  }

  async #change(
    start: number,
    end: number,
    stamp: number,
    text: string,
    fua: boolean,
    request: () => Promise<void>,
  ): Promise<void> {
    const write = this.#model.sendWrite(start, end, stamp);
    this.note(start, end, text);
    try {
      await request();
    } catch (error) {
      this.#model.failed(write);
      this.note(start, end, `${text}: ${(error as Error).message}`);
      if (error instanceof NotFast) return;
      throw error;
    }
    this.#model.wrote(write, { fua });
    this.note(start, end, `${text}: done`);
  }

  /** Small or large, aligned to many things or to none; half of them near where others are. */
  #range(): { start: number; end: number } {
    const { sectors } = this.#model;
    const unit = this.#random.pick([1, 1, 8, 8, 64, 128, 256]);
    const length = Math.min(sectors, unit * this.#random.integer(1, this.#random.pick([1, 2, 4])));
    if (this.#random.oneIn(60)) this.#meeting = this.#random.integer(0, sectors - 1);
    const near = this.#meeting + this.#random.integer(-256, 256);
    const start = this.#random.oneIn(2) ? near : this.#random.integer(0, sectors);
    const aligned = this.#random.oneIn(4) ? start : Math.floor(start / unit) * unit;
    const inside = Math.max(0, Math.min(sectors - length, aligned));
    return { start: inside, end: inside + length };
  }
}

/** Whether an error says that the server is ending, or has ended. */
function isEnd(error: unknown): boolean {
  return error instanceof NbdConnectionLost || (error instanceof NbdRequestError && error.errno === ESHUTDOWN);
}

async function readAll(socket: string): Promise<Buffer> {
  await using session = await NbdSession.connect({ socket });
  const pieces: Buffer[] = [];
  const step = 1024 * 1024;
  for (let offset = 0; offset < session.size; offset += step) {
    pieces.push(await session.read(offset, Math.min(step, session.size - offset)));
  }
  await session.close();
  return Buffer.concat(pieces);
}

/** A fast write of zeros that would not have been fast. */
class NotFast extends Error {}
