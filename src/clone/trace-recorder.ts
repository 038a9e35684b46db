/**
 * `--record-trace`: what clients need for the first time is written to a file as they go.
 *
 *     touch() ──► FirstTouches ──► lines in memory ──every second, or 64 KiB──► the file, at its end
 *                                        │
 *                                        └── too many, because the file hangs; or it cannot be written; or as many ranges as
 *                                            count: recording ends, somebody is told, and clients notice nothing
 *
 * Lines are only ever appended, and whole, so whatever ends the process, what is there is the beginning of the trace. An
 * existing file that holds anything is refused: it may be the trace of another time, or no trace at all.
 */
import { constants } from "node:fs";
import { type FileHandle, open, unlink } from "node:fs/promises";
import type { Clock } from "../base/clock.ts";
import { CloneError, errnoOf } from "../base/errors.ts";
import type { ByteRange } from "../base/geometry.ts";
import { FirstTouches } from "../engine/first-touches.ts";
import { encodeTraceHeader, encodeTraceRange, MOST_RANGES } from "./trace-codec.ts";

/** How often what was recorded is written, ms. */
const WRITE_INTERVAL_MS = 1000;
/** Characters after which it is written at once, and after which the file is given up as hanging. */
const MOST_UNWRITTEN = 65_536;
const HANGING = 2 ** 22;
/** How long the end waits for a file that hangs, ms. */
const CLOSE_MS = 5000;

/** What a recorder is told. */
export interface TraceRecorderOptions {
  /** Of the image, bytes. */
  size: number;
  clock: Clock;
  /** Recording has ended before its time; one sentence. Called once at most. */
  onWarning: (warning: string) => void;
}

/** Writes the order of first touches to a file. Nobody ever waits for it but who closes it. */
export class TraceRecorder implements AsyncDisposable {
  readonly #path: string;
  readonly #file: FileHandle;
  /** Whether the file was not there before. */
  readonly #isNew: boolean;
  readonly #clock: Clock;
  readonly #onWarning: (warning: string) => void;
  /** Undefined once recording has ended. */
  #touches: FirstTouches | undefined;
  #ranges = 0;
  /** Lines that are not in the file yet. */
  #unwritten: string;
  /** Bytes of whole lines in the file. */
  #written = 0;
  /** The writing that is under way. */
  #writing: Promise<void> | undefined;
  readonly #stop = new AbortController();
  #running: Promise<void> | undefined;
  #closed: Promise<void> | undefined;

  private constructor(
    path: string,
    { file, isNew }: { file: FileHandle; isNew: boolean },
    options: TraceRecorderOptions,
  ) {
    this.#path = path;
    this.#file = file;
    this.#isNew = isNew;
    this.#clock = options.clock;
    this.#onWarning = options.onWarning;
    this.#unwritten = encodeTraceHeader(options.size);
    this.#touches = new FirstTouches(options.size, (range) => this.#add(range));
  }

  /**
   * Opens a new file, or an empty one, for a trace. Nothing is written before `start()`, and a file that is new is removed by
   * `close()` unless it came to that.
   * @throws {CloneError} where that cannot be, or there is a trace already
   */
  static async create(path: string, options: TraceRecorderOptions): Promise<TraceRecorder> {
    try {
      return new TraceRecorder(path, await openEmpty(path), options);
    } catch (error) {
      if (errnoOf(error) === undefined || error instanceof CloneError) throw error;
      throw new CloneError("failed", `Cannot record a trace in "${path}": ${errnoOf(error)}`, { cause: error });
    }
  }

  /** Begins to write. */
  start(): void {
    this.#running ??= this.#run();
  }

  /** A range of the image is needed. Bytes, within the image. */
  readonly touch = (offset: number, length: number): void => {
    this.#touches?.touch(offset, length);
  };

  /** Writes what there is, durably. Never fails: who wants the trace has heard of it. */
  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #add(range: ByteRange): void {
    if (this.#touches === undefined) return;
    this.#unwritten += encodeTraceRange(range);
    this.#ranges++;
    if (this.#ranges === MOST_RANGES) this.#end(`more than its ${MOST_RANGES} ranges would not count`);
    else if (this.#unwritten.length >= HANGING) this.#fail("it cannot be written fast enough");
    else if (this.#unwritten.length >= MOST_UNWRITTEN && this.#running !== undefined) void this.#flush();
  }

  async #close(): Promise<void> {
    this.#stop.abort();
    const over = new AbortController();
    const finished = this.#finish().finally(() => over.abort());
    await this.#clock.sleep(CLOSE_MS, over.signal);
    if (over.signal.aborted) await finished;
    else this.#fail("it does not answer");
  }

  async #finish(): Promise<void> {
    try {
      if (this.#running !== undefined) await this.#finishTrace();
      else if (this.#isNew) await unlink(this.#path);
      await this.#file.close();
    } catch (error) {
      this.#fail(errnoOf(error) ?? String(error));
    }
    this.#touches = undefined;
  }

  async #finishTrace(): Promise<void> {
    await this.#running;
    this.#touches?.tellRest();
    await this.#flush(); // which may have begun before
    await this.#flush();
    await this.#file.datasync();
  }

  async #run(): Promise<void> {
    while (!this.#stop.signal.aborted) {
      await this.#clock.sleep(WRITE_INTERVAL_MS, this.#stop.signal);
      this.#touches?.tellRest();
      await this.#flush();
    }
  }

  /** Writes what is unwritten; or waits for the writing that is under way, which may leave something. Never rejects. */
  #flush(): Promise<void> {
    this.#writing ??= this.#write().finally(() => {
      this.#writing = undefined;
    });
    return this.#writing;
  }

  async #write(): Promise<void> {
    const text = this.#unwritten;
    this.#unwritten = "";
    if (text === "") return;
    try {
      await this.#file.appendFile(text);
      this.#written += text.length;
    } catch (error) {
      await this.#cutAfter(text);
      this.#fail(errnoOf(error) ?? String(error));
    }
  }

  /** Of what was written in part, leaves whole lines. */
  async #cutAfter(text: string): Promise<void> {
    try {
      const { size } = await this.#file.stat();
      const whole = text.lastIndexOf("\n", size - this.#written - 1) + 1;
      if (size > this.#written) await this.#file.truncate(this.#written + whole);
    } catch {
      // Where that fails too, a reader leaves out a last line that does not end.
    }
  }

  /** Nothing more can be written. */
  #fail(why: string): void {
    this.#end(why);
    this.#unwritten = "";
  }

  /** Nothing more is recorded; what has been is still written. */
  #end(why: string): void {
    if (this.#touches === undefined) return;
    this.#touches = undefined;
    this.#onWarning(`The trace "${this.#path}" ends here: ${why}. What is in it can be used`);
  }
}

/** Opens a file to append to, which is new, or a regular one with nothing in it. */
async function openEmpty(path: string): Promise<{ file: FileHandle; isNew: boolean }> {
  const { O_WRONLY, O_APPEND, O_CREAT, O_EXCL, O_NONBLOCK } = constants;
  try {
    return { file: await open(path, O_WRONLY | O_APPEND | O_CREAT | O_EXCL, 0o644), isNew: true };
  } catch (error) {
    if (errnoOf(error) !== "EEXIST") throw error;
  }
  const file = await open(path, O_WRONLY | O_APPEND | O_NONBLOCK); // a pipe would wait for its reader
  try {
    const stats = await file.stat();
    if (stats.isFile() && stats.size === 0) return { file, isNew: false };
    const what = stats.isFile() ? "it is not empty" : "it is no regular file";
    throw new CloneError("failed", `Cannot record a trace in "${path}": ${what}`, {
      hint: "A trace is recorded in a new file, or an empty one.",
    });
  } catch (error) {
    await file.close();
    throw error;
  }
}
