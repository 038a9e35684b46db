/** A server in this process, for tests. */
import { join } from "node:path";
import { NbdServer, type NbdServerOptions } from "../../src/nbd/server.ts";
import { scratchDirectory } from "./scratch.ts";
import { ServedMemory } from "./served-devices.ts";

/** How to start it; an export of 1 MiB in memory, where nothing else is said. */
export interface TestServerOptions extends Partial<NbdServerOptions> {
  device?: ServedMemory;
}

/** A server on a socket in a directory of its own, until it is disposed of. */
export async function testServer(options: TestServerOptions = {}) {
  const directory = await scratchDirectory();
  const warnings: string[] = [];
  const device = options.device ?? new ServedMemory(1024 * 1024);
  const server = new NbdServer({
    exports: [{ name: "disk", description: "a test", device, readOnly: false }],
    onWarning: (text) => warnings.push(text),
    ...options,
  });
  const path = join(directory.path, "nbd.sock");
  await server.listen({ path });
  return {
    server,
    device,
    warnings,
    path,
    uri: server.uris()[0] as string,
    async [Symbol.asyncDispose]() {
      await server.shutdown({ graceMs: 0 });
      await directory[Symbol.asyncDispose]();
    },
  };
}

/** Resolves when `condition` holds, which something under way will bring about. */
export async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 1));
}
