/**
 * The transmission phase of one connection: requests in, replies out. What is fast is that a request whose bytes are in
 * memory meets no promise and no buffer of its own: it is taken from the input in place, done by `tryRead()` or
 * `tryWrite()`, and answered in a batch. Where the device says that it might wait, the request is kept, with a buffer
 * that counts against the connection's allowance, until the device is done.
 *
 * Three things hold a client back, by not reading from it: replies that it does not take, too many requests in flight,
 * and too many bytes.
 */
import { AssertionError } from "node:assert";
import type { ServedDevice } from "../device/served-device.ts";
import { blockStatus, statusCost } from "./block-status.ts";
import type { Allowance } from "./byte-budget.ts";
import { describeFailure } from "./error-reply.ts";
import type { Session } from "./handshake.ts";
import type { PayloadBuffers } from "./payload-buffers.ts";
import { Command, CommandFlag, NbdErrno, Size } from "./protocol.ts";
import { Replies } from "./replies.ts";
import type { ReplyWriter } from "./reply-writer.ts";
import { type Refusal, RequestRules } from "./request-rules.ts";
import type { CommandCounter, ServerCounters } from "./server-counters.ts";
import type { Consumer, SocketInput } from "./socket-input.ts";
import { decodeRequest, type Request } from "./transmission-codec.ts";

/** A payload up to this long is waited for in the shared buffer; a longer one gets its own at once. Bytes. */
const LARGEST_IN_PLACE = 32 * 1024;
/** A read up to this long is answered in the batch; a longer one in its own buffer. Bytes. */
const LARGEST_IN_BATCH = 64 * 1024;
/**
 * Replies that go out together while there are more requests at hand. All of them in one write would be the fewest
 * system calls, but then client and server would only ever take turns.
 */
const BATCHED_REPLIES = 6;
/** A reply up to this long that comes later is copied to the batch rather than sent alone. Bytes. */
const LARGEST_COPY = 16 * 1024;

const SHUTTING_DOWN: Refusal = { errno: NbdErrno.ESHUTDOWN, text: "the server is shutting down" };

/** What holds a client back. */
export interface TransmissionLimits {
  /** Requests waiting for the device. */
  requestsInFlight: number;
  /** Bytes of replies not taken yet, beyond which no request is looked at. */
  bytesQueued: number;
}

/** What a connection lends to its transmission. */
export interface TransmissionOptions {
  session: Session;
  input: SocketInput;
  writer: ReplyWriter;
  allowance: Allowance;
  buffers: PayloadBuffers;
  counters: ServerCounters;
  limits: TransmissionLimits;
  /** The server is shutting down: new requests are refused. */
  isShuttingDown: () => boolean;
  /** The client said that it is done. */
  onDisconnect: () => void;
  /** The client broke the protocol, and cannot be understood any more. */
  onViolation: (text: string) => void;
  /** A request that was in flight is answered. */
  onAnswered: () => void;
}

/** One connection's requests. */
export class Transmission implements Consumer {
  readonly #session: Session;
  readonly #device: ServedDevice;
  readonly #rules: RequestRules;
  readonly #replies: Replies;
  readonly #input: SocketInput;
  readonly #writer: ReplyWriter;
  readonly #allowance: Allowance;
  readonly #buffers: PayloadBuffers;
  readonly #counters: ServerCounters;
  readonly #limits: TransmissionLimits;
  readonly #options: TransmissionOptions;
  /** The request being looked at, used again for each. */
  readonly #request: Request = { flags: 0, type: 0, cookieHigh: 0, cookieLow: 0, offset: 0, length: 0 };
  #inFlight = 0;
  /** Bytes of a refused write's payload that are still to come, and how it is answered then. */
  #toSkip = 0;
  #afterSkip: { request: Request; refusal: Refusal } | undefined;
  /** A payload on its way into its own buffer, and what is charged for it. */
  #receiving: { buffer: Buffer; charge: number } | undefined;
  /** The client said that it is done; what it says afterwards counts for nothing. */
  #disconnected = false;
  /** The client is gone. */
  #closed = false;

  constructor(options: TransmissionOptions) {
    const { session } = options;
    this.#session = session;
    this.#device = session.served.device;
    this.#rules = new RequestRules(session);
    this.#replies = new Replies(options.writer, session);
    this.#input = options.input;
    this.#writer = options.writer;
    this.#allowance = options.allowance;
    this.#buffers = options.buffers;
    this.#counters = options.counters;
    this.#limits = options.limits;
    this.#options = options;
  }

  /** Requests waiting for the device. */
  get inFlight(): number {
    return this.#inFlight;
  }

  /** Whether requests have to wait until some replies were taken or made. */
  get isFull(): boolean {
    return this.#writer.queued >= this.#limits.bytesQueued || this.#inFlight >= this.#limits.requestsInFlight;
  }

  /** The connection is gone: what the device still answers goes nowhere, and half a payload is never written. */
  close(): void {
    this.#closed = true;
    if (this.#receiving !== undefined) this.#release(this.#receiving.buffer, this.#receiving.charge);
    this.#receiving = undefined;
  }

  consume(bytes: Buffer, start: number, end: number): number {
    let at = start;
    for (let replies = 1; !this.#closed && !this.#disconnected; replies++) {
      if (this.#afterSkip !== undefined) {
        at = this.#skip(at, end);
        if (this.#afterSkip !== undefined) break;
      }
      if (end - at < Size.request) break;
      if (this.isFull) {
        this.#input.block();
        break;
      }
      const taken = this.#take(bytes, at, end);
      if (taken === 0) break;
      at += taken;
      if (replies % BATCHED_REPLIES === 0) this.#writer.flush();
    }
    this.#writer.flush();
    return at;
  }

  /** Takes one request and returns its bytes; 0 where it has to wait for more of them, or for room. */
  #take(bytes: Buffer, at: number, end: number): number {
    const request = this.#request;
    if (!decodeRequest(bytes, at, request)) {
      this.#options.onViolation("a request does not begin with its magic number");
      return 0;
    }
    if (request.type === Command.disconnect) {
      this.#count(request);
      this.#disconnected = true;
      this.#options.onDisconnect();
      return Size.request;
    }
    const refusal = this.#options.isShuttingDown() ? SHUTTING_DOWN : this.#rules.refusal(request);
    if (refusal !== undefined) {
      this.#count(request);
      if (request.type === Command.write) {
        this.#toSkip = request.length;
        this.#afterSkip = { request: { ...request }, refusal };
      } else {
        this.#fail(request, refusal.errno, refusal.text);
      }
      return Size.request;
    }
    if (request.type === Command.write) return this.#write(bytes, at, end, request);
    if (request.type === Command.read) {
      if (!this.#read(request)) return 0;
    } else if (!this.#change(request)) {
      return 0;
    }
    this.#count(request);
    return Size.request;
  }

  /** Reads at once, or begins to; false where there is no room for it now. */
  #read(request: Request): boolean {
    const { offset, length } = request;
    if (length === 0) {
      this.#succeed(request);
      return true;
    }
    const header = this.#replies.headerSize;
    if (length <= LARGEST_IN_BATCH) {
      const batch = this.#writer.room(header + length);
      const at = this.#writer.position;
      try {
        if (this.#device.tryRead(offset, batch.subarray(at + header, at + header + length))) {
          this.#writer.advance(this.#replies.encodeRead(batch, at, request) - at);
          return true;
        }
      } catch (error) {
        this.#failWith(request, error);
        return true;
      }
    }
    if (!this.#allowance.tryTake(length)) {
      this.#input.block();
      return false;
    }
    const buffer = this.#buffers.take(header + length);
    if (length > LARGEST_IN_BATCH) {
      try {
        if (this.#device.tryRead(offset, buffer.subarray(header, header + length))) {
          this.#writer.send(buffer, this.#replies.encodeRead(buffer, 0, request), length);
          return true;
        }
      } catch (error) {
        this.#release(buffer, length);
        this.#failWith(request, error);
        return true;
      }
    }
    void this.#readLater({ ...request }, buffer, header);
    return true;
  }

  async #readLater(request: Request, buffer: Buffer, header: number): Promise<void> {
    const { offset, length } = request;
    this.#begin();
    try {
      await this.#device.read(offset, buffer.subarray(header, header + length));
      if (this.#closed) return this.#release(buffer, length);
      const bytes = this.#replies.encodeRead(buffer, 0, request);
      if (bytes > LARGEST_COPY) {
        this.#writer.send(buffer, bytes, length);
      } else {
        this.#writer.append(buffer.subarray(0, bytes));
        this.#release(buffer, length);
      }
    } catch (error) {
      this.#release(buffer, length);
      this.#failWith(request, error);
    } finally {
      this.#end();
    }
  }

  /** Writes at once, or begins to, or begins to receive what is to be written. Returns the bytes taken of the input. */
  #write(bytes: Buffer, at: number, end: number, request: Request): number {
    const { offset, length, flags } = request;
    const data = at + Size.request;
    const there = Math.min(length, end - data);
    if (there < length && length <= LARGEST_IN_PLACE) return 0;
    if (there === length && flags === 0) {
      try {
        if (this.#device.tryWrite(offset, bytes.subarray(data, data + length))) {
          this.#count(request);
          this.#succeed(request);
          return Size.request + length;
        }
      } catch (error) {
        this.#count(request);
        this.#failWith(request, error);
        return Size.request + length;
      }
    }
    if (!this.#allowance.tryTake(length)) {
      this.#input.block();
      return 0;
    }
    this.#count(request);
    const buffer = this.#buffers.take(length);
    const kept = { ...request };
    bytes.copy(buffer, 0, data, data + there);
    if (there === length) {
      void this.#writeLater(kept, buffer);
    } else {
      this.#receiving = { buffer, charge: length };
      this.#input.receive(buffer, there, length, () => this.#writeReceived(kept, buffer));
    }
    return Size.request + there;
  }

  /** The payload has come whole into its own buffer. */
  #writeReceived(request: Request, buffer: Buffer): void {
    this.#receiving = undefined;
    if (request.flags === 0) {
      try {
        if (this.#device.tryWrite(request.offset, buffer.subarray(0, request.length))) {
          this.#release(buffer, request.length);
          this.#succeed(request);
          this.#writer.flush();
          return;
        }
      } catch (error) {
        this.#release(buffer, request.length);
        this.#failWith(request, error);
        this.#writer.flush();
        return;
      }
    }
    void this.#writeLater(request, buffer);
  }

  async #writeLater(request: Request, buffer: Buffer): Promise<void> {
    const fua = (request.flags & CommandFlag.fua) !== 0;
    this.#begin();
    try {
      await this.#device.write(request.offset, buffer.subarray(0, request.length), { fua });
      this.#succeed(request);
    } catch (error) {
      this.#failWith(request, error);
    } finally {
      this.#release(buffer, request.length);
      this.#end();
    }
  }

  /** Does a command without payload, or begins to; false where there is no room for it now. */
  #change(request: Request): boolean {
    const { type, offset, length } = request;
    const charge = type === Command.blockStatus ? statusCost(length) : 0;
    if (charge > 0 && !this.#allowance.tryTake(charge)) {
      this.#input.block();
      return false;
    }
    if (type === Command.cache) {
      if (length > 0) this.#device.hint(offset, length);
      this.#succeed(request);
    } else if (length === 0 && type !== Command.flush) {
      this.#succeed(request);
    } else {
      void this.#changeLater({ ...request }, charge);
    }
    return true;
  }

  async #changeLater(request: Request, charge: number): Promise<void> {
    const { type, flags, offset, length } = request;
    const fua = (flags & CommandFlag.fua) !== 0;
    const fast = (flags & CommandFlag.fastZero) !== 0;
    this.#begin();
    try {
      if (type === Command.flush) await this.#device.flush();
      if (type === Command.trim) await this.#device.discard(offset, length, { fua });
      if (type === Command.writeZeroes) {
        await this.#device.zero(offset, length, { fua, fast, mayPunch: (flags & CommandFlag.noHole) === 0 });
      }
      if (type === Command.blockStatus) await this.#blockStatus(request);
      else this.#succeed(request);
    } catch (error) {
      this.#failWith(request, error, fast);
    } finally {
      if (charge > 0) this.#allowance.give(charge);
      this.#end();
    }
  }

  async #blockStatus(request: Request): Promise<void> {
    const one = (request.flags & CommandFlag.requestOne) !== 0;
    const { offset, length } = request;
    const statuses = await blockStatus(this.#device, this.#session.contexts, { offset, length, one });
    if (this.#closed) return;
    this.#replies.status(request, statuses);
  }

  /** Goes past the payload of a refused write, and then says so. */
  #skip(at: number, end: number): number {
    const skipped = Math.min(this.#toSkip, end - at);
    this.#toSkip -= skipped;
    if (this.#toSkip === 0 && this.#afterSkip !== undefined) {
      const { request, refusal } = this.#afterSkip;
      this.#afterSkip = undefined;
      this.#fail(request, refusal.errno, refusal.text);
    }
    return at + skipped;
  }

  #begin(): void {
    this.#inFlight++;
    this.#counters.requestsInFlight++;
  }

  #end(): void {
    this.#inFlight--;
    this.#counters.requestsInFlight--;
    if (!this.#closed) this.#writer.flushSoon();
    this.#options.onAnswered();
  }

  #release(buffer: Buffer, charge: number): void {
    this.#buffers.give(buffer);
    this.#allowance.give(charge);
  }

  /** Tells of a device's failure. A broken invariant is not the client's affair, and ends the process. */
  #failWith(request: Request, error: unknown, fast = false): void {
    if (error instanceof AssertionError) throw error;
    const { errno, text } = describeFailure(error, { fast });
    this.#fail(request, errno, text);
  }

  #succeed(request: Request): void {
    if (!this.#closed) this.#replies.succeed(request);
  }

  #fail(request: Request, errno: number, text: string): void {
    this.#counter(request).errors++;
    if (!this.#closed) this.#replies.fail(request, errno, text);
  }

  #count(request: Request): void {
    const counter = this.#counter(request);
    counter.requests++;
    counter.bytes += request.length;
  }

  #counter({ type }: Request): CommandCounter {
    return this.#counters.byType[type] ?? this.#counters.unknown;
  }
}
