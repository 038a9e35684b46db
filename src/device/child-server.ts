/**
 * A program that serves NBD to this process alone: qemu-nbd, nbdkit, or what the user names. It is started again where it ends
 * while somebody needs it, so that a client which connects again finds a new one:
 *
 *     start() ──► starting ──opened──► running ◄───────────────┐
 *                    │                    │ it ends            │ started again after a pause, which grows with every
 *                    │ it ends, or hangs  ▼                    │ short life; after some of them only where it is wanted
 *                    ▼                  down ──────────────────┘
 *                 an error with         │ what it serves is another now
 *                 its last words        ▼
 *                                     given up
 *
 * The socket is the same for ever (`UnnamedSocket`): while the program is down nobody listens there.
 */
import { type Clock, systemClock } from "../base/clock.ts";
import { ChangedError, CloneError, DeviceError, errnoOf, withHint } from "../base/errors.ts";
import { ChildOutput } from "./child-output.ts";
import { type ChildCommand, type ChildEnd, ChildProgram } from "./child-program.ts";
import { UnnamedSocket } from "./unnamed-socket.ts";

/** How long a program may take until its first answer, ms: a cluster that has to be found first may be slow. */
const START_TIMEOUT_MS = 60_000;
/** How long one that has hung up on us may take to end, ms. */
const GRACE_MS = 300;
/** The pause before it is started again, ms: doubled with each short life up to the longest. */
const FIRST_PAUSE_MS = 100;
const LONGEST_PAUSE_MS = 5000;
/** A life that was no short one, ms. */
const LONG_LIFE_MS = 30_000;
/** Short lives in a row after which it is only started again where somebody wants it. */
const MOST_UNWANTED = 6;

/** What a program has said, as an error tells it. */
export interface ChildWords {
  /** Why it ended, in its own words. */
  reason?: string | undefined;
  /** What the user can do about it. */
  hint?: string | undefined;
}

/** What to start, and how. */
export interface ChildServerOptions extends ChildCommand {
  /** What it serves, for messages: a path or URI without credentials. */
  name: string;
  /** Ends the start. */
  signal?: AbortSignal | undefined;
  /** Told that it has ended, and was started again. */
  onNote?: ((line: string) => void) | undefined;
  /** Told what it prints. */
  onOutput?: ((line: string) => void) | undefined;
  startTimeoutMs?: number | undefined;
  /** Asked before it is started again: throws a ChangedError where what it would serve is not what it served. */
  check?: (() => Promise<void>) | undefined;
  /** What the last lines that the program has printed mean. */
  explain?: ((lines: readonly string[]) => ChildWords) | undefined;
  clock?: Clock;
}

/** A program that serves, and is kept serving until it is disposed of. */
export class ChildServer implements AsyncDisposable {
  readonly #options: ChildServerOptions;
  readonly #clock: Clock;
  readonly #socket = new UnnamedSocket();
  readonly #output: ChildOutput;
  readonly #disposed = new AbortController();
  #program: ChildProgram | undefined;
  #generation = 0;
  #down: DeviceError | undefined;
  #final: CloneError | undefined;
  #wanted: (() => void) | undefined;
  #supervision: Promise<void> | undefined;

  private constructor(options: ChildServerOptions) {
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
    this.#output = new ChildOutput((line) => options.onOutput?.(line));
  }

  /**
   * Starts a program, and has `open` connect to its socket. It serves then until it is disposed of.
   * @param open is told to give up, by its signal, where the program ends
   * @throws {DeviceError} with the program's last words where it ends before `open` is done, or takes too long
   * @throws {LaunchError} where it cannot be run; and whatever `open` throws
   */
  static async start<T>(
    options: ChildServerOptions,
    open: (socketPath: string, signal: AbortSignal) => Promise<T>,
  ): Promise<{ server: ChildServer; opened: T }> {
    const server = new ChildServer(options);
    try {
      const program = await server.#launch();
      const opened = await server.#opening(program, open);
      server.#supervision = server.#supervise(program);
      return { server, opened };
    } catch (error) {
      await server[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Why there is nobody to be asked at this moment; undefined where there is. */
  get failure(): CloneError | undefined {
    return this.#final ?? this.#down;
  }

  /** The process that serves at this moment. */
  get pid(): number | undefined {
    return this.#program?.hasEnded ? undefined : this.#program?.pid;
  }

  /** How often it was started. */
  get generation(): number {
    return this.#generation;
  }

  /**
   * Ends the program, so that another one is started in its place: for one that does not find back to what it reads. Resolves
   * when it has ended.
   */
  async renew(): Promise<void> {
    await this.#program?.end();
  }

  /** Says that somebody waits for an answer: a program that has ended too often is given another chance. */
  want(): void {
    this.#wanted?.();
  }

  /** Ends the program. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#disposed.abort();
    this.#wanted?.();
    await this.#program?.end();
    await this.#supervision;
    this.#socket[Symbol.dispose]();
  }

  async #launch(): Promise<ChildProgram> {
    this.#output.clear();
    const { words, inherit = [], environment = {} } = this.#options;
    const surroundings = { socket: this.#socket, output: this.#output, clock: this.#clock };
    this.#program = await ChildProgram.launch({ words, inherit, environment }, surroundings);
    this.#generation += 1;
    return this.#program;
  }

  async #opening<T>(program: ChildProgram, open: (path: string, signal: AbortSignal) => Promise<T>): Promise<T> {
    const { signal, startTimeoutMs = START_TIMEOUT_MS, name } = this.#options;
    const done = new AbortController();
    const giveUp = new AbortController();
    const either = AbortSignal.any([giveUp.signal, ...(signal === undefined ? [] : [signal])]);
    let failure: DeviceError | undefined;
    const fail = (error: DeviceError): void => {
      failure ??= error;
      giveUp.abort(failure);
    };
    void program.ended.then((end) => fail(this.#errorOf(end, "open")));
    void this.#clock.sleep(startTimeoutMs, AbortSignal.any([done.signal, either])).then(() => {
      if (done.signal.aborted || either.aborted) return;
      const message = `Cannot open "${name}": ${program.program} does not answer within ${startTimeoutMs / 1000} s`;
      fail(new DeviceError(message, { errno: "ETIMEDOUT", ...this.#words() }));
    });
    try {
      const opened = await open(this.#socket.path, either);
      if (program.hasEnded) throw this.#errorOf(await program.ended, "open");
      return opened;
    } catch (error) {
      signal?.throwIfAborted();
      // A program that ends hangs up first: its end tells more than that.
      if (failure === undefined) await Promise.race([program.ended, this.#clock.sleep(GRACE_MS, either)]);
      throw failure ?? this.#withWords(error);
    } finally {
      done.abort();
    }
  }

  async #supervise(first: ChildProgram): Promise<void> {
    let program = first;
    let shortLives = 0;
    while (!this.#disposed.signal.aborted) {
      const since = this.#clock.now();
      const end = await program.ended;
      if (this.#disposed.signal.aborted) return;
      shortLives = this.#clock.now() - since >= LONG_LIFE_MS ? 1 : shortLives + 1;
      this.#down = this.#errorOf(end, "read");
      this.#options.onNote?.(this.#down.message);
      const next = await this.#startAgain(shortLives);
      if (next === undefined) return;
      program = next;
    }
  }

  /** Undefined where there is to be no other one. */
  async #startAgain(shortLives: number): Promise<ChildProgram | undefined> {
    for (let attempt = shortLives; ; attempt++) {
      await this.#pause(attempt);
      if (this.#disposed.signal.aborted) return undefined;
      try {
        await this.#options.check?.();
        const program = await this.#launch();
        if (this.#disposed.signal.aborted) {
          await program.end();
          return undefined;
        }
        this.#down = undefined;
        this.#options.onNote?.(`${program.program} was started again`);
        return program;
      } catch (error) {
        if (!(error instanceof CloneError)) throw error;
        if (error instanceof ChangedError) {
          this.#final = error;
          this.#options.onNote?.(error.message);
          return undefined;
        }
        this.#down = new DeviceError(error.message, { errno: errnoOf(error) ?? "EIO", away: true, cause: error });
      }
    }
  }

  async #pause(attempt: number): Promise<void> {
    const { signal } = this.#disposed;
    await this.#clock.sleep(Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** Math.min(attempt - 1, 10)), signal);
    if (attempt <= MOST_UNWANTED || signal.aborted) return;
    await new Promise<void>((resolve) => {
      this.#wanted = resolve;
    });
    this.#wanted = undefined;
  }

  #errorOf(end: ChildEnd, verb: "open" | "read"): DeviceError {
    const program = this.#program?.program ?? "the program";
    const how = end.signal === null ? `ended with status ${end.code}` : `was ended by ${end.signal}`;
    const { reason, hint } = this.#explain();
    const said = reason === undefined ? "" : `: ${reason}`;
    const message = `Cannot ${verb} "${this.#options.name}": ${program} ${how}${said}`;
    return new DeviceError(message, { errno: "EIO", away: verb === "read", ...(hint === undefined ? {} : { hint }) });
  }

  /** An error of a client, with what the program has said about it. */
  #withWords(error: unknown): unknown {
    if (!(error instanceof CloneError) || error.hint !== undefined || this.#output.lines.length === 0) return error;
    const { hint } = this.#words();
    return hint === undefined ? error : withHint(error, hint);
  }

  /** A hint out of what the program has said, for an error that does not tell it. */
  #words(): { hint?: string } {
    const { reason, hint } = this.#explain();
    if (hint !== undefined) return { hint };
    return reason === undefined ? {} : { hint: `${this.#program?.program} says: ${reason}` };
  }

  #explain(): ChildWords {
    const { lines } = this.#output;
    return { reason: lastReason(lines), ...this.#options.explain?.(lines) };
  }
}

/** The line that tells why a program ended: many end with a hint at their manual. */
function lastReason(lines: readonly string[]): string | undefined {
  const telling = /error|fail|cannot|could not|unable|no such|not found|denied|refused|invalid|unknown|unrecognized/i;
  return lines.findLast((line) => telling.test(line)) ?? lines.at(-1);
}
