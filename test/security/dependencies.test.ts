// Other people's code that comes with this program, by the lock file: what it may do when it is installed, and under which
// licences it comes. A new dependency that runs something at its installation, or has another licence, is looked at first.
import { readFileSync } from "node:fs";
import { expect, test } from "vitest";

interface Locked {
  version?: string;
  license?: string;
  integrity?: string;
  resolved?: string;
  dev?: boolean;
  optional?: boolean;
  hasInstallScript?: boolean;
  link?: boolean;
}

const lock = JSON.parse(readFileSync(new URL("../../package-lock.json", import.meta.url), "utf8")) as {
  packages: Record<string, Locked>;
};
const packages = Object.entries(lock.packages).filter(([path]) => path !== "");
const named = (wanted: (locked: Locked) => boolean): string[] =>
  packages.filter(([, locked]) => wanted(locked)).map(([path]) => path.replace(/^.*node_modules\//, ""));

test("Only koffi runs something when it is installed: it looks for its library, which it has brought", () => {
  expect(packages.length).toBeGreaterThan(50);
  expect(named(({ hasInstallScript }) => hasInstallScript === true)).toEqual(["koffi"]);
});

test("Every dependency is one version of known content from the registry", () => {
  expect(named(({ integrity }) => !/^sha512-[A-Za-z0-9+/]{86}==$/.test(integrity ?? ""))).toEqual([]);
  expect(named(({ version }) => !/^\d+\.\d+\.\d+/.test(version ?? ""))).toEqual([]);
  expect(named(({ link }) => link === true)).toEqual([]);
  expect(named(({ resolved }) => resolved !== undefined && !/^https:\/\/[^/]+\/.*\.tgz$/.test(resolved))).toEqual([]);
});

test("Licences are such as go with Apache-2.0, of what is delivered and of what only builds and tests it", () => {
  const free = ["MIT", "Apache-2.0", "ISC", "BSD-2-Clause", "BSD-3-Clause", "0BSD", "MIT OR Apache-2.0"];
  expect(named(({ license, dev }) => dev !== true && !free.includes(license ?? ""))).toEqual([]);
  expect(named(({ license }) => ![...free, "MPL-2.0"].includes(license ?? ""))).toEqual([]);
});
