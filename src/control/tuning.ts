/** What a client of the control socket may ask for, held against what there is before anything is done. */
import { UsageError } from "../base/errors.ts";
import { TUNED_BOUNDS } from "../metadata/descriptor-bounds.ts";
import type { ControlTarget, Tuning } from "./control-target.ts";

/** How `finalize` is asked for. */
export type FinalizeAsked = Parameters<ControlTarget["finalize"]>[0];

type Check<T> = (value: unknown) => value is T;
/** A field: what it may be, in words and in code. */
type Field<T> = [is: Check<T>, description: string];

const TUNING: { [Name in keyof Required<Tuning>]: Field<Required<Tuning>[Name]> } = {
  rate: [nullOr(countIn(TUNED_BOUNDS.rate)), "a whole number of bytes per second, at least 1, or null for unlimited"],
  minRate: [nullOr(countIn(TUNED_BOUNDS.minRate)), "a whole number of bytes per second, or null for the default"],
  threshold: [
    nullOr(countIn(TUNED_BOUNDS.threshold)),
    "a whole number of regions from 0 to 4294967295, or null for automatic",
  ],
  batchSize: [
    nullOr(countIn(TUNED_BOUNDS.batchSize)),
    "a whole number of regions from 1 to 4294967295, or null for automatic",
  ],
  paused: [isBoolean, "true or false"],
  hydrateOnRead: [isPolicy, '"auto", "on" or "off"'],
};

const FINALIZE: { [Name in keyof FinalizeAsked]: Field<boolean> } = {
  keepMetadata: [isBoolean, "true or false"],
  acceptUnreadable: [isBoolean, "true or false"],
  withoutSource: [isBoolean, "true or false"],
};

/** The changes that a JSON value asks for. @throws {UsageError} for anything that is not exactly that */
export function parseTuning(value: unknown): Tuning {
  return checkFields(value, TUNING) as Tuning;
}

/** How to finalize, as a JSON value asks for it; what it does not say is false. @throws {UsageError} */
export function parseFinalize(value: unknown): FinalizeAsked {
  return { keepMetadata: false, acceptUnreadable: false, withoutSource: false, ...checkFields(value, FINALIZE) };
}

/** For requests that take nothing. @throws {UsageError} */
export function parseNothing(value: unknown): void {
  checkFields(value, {});
}

/** An object with no fields but the known ones, each as it has to be. @throws {UsageError} */
function checkFields(value: unknown, fields: Record<string, Field<unknown>>): object {
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new UsageError("Cannot use the request: its body is not a JSON object");
  }
  for (const [name, content] of Object.entries(value)) {
    const field = Object.hasOwn(fields, name) ? fields[name] : undefined;
    if (field === undefined) {
      const names = Object.keys(fields).join(", ");
      throw new UsageError(`Cannot use the request: there is no field ${JSON.stringify(name)}`, {
        hint: names === "" ? "It takes none." : `There are ${names}.`,
      });
    }
    const [is, description] = field;
    if (!is(content)) throw new UsageError(`Cannot use the request: "${name}" has to be ${description}`);
  }
  return value;
}

function isBoolean(value: unknown): value is boolean {
  return typeof value === "boolean";
}

function isPolicy(value: unknown): value is "auto" | "on" | "off" {
  return value === "auto" || value === "on" || value === "off";
}

function countIn({ least, most }: { least: number; most: number }): Check<number> {
  return (value): value is number => Number.isSafeInteger(value) && Number(value) >= least && Number(value) <= most;
}

function nullOr<T>(is: Check<T>): Check<T | null> {
  return (value): value is T | null => value === null || is(value);
}
