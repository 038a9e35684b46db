/**
 * An export of an NBD server as a block device. Requests of any size and alignment become requests such as the server takes;
 * reads are sent again where their connection is lost, changes never: what may have been lost of them is told
 * (`LostWritesError`), by themselves and by the next flush.
 */

import { type Clock, systemClock } from "../../base/clock.ts";
import { ChangedError, CloneError, DeviceError, LostWritesError } from "../../base/errors.ts";
import type { Extent, ZeroOptions } from "../../device/block-device.ts";
import { ioError } from "../../device/io-error.ts";
import { checkRange, checkWritable } from "../../device/range-check.ts";
import type { RemoteDevice, RemoteIdentity, RemoteOptions } from "../../device/remote-device.ts";
import { Command, CommandFlag, TransmissionFlag } from "../protocol.ts";
import { ProtocolError } from "../protocol-error.ts";
import { SharedBuffer } from "../socket-input.ts";
import { ClientConnection } from "./client-connection.ts";
import { ConnectionPool, UnreachableError } from "./connection-pool.ts";
import { dial } from "./dial.ts";
import { ExtentList } from "./extent-list.ts";
import { FlushLedger, type FlushMark } from "./flush-ledger.ts";
import { ConnectionLostError, HandshakeError, ServerError } from "./handshake-error.ts";
import { inPieces } from "./in-pieces.ts";
import { formatNbdUri, type NbdAddress } from "./nbd-uri.ts";
import type { NegotiatedExport } from "./negotiation.ts";
import { RangeLock } from "./range-lock.ts";
import { RequestWindow } from "./request-window.ts";

/** How to open an export. */
export interface NbdDeviceOptions extends RemoteOptions {
  access: "read-only" | "read-write";
  /** What it is called in messages. Default: the URI. */
  name?: string;
  /** Most connections, where the server lets several in and they may be used. Default 4. */
  connections?: number;
  clock?: Clock;
  /** Uniformly from 0 to 1, for the spread of pauses. */
  random?: () => number;
}

const DEFAULT_CONNECTIONS = 4;
const DEFAULT_TIMEOUT_MS = 60_000;
/** Bytes under way, over all connections. */
const WINDOW_BYTES = 16 * 1024 * 1024;
/** Requests under way on each connection. */
const REQUESTS_PER_CONNECTION = 64;
/** Reads and writes go in pieces of at most so much: large enough for the link, small enough for several at once. */
const PIECE_BYTES = 1024 * 1024;
/** Zeroes that a server writes one by one take their time, and it says nothing meanwhile. */
const ZERO_PIECE_BYTES = 64 * 1024 * 1024;
const TRIM_PIECE_BYTES = 1024 * 1024 * 1024;
/** A length has 32 bits; this is a multiple of every block size. */
const STATUS_PIECE_BYTES = 2 ** 32 - 65536;
/** Pieces of one request that are under way at the same time. */
const PARALLEL = 16;
/** A read is sent so often: a server may die of it each time, or break the protocol each time. */
const MOST_LOSSES = 10;
const MOST_VIOLATIONS = 3;

const ZEROS = Buffer.alloc(PIECE_BYTES);

/** An export that is open. */
export class NbdDevice implements RemoteDevice {
  readonly name: string;
  readonly size: number;
  readonly readOnly: boolean;
  readonly blockSize: number;
  readonly mostAtOnce: number;
  readonly identity: RemoteIdentity;
  readonly #pool: ConnectionPool;
  readonly #ledger: FlushLedger;
  readonly #window: RequestWindow;
  readonly #lock = new RangeLock();
  /** Requests are multiples of this, but for the end of the device. */
  readonly #minimum: number;
  /** Whether zeroes are written fast, by whether a hole may be made of them; as far as it has been tried. */
  readonly #zerosFast = new Map<boolean, boolean>();
  /**
   * Whether reads are to be answered in one piece (NBD_CMD_FLAG_DF). qemu-nbd hangs up on a read in pieces that fails, where it
   * answers one of a whole with the error: so they are wanted whole from the first time on that it has hung up.
   */
  #answers: "any" | "whole" | "never whole" = "any";

  /**
   * Opens an export. Who is not there, or refuses, is not called twice.
   * @throws {DeviceError} where the server is not there, {ProtocolError} where it cannot be understood, {CloneError} where it
   *   refuses or a file of credentials cannot be used
   */
  static async open(address: NbdAddress, options: NbdDeviceOptions): Promise<NbdDevice> {
    const { access, onNote, signal, clock = systemClock, random = Math.random } = options;
    const { requestTimeoutMs = DEFAULT_TIMEOUT_MS, reconnectTimeoutMs = DEFAULT_TIMEOUT_MS } = options;
    const name = options.name ?? formatNbdUri(address);
    const isReadOnly = access === "read-only";
    const connections = options.connections ?? DEFAULT_CONNECTIONS;
    const shared = new SharedBuffer();
    const ledger = new FlushLedger();
    let opened: NegotiatedExport | undefined;
    const pool = await ConnectionPool.open(
      {
        clock,
        random,
        connect: async (serial, { timeoutMs, signal: ending }) => {
          const { wire, session } = await dial(address, { clock, shared, timeoutMs, signal: ending });
          const connection = new ClientConnection({ wire, session, clock, requestTimeoutMs, serial });
          const problem = problemWith(session, opened, isReadOnly);
          if (problem !== undefined) {
            void connection.close();
            throw new HandshakeError(problem);
          }
          return connection;
        },
        mostOf: (session) => (isReadOnly || has(session, TransmissionFlag.canMultiConn) ? connections : 1),
        isShared: (session) => has(session, TransmissionFlag.canMultiConn),
        changeOf: ({ size }) => {
          if (opened === undefined || size === opened.size) return undefined;
          return `its size was ${opened.size} bytes, and is ${size} bytes`;
        },
        requestTimeoutMs,
        reconnectTimeoutMs,
        onLost: (changes) => ledger.lose({ underWay: changes }),
        onChanged: () => ledger.acknowledge(),
        onNote: (text) => onNote?.(`"${name}" ${text}`),
      },
      signal,
    ).catch((error) => {
      throw openError(name, error, signal);
    });
    opened = pool.session;
    return new NbdDevice(name, isReadOnly, pool, ledger, connections);
  }

  private constructor(name: string, isReadOnly: boolean, pool: ConnectionPool, ledger: FlushLedger, most: number) {
    const { size, minimum, preferred, maximum } = pool.session;
    this.name = name;
    this.size = size;
    this.readOnly = isReadOnly;
    this.blockSize = Math.max(minimum, Math.min(preferred, 65536));
    this.mostAtOnce = Math.min(maximum, PIECE_BYTES);
    this.identity = { kind: "nbd", size };
    this.#pool = pool;
    this.#ledger = ledger;
    this.#window = new RequestWindow({ bytes: WINDOW_BYTES, requests: REQUESTS_PER_CONNECTION * most });
    this.#minimum = minimum;
  }

  get incarnation(): number {
    return this.#pool.incarnation;
  }

  get losses(): number {
    return this.#ledger.losses;
  }

  get isAway(): boolean {
    return this.#pool.size === 0;
  }

  get changed(): string | undefined {
    return this.#pool.changed;
  }

  /** Whether the server offers NBD_CMD_FLUSH. Without it nobody can tell when something is durable. */
  get canFlush(): boolean {
    return has(this.#pool.session, TransmissionFlag.sendFlush);
  }

  /** Connections at this moment. */
  get connections(): number {
    return this.#pool.size;
  }

  async read(offset: number, buffer: Uint8Array): Promise<void> {
    checkRange(this, offset, buffer.length);
    const target = Buffer.from(buffer.buffer, buffer.byteOffset, buffer.length);
    const outer = this.#outer(offset, buffer.length);
    if (outer.length === buffer.length) return await this.#readAligned(offset, target);
    const whole = Buffer.allocUnsafe(outer.length);
    await this.#readAligned(outer.offset, whole);
    whole.copy(target, 0, offset - outer.offset, offset - outer.offset + buffer.length);
  }

  async write(offset: number, data: Uint8Array, { fua = false }: { fua?: boolean } = {}): Promise<void> {
    this.#checkChange(offset, data.length);
    if (data.length === 0) return;
    await this.#changing(offset, data.length, () => this.#writeAligned(offset, data, fua));
    if (fua) await this.#flushAfter();
  }

  async zero(offset: number, length: number, { mayPunch = true, fua = false }: ZeroOptions = {}): Promise<void> {
    this.#checkChange(offset, length);
    if (length === 0) return;
    await this.#changing(offset, length, () => this.#zeroAligned(offset, length, mayPunch, fua));
    if (fua) await this.#flushAfter();
  }

  /**
   * Known once something has been zeroed: then a server that offers it has been asked to do it fast or not at all. Until
   * then it is trusted to: what is discarded first would otherwise keep its old content where a trim is only a wish.
   */
  async canZeroFast({ mayPunch }: { mayPunch: boolean }): Promise<boolean> {
    return this.#zerosFast.get(mayPunch) ?? this.#offers(TransmissionFlag.sendFastZero);
  }

  async discard(offset: number, length: number): Promise<void> {
    this.#checkChange(offset, length);
    if (!this.#offers(TransmissionFlag.sendTrim)) return;
    const inner = this.#inner(offset, length);
    if (inner.length === 0) return;
    await this.#changing(inner.offset, inner.length, () =>
      inPieces(inner, { most: TRIM_PIECE_BYTES, parallel: PARALLEL }, (piece) =>
        this.#change("discard", piece.offset, piece.length, 0, (connection) =>
          connection.command(Command.trim, 0, piece.offset, piece.length),
        ),
      ),
    );
  }

  /**
   * Makes every change that has returned durable. @throws {LostWritesError} once, where some of them may be lost: then so may
   * be everything that has returned since the last flush that succeeded, up to this moment. Of several at the same time all
   * throw it.
   */
  async flush(): Promise<void> {
    if (this.readOnly) return;
    const mark = this.#ledger.begin();
    if (this.#ledger.hasLost) {
      await undefined; // others who call now have not heard of it either
      this.#ledger.tell();
      throw this.#lostError("flush", undefined, undefined, undefined);
    }
    try {
      await this.#flush(mark);
    } catch (error) {
      if (error instanceof LostWritesError) this.#ledger.tell();
      throw error;
    }
  }

  async extents(offset: number, length: number): Promise<Extent[]> {
    checkRange(this, offset, length);
    const list = new ExtentList(offset, length);
    while (!list.isWhole) {
      const outer = this.#outer(list.at, Math.min(offset + length - list.at, STATUS_PIECE_BYTES));
      const most = Math.min(outer.length, STATUS_PIECE_BYTES);
      const runs = await this.#ask("tell the extents of", outer.offset, most, 0, async (connection) => {
        if (connection.session.contextId === undefined) return undefined;
        return await connection.status(outer.offset, most).catch(refused);
      });
      if (runs === undefined) break;
      const { at } = list;
      list.append(outer.offset, runs);
      // A server that tells of less than one of its own blocks would be asked the same for ever.
      if (list.at === at) list.appendUnknown(Math.min(this.#minimum, outer.length) - (at - outer.offset));
    }
    return list.finish();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#pool.dispose();
  }

  #offers(flag: number): boolean {
    return has(this.#pool.session, flag);
  }

  #checkChange(offset: number, length: number): void {
    checkRange(this, offset, length);
    checkWritable(this);
  }

  /** The range, grown to whole blocks of the server; the last one may be cut off by the end of the device. */
  #outer(offset: number, length: number): { offset: number; length: number } {
    const start = offset - (offset % this.#minimum);
    const end = Math.min(this.size, Math.ceil((offset + length) / this.#minimum) * this.#minimum);
    return { offset: start, length: end - start };
  }

  /** The whole blocks in a range. */
  #inner(offset: number, length: number): { offset: number; length: number } {
    const end = offset + length;
    const start = Math.ceil(offset / this.#minimum) * this.#minimum;
    const last = end === this.size ? end : end - (end % this.#minimum);
    return { offset: start, length: Math.max(0, last - start) };
  }

  async #readAligned(offset: number, target: Buffer): Promise<void> {
    await inPieces({ offset, length: target.length }, { most: this.mostAtOnce, parallel: PARALLEL }, (piece) => {
      const start = piece.offset - offset;
      const part = piece.length === target.length ? target : target.subarray(start, start + piece.length);
      return this.#ask("read", piece.offset, piece.length, piece.length, (connection) =>
        this.#readPiece(connection, piece.offset, part),
      );
    });
  }

  async #readPiece(connection: ClientConnection, offset: number, part: Buffer): Promise<void> {
    if (this.#answers !== "whole") return await connection.read(offset, part);
    try {
      await connection.read(offset, part, CommandFlag.df);
    } catch (error) {
      if (!(error instanceof ServerError) || (error.errno !== "EINVAL" && error.errno !== "EOVERFLOW")) throw error;
      this.#answers = "never whole"; // nbd-server has advertised what it refuses
      await connection.read(offset, part);
    }
  }

  /** Keeps changes of the same blocks apart where a server cannot change a part of one. */
  async #changing(offset: number, length: number, change: () => Promise<void>): Promise<void> {
    if (this.#minimum === 1) return await change();
    const outer = this.#outer(offset, length);
    await this.#lock.run(outer.offset, outer.offset + outer.length, change);
  }

  async #writeAligned(offset: number, data: Uint8Array, fua: boolean): Promise<void> {
    const outer = this.#outer(offset, data.length);
    let whole = data;
    if (outer.length !== data.length) {
      const block = Math.min(this.#minimum, outer.length);
      const mixed = Buffer.allocUnsafe(outer.length);
      if (outer.offset < offset) await this.#readAligned(outer.offset, mixed.subarray(0, block));
      const lastBlock = outer.length - (outer.length % this.#minimum || this.#minimum);
      const ends = outer.offset + outer.length > offset + data.length;
      if (ends && !(lastBlock === 0 && outer.offset < offset)) {
        await this.#readAligned(outer.offset + lastBlock, mixed.subarray(lastBlock));
      }
      mixed.set(data, offset - outer.offset);
      whole = mixed;
    }
    const flags = fua && this.#offers(TransmissionFlag.sendFua) ? CommandFlag.fua : 0;
    await inPieces(outer, { most: this.mostAtOnce, parallel: PARALLEL }, (piece) => {
      const start = piece.offset - outer.offset;
      const part = whole.subarray(start, start + piece.length);
      return this.#change("write", piece.offset, piece.length, piece.length, (connection) =>
        connection.write(piece.offset, part, flags),
      );
    });
  }

  async #zeroAligned(offset: number, length: number, mayPunch: boolean, fua: boolean): Promise<void> {
    const inner = this.#inner(offset, length);
    const end = offset + length;
    const innerEnd = inner.offset + inner.length;
    const byWriting = (from: number, to: number): Promise<void> =>
      inPieces({ offset: from, length: to - from }, { most: ZEROS.length, parallel: PARALLEL }, (piece) =>
        this.#writeAligned(piece.offset, ZEROS.subarray(0, piece.length), fua),
      );
    if (!this.#offers(TransmissionFlag.sendWriteZeroes) || inner.length === 0) return await byWriting(offset, end);
    if (offset < inner.offset) await byWriting(offset, inner.offset);
    await inPieces(inner, { most: ZERO_PIECE_BYTES, parallel: PARALLEL }, (piece) =>
      this.#writeZeroes(piece.offset, piece.length, mayPunch, fua),
    );
    if (innerEnd < end) await byWriting(innerEnd, end);
  }

  async #writeZeroes(offset: number, length: number, mayPunch: boolean, fua: boolean): Promise<void> {
    const durable = fua && this.#offers(TransmissionFlag.sendFua);
    const flags = (mayPunch ? 0 : CommandFlag.noHole) + (durable ? CommandFlag.fua : 0);
    const send = (more: number): Promise<void> =>
      this.#change("zero", offset, length, 0, (connection) =>
        connection.command(Command.writeZeroes, flags + more, offset, length),
      );
    // What it can do fast is not told by anything but the answer; it is to be zero anyway, so asking costs nothing.
    if (this.#offers(TransmissionFlag.sendFastZero) && !this.#zerosFast.has(mayPunch)) {
      try {
        await send(CommandFlag.fastZero);
        this.#zerosFast.set(mayPunch, true);
        return;
      } catch (error) {
        if (!(error instanceof DeviceError) || (error.errno !== "ENOTSUP" && error.errno !== "EINVAL")) throw error;
        this.#zerosFast.set(mayPunch, false);
      }
    }
    await send(0);
  }

  /** For a server without FUA: what a change was to be, durable when it returns. What is lost the next flush tells, too. */
  async #flushAfter(): Promise<void> {
    if (this.#offers(TransmissionFlag.sendFua)) return;
    if (this.#ledger.hasLost) throw this.#lostError("flush", undefined, undefined, undefined);
    await this.#flush(this.#ledger.begin());
  }

  /** One flush. @throws {LostWritesError} where something was lost since the mark, which the ledger may still have to tell */
  async #flush(mark: FlushMark): Promise<void> {
    let connection: ClientConnection;
    try {
      connection = this.#pool.idlest ?? (await this.#pool.connection());
    } catch (error) {
      throw this.#error("flush", undefined, undefined, error);
    }
    let cause: unknown;
    try {
      if (has(connection.session, TransmissionFlag.sendFlush)) await connection.command(Command.flush, 0, 0, 0);
    } catch (error) {
      if (isShutdown(error)) connection.drop(shuttingDown(error));
      else if (!(error instanceof ConnectionLostError)) throw this.#error("flush", undefined, undefined, error);
      this.#ledger.lose({ underWay: true });
      cause = error;
    }
    if (!this.#ledger.succeed(mark)) throw this.#lostError("flush", undefined, undefined, cause);
  }

  /** Asks something that may be asked again, until there is an answer. */
  async #ask<T>(
    verb: string,
    offset: number,
    length: number,
    bytes: number,
    attempt: (connection: ClientConnection) => Promise<T>,
  ): Promise<T> {
    if (!this.#window.tryEnter(bytes)) await this.#window.enter(bytes);
    try {
      let [losses, violations] = [0, 0];
      for (let counted = -1; ; ) {
        const connection = this.#pool.idlest ?? (await this.#pool.connection());
        try {
          return await attempt(connection);
        } catch (error) {
          if (isShutdown(error)) connection.drop(shuttingDown(error));
          else if (!(error instanceof ConnectionLostError)) throw error;
          // Connections that there were at the same time go at the same time: that is one loss.
          if (connection.serial <= counted) continue;
          counted = this.#pool.lastSerial;
          losses += 1;
          if (this.#answers === "any" && this.#offers(TransmissionFlag.sendDf)) this.#answers = "whole";
          if ((error as Error).cause instanceof ProtocolError) violations += 1;
          if (losses >= MOST_LOSSES || violations >= MOST_VIOLATIONS) throw error;
        }
      }
    } catch (error) {
      throw this.#error(verb, offset, length, error);
    } finally {
      this.#window.leave(bytes);
    }
  }

  /** Sends a change, once. */
  async #change(
    verb: string,
    offset: number,
    length: number,
    bytes: number,
    send: (connection: ClientConnection) => Promise<void>,
  ): Promise<void> {
    if (!this.#window.tryEnter(bytes)) await this.#window.enter(bytes);
    try {
      let connection: ClientConnection;
      try {
        connection = this.#pool.idlest ?? (await this.#pool.connection());
      } catch (error) {
        throw this.#error(verb, offset, length, error); // it was never sent
      }
      try {
        await send(connection);
      } catch (error) {
        if (isShutdown(error)) {
          connection.drop(shuttingDown(error));
          this.#ledger.lose({ underWay: true });
        } else if (!(error instanceof ConnectionLostError)) throw this.#error(verb, offset, length, error);
        throw this.#lostError(verb, offset, length, error);
      }
    } finally {
      this.#window.leave(bytes);
    }
  }

  #lostError(verb: string, offset: number | undefined, length: number | undefined, cause: unknown): LostWritesError {
    const where = offset === undefined || length === undefined ? {} : { offset, length };
    const what = offset === undefined ? `"${this.name}"` : `${length} bytes at ${offset} of "${this.name}"`;
    const why = cause instanceof Error ? `the connection was lost (${cause.message})` : "the connection was lost";
    const errno = cause instanceof ConnectionLostError ? cause.errno : "ECONNRESET";
    return new LostWritesError(`Cannot ${verb} ${what}: ${why}, and with it perhaps what was written`, {
      ...where,
      errno,
      away: false, // what was to be written can be written again
      cause,
    });
  }

  /** What went wrong, in the words of all devices. */
  #error(verb: string, offset: number | undefined, length: number | undefined, error: unknown): unknown {
    const { name } = this;
    if (error instanceof ServerError) {
      const failure = ioError({ verb, name, offset, length, errno: error.errno, cause: error, away: false });
      if (error.message === "") return failure;
      const { errno, cause } = failure;
      const where = offset === undefined || length === undefined ? {} : { offset, length };
      return new DeviceError(`${failure.message} (the server says: ${error.message})`, {
        errno,
        cause,
        away: false,
        ...where,
      });
    }
    if (!(error instanceof ConnectionLostError)) return error;
    const difference = this.#pool.changed;
    const what = offset === undefined ? `"${name}"` : `${length} bytes at ${offset} of "${name}"`;
    if (difference !== undefined) return new ChangedError(`Cannot ${verb} ${what}: ${difference}`, { difference });
    const away = error instanceof UnreachableError || error.errno !== "EPROTO";
    return new DeviceError(`Cannot ${verb} ${what}: ${error.message}`, {
      errno: error.errno,
      away,
      cause: error,
      ...(offset === undefined || length === undefined ? {} : { offset, length }),
    });
  }
}

function has({ flags }: NegotiatedExport, flag: number): boolean {
  return Math.floor(flags / flag) % 2 === 1;
}

/** What is wrong with an export that was found, or found again: the end of a sentence. */
function problemWith(session: NegotiatedExport, before: NegotiatedExport | undefined, isReadOnly: boolean) {
  if (!isReadOnly && has(session, TransmissionFlag.readOnly)) return "the export is read-only";
  if (before === undefined || before.size !== session.size) return undefined;
  if (before.minimum % session.minimum !== 0) return "the export has larger blocks than before";
  if (session.maximum < Math.min(before.maximum, PIECE_BYTES))
    return "the export takes only smaller requests than before";
  if (isReadOnly) return undefined;
  for (const flag of [TransmissionFlag.sendFlush, TransmissionFlag.sendFua, TransmissionFlag.sendWriteZeroes]) {
    if (has(before, flag) && !has(session, flag)) return "the export offers less than before";
  }
  return undefined;
}

function openError(name: string, error: unknown, signal: AbortSignal | undefined): unknown {
  if (signal?.aborted) return signal.reason;
  if (error instanceof ProtocolError) {
    return new ProtocolError(`Cannot open "${name}": the server broke the NBD protocol: ${error.message}`, {
      cause: error,
    });
  }
  if (!(error instanceof HandshakeError) && !(error instanceof ConnectionLostError)) return error;
  const { errno, hint, message } = error;
  const options = { cause: error, ...(hint === undefined ? {} : { hint }) };
  if (errno === undefined) return new CloneError("failed", `Cannot open "${name}": ${message}`, options);
  return new DeviceError(`Cannot open "${name}": ${message}`, { errno, ...options });
}

function isShutdown(error: unknown): error is ServerError {
  return error instanceof ServerError && error.errno === "ESHUTDOWN";
}

function shuttingDown(cause: ServerError): ConnectionLostError {
  return new ConnectionLostError("the server is shutting down", { cause });
}

/** A server that will not tell the status of a range is one that knows nothing of it. */
function refused(error: unknown): undefined {
  if (error instanceof ServerError && ["EINVAL", "ENOTSUP", "EPERM"].includes(error.errno)) return undefined;
  throw error;
}
