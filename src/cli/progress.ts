/**
 * How far a long command is, for a person (a bar on a terminal, a line every few seconds elsewhere) or a program (JSON
 * Lines). Rates are over the last seconds, so that they follow a throttle or a slow spot; the time left follows the rate.
 */
import { RateMeter } from "../base/rate-meter.ts";
import { formatDuration, formatSize } from "../base/units.ts";
import type { ProgressStyle } from "./progress-style.ts";
import { barIsShown } from "./status-line.ts";

/** A moment of a long command. Sizes are bytes. */
export interface ProgressSample {
  /** Bytes of the whole that are done, however they came to be done. */
  done: number;
  total: number;
  /** Bytes read or shared since the command began: what the rate is about. */
  moved: number;
  regionsInFlight: number;
  unreadableRegions: number;
}

const INTERVAL_MS = { bar: 200, plain: 5000, json: 1000 };

/**
 * Runs something long and shows how far it is, from when it calls `show` until it ends. JSON lines go to standard output
 * where a JSON result follows there (`jsonResult`), so that one stream holds both; all else goes to standard error.
 */
export async function withProgress<T>(
  { style, label, quiet, jsonResult }: { style: ProgressStyle; label: string; quiet: boolean; jsonResult: boolean },
  run: (show: (sample: () => ProgressSample) => void) => Promise<T>,
): Promise<T> {
  const chosen = style === "auto" ? (process.stderr.isTTY ? "bar" : "plain") : style;
  const silent = chosen === "none" || (quiet && chosen !== "json");
  const display = silent ? undefined : await makeDisplay(chosen, label, jsonResult ? process.stdout : process.stderr);
  const meter = new RateMeter();
  let timer: NodeJS.Timeout | undefined;
  let update: (final: boolean, on?: Display) => void = () => {};
  const onRequest = (): void => update(false, display ?? plainDisplay(label));
  process.on("SIGUSR1", onRequest); // as qemu-img and dd do, also where nothing else is shown
  try {
    const result = await run((sample) => {
      const start = sample();
      meter.add(performance.now(), start);
      update = (final, on = display) => {
        const now = sample();
        meter.add(performance.now(), now);
        on?.show(now, meter, final);
      };
      if (chosen === "bar") update(false);
      if (!silent) timer = setInterval(update, INTERVAL_MS[chosen], false);
    });
    update(true);
    return result;
  } finally {
    process.off("SIGUSR1", onRequest);
    clearInterval(timer);
    display?.end();
  }
}

interface Display {
  show(sample: ProgressSample, meter: RateMeter, final: boolean): void;
  end(): void;
}

async function makeDisplay(
  style: "bar" | "plain" | "json",
  label: string,
  jsonStream: NodeJS.WriteStream,
): Promise<Display> {
  if (style === "json") {
    return { show: (sample, meter) => void jsonStream.write(`${JSON.stringify(asJson(sample, meter))}\n`), end() {} };
  }
  if (style === "plain") return plainDisplay(label);
  return barDisplay(label);
}

function asJson({ done, total, moved, regionsInFlight, unreadableRegions }: ProgressSample, meter: RateMeter): object {
  const secondsLeft = meter.secondsLeft(total);
  return {
    done,
    total,
    moved,
    regionsInFlight,
    unreadableRegions,
    bytesPerSecond: Math.round(meter.bytesPerSecond),
    etaSeconds: secondsLeft === null ? null : Math.round(secondsLeft),
  };
}

function plainDisplay(label: string): Display {
  let last = "";
  return {
    show(sample, meter, final) {
      const line = `${label}: ${[percentage(sample), amounts(sample), ...pace(sample, meter, final)].join(", ")}`;
      if (line !== last) process.stderr.write(`${line}\n`);
      last = line;
    },
    end() {},
  };
}

/** Characters of a bar. */
const LONGEST_BAR = 24;
const LEAST_BAR = 4;

async function barDisplay(label: string): Promise<Display> {
  const { default: cliProgress } = await import("cli-progress");
  const bar = new cliProgress.SingleBar({
    format: `${label} {share} |{blocks}| {text}`,
    hideCursor: true,
    stream: process.stderr,
    // Lines wider than the terminal would be drawn below one another.
    linewrap: false,
  });
  let started = false;
  return {
    show(sample, meter, final) {
      const share = percentage(sample);
      const parts = [amounts(sample), ...pace(sample, meter, final)];
      // One less than there is: the last column is where a terminal's cursor waits.
      const room = (): number => (process.stderr.columns ?? 80) - 1 - `${label} ${share} || ${parts.join("  ")}`.length;
      // How much is in flight is the least that anybody needs to know; what is unreadable stays.
      while (room() < LEAST_BAR && parts.length > 3) parts.splice(3, 1);
      const payload = { share, text: parts.join("  "), blocks: blocks(sample, room()) };
      if (started) bar.update(sample.done, payload);
      else bar.start(sample.total, sample.done, payload);
      started = true;
      barIsShown(process.stderr.isTTY);
      if (final) bar.render();
    },
    end() {
      barIsShown(false);
      bar.stop();
    },
  };
}

/** The bar itself, as long as there is room for it: the figures beside it say more. */
function blocks({ done, total }: ProgressSample, room: number): string {
  const length = Math.max(LEAST_BAR, Math.min(LONGEST_BAR, room));
  const full = total === 0 ? length : Math.floor((done / total) * length);
  return "█".repeat(full) + "░".repeat(length - full);
}

/** Rounded down: 100 % is said only when all is done. */
function percentage({ done, total }: ProgressSample): string {
  const tenths = total === 0 ? 1000 : Math.floor((done / total) * 1000);
  return `${(tenths / 10).toFixed(1).padStart(5)} %`;
}

function amounts({ done, total }: ProgressSample): string {
  return `${formatSize(done)} of ${formatSize(total)}`;
}

function pace(sample: ProgressSample, meter: RateMeter, final: boolean): string[] {
  const secondsLeft = meter.secondsLeft(sample.total);
  const unreadable = sample.unreadableRegions > 0 ? [`${sample.unreadableRegions} unreadable`] : [];
  if (final) return unreadable;
  return [
    `${formatSize(meter.bytesPerSecond)}/s`,
    `ETA ${secondsLeft === null ? "-" : formatDuration(secondsLeft)}`,
    ...(sample.regionsInFlight > 0 ? [`${sample.regionsInFlight} in flight`] : []),
    ...unreadable,
  ];
}
