/**
 * An export of an NBD server as a block device: requests of any size and alignment become such as the server takes. What it
 * lacks is made up for: zeroes are written where it knows no zeroes, a flush follows where it knows no FUA, a part of a block is
 * read and written back with the rest of it.
 */
import { type Clock, systemClock } from "../../base/clock.ts";
import { DeviceError } from "../../base/errors.ts";
import type { Extent, ZeroOptions } from "../../device/block-device.ts";
import { checkRange, checkWritable } from "../../device/range-check.ts";
import type { ConnectionCheck, RemoteDevice, RemoteIdentity, RemoteOptions } from "../../device/remote-device.ts";
import { Command, CommandFlag, TransmissionFlag } from "../protocol.ts";
import type { ClientConnection } from "./client-connection.ts";
import type { ConnectionPool } from "./connection-pool.ts";
import { ExtentList } from "./extent-list.ts";
import { FlushLedger } from "./flush-ledger.ts";
import { ServerError } from "./handshake-error.ts";
import { inPieces, type PieceRange } from "./in-pieces.ts";
import { formatNbdUri, type NbdAddress } from "./nbd-uri.ts";
import { offers } from "./negotiation.ts";
import { openPool, PIECE_BYTES } from "./open-pool.ts";
import { RangeLock } from "./range-lock.ts";
import { RequestFailures } from "./request-failures.ts";
import { RequestSender, type RequestSenderOptions } from "./request-sender.ts";
import { StatusBudget } from "./status-budget.ts";
import { StrayChanges } from "./stray-changes.ts";

/** How to open an export. */
export interface NbdDeviceOptions extends RemoteOptions {
  access: "read-only" | "read-write";
  /** What it is called in messages. Default: the URI. */
  name?: string;
  /** Most connections, where the server lets several in and they may be used. Default 4, as nbdcopy. */
  connections?: number;
  clock?: Clock;
  /** Uniformly from 0 to 1, for the spread of pauses. */
  random?: () => number;
}

const DEFAULT_CONNECTIONS = 4;
const DEFAULT_TIMEOUT_MS = 60_000;
/** A server that has not answered in the time of a request is given as long again to end what it has begun. */
const STRAY_FACTOR = 2;
/** Zeroes that a server writes one by one take their time, and it says nothing meanwhile. Bytes. */
const ZERO_PIECE_BYTES = 64 * 1024 * 1024;
const TRIM_PIECE_BYTES = 1024 * 1024 * 1024;
/** A length has 32 bits; this is a multiple of every block size. */
const STATUS_PIECE_BYTES = 2 ** 32 - 65536;
/** Pieces of one request that are under way at the same time. */
const PARALLEL = 16;

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
  readonly #sender: RequestSender;
  readonly #strays: StrayChanges;
  readonly #failures: RequestFailures;
  readonly #lock = new RangeLock();
  /** Requests are multiples of this, but for the end of the device. */
  readonly #minimum: number;
  /** Whether zeroes are written fast, by whether a hole may be made of them; as far as it has been tried. */
  readonly #zerosFast = new Map<boolean, boolean>();
  #refusesWhole = false;

  /**
   * Opens an export. Who is not there, or refuses, is not called again.
   * @throws {DeviceError} where the server is not there, {ProtocolError} where it cannot be understood, {CloneError} where it
   *   refuses or a file of credentials cannot be used
   */
  static async open(address: NbdAddress, options: NbdDeviceOptions): Promise<NbdDevice> {
    const name = options.name ?? formatNbdUri(address);
    const connections = options.connections ?? DEFAULT_CONNECTIONS;
    const isReadOnly = options.access === "read-only";
    const clock = options.clock ?? systemClock;
    const requestTimeoutMs = options.requestTimeoutMs ?? DEFAULT_TIMEOUT_MS;
    const reconnectTimeoutMs = options.reconnectTimeoutMs ?? DEFAULT_TIMEOUT_MS;
    const ledger = new FlushLedger();
    const strays = new StrayChanges(clock, STRAY_FACTOR * requestTimeoutMs);
    const pool = await openPool({
      name,
      address,
      isReadOnly,
      connections,
      clock,
      random: options.random ?? Math.random,
      requestTimeoutMs,
      reconnectTimeoutMs,
      ledger,
      strays,
      signal: options.signal,
      onNote: options.onNote,
    });
    const patienceMs = requestTimeoutMs + reconnectTimeoutMs;
    return new NbdDevice(name, isReadOnly, { pool, strays, ledger, connections, clock, patienceMs });
  }

  private constructor(name: string, isReadOnly: boolean, parts: DeviceParts) {
    const { pool, ledger, strays } = parts;
    const { size, minimum, preferred, maximum } = pool.session;
    this.name = name;
    this.size = size;
    this.readOnly = isReadOnly;
    this.blockSize = Math.max(minimum, Math.min(preferred, 65536));
    this.mostAtOnce = Math.min(maximum, PIECE_BYTES);
    this.identity = { kind: "nbd", size };
    this.#pool = pool;
    this.#ledger = ledger;
    this.#strays = strays;
    const failures = new RequestFailures(name, () => pool.changed);
    this.#failures = failures;
    this.#sender = new RequestSender({ ...parts, failures });
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

  strayIn(offset: number, length: number): Promise<void> | undefined {
    return this.#strays.in(offset, length);
  }

  get changed(): string | undefined {
    return this.#pool.changed;
  }

  /** Whether the server offers NBD_CMD_FLUSH. Without it nobody can tell when something is durable. */
  get canFlush(): boolean {
    return this.#offers(TransmissionFlag.sendFlush);
  }

  /** Connections at this moment. */
  get connections(): number {
    return this.#pool.size;
  }

  verifyBy(check: ConnectionCheck): void {
    this.#pool.checkBy((connection) =>
      check(async (offset, buffer) => {
        checkRange(this, offset, buffer.length);
        const outer = this.#outer(offset, buffer.length);
        const whole = Buffer.allocUnsafe(outer.length);
        await this.#readThrough(connection, outer.offset, whole);
        whole.copy(buffer, 0, offset - outer.offset, offset - outer.offset + buffer.length);
      }),
    );
  }

  async read(offset: number, buffer: Uint8Array): Promise<void> {
    checkRange(this, offset, buffer.length);
    const target = Buffer.from(buffer.buffer, buffer.byteOffset, buffer.length);
    const outer = this.#outer(offset, buffer.length);
    if (outer.length === buffer.length) return await this.#readBlocks(offset, target);
    const whole = Buffer.allocUnsafe(outer.length);
    await this.#readBlocks(outer.offset, whole);
    whole.copy(target, 0, offset - outer.offset, offset - outer.offset + buffer.length);
  }

  async write(offset: number, data: Uint8Array, { fua = false }: { fua?: boolean } = {}): Promise<void> {
    this.#checkChange(offset, data.length);
    if (data.length === 0) return;
    await this.#apart(offset, data.length, () => this.#write(offset, data, fua));
    if (fua) await this.#flushWithoutFua();
  }

  async zero(offset: number, length: number, { mayPunch = true, fua = false }: ZeroOptions = {}): Promise<void> {
    this.#checkChange(offset, length);
    if (length === 0) return;
    await this.#apart(offset, length, () => this.#zero(offset, length, mayPunch, fua));
    if (fua) await this.#flushWithoutFua();
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
    const inner = this.#inner(offset, length);
    if (inner.length === 0 || !this.#offers(TransmissionFlag.sendTrim)) return;
    await this.#apart(inner.offset, inner.length, () =>
      inPieces(inner, { most: TRIM_PIECE_BYTES, parallel: PARALLEL }, (piece) =>
        this.#sender.change({ verb: "discard", payload: 0, ...piece }, (connection) =>
          connection.command(Command.trim, 0, piece.offset, piece.length),
        ),
      ),
    );
  }

  /**
   * Makes every change that has returned durable. @throws {LostWritesError} once, where some of them may be lost: then so may
   * be everything that has returned since the last flush that succeeded, up to this moment. Of several at the same time all
   * throw it. A server that knows no flush is not asked. One that is only read from is: what was read may not be durable yet.
   */
  async flush(): Promise<void> {
    await this.#sender.flush();
  }

  async extents(offset: number, length: number): Promise<Extent[]> {
    checkRange(this, offset, length);
    const list = new ExtentList(offset, length);
    const budget = new StatusBudget(length);
    while (!list.isWhole && !budget.isSpent) {
      const outer = this.#outer(list.at, Math.min(offset + length - list.at, STATUS_PIECE_BYTES));
      const asked = { offset: outer.offset, length: Math.min(outer.length, STATUS_PIECE_BYTES) };
      const runs = await this.#sender.ask({ verb: "tell the extents of", payload: 0, ...asked }, async (connection) => {
        if (connection.session.contextId === undefined) return undefined;
        return await connection.status(asked.offset, asked.length).catch(untold);
      });
      if (runs === undefined) break;
      const { at } = list;
      list.append(asked.offset, runs);
      budget.spend({ asked: asked.length, told: list.at - at, descriptors: runs.count });
      // A server that tells of less than one of its own blocks would be asked the same for ever.
      if (list.at === at) list.appendUnknown(Math.min(this.#minimum, outer.length) - (at - outer.offset));
    }
    return list.finish();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#strays.close();
    await this.#pool.dispose();
  }

  #offers(flag: number): boolean {
    return offers(this.#pool.session, flag);
  }

  #checkChange(offset: number, length: number): void {
    checkRange(this, offset, length);
    checkWritable(this);
  }

  /** The range, grown to whole blocks of the server; the last one may be cut off by the end of the device. */
  #outer(offset: number, length: number): PieceRange {
    const start = offset - (offset % this.#minimum);
    const end = Math.min(this.size, Math.ceil((offset + length) / this.#minimum) * this.#minimum);
    return { offset: start, length: end - start };
  }

  /** The whole blocks in a range. */
  #inner(offset: number, length: number): PieceRange {
    const end = offset + length;
    const start = Math.ceil(offset / this.#minimum) * this.#minimum;
    const last = end === this.size ? end : end - (end % this.#minimum);
    return { offset: start, length: Math.max(0, last - start) };
  }

  /** Keeps changes of the same blocks apart where a server cannot change a part of one. */
  async #apart(offset: number, length: number, change: () => Promise<void>): Promise<void> {
    if (this.#minimum === 1) return await change();
    const outer = this.#outer(offset, length);
    await this.#lock.run(outer.offset, outer.offset + outer.length, change);
  }

  async #readBlocks(offset: number, target: Buffer): Promise<void> {
    await inPieces({ offset, length: target.length }, { most: this.mostAtOnce, parallel: PARALLEL }, (piece) => {
      const start = piece.offset - offset;
      const part = piece.length === target.length ? target : target.subarray(start, start + piece.length);
      return this.#sender.ask({ verb: "read", payload: piece.length, ...piece }, (connection) =>
        this.#readPiece(connection, piece.offset, part),
      );
    });
  }

  /** Whole blocks, over this connection or none. @throws {DeviceError} where they cannot be read */
  async #readThrough(connection: ClientConnection, offset: number, target: Buffer): Promise<void> {
    for (let at = 0; at < target.length; at += this.mostAtOnce) {
      const piece = target.subarray(at, Math.min(at + this.mostAtOnce, target.length));
      try {
        await this.#readPiece(connection, offset + at, piece, true);
      } catch (error) {
        if (!(error instanceof ServerError)) throw error;
        throw this.#failures.of({ verb: "read", offset: offset + at, length: piece.length }, error);
      }
    }
  }

  /**
   * qemu-nbd hangs up on a read in pieces that fails, and answers one of a whole (NBD_CMD_FLAG_DF) with the error: so reads are to
   * be whole from the first time on that a server has hung up on one.
   */
  async #readPiece(
    connection: ClientConnection,
    offset: number,
    part: Buffer,
    isWary = this.#sender.hasLostQuestions,
  ): Promise<void> {
    const whole = isWary && this.#offers(TransmissionFlag.sendDf) && !this.#refusesWhole;
    if (!whole) return await connection.read(offset, part);
    try {
      await connection.read(offset, part, CommandFlag.df);
    } catch (error) {
      if (!(error instanceof ServerError) || (error.errno !== "EINVAL" && error.errno !== "EOVERFLOW")) throw error;
      this.#refusesWhole = true; // there are servers that offer it all the same
      await connection.read(offset, part);
    }
  }

  async #write(offset: number, data: Uint8Array, fua: boolean): Promise<void> {
    const outer = this.#outer(offset, data.length);
    const whole = outer.length === data.length ? data : await this.#mixed(outer, offset, data);
    const flags = fua && this.#offers(TransmissionFlag.sendFua) ? CommandFlag.fua : 0;
    await inPieces(outer, { most: this.mostAtOnce, parallel: PARALLEL }, (piece) => {
      const start = piece.offset - outer.offset;
      const part = whole.subarray(start, start + piece.length);
      return this.#sender.change({ verb: "write", payload: piece.length, ...piece }, (connection) =>
        connection.write(piece.offset, part, flags),
      );
    });
  }

  /** Whole blocks with the data in them: what the first and the last have besides is read. */
  async #mixed(outer: PieceRange, offset: number, data: Uint8Array): Promise<Buffer> {
    // What strays may hold the neighbours' bytes as they were: it would undo what is mixed now.
    for (let over = this.strayIn(outer.offset, outer.length); over !== undefined; ) {
      await over;
      over = this.strayIn(outer.offset, outer.length);
    }
    const mixed = Buffer.allocUnsafe(outer.length);
    const first = Math.min(this.#minimum, outer.length);
    if (outer.offset < offset) await this.#readBlocks(outer.offset, mixed.subarray(0, first));
    const lastAt = outer.length - (outer.length % this.#minimum || this.#minimum);
    const isRead = lastAt === 0 && outer.offset < offset;
    const endsEarly = offset + data.length < outer.offset + outer.length;
    if (endsEarly && !isRead) await this.#readBlocks(outer.offset + lastAt, mixed.subarray(lastAt));
    mixed.set(data, offset - outer.offset);
    return mixed;
  }

  async #zero(offset: number, length: number, mayPunch: boolean, fua: boolean): Promise<void> {
    const end = offset + length;
    const inner = this.#inner(offset, length);
    const writeZeros = (from: number, to: number): Promise<void> =>
      inPieces({ offset: from, length: to - from }, { most: ZEROS.length, parallel: PARALLEL }, (piece) =>
        this.#write(piece.offset, ZEROS.subarray(0, piece.length), fua),
      );
    if (inner.length === 0 || !this.#offers(TransmissionFlag.sendWriteZeroes)) return await writeZeros(offset, end);
    const innerEnd = inner.offset + inner.length;
    await writeZeros(offset, inner.offset);
    await inPieces(inner, { most: ZERO_PIECE_BYTES, parallel: PARALLEL }, (piece) =>
      this.#zeroBlocks(piece, mayPunch, fua),
    );
    await writeZeros(innerEnd, end);
  }

  async #zeroBlocks(piece: PieceRange, mayPunch: boolean, fua: boolean): Promise<void> {
    const isDurable = fua && this.#offers(TransmissionFlag.sendFua);
    const flags = (mayPunch ? 0 : CommandFlag.noHole) + (isDurable ? CommandFlag.fua : 0);
    const send = (more: number): Promise<void> =>
      this.#sender.change({ verb: "zero", payload: 0, ...piece }, (connection) =>
        connection.command(Command.writeZeroes, flags + more, piece.offset, piece.length),
      );
    // What it can do fast is not told by anything but its answer; these are to be zero anyway, so asking costs nothing.
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

  /** What was to be durable when it returns, of a server without FUA. */
  async #flushWithoutFua(): Promise<void> {
    if (!this.#offers(TransmissionFlag.sendFua)) await this.#sender.flush({ leaveUntold: true });
  }
}

/** What a device is made of. */
interface DeviceParts extends Omit<RequestSenderOptions, "failures"> {
  strays: StrayChanges;
}

/** A server that will not tell the status of a range is one that knows nothing of it. */
function untold(error: unknown): undefined {
  if (error instanceof ServerError && ["EINVAL", "ENOTSUP", "EPERM"].includes(error.errno)) return undefined;
  throw error;
}
