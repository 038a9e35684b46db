// Names of others on the way to a terminal: metadata, control sockets and servers may say anything, and a terminal obeys what it
// reads. Each hostile text must come out as something that can be read, in one line, and JSON must stay the same JSON.
import { createServer, type Server } from "node:http";
import { join } from "node:path";
import { expect, test } from "vitest";
import { randomFile } from "../support/files.ts";
import { forgeDescriptor } from "../support/forged-descriptor.ts";
import { clone, cloneOk, oneJson } from "../support/run-clone.ts";
import { scratchDirectory } from "../support/scratch.ts";

/** Sets a title, clears the screen in one character (C1), goes back to the line's start, and is written backwards. */
const HOSTILE = "\u001b]0;owned\u0007\u009b2J\r\u202egpj.\nstate       hydrated\u2066";
const OBEYED = /[\p{Cc}\p{Bidi_Control}]/u;

// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
const COLOURS = /\u001b\[[0-9]+m/g;

/** All that was printed, without the ends of our own lines. */
function said({ stdout, stderr }: { stdout: string; stderr: string }): string {
  return `${stdout}${stderr}`.replaceAll("\n", "");
}

test("What metadata records is shown by `clone status`, `dump` and by errors, and obeyed by no terminal", async () => {
  await using directory = await scratchDirectory();
  const cwd = directory.path;
  await randomFile(join(cwd, "source.img"), 65536);
  await cloneOk(["create", "source.img", "copy.img", "-q"], { cwd });
  const uri = `file:///${encodeURIComponent(HOSTILE)}`;
  await forgeDescriptor(join(cwd, "copy.img.clone"), (descriptor) => ({
    ...descriptor,
    source: { ...descriptor.source, uri, format: "raw" },
    destination: { ...descriptor.destination, uri: `nbd+unix:///${HOSTILE}` },
  }));
  const coloured = { cwd, env: { FORCE_COLOR: "3" } };
  for (const args of [["status"], ["status", "--map"], ["hydrate"], ["verify"], ["dump"]]) {
    const run = await clone([args[0] as string, "copy.img", ...args.slice(1)], coloured);
    expect(said(run).replaceAll(COLOURS, ""), args.join(" ")).not.toMatch(OBEYED);
    expect(said(run), args.join(" ")).toContain(args[0] === "dump" ? "\\u202e" : "owned");
    expect(run.stdout.match(/^(.\[2m)?state/gm)?.length ?? 0, args.join(" ")).toBeLessThanOrEqual(1);
  }
  const { source } = oneJson<{ source: { uri: string } }>(await cloneOk(["status", "copy.img", "--json"], { cwd }));
  expect(source.uri).toBe(uri);
});

test("What answers at a control socket is shown, and obeyed by no terminal", async () => {
  await using directory = await scratchDirectory();
  const cwd = directory.path;
  await randomFile(join(cwd, "source.img"), 65536);
  await cloneOk(["create", "source.img", "copy.img", "-q"], { cwd });
  const status = oneJson(await cloneOk(["status", "copy.img", "--json"], { cwd }));
  await using _impostor = await listening(join(cwd, "copy.img.clone.sock"), {
    ...status,
    state: "failed",
    failure: HOSTILE,
    hydration: { ...(status.hydration as object), stalled: HOSTILE },
  });
  const shown = await clone(["status", "copy.img"], { cwd });
  expect(shown.stdout).toContain("owned");
  expect(said(shown)).not.toMatch(OBEYED);
  const refused = await clone(["tune", "copy.img", "--pause"], { cwd });
  expect(refused.stderr).toContain("owned");
  expect(said(refused)).not.toMatch(OBEYED);
});

/** Answers every GET with a status, and refuses all else, in hostile words. */
async function listening(path: string, status: object): Promise<AsyncDisposable> {
  const server: Server = createServer((request, response) => {
    const refused = { error: HOSTILE, code: "failed", hint: HOSTILE };
    response.statusCode = request.method === "GET" ? 200 : 500;
    response.end(JSON.stringify(request.method === "GET" ? status : refused));
  });
  await new Promise<void>((resolve) => server.listen(path, resolve));
  return {
    [Symbol.asyncDispose]: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}
