import type { Clock } from "../../base/clock.ts";
import type { SharedBuffer } from "../socket-input.ts";
import { secure, tlsSettings } from "./client-tls.ts";
import { ConnectionLostError } from "./handshake-error.ts";
import type { NbdAddress } from "./nbd-uri.ts";
import { askForTls, greet, type NegotiatedExport, negotiate } from "./negotiation.ts";
import { Wire } from "./wire.ts";

/** How to call. */
export interface DialOptions {
  clock: Clock;
  shared: SharedBuffer;
  /** How long it may take until transmission can begin, ms. */
  timeoutMs: number;
  /** Ends the attempt. */
  signal?: AbortSignal | undefined;
}

/** A connection that is ready for requests. */
export interface Dialled {
  wire: Wire;
  session: NegotiatedExport;
}

/**
 * Calls a server and agrees with it on an export.
 * @throws {HandshakeError} where it refuses, {ProtocolError} where it cannot be understood, {ConnectionLostError} where it is
 *   not there or goes away, {CloneError} where a file of credentials cannot be used
 */
export async function dial(address: NbdAddress, { clock, shared, timeoutMs, signal }: DialOptions): Promise<Dialled> {
  const { place, exportName, tls } = address;
  signal?.throwIfAborted();
  const settings = tls === undefined ? undefined : await tlsSettings(tls, place);
  signal?.throwIfAborted();
  const wire = new Wire(place, { shared, byEvents: tls !== undefined });
  const done = new AbortController();
  const abort = (): void => wire.fail(new ConnectionLostError("it was given up", { errno: "ECANCELED" }));
  signal?.addEventListener("abort", abort, { once: true });
  void clock.sleep(timeoutMs, done.signal).then(() => {
    if (done.signal.aborted) return;
    const seconds = Math.round(timeoutMs / 1000);
    wire.fail(new ConnectionLostError(`the server did not answer for ${seconds} s`, { errno: "ETIMEDOUT" }));
  });
  try {
    await wire.connected();
    const greeting = await greet(wire);
    if (settings !== undefined) {
      await askForTls(wire);
      await wire.secure((socket) => secure(socket, settings));
    }
    return { wire, session: await negotiate(wire, { exportName, ...greeting }) };
  } catch (error) {
    wire.fail(error as Error);
    throw error;
  } finally {
    done.abort();
    signal?.removeEventListener("abort", abort);
  }
}
