/** Opening an export: which server is good enough, at first and when it is back, and why one is not, in whole sentences. */
import type { Clock } from "../../base/clock.ts";
import { CloneError, DeviceError } from "../../base/errors.ts";
import { TransmissionFlag } from "../protocol.ts";
import { ProtocolError } from "../protocol-error.ts";
import { SharedBuffer } from "../socket-input.ts";
import { ClientConnection } from "./client-connection.ts";
import { ConnectionPool } from "./connection-pool.ts";
import { dial } from "./dial.ts";
import type { FlushLedger } from "./flush-ledger.ts";
import { ConnectionLostError, HandshakeError } from "./handshake-error.ts";
import type { NbdAddress } from "./nbd-uri.ts";
import { type NegotiatedExport, offers } from "./negotiation.ts";
import type { StrayChanges } from "./stray-changes.ts";

/** Requests of a device are never larger, bytes: no server has to take more. */
export const PIECE_BYTES = 2 * 1024 * 1024;

/** What an export is opened with. */
export interface OpenPoolOptions {
  /** For messages. */
  name: string;
  address: NbdAddress;
  isReadOnly: boolean;
  /** Most connections. */
  connections: number;
  clock: Clock;
  random: () => number;
  requestTimeoutMs: number;
  reconnectTimeoutMs: number;
  ledger: FlushLedger;
  strays: StrayChanges;
  signal: AbortSignal | undefined;
  onNote: ((line: string) => void) | undefined;
}

/** Connects. @throws {DeviceError}, {ProtocolError}, {CloneError}, or the signal's reason */
export async function openPool(options: OpenPoolOptions): Promise<ConnectionPool> {
  const { name, address, isReadOnly, connections, clock, requestTimeoutMs, ledger, strays, signal, onNote } = options;
  const shared = new SharedBuffer();
  let first: NegotiatedExport | undefined;
  try {
    return await ConnectionPool.open(
      {
        ...options,
        connect: async (serial, { timeoutMs, signal: ending }) => {
          const { wire, session } = await dial(address, { clock, shared, timeoutMs, signal: ending });
          const connection = new ClientConnection({ wire, session, clock, requestTimeoutMs, serial });
          const problem = problemWith(session, first, isReadOnly);
          if (problem !== undefined) {
            connection.start(); // or it would not hear of its own end
            await connection.close();
            throw new HandshakeError(problem);
          }
          first ??= session;
          return connection;
        },
        // Whoever only reads needs no promise that what one connection has written is seen on others.
        mostOf: (session) => (isReadOnly || offers(session, TransmissionFlag.canMultiConn) ? connections : 1),
        isShared: (session) => offers(session, TransmissionFlag.canMultiConn),
        changeOf: ({ size }) => {
          if (first === undefined || size === first.size) return undefined;
          return `its size was ${first.size} bytes, and is ${size} bytes`;
        },
        onLost: (changes) => {
          ledger.lose({ underWay: changes.length > 0 });
          strays.add(changes);
        },
        onChanged: () => ledger.acknowledge(),
        onNote: (text) => onNote?.(`"${name}" ${text}`),
      },
      signal,
    );
  } catch (error) {
    throw signal?.aborted ? signal.reason : openError(name, error);
  }
}

/** What is wrong with an export that was found, or found again: the end of a sentence. Another size is told elsewhere. */
function problemWith(
  session: NegotiatedExport,
  before: NegotiatedExport | undefined,
  isReadOnly: boolean,
): string | undefined {
  if (!isReadOnly && offers(session, TransmissionFlag.readOnly)) return "the export is read-only";
  if (before === undefined || before.size !== session.size) return undefined;
  // Requests are made for what the export was when it was opened.
  if (before.minimum % session.minimum !== 0) return "the export has larger blocks than before";
  if (session.maximum < Math.min(before.maximum, PIECE_BYTES))
    return "the export takes only smaller requests than before";
  if (isReadOnly) return undefined;
  const { sendFlush, sendFua, sendWriteZeroes } = TransmissionFlag;
  const lacks = [sendFlush, sendFua, sendWriteZeroes].some((flag) => offers(before, flag) && !offers(session, flag));
  return lacks ? "the export offers less than before" : undefined;
}

function openError(name: string, error: unknown): unknown {
  const what = `Cannot open "${name}":`;
  if (error instanceof ProtocolError) {
    return new ProtocolError(`${what} the server broke the NBD protocol: ${error.message}`, { cause: error });
  }
  if (!(error instanceof HandshakeError) && !(error instanceof ConnectionLostError)) return error;
  const { errno, hint, message } = error;
  const options = { cause: error, ...(hint === undefined ? {} : { hint }) };
  if (errno === undefined) return new CloneError("failed", `${what} ${message}`, options);
  // A socket that is not there (ENOENT) says no more than a port at which nobody listens: the server may come, or come back.
  const away = error instanceof ConnectionLostError ? true : undefined;
  return new DeviceError(`${what} ${message}`, { errno, away, ...options });
}
