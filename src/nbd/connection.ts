/**
 * One client, from its first byte to its last: the handshake, perhaps TLS, the transmission phase, and the way they end.
 *
 *     haggling ──► (TLS ──► haggling) ──► transmission ──► ending ──► closed
 *         └──────────────────────────────────────────────────▲
 *
 * It ends softly by NBD_CMD_DISC, NBD_OPT_ABORT, the end of the client's stream or the server's shutdown: what is in
 * flight is answered, then the stream is ended, and what the client still says is thrown away. It is dropped, its socket
 * destroyed, where the client breaks the protocol, is too slow with its handshake, or is gone. Whatever happens here
 * happens to this client alone.
 */
import type { Socket } from "node:net";
import type { Clock } from "../base/clock.ts";
import { adoptSocket } from "./adopt-socket.ts";
import type { Allowance, ByteBudget } from "./byte-budget.ts";
import type { ExportTable } from "./export.ts";
import { Haggling } from "./haggling.ts";
import type { Next, TlsMode } from "./handshake.ts";
import { encodeGreeting } from "./option-codec.ts";
import type { PayloadBuffers } from "./payload-buffers.ts";
import { HandshakeFlag } from "./protocol.ts";
import { ReplyWriter } from "./reply-writer.ts";
import type { ServerCounters } from "./server-counters.ts";
import type { ServerLimits } from "./server-limits.ts";
import { type SharedBuffer, SocketInput } from "./socket-input.ts";
import { describeTlsError, type TlsCredentials, upgradeToTls } from "./tls-upgrade.ts";
import { Transmission } from "./transmission.ts";

/** What the connections of a server have in common. */
export interface ConnectionContext {
  readonly exports: ExportTable;
  readonly tls: { readonly mode: TlsMode; readonly credentials: TlsCredentials | undefined };
  readonly limits: ServerLimits;
  readonly clock: Clock;
  readonly shared: SharedBuffer;
  readonly buffers: PayloadBuffers;
  readonly budget: ByteBudget;
  readonly counters: ServerCounters;
  readonly isShuttingDown: () => boolean;
  readonly onWarning: (text: string) => void;
  /** A request that was in flight is answered, though its client may be gone. */
  readonly onAnswered: () => void;
}

type Phase = Haggling | Transmission | undefined;

/** One client's connection. */
export class Connection {
  /** When it came, by the clock. */
  readonly since: number;
  readonly #context: ConnectionContext;
  readonly #onClosed: (connection: Connection) => void;
  readonly #peer: string;
  readonly #allowance: Allowance;
  readonly #ended = new AbortController();
  /** Aborted when the handshake is done with, one way or the other. */
  readonly #handshaken = new AbortController();
  #socket: Socket;
  #input: SocketInput;
  #writer: ReplyWriter;
  #phase: Phase;
  #ending = false;

  /** @param accepted a socket from which nothing was read yet */
  constructor(accepted: Socket, context: ConnectionContext, onClosed: (connection: Connection) => void) {
    this.since = context.clock.now();
    this.#context = context;
    this.#onClosed = onClosed;
    this.#peer = accepted.remoteAddress === undefined ? "a client" : `the client at ${accepted.remoteAddress}`;
    const { bytesReserved: reserve, bytesPerConnection: most } = context.limits;
    this.#allowance = context.budget.open({ reserve, most, onAvailable: () => this.#available() });

    this.#input = this.#newInput();
    // TLS wraps a socket from which it can read: in a server that speaks it `onread` would be in its way.
    const adopted = context.tls.mode === "off" ? adoptSocket(accepted, this.#input) : undefined;
    this.#socket = adopted ?? accepted;
    this.#writer = this.#newWriter();
    this.#listen(adopted === undefined);
    this.#phase = this.#newHaggling({ secure: false, clientFlags: undefined });
    this.#writer.append(encodeGreeting(HandshakeFlag.fixedNewstyle + HandshakeFlag.noZeroes));
    this.#writer.flush();
    void this.#limitHandshake();
  }

  /** Whether it has not got beyond the handshake. */
  get isHandshaking(): boolean {
    return !this.#handshaken.signal.aborted;
  }

  /** Whether it holds memory that others could use, and only its client can end that. */
  get holdsOthersUp(): boolean {
    return this.#allowance.holdsShared && (this.#input.inPayload || this.#writer.queued > 0);
  }

  /** Changes whenever the client sends something, or takes something. */
  get progress(): number {
    return this.#input.progress + this.#writer.progress;
  }

  /** Bytes that its requests and replies hold. */
  get bytesHeld(): number {
    return this.#allowance.held + this.#writer.uncharged;
  }

  /** Ends it once what is in flight is answered. The server says by then that it is shutting down. */
  shutDown(): void {
    // What has reached this machine by now is still answered, with ESHUTDOWN.
    setImmediate(() => setImmediate(() => this.#endOnceIdle()));
  }

  /** Closes it at once, for a reason that is the client's or the network's fault. */
  drop(reason: string): void {
    if (this.#ended.signal.aborted) return;
    this.#context.counters.connectionsDropped++;
    this.#context.onWarning(`${this.#peer} was disconnected: ${reason}`);
    this.destroy();
  }

  /** Closes it at once. */
  destroy(): void {
    this.#socket.destroy();
    this.#close();
  }

  #newInput(): SocketInput {
    const consumer = { consume: (bytes: Buffer, start: number, end: number) => this.#consume(bytes, start, end) };
    return new SocketInput(this.#context.shared, consumer, () => this.#socket.resume());
  }

  #newWriter(): ReplyWriter {
    const { buffers } = this.#context;
    const onWritten = (charge: number): void => {
      if (charge > 0) this.#allowance.give(charge);
      if (this.#input.blocked) this.#unblock();
    };
    return new ReplyWriter({ socket: this.#socket, buffers, onWritten });
  }

  #newHaggling({ secure, clientFlags }: { secure: boolean; clientFlags: number | undefined }): Haggling {
    const { exports, tls, isShuttingDown } = this.#context;
    return new Haggling({
      exports,
      tls: tls.mode,
      secure,
      clientFlags,
      input: this.#input,
      writer: this.#writer,
      isShuttingDown,
      onNext: (next, flags) => this.#goOn(next, flags),
      onViolation: (text) => this.drop(text),
    });
  }

  #listen(byEvents: boolean): void {
    const socket = this.#socket;
    socket.on("error", () => this.destroy()); // the network's end of it: nobody is there to be told
    socket.on("close", () => this.#close());
    socket.on("end", () => this.#endOnceIdle({ streamEnded: true }));
    if (!byEvents) return;
    socket.on("data", (chunk: Buffer) => {
      if (!this.#input.push(chunk)) socket.pause();
    });
    socket.resume();
  }

  #consume(bytes: Buffer, start: number, end: number): number {
    let at = start;
    for (;;) {
      const phase = this.#phase;
      if (phase === undefined) return end;
      at = phase.consume(bytes, at, end);
      if (phase === this.#phase) return at;
    }
  }

  /** Haggling has come to its end. */
  #goOn(next: Next, clientFlags: number): void {
    if (next.kind === "close") this.#end();
    if (next.kind === "tls") void this.#startTls(clientFlags);
    if (next.kind !== "transmission") return;
    this.#handshaken.abort();
    const { buffers, counters, limits, isShuttingDown } = this.#context;
    this.#phase = new Transmission({
      session: next.session,
      input: this.#input,
      writer: this.#writer,
      allowance: this.#allowance,
      buffers,
      counters,
      limits,
      isShuttingDown,
      onDisconnect: () => this.#endOnceIdle({ streamEnded: true }),
      onViolation: (text) => this.drop(text),
      onAnswered: () => this.#answered(),
    });
  }

  /** Everything said so far is forgotten but the client's flags; what comes next comes in TLS or not at all. */
  async #startTls(clientFlags: number): Promise<void> {
    const { credentials } = this.#context.tls;
    if (credentials === undefined) throw new TypeError("TLS was promised without credentials");
    this.#phase = undefined;
    this.#input.close();
    const plain = this.#socket;
    for (const event of ["data", "end", "close"]) plain.removeAllListeners(event);
    plain.pause();
    try {
      const secure = await upgradeToTls(plain, credentials);
      if (this.#ended.signal.aborted) return void secure.destroy();
      this.#socket = secure;
    } catch (error) {
      this.drop(`TLS failed: ${describeTlsError(error)}`);
      return;
    }
    this.#input = this.#newInput();
    this.#writer = this.#newWriter();
    this.#phase = this.#newHaggling({ secure: true, clientFlags });
    this.#listen(true);
  }

  #answered(): void {
    this.#context.onAnswered();
    if (this.#ended.signal.aborted) return;
    if (this.#input.blocked) this.#unblock();
    if (this.#ending || this.#context.isShuttingDown()) this.#endOnceIdle();
  }

  /** There may be room for what had to wait. */
  #unblock(): void {
    if (this.#phase === undefined || this.#phase.isFull) return;
    this.#input.unblock();
  }

  /** The budget has something to give. Who cannot use it now must not be in the way of those who can. */
  #available(): void {
    if (this.#ended.signal.aborted || !this.#input.blocked || this.#phase === undefined || this.#phase.isFull) {
      this.#allowance.leave();
    } else {
      this.#input.unblock();
    }
  }

  /**
   * Ends the connection as soon as nothing is in flight.
   * @param streamEnded the client has said its last: nothing more is consumed
   */
  #endOnceIdle({ streamEnded = false } = {}): void {
    if (this.#ended.signal.aborted) return;
    if (streamEnded) {
      this.#ending = true;
      this.#input.close();
    }
    const inFlight = this.#phase instanceof Transmission ? this.#phase.inFlight : 0;
    if (inFlight === 0 && !this.#input.inPayload && !this.#input.blocked) this.#end();
  }

  /** Says goodbye: what is written goes out, and what the client still says is thrown away until it closes as well. */
  #end(): void {
    if (this.#socket.writableEnded) return;
    this.#ending = true;
    this.#handshaken.abort();
    this.#input.close();
    this.#writer.flush();
    this.#socket.end();
    const { clock, limits } = this.#context;
    void clock.sleep(limits.closeMs, this.#ended.signal).then(() => this.destroy());
  }

  async #limitHandshake(): Promise<void> {
    const { clock, limits } = this.#context;
    await clock.sleep(limits.handshakeMs, this.#handshaken.signal);
    if (!this.#handshaken.signal.aborted) this.drop(`its handshake took longer than ${limits.handshakeMs / 1000} s`);
  }

  /** The socket is gone. */
  #close(): void {
    if (this.#ended.signal.aborted) return;
    this.#ended.abort();
    this.#handshaken.abort();
    if (this.#phase instanceof Transmission) this.#phase.close();
    this.#phase = undefined;
    this.#input.close();
    this.#allowance.leave();
    this.#onClosed(this);
  }
}
