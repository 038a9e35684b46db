/**
 * A device with a volatile cache behind a connection that breaks: what an NBD server is to a clone.
 *
 * When the connection breaks, each sector that was not flushed holds what was flushed or any of the contents written since,
 * by seed. Writes under way are rejected, carried out or not, or only later, over what is there by then; reads are asked again when it is back; and the next flush is
 * rejected once, if there was anything to lose. Where it stays away for too long, requests are told that they timed out.
 */
import { DeviceError, LostWritesError } from "../../src/base/errors.ts";
import type { BlockDevice, Extent, ZeroOptions } from "../../src/device/block-device.ts";
import { Power, PowerLossDevice } from "./power-loss-device.ts";
import type { VirtualClock } from "./virtual-clock.ts";

/** How it behaves. */
export interface LossyLinkOptions {
  clock: VirtualClock;
  /** From 0 to 1. */
  random: () => number;
  /** The longest that half of a request takes, ms. */
  latencyMs: number;
  /** How likely the connection breaks while a request is under way. */
  chance: number;
  /** How often it breaks at most. */
  most: number;
  /** The longest that it is away, ms. */
  outageMs?: number;
  /** How long a request waits for it to be back, ms. */
  patienceMs?: number;
  /** For how long after a break the server may still carry out what was under way, ms. Default: not at all. */
  strayMs?: number;
  /** Told of each break, when all that is lost is lost. */
  onBreak?: () => void;
}

/** The disk at the other end: whatever is asked of it is done within the call. */
export type LossyServer = Pick<PowerLossDevice, "size" | "read" | "write" | "flush" | "loseCache" | "durable">;

/** A change or a flush under way. */
interface Request {
  /** Which bytes it changes. */
  range?: { offset: number; length: number };
  apply: () => void;
  done: boolean;
}

export class LossyLinkDevice implements BlockDevice {
  readonly name: string;
  readonly size: number;
  readonly readOnly = false;
  readonly blockSize = 512;
  /** May be changed at any time. */
  options: LossyLinkOptions;
  /** Times that something was lost. */
  losses = 0;
  isAway = false;
  /** Times that the connection broke. */
  breaks = 0;
  readonly #server: LossyServer;
  readonly #underWay = new Set<Request>();
  #backAt = 0;
  #strays: { offset: number; length: number; until: number }[] = [];
  #acknowledged = 0;
  #flushed = 0;
  #told = 0;

  /** Its server is one with this content, or the one given. */
  constructor(served: Uint8Array | LossyServer, name: string, options: LossyLinkOptions) {
    this.name = name;
    this.options = options;
    this.#server = served instanceof Uint8Array ? new PowerLossDevice(served, { name, power: new Power() }) : served;
    this.size = this.#server.size;
  }

  /** What is there whatever happens. */
  get durable(): Buffer {
    return this.#server.durable;
  }

  async read(offset: number, buffer: Uint8Array): Promise<void> {
    for (;;) {
      await this.#connection("read");
      const { breaks } = this;
      await this.#pause();
      if (breaks !== this.breaks) continue;
      const bytes = Buffer.alloc(buffer.length);
      void this.#server.read(offset, bytes); // which is done at once
      await this.#pause();
      if (breaks !== this.breaks) continue;
      buffer.set(bytes);
      return;
    }
  }

  async write(offset: number, data: Uint8Array): Promise<void> {
    const bytes = Buffer.from(data);
    await this.#change("write", { offset, length: bytes.length }, () => void this.#server.write(offset, bytes));
  }

  async zero(offset: number, length: number, _options?: ZeroOptions): Promise<void> {
    await this.#change("zero", { offset, length }, () => void this.#server.write(offset, new Uint8Array(length)));
  }

  async discard(): Promise<void> {}

  async flush(): Promise<void> {
    if (this.losses > this.#told) throw this.#tell();
    await this.#connection("flush");
    if (this.losses > this.#told) throw this.#tell();
    const { breaks } = this;
    const acknowledged = this.#acknowledged;
    const flush = { apply: () => void this.#server.flush(), done: false };
    this.#underWay.add(flush);
    await this.#carryOut(flush);
    if (breaks !== this.breaks) throw this.#tell();
    this.#flushed = Math.max(this.#flushed, acknowledged);
  }

  async extents(offset: number, length: number): Promise<Extent[]> {
    const bytes = new Uint8Array(length);
    await this.read(offset, bytes);
    const zero = bytes.every((byte) => byte === 0);
    return length === 0 ? [] : [{ offset, length, hole: zero, zero }];
  }

  async [Symbol.asyncDispose](): Promise<void> {}

  /** Breaks the connection now. */
  break(): void {
    const { random, clock, outageMs = 0, strayMs = 0, onBreak } = this.options;
    this.breaks++;
    for (const request of this.#underWay) {
      if (request.done) continue;
      if (random() < 0.5) request.apply();
      else if (strayMs > 0 && request.range !== undefined) this.#goAstray(request, Math.floor(random() * strayMs));
      if (request.range !== undefined) this.#strays.push({ ...request.range, until: clock.now() + strayMs });
    }
    if (this.#underWay.size > 0 || this.#acknowledged > this.#flushed) this.losses++;
    this.#underWay.clear();
    // A server that was only cut off has lost nothing, though nobody knows.
    if (random() < 0.7) this.#server.loseCache(random);
    this.isAway = true;
    this.#backAt = clock.now() + Math.floor(random() * outageMs);
    onBreak?.();
  }

  strayIn(offset: number, length: number): Promise<void> | undefined {
    const { clock } = this.options;
    const overlaps = this.#strays.filter(
      (range) => range.offset < offset + length && offset < range.offset + range.length,
    );
    const leftMs = Math.max(0, ...overlaps.map(({ until }) => until - clock.now()));
    return leftMs > 0 ? clock.sleep(leftMs) : undefined;
  }

  #goAstray(request: Request, afterMs: number): void {
    void this.options.clock.sleep(afterMs).then(request.apply);
  }

  async #connection(verb: string): Promise<void> {
    const { clock, patienceMs = Infinity } = this.options;
    const until = clock.now() + patienceMs;
    while (this.isAway) {
      if (clock.now() >= this.#backAt) this.isAway = false;
      else if (clock.now() >= until) {
        throw new DeviceError(`Cannot ${verb} "${this.name}": ETIMEDOUT`, { errno: "ETIMEDOUT" });
      } else await clock.sleep(Math.min(until, this.#backAt) - clock.now());
    }
  }

  async #change(verb: string, range: { offset: number; length: number }, apply: () => void): Promise<void> {
    await this.#connection(verb);
    const { breaks } = this;
    const change = { range, apply, done: false };
    this.#underWay.add(change);
    await this.#carryOut(change);
    if (breaks !== this.breaks) throw this.#lost(verb);
    this.#acknowledged++;
  }

  async #carryOut(request: Request): Promise<void> {
    await this.#pause();
    if (!this.#underWay.has(request)) return;
    request.apply();
    request.done = true;
    await this.#pause();
    this.#underWay.delete(request);
  }

  #tell(): LostWritesError {
    this.#told = this.losses; // what is there now is no more durable for that
    return this.#lost("flush");
  }

  #lost(verb: string): LostWritesError {
    return new LostWritesError(`Cannot ${verb} "${this.name}": the connection was lost`, {
      errno: "ECONNRESET",
      away: false,
    });
  }

  async #pause(): Promise<void> {
    const { clock, random, latencyMs, chance, most } = this.options;
    const cut = random() < chance && this.breaks < most;
    await clock.sleep(Math.floor(random() * latencyMs));
    if (cut && !this.isAway) this.break();
  }
}
