/** Runs as somebody who is not root, for tests of what a file's permissions forbid. */
import { spawnSync } from "node:child_process";
import { CLONE } from "./run-clone.ts";

const NOBODY = 65534;

/** The option of `clone` that makes it run as an ordinary user; none is needed where the tests do. */
export const asOrdinaryUser: { uid?: number } = process.getuid?.() === 0 ? { uid: NOBODY } : {};

/** Why no ordinary user can run the program here (a checkout that only root can read), or undefined. */
export const noOrdinaryUser: string | undefined = whyNoOrdinaryUser();

function whyNoOrdinaryUser(): string | undefined {
  if (process.getuid?.() !== 0) return undefined;
  const { status } = spawnSync(process.execPath, [CLONE, "--version"], { uid: NOBODY, gid: NOBODY });
  return status === 0 ? undefined : "no ordinary user can read this checkout";
}
