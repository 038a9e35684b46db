/** A client of an NBD server that may refuse what it is asked for; all that it answers is held against a model of the disk. */
import { setTimeout as sleep } from "node:timers/promises";
import { DiskModel } from "./disk-model.ts";
import { NbdRequestError, NbdSession } from "./nbd-session.ts";
import type { SeededRandom } from "./random.ts";
import { SECTOR, stampSectors, ZEROS } from "./stamped-sectors.ts";

/** Sectors of a write at most. */
const LONGEST_WRITE = 256;
const STEP = 2 ** 20;

/** One client, which goes from one server to the next. Its disk holds stamp 1 everywhere at first. */
export class ModelClient {
  readonly #model: DiskModel;
  readonly #random: SeededRandom;
  #session: NbdSession | undefined;
  #stamp = 1;
  /** Requests that were answered with an error. */
  refused = 0;

  constructor(sectors: number, random: SeededRandom) {
    this.#model = new DiskModel(new Array(sectors).fill(1));
    this.#random = random;
  }

  async connect(socket: string): Promise<void> {
    this.#session = await NbdSession.connect({ socket });
  }

  async disconnect(): Promise<void> {
    await this.#session?.close();
    this.#session = undefined;
  }

  /** The server was killed. */
  async lost(): Promise<void> {
    await this.#session?.[Symbol.asyncDispose]();
    this.#session = undefined;
    this.fallBack();
  }

  /** What was not flushed may be gone. */
  fallBack(): void {
    this.#model.crashed();
  }

  /** Writes here and there until a write is refused; that has to be with this errno. */
  async writeUntil(errno: number): Promise<void> {
    for (;;) {
      const refused = await this.#writeOne();
      if (refused === undefined) continue;
      if (refused.errno !== errno) throw refused;
      return;
    }
  }

  /** Writes so many times. @throws {NbdRequestError} for the first that is refused */
  async write(count: number): Promise<void> {
    for (let done = 0; done < count; done++) {
      const refused = await this.#writeOne();
      if (refused !== undefined) throw refused;
    }
  }

  /** Writes so many times, whatever becomes of it. */
  async writeAnyhow(count: number): Promise<void> {
    for (let done = 0; done < count; done++) await this.#writeOne();
  }

  /** Reads all there is, of which any part may be refused. @throws {Error} for a sector that cannot be right */
  async readAnyhow(): Promise<void> {
    const length = LONGEST_WRITE;
    for (let start = 0; start < this.#model.sectors; start += length) {
      const read = this.#model.sendRead(start, start + length);
      const bytes = await this.#required.read(start * SECTOR, length * SECTOR).catch((error: unknown) => {
        if (!(error instanceof NbdRequestError)) throw error;
        this.refused++;
        return undefined;
      });
      if (bytes === undefined) this.#model.forget(read);
      else hold(this.#model.didRead(read, bytes), "read");
    }
  }

  /** The errno of a flush that has to be refused. */
  async refusedFlush(): Promise<number> {
    try {
      await this.flush();
    } catch (error) {
      if (error instanceof NbdRequestError) return error.errno;
      throw error;
    }
    throw new Error("a flush succeeded that was to be refused");
  }

  /** The errno of a write that has to be refused. */
  async refusedWrite(): Promise<number> {
    const refused = await this.#writeOne();
    if (refused === undefined) throw new Error("a write succeeded that was to be refused");
    return refused.errno;
  }

  /** Discards some whole regions, of some bytes each. @throws {NbdRequestError} where that is refused */
  async discardWholeRegions(regionSize: number): Promise<void> {
    const sectors = regionSize / SECTOR;
    for (let time = 0; time < 4; time++) {
      const start = this.#random.integer(0, this.#model.sectors / sectors - 1) * sectors;
      const change = this.#model.sendWrite(start, start + sectors, ZEROS);
      await this.#required.trim(start * SECTOR, regionSize);
      this.#model.wrote(change);
    }
  }

  /** @throws {NbdRequestError} where it is refused */
  async flush(): Promise<void> {
    const flush = this.#model.sendFlush();
    try {
      await this.#required.flush();
    } catch (error) {
      this.#model.unflushed(flush);
      this.refused++;
      throw error;
    }
    this.#model.flushed(flush);
  }

  /** Reads all there is. @throws {Error} for a sector that cannot be right, and for a read that is refused */
  async readAll(): Promise<void> {
    const size = this.#model.sectors * SECTOR;
    for (let offset = 0; offset < size; offset += STEP) {
      const length = Math.min(STEP, size - offset);
      const read = this.#model.sendRead(offset / SECTOR, (offset + length) / SECTOR);
      hold(this.#model.didRead(read, await this.#required.read(offset, length)), "read");
    }
  }

  /** What the destination holds at the end. @throws {Error} for a sector that cannot be right */
  settle(bytes: Buffer): void {
    hold(this.#model.settle(bytes), "at the end");
  }

  get #required(): NbdSession {
    if (this.#session === undefined) throw new Error("not connected");
    return this.#session;
  }

  async #writeOne(): Promise<NbdRequestError | undefined> {
    const random = this.#random;
    const { sectors } = this.#model;
    const length = random.integer(1, LONGEST_WRITE);
    const start = random.integer(0, sectors - length);
    this.#stamp += 1;
    const data = stampSectors(Buffer.alloc(length * SECTOR), start, this.#stamp);
    const change = this.#model.sendWrite(start, start + length, this.#stamp);
    const fua = random.oneIn(8);
    try {
      await this.#required.write(start * SECTOR, data, { fua });
    } catch (error) {
      if (!(error instanceof NbdRequestError)) throw error;
      this.#model.failed(change);
      this.refused++;
      await sleep(1);
      return error;
    }
    this.#model.wrote(change, { fua });
    return undefined;
  }
}

function hold(wrong: { sector: number; why: string } | undefined, when: string): void {
  if (wrong !== undefined) throw new Error(`sector ${wrong.sector} ${wrong.why}, ${when}`);
}
