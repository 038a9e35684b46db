/**
 * What `clone tune` has set, kept in the descriptor for whoever works on the clone next: a server that is started anew should
 * not begin to crowd out what it was told to spare. (dm-clone's messages do not survive a reload.) What is named on a command
 * line counts more, and a pause ends with its process, since a command that hydrates is told to hydrate.
 */
import type { TunedSettings } from "../metadata/descriptor.ts";
import type { Clone } from "./clone.ts";

const NAMES = ["rate", "minRate", "threshold", "batchSize"] as const;

/**
 * Keeps those of the changes that outlive a process.
 * @throws {DeviceError} where they cannot be written; a clone without a descriptor keeps nothing
 */
export async function keepTuned(
  clone: Pick<Clone, "descriptor" | "updateDescriptor">,
  changes: TunedSettings,
): Promise<void> {
  const changed = pick(changes, (value) => value !== undefined);
  if (Object.keys(changed).length === 0) return;
  await clone.updateDescriptor({ tuned: { ...clone.descriptor?.tuned, ...changed } });
}

/** What was tuned before and is not automatic or unlimited, of the settings that are not given this time. */
export function tunedBefore(
  { descriptor }: Pick<Clone, "descriptor">,
  given: { [Name in keyof TunedSettings]?: number | null | undefined },
): TunedSettings {
  const tuned = descriptor?.tuned ?? {};
  // A threshold of 0 is a pause.
  const holds = (value: number | null | undefined, name: string): boolean =>
    value != null && !(name === "threshold" && value === 0);
  return pick(tuned, (value, name) => holds(value, name) && given[name] === undefined);
}

function pick(
  settings: TunedSettings,
  wanted: (value: number | null | undefined, name: keyof TunedSettings) => boolean,
): TunedSettings {
  return Object.fromEntries(NAMES.filter((name) => wanted(settings[name], name)).map((name) => [name, settings[name]]));
}
