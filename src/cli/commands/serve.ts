import { UsageError } from "../../base/errors.ts";
import type { Clone } from "../../clone/clone.ts";
import type { ListenPlace } from "../../clone/listen-places.ts";
import type { RunningServer, ServeRequest } from "../../clone/serve-clone.ts";
import { exitNow } from "../../device/libc.ts";
import { CaptiveCommand } from "../captive-command.ts";
import { type CliContext, defineCommand } from "../command.ts";
import { ExitCode, exitCodeOf } from "../exit-codes.ts";
import {
  autoOr,
  cloneArgument,
  countOf,
  deviceOptions,
  deviceRequest,
  hydrationOptions,
  minRateOf,
  readOrder,
} from "../options.ts";
import { asTunedBefore } from "../tuned-before.ts";

/** `clone serve CLONE` */
export const serveCommand = defineCommand({
  options: (yargs) =>
    deviceOptions(hydrationOptions(cloneArgument(yargs)))
      .option("socket", { type: "string", requiresArg: true, describe: "Unix socket to listen on" })
      .option("listen", {
        type: "string",
        requiresArg: true,
        describe: "HOST:PORT to listen on; port 0 is any free one",
      })
      .option("export", { type: "string", requiresArg: true, describe: "Name of the export [default: none]" })
      .option("read-only", { type: "boolean", describe: "Clients may not write" })
      .option("no-hydrate", { type: "boolean", describe: "Copy nothing in the background until told to" })
      .option("hydrate-on-read", {
        choices: ["auto", "on", "off"] as const,
        default: "auto" as const,
        describe: "Keep what was read from the source",
      })
      .option("no-discard-passdown", { type: "boolean", describe: "Do not pass discards on to the destination" })
      .option("min-rate", {
        type: "string",
        requiresArg: true,
        coerce: autoOr(minRateOf),
        describe: "Bytes per second that clients never take from the copying",
      })
      .option("source-timeout", {
        type: "string",
        requiresArg: true,
        default: "30",
        defaultDescription: "30",
        coerce: countOf("--source-timeout", 1),
        describe: "Seconds after which a request that the source does not answer fails",
      })
      .option("tls", {
        choices: ["off", "on", "require"] as const,
        describe: "Encryption: refused, offered, or required",
      })
      .option("tls-certificates", {
        type: "string",
        requiresArg: true,
        describe: "Directory of ca-cert.pem, server-cert.pem and server-key.pem",
      })
      .option("tls-psk", { type: "string", requiresArg: true, describe: "File of pre-shared keys, USER:HEXKEY each" })
      .option("tls-verify-peer", { type: "boolean", describe: "Clients must show a certificate of ca-cert.pem" })
      .option("insecure", { type: "boolean", describe: "Listen beyond this machine without encryption" })
      .option("max-connections", {
        type: "string",
        requiresArg: true,
        default: "64",
        defaultDescription: "64",
        coerce: countOf("--max-connections", 1),
        describe: "Clients at once",
      })
      .option("exit-when-hydrated", { type: "boolean", describe: "End when all is hydrated and no client is left" })
      .option("finalize-when-hydrated", {
        type: "boolean",
        describe: "Finalize when all is hydrated; end when no client is left",
      })
      .option("run", {
        type: "string",
        requiresArg: true,
        describe: "Run a shell command, $uri set, and end with it",
      })
      .option("record-trace", {
        type: "string",
        requiresArg: true,
        describe: "New file for the order in which clients need what for the first time",
      })
      .option("pidfile", { type: "string", requiresArg: true, describe: "Write the process's pid there when ready" })
      .conflicts("socket", "listen")
      .conflicts("tls-certificates", "tls-psk"),
  async run(options, context) {
    const { Clone } = await import("../../clone/clone.ts");
    const { serveClone } = await import("../../clone/serve-clone.ts");
    const { parseListenAddress } = await import("../../clone/listen-address.ts");
    const { signal, onWarning, onDetail, terminal, interruption } = context;
    interruption.heedHangup();
    const place: ListenPlace | undefined =
      options.socket !== undefined
        ? { socket: options.socket }
        : options.listen !== undefined
          ? parseListenAddress(options.listen)
          : undefined;
    const request: ServeRequest = {
      ...deviceRequest(options),
      place,
      privateSocket: options.run !== undefined,
      exportName: options.export ?? "",
      readOnly: options["read-only"] ?? false,
      hydrate: !options["no-hydrate"],
      hydrateOnRead: options["hydrate-on-read"],
      discardPassdown: !options["no-discard-passdown"],
      sourceTimeoutMs: options["source-timeout"] * 1000,
      tls: {
        mode: options.tls,
        certificates: options["tls-certificates"],
        presharedKeys: options["tls-psk"],
        verifyPeer: options["tls-verify-peer"] ?? false,
      },
      insecure: options.insecure ?? false,
      maxConnections: options["max-connections"],
      exitWhenHydrated: options["exit-when-hydrated"] ?? false,
      finalizeWhenHydrated: options["finalize-when-hydrated"] ?? false,
      pidFile: options.pidfile,
      recordTrace: options["record-trace"],
      order: await readOrder(options.order, signal),
      rate: options.rate ?? null,
      minRate: options["min-rate"] ?? null,
      threshold: options.threshold ?? null,
      batchSize: options["batch-size"] ?? null,
      retry: options.retry,
      maxErrors: options["max-errors"],
      onError: options["on-error"],
      verify: options.verify ?? false,
      extents: !options["no-extents"],
    };
    checkTogether(request);
    const ending = new AbortController();
    const stop = AbortSignal.any([signal, ending.signal]);
    let exit: number = ExitCode.done;
    let command: CaptiveCommand | undefined;
    await using clone: Clone = await Clone.open({
      name: options.clone,
      access: "exclusive",
      signal,
      onWarning,
      onDetail,
    });
    const serving = serveClone(clone, await asTunedBefore(clone, request, options, context), {
      signal: stop,
      onNote: (line) => terminal.note(line),
      onDetail: (line) => terminal.detail(line),
      onStopping: () => command?.terminate(),
      isAwaited: () => command !== undefined && !ending.signal.aborted,
      onReady: (server) => {
        if (options.run === undefined) announce(server, options.clone, context);
        else {
          command = new CaptiveCommand(options.run, server);
          command.ended.then(
            (status) => {
              exit = status;
              ending.abort();
            },
            (error: unknown) => ending.abort(error),
          );
        }
      },
    });
    try {
      await serving;
      if (command !== undefined) exit = await command.ended;
    } catch (error) {
      exit = exitCodeOf(error);
      throw error;
    } finally {
      command?.terminate(); // where it was not told yet
      // A dead source may still hang in what nobody waits for: the process would outlive its work.
      setTimeout(() => exitNow(exit), LINGERING_MS).unref();
    }
    return exit as ExitCode;
  },
});

/** What still runs when all is committed is left behind after this, ms. */
const LINGERING_MS = 2000;

/** NBD, "Values": a string has at most so many bytes. */
const LONGEST_NAME = 4096;

/** @throws {UsageError} for options that cannot be used, or not together */
function checkTogether({ tls, place, exportName }: ServeRequest): void {
  if (place !== undefined && "socket" in place && place.socket === "") {
    throw new UsageError('Cannot use --socket: "" is no path');
  }
  if (Buffer.byteLength(exportName) > LONGEST_NAME) {
    throw new UsageError(`Cannot use --export: a name has at most ${LONGEST_NAME} bytes`);
  }
  if (tls.verifyPeer && tls.certificates === undefined) {
    throw new UsageError("Cannot use --tls-verify-peer: it needs --tls-certificates, whose ca-cert.pem is what counts");
  }
  const hasSecrets = tls.certificates !== undefined || tls.presharedKeys !== undefined;
  if (tls.mode === "off" && hasSecrets) {
    throw new UsageError("Cannot use --tls off with certificates or keys: nothing would be encrypted with them");
  }
  if ((tls.mode === "on" || tls.mode === "require") && !hasSecrets) {
    throw new UsageError(`Cannot use --tls ${tls.mode}: it needs --tls-certificates or --tls-psk`);
  }
}

function announce(server: RunningServer, name: string, { terminal }: CliContext): void {
  for (const uri of server.uris) terminal.print(`Serving ${name} at ${uri}`);
}
