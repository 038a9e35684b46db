/** Servers that examples take for granted: they are there, at a port of this run, before the first command. */
import { copyFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { certificates } from "./certificates.ts";
import { startNginx } from "./nginx.ts";
import { freePort, listens } from "./source-servers.ts";

/** What an example is run with. */
export interface Scene {
  /** Ports and paths of the text, and those of this run. */
  replace: (readonly [printed: string | RegExp, here: string])[];
  /** Lines that come before it. */
  before?: string[];
  servers?: AsyncDisposable[];
  /** A command that starts a server, which goes on in the background, and whether that can be used yet. */
  daemon?: { start: string; isReady: () => Promise<boolean> };
}

/** The port that URIs of NBD have unless they say otherwise, of a server that the example starts, or that is there. */
export function nbdPort(port: number): Scene["replace"] {
  return [
    [/--port 10809\b/g, `--port ${port}`],
    [/(\bnbds?:\/\/(?:\w+@)?localhost)(?!:)/g, `$1:${port}`],
  ];
}

/** nbd-server with disk.img of the directory as the export `disk`. */
export async function nbdServer(cwd: string): Promise<Scene> {
  const port = await freePort();
  const config = join(cwd, "nbd-server.conf");
  const exported = `[disk]\nexportname = ${join(cwd, "disk.img")}\nreadonly = true\n`;
  await writeFile(config, `[generic]\nlistenaddr = 127.0.0.1\nport = ${port}\nallowlist = true\n${exported}`);
  // In the foreground (-d) it serves one connection, and ends.
  const daemon = { start: `nbd-server -C '${config}'`, isReady: () => listens(port) };
  return { replace: nbdPort(port), daemon };
}

/**
 * nginx with the directory's files, at the ports that the text calls 8080 and 8443 (TLS, by an authority whose certificate is
 * ca-cert.pem): all of them below /, below /private for alice alone, below /token for who has the token.
 */
export async function webServer(cwd: string): Promise<Scene> {
  const keys = await certificates();
  await copyFile(join(keys.path, "ca-cert.pem"), join(cwd, "ca-cert.pem"));
  await writeFile(join(cwd, "users"), "alice:{PLAIN}wonderland\n");
  const locations = `
    location /private/ { alias $root/; auth_basic private; auth_basic_user_file $root/users; }
    location /token/ { alias $root/; if ($http_authorization != "Bearer wonderland") { return 401; } }`;
  const nginx = await startNginx(cwd, { root: cwd, certificates: keys.path, locations });
  return {
    replace: [
      ["localhost:8080", `localhost:${nginx.port}`],
      ["localhost:8443", `localhost:${nginx.securePort}`],
    ],
    servers: [nginx, keys],
  };
}
