/** nginx with a directory of files, in the foreground, without root, at ports of its own. */
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { listens, type Running, startProgram, twoFreePorts } from "./source-servers.ts";

/** Where it listens, and what it has been told. */
export interface Nginx extends AsyncDisposable {
  readonly port: number;
  readonly securePort: number;
  /** Stops it, as a crash would. */
  stop(): Promise<void>;
  /** Starts it again, at the same ports. */
  start(): Promise<void>;
}

/**
 * Serves the files of `root` below `/`, plain and, with the certificate in `certificates`, by TLS. `locations` is added to
 * the server's block, `$root` and `$secure_port` standing for the directory and the port of TLS; `global` to the block around.
 */
export async function startNginx(
  directory: string,
  {
    root,
    certificates,
    locations = "",
    global = "",
  }: { root: string; certificates: string; locations?: string; global?: string },
): Promise<Nginx> {
  const [port, securePort] = await twoFreePorts();
  const at = join(directory, "nginx");
  await mkdir(at, { recursive: true });
  const temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map((name) => `${name}_temp_path ${at};`);
  const config = `daemon off;
pid ${at}/pid;
error_log stderr;
worker_processes 1;
${process.getuid?.() === 0 ? "user root;" : ""}
events {}
http {
  access_log off;
  ${temporary.join(" ")}
  ${global}
  server {
    listen 127.0.0.1:${port};
    listen 127.0.0.1:${securePort} ssl;
    ssl_certificate ${certificates}/server-cert.pem;
    ssl_certificate_key ${certificates}/server-key.pem;
    root ${root};
    ${locations.replaceAll("$root", root).replaceAll("$secure_port", String(securePort))}
  }
}
`;
  const path = join(at, "nginx.conf");
  await writeFile(path, config);
  const start = () =>
    startProgram(["nginx", "-e", "stderr", "-c", path], {
      cwd: at,
      ready: async () => (await listens(port)) && listens(securePort),
      env: { PATH: `${process.env.PATH}:/usr/sbin` },
    });
  let running: Running = await start();
  // Its worker outlives a master that is killed: TERM ends both at once.
  const stop = () => running.kill("SIGTERM");
  return {
    port,
    securePort,
    stop,
    async start() {
      running = await start();
    },
    [Symbol.asyncDispose]: stop,
  };
}
