/**
 * `clone serve`: a live clone behind an NBD server, with a control socket beside it, until it is told to end.
 *
 *     start    devices ─► engine ─► listeners ─► control socket ─► pid file ─► READY
 *     end      STOPPING ─► clients (what is under way is answered) ─► engine (flush, commit, books) ─► sockets, pid file
 *
 * It ends by a signal, by the control socket, and by itself: where it was asked to when everything is hydrated, and once the
 * destination stands alone, both when no client is left.
 */
import { systemClock } from "../base/clock.ts";
import { formatSize } from "../base/units.ts";
import type { ControlTarget, Tuning } from "../control/control-target.ts";
import { listenDescriptors, ServiceNotifier } from "../control/sd-notify.ts";
import type { FinalizeAsked } from "../control/tuning.ts";
import { descriptorLimit } from "../device/descriptor-limit.ts";
import { NbdServer, type NbdServerOptions } from "../nbd/server.ts";
import { checkCredentials } from "../nbd/tls-upgrade.ts";
import type { Clone } from "./clone.ts";
import { type CloneStatus, statusOf } from "./clone-status.ts";
import { type FinalizeJson, finalizeJson } from "./finalize-clone.ts";
import { type ListenPlace, type ListenTarget, listenIn, listenPlaces } from "./listen-places.ts";
import { LiveClone } from "./live-clone.ts";
import type { LiveRequest } from "./live-engine.ts";
import { firstRegions } from "./live-regions.ts";
import { openLiveSocket } from "./live-socket.ts";
import { displayUri } from "./location.ts";
import { packageVersion } from "./package-version.ts";
import { PidFile } from "./pid-file.ts";
import { readPresharedKeys, readServerCertificates } from "./tls-files.ts";
import { TraceRecorder } from "./trace-recorder.ts";
import { keepTuned } from "./tuned.ts";

/** How clients must protect what they send. */
export interface TlsRequest {
  /** Undefined: required where there are certificates or keys, else off. */
  mode: "off" | "on" | "require" | undefined;
  /** Directory of `server-cert.pem`, `server-key.pem` and `ca-cert.pem`. */
  certificates: string | undefined;
  /** File of pre-shared keys. */
  presharedKeys: string | undefined;
  verifyPeer: boolean;
}

/** How a clone is served. */
export interface ServeRequest extends LiveRequest {
  /** Undefined: on the sockets that systemd hands over, or on a private one. */
  place: ListenPlace | undefined;
  /** Where there is neither, make a socket that only we know. */
  privateSocket: boolean;
  exportName: string;
  tls: TlsRequest;
  /** Listen beyond this machine without encryption. */
  insecure: boolean;
  /** Whether hydration in the background begins at once. */
  hydrate: boolean;
  maxConnections: number;
  exitWhenHydrated: boolean;
  finalizeWhenHydrated: boolean;
  pidFile: string | undefined;
  /** Where to write what clients need for the first time; undefined for nowhere. */
  recordTrace: string | undefined;
}

/** A server that clients can connect to. */
export interface RunningServer {
  /** What they are to open, one for each place. */
  uris: string[];
  exportName: string;
}

/** Who hears of what a server does. */
export interface ServeListener {
  /** Aborts when the server is to end. */
  signal: AbortSignal;
  onReady: (server: RunningServer) => void;
  /** The server goes down: nobody else will come. */
  onStopping?: () => void;
  /** Whether somebody will still come, though nobody is connected. */
  isAwaited?: () => boolean;
  /** A line about what is going on. */
  onNote: (line: string) => void;
  /** A line that only the curious want. */
  onDetail: (line: string) => void;
}

/** How long requests under way at the end may take, ms. */
const SHUTDOWN_MS = 10_000;
/** Descriptors that are not for clients: libraries, devices, sockets, and what is open for a moment. */
const OWN_DESCRIPTORS = 40;
/** How often the service manager is told how far it is, ms. */
const STATUS_INTERVAL_MS = 5000;

/**
 * Serves an open clone until it is told to end; then everything is committed. Afterwards the clone should only be closed.
 * Where a device hangs for good, disposing of the clone does too: then only leaving the process (`exitNow`) ends it.
 * @throws {UsageError} where it would be open to others without protection, or nothing says where to listen
 * @throws {CloneError} where a device, a socket or a commit fails
 */
export async function serveClone(clone: Clone, request: ServeRequest, listener: ServeListener): Promise<void> {
  const tls = await tlsOptions(request.tls, (sentence) => clone.warn(sentence));
  const inherited = listenDescriptors();
  await using places = await listenPlaces({ ...request, inherited, encrypted: tls.mode === "require" });
  await using trace = await traceRecorder(clone, request.recordTrace);
  const live = await LiveClone.open(clone, trace === undefined ? request : { ...request, onTouch: trace.touch });
  trace?.start();
  const served = new ServedClone(clone, live, request, tls, listener);
  try {
    await listenIn(places, (target) => served.listen(target));
    await using _control = await openLiveSocket(clone, served, listener.onDetail);
    await using _pidFile = request.pidFile === undefined ? undefined : await PidFile.write(request.pidFile);
    await served.run();
  } finally {
    await served.close();
  }
}

/** A clone while it is served, and what its control socket steers. */
class ServedClone implements ControlTarget {
  readonly #clone: Clone;
  readonly #request: ServeRequest;
  readonly #listener: ServeListener;
  readonly #live: LiveClone;
  readonly #nbd: NbdServer;
  readonly #services = new ServiceNotifier();
  readonly #ending = new AbortController();
  #isHydrated = false;
  /** Why the finalize failed that was to come when all is hydrated: the server goes on, but not as if it had succeeded. */
  #failure: Error | undefined;

  constructor(clone: Clone, live: LiveClone, request: ServeRequest, tls: ServerTls, listener: ServeListener) {
    this.#clone = clone;
    this.#live = live;
    this.#request = request;
    this.#listener = listener;
    const { exportName: name, readOnly, maxConnections } = request;
    this.#nbd = new NbdServer({
      exports: [{ name, device: live.device, readOnly, description: `clone of ${sourceName(clone)}` }],
      tls,
      limits: { connections: boundedConnections(maxConnections, clone) },
      onWarning: listener.onDetail,
      onConnections: () => this.#endIfDone(),
    });
  }

  /** Lets clients in. @throws {CloneError} where it cannot listen there */
  async listen(target: ListenTarget): Promise<void> {
    await this.#nbd.listen(target);
  }

  /** Works until it is to end. */
  async run(): Promise<void> {
    const { signal, onReady } = this.#listener;
    const end = AbortSignal.any([signal, this.#ending.signal]);
    this.#live.run(
      {
        onHydrated: () => this.#hydrated(),
        onFailed: (error) => this.#clone.warn(`Nothing more is written, the clone has failed. ${error.message}`),
        onStall: (reason) => this.#clone.warn(`Nothing is copied for now. ${reason}`),
      },
      this.#request,
    );
    onReady({ uris: this.#uris(), exportName: this.#request.exportName });
    this.#services.ready(this.#summary());
    while (!end.aborted) {
      await systemClock.sleep(STATUS_INTERVAL_MS, end);
      if (this.#services.isHeard) this.#services.status(this.#summary());
    }
    this.#services.stopping("stopping");
    this.#listener.onStopping?.();
    if (this.#failure !== undefined && !this.#live.device.isLinear) throw this.#failure;
  }

  /** Ends it: what clients have under way is answered, and everything is committed. @throws {CloneError} where it is not */
  async close(): Promise<void> {
    await this.#nbd.shutdown({ graceMs: SHUTDOWN_MS });
    const { stuck } = await this.#live.stop();
    this.#services[Symbol.dispose]();
    if (stuck) this.#clone.warn("A device hangs and is left behind; everything that it has answered is committed");
  }

  status(): CloneStatus {
    return statusOf(this.#clone, {
      ...this.#live.state,
      server: { pid: process.pid, uri: this.#uris()[0] ?? "", connections: this.#nbd.connections },
    });
  }

  regions(most: number): ReturnType<ControlTarget["regions"]> {
    return firstRegions(this.#live.hydratedRanges(), this.#live.state.unreadable, most);
  }

  async tune(changes: Tuning): Promise<void> {
    this.#live.tune(changes);
    if (!this.#live.device.isLinear) await keepTuned(this.#clone, changes);
  }

  async commit(): Promise<void> {
    await this.#live.commit();
  }

  async finalize(asked: FinalizeAsked): Promise<FinalizeJson> {
    const isFirst = !this.#live.device.isLinear;
    const report = await this.#live.finalize(asked);
    if (isFirst) {
      this.#listener.onNote(
        `Finalized ${report.destination}: ${formatSize(report.size)}, it stands alone now; served until its clients leave.`,
      );
    }
    // After the answer, which is on its way when this has returned.
    setImmediate(() => this.#endIfDone());
    return finalizeJson(report);
  }

  async stop(): Promise<void> {
    setImmediate(() => this.#ending.abort());
  }

  async metrics(): Promise<{ contentType: string; text: string }> {
    const { renderMetrics } = await import("../control/metrics.ts");
    const { bytes, events, foregroundLatency } = this.#live.metrics();
    const { commands, unknown, connections, connectionsRefused, connectionsDropped } = this.#nbd.counters;
    const byCommand = Object.entries({ ...commands, unknown });
    return await renderMetrics({
      version: packageVersion(),
      status: this.status(),
      bytes,
      events: { ...events, connectionsRefused, connectionsDropped },
      nbd: {
        connections: this.#nbd.connections,
        connectionsTotal: connections,
        requests: Object.fromEntries(byCommand.map(([name, { requests, errors }]) => [name, requests - errors])),
        failures: Object.fromEntries(byCommand.map(([name, { errors }]) => [name, errors])),
        bytes: { read: commands.read.bytes, write: commands.write.bytes },
      },
      foregroundLatency,
    });
  }

  #hydrated(): void {
    this.#isHydrated = true;
    if (!this.#request.finalizeWhenHydrated) {
      this.#listener.onNote(
        `Hydrated: the source is not needed any more. \`clone finalize ${this.#clone.path}\` makes the destination stand alone.`,
      );
      this.#endIfDone();
      return;
    }
    this.finalize({ keepMetadata: false, acceptUnreadable: false, withoutSource: false }).catch((error: Error) => {
      this.#failure = error;
      this.#clone.warn(error.message);
    });
  }

  /** Ends the server where it has done what it was there for, and nobody uses it. */
  #endIfDone(): void {
    if (this.#nbd.connections > 0 || this.#listener.isAwaited?.() === true) return;
    if (this.#live.device.isLinear || (this.#isHydrated && this.#request.exitWhenHydrated)) this.#ending.abort();
  }

  #uris(): string[] {
    return this.#nbd.uris(this.#request.exportName);
  }

  /** One line for a service manager. */
  #summary(): string {
    const { state, hydratedBytes: hydrated, size, hydration } = this.status();
    const pace = state === "hydrating" ? `, ${formatSize(hydration.bytesPerSecond)}/s` : "";
    return `${state}, ${Math.floor((hydrated / size) * 100)} % of ${formatSize(size)} hydrated${pace}`;
  }
}

async function traceRecorder(clone: Clone, path: string | undefined): Promise<TraceRecorder | undefined> {
  if (path === undefined) return undefined;
  const onWarning = (warning: string): void => clone.warn(warning);
  return await TraceRecorder.create(path, { size: clone.exactSize, clock: systemClock, onWarning });
}

/** As many clients as there are descriptors for, with some left for the clone's own files and for its control socket. */
function boundedConnections(wanted: number, clone: Clone): number {
  const limit = descriptorLimit();
  const most = Math.max(1, limit - OWN_DESCRIPTORS);
  if (wanted <= most) return wanted;
  clone.warn(`At most ${most} clients are let in at once, not ${wanted}, because only ${limit} files may be open`);
  return most;
}

/** What the server is to be as to encryption. */
type ServerTls = NonNullable<NbdServerOptions["tls"]>;

async function tlsOptions(
  { mode, certificates, presharedKeys, verifyPeer }: TlsRequest,
  onExposed: (sentence: string) => void,
): Promise<ServerTls> {
  if (mode === "off" || (certificates === undefined && presharedKeys === undefined)) return { mode: "off" };
  if (presharedKeys !== undefined) {
    const keys = await readPresharedKeys(presharedKeys, onExposed);
    return { mode: mode ?? "require", credentials: { kind: "psk", keyOf: (user) => keys.get(user) } };
  }
  const { certificate, key, authority } = await readServerCertificates(certificates as string, onExposed);
  const authorities = authority === undefined ? {} : { authorities: authority };
  const credentials = { kind: "certificates", certificate, key, ...authorities, verifyPeer } as const;
  checkCredentials(credentials); // before anything is opened for it
  return { mode: mode ?? "require", credentials };
}

function sourceName(clone: Clone): string {
  const uri = clone.descriptor?.source.uri;
  return uri === undefined ? "an unnamed source" : displayUri(uri);
}
