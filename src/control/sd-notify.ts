/**
 * What a service manager is told of a service, and what it hands over: sd_notify(3), sd_watchdog_enabled(3),
 * sd_listen_fds(3). Without a service manager all of it does nothing.
 */
import { CloneError, errnoOf } from "../base/errors.ts";
import { sendDatagram } from "../device/libc.ts";

/** The first descriptor that is handed over (SD_LISTEN_FDS_START). */
const FIRST_DESCRIPTOR = 3;
/** More than any service has: a number that is wrong should not be believed. */
const MOST_DESCRIPTORS = 1024;

/** Where the service manager is and what it wants, in the environment. */
type Environment = Record<string, string | undefined>;

/** Tells the service manager how the service is. One that cannot be reached changes nothing. */
export class ServiceNotifier implements Disposable {
  readonly #socket: string | undefined;
  readonly #send: (path: string, data: string) => void;
  readonly #watchdogMs: number | undefined;
  #watchdog: NodeJS.Timeout | undefined;

  /** Takes what concerns it out of `environment`: commands that this process starts are not the service. */
  constructor(environment: Environment = process.env, send: (path: string, data: string) => void = sendDatagram) {
    const socket = environment.NOTIFY_SOCKET ?? "";
    this.#socket = /^[/@]./.test(socket) ? socket : undefined; // vsock: is for managers of virtual machines
    this.#send = send;
    this.#watchdogMs = watchdogInterval(environment);
    for (const name of ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"]) delete environment[name];
  }

  /** Whether anybody is told. */
  get isHeard(): boolean {
    return this.#socket !== undefined;
  }

  /** The service works from now on. From here on the watchdog hears that the event loop turns. */
  ready(status: string): void {
    this.#notify(["READY=1", statusLine(status)]);
    if (this.#watchdogMs === undefined || this.#socket === undefined) return;
    this.#watchdog = setInterval(() => this.#notify(["WATCHDOG=1"]), this.#watchdogMs);
    this.#watchdog.unref();
  }

  /** How it is, in one line. */
  status(status: string): void {
    this.#notify([statusLine(status)]);
  }

  /** It is on its way down, which may take `extraMs` more than the manager allows. */
  stopping(status: string, { extraMs }: { extraMs?: number } = {}): void {
    const extra = extraMs === undefined ? [] : [`EXTEND_TIMEOUT_USEC=${Math.round(extraMs * 1000)}`];
    this.#notify(["STOPPING=1", statusLine(status), ...extra]);
  }

  [Symbol.dispose](): void {
    clearInterval(this.#watchdog);
  }

  #notify(lines: string[]): void {
    if (this.#socket === undefined) return;
    try {
      this.#send(this.#socket, lines.join("\n"));
    } catch (error) {
      if (errnoOf(error) === undefined) throw error; // the manager may be busy, or gone
    }
  }
}

/**
 * The sockets that a service manager hands over, by descriptor; taken out of `environment`, so that they are used once and no
 * command that this process starts takes them for its own.
 * @throws {CloneError} for a number of them that cannot be
 */
export function listenDescriptors(environment: Environment = process.env): number[] {
  const { LISTEN_PID: pid, LISTEN_FDS: count } = environment;
  for (const name of ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID"]) delete environment[name];
  if (pid !== String(process.pid) || count === undefined) return [];
  const number = /^\d+$/.test(count) ? Number(count) : Number.NaN;
  if (!(number <= MOST_DESCRIPTORS)) {
    throw new CloneError("failed", `Cannot use the sockets of the service manager: LISTEN_FDS is "${count}"`);
  }
  return Array.from({ length: number }, (_, index) => FIRST_DESCRIPTOR + index);
}

/** Half of what the watchdog waits for, ms, as sd_watchdog_enabled(3) advises; undefined where there is none. */
function watchdogInterval({ WATCHDOG_USEC: usec, WATCHDOG_PID: pid }: Environment): number | undefined {
  if (usec === undefined || !/^\d+$/.test(usec) || Number(usec) === 0) return undefined;
  if (pid !== undefined && pid !== String(process.pid)) return undefined;
  return Math.min(Math.max(1, Number(usec) / 2000), 2 ** 31 - 1);
}

/** A line of its own would be another assignment. */
function statusLine(status: string): string {
  return `STATUS=${status.replaceAll("\n", " ")}`;
}
