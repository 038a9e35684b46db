import { Handshake, type HandshakeOptions, MAX_OPTION_LENGTH, type Next } from "./handshake.ts";
import { decodeOptionHeader } from "./option-codec.ts";
import { Option, Size } from "./protocol.ts";
import { ProtocolError } from "./protocol-error.ts";
import type { ReplyWriter } from "./reply-writer.ts";
import type { Consumer, SocketInput } from "./socket-input.ts";

/** Bytes of replies not taken yet, beyond which a client's next option waits. */
const MOST_QUEUED = 256 * 1024;

/** What a connection lends to its haggling. */
export interface HagglingOptions extends Omit<HandshakeOptions, "clientFlags"> {
  /** What the client's flags were, where it has said them before: options go on after STARTTLS. */
  clientFlags: number | undefined;
  input: SocketInput;
  writer: ReplyWriter;
  isShuttingDown: () => boolean;
  /** Haggling has come to its end. Nothing is consumed by this object afterwards. */
  onNext: (next: Next, clientFlags: number) => void;
  /** The client broke the protocol, and cannot be understood any more. */
  onViolation: (text: string) => void;
}

/** The handshake phase of a connection: takes the client's flags and options from its bytes, and sends the answers. */
export class Haggling implements Consumer {
  readonly #options: HagglingOptions;
  #clientFlags: number | undefined;
  #handshake: Handshake | undefined;
  /** An option too long to be kept: the bytes of it that are still to come. */
  #skipping: { option: number; length: number; left: number } | undefined;
  #ended = false;

  constructor(options: HagglingOptions) {
    this.#options = options;
    if (options.clientFlags !== undefined) this.#begin(options.clientFlags);
  }

  /** Whether an answer has to wait until the client has taken the ones before it. */
  get isFull(): boolean {
    return this.#options.writer.queued >= MOST_QUEUED;
  }

  consume(bytes: Buffer, start: number, end: number): number {
    let at = start;
    try {
      while (!this.#ended) {
        const taken = this.#take(bytes, at, end);
        if (taken === 0) break;
        at += taken;
      }
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      this.#violation(error.message);
    }
    this.#options.writer.flush();
    return at;
  }

  /** Takes the next thing and returns its bytes; 0 where more of them have to come first. */
  #take(bytes: Buffer, at: number, end: number): number {
    const there = end - at;
    if (this.#handshake === undefined) {
      if (there < Size.clientFlags) return 0;
      const flags = bytes.readUInt32BE(at);
      if (!Handshake.acceptsFlags(flags)) throw new ProtocolError(`it set flags that are not known: ${flags}`);
      this.#begin(flags);
      return Size.clientFlags;
    }
    if (this.#skipping !== undefined) return this.#skip(this.#handshake, there);
    if (there < Size.optionHeader) return 0;
    if (this.isFull) {
      this.#options.input.block();
      return 0;
    }
    const { option, length } = decodeOptionHeader(bytes, at);
    if (length > MAX_OPTION_LENGTH) {
      if (option === Option.exportName) throw new ProtocolError(`the name of an export is ${length} bytes long`);
      this.#skipping = { option, length, left: length };
      return Size.optionHeader;
    }
    const whole = Size.optionHeader + length;
    if (there < whole) return 0;
    const data = bytes.subarray(at + Size.optionHeader, at + whole);
    const { replies, next } = this.#handshake.answer(option, data, { shuttingDown: this.#options.isShuttingDown() });
    // Bytes behind a STARTTLS were said in the clear, perhaps by somebody else: never may they count as said in TLS.
    if (next.kind === "tls" && there > whole) throw new ProtocolError("it did not wait for TLS to begin");
    for (const reply of replies) this.#options.writer.append(reply);
    if (next.kind !== "options") {
      this.#ended = true;
      this.#options.writer.flush();
      this.#options.onNext(next, this.#clientFlags ?? 0);
    }
    return whole;
  }

  #skip(handshake: Handshake, there: number): number {
    const skipping = this.#skipping;
    if (skipping === undefined) return 0;
    const count = Math.min(there, skipping.left);
    skipping.left -= count;
    if (skipping.left === 0) {
      this.#skipping = undefined;
      for (const reply of handshake.answerTooBig(skipping.option, skipping.length).replies) {
        this.#options.writer.append(reply);
      }
    }
    return count;
  }

  #begin(clientFlags: number): void {
    this.#clientFlags = clientFlags;
    this.#handshake = new Handshake({ ...this.#options, clientFlags });
  }

  #violation(text: string): void {
    this.#ended = true;
    this.#options.onViolation(text);
  }
}
