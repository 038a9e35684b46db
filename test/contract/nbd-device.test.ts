/** An export over a unix socket under the one contract: of our own server, and of servers that lack what they may lack. */
import { join } from "node:path";
import type { BlockDevice } from "../../src/device/block-device.ts";
import { FilterDevice } from "../../src/device/filters/filter-device.ts";
import { MemoryDevice } from "../../src/device/memory-device.ts";
import type { ServedDevice } from "../../src/device/served-device.ts";
import { NbdDevice } from "../../src/nbd/client/nbd-device.ts";
import { TransmissionFlag } from "../../src/nbd/protocol.ts";
import { NbdServer } from "../../src/nbd/server.ts";
import { ALL_FLAGS, FakeNbdServer, type FakeServerOptions } from "../support/fake-nbd-server.ts";
import { scratchDirectory } from "../support/scratch.ts";
import { blockDeviceContract } from "./block-device.contract.ts";

blockDeviceContract({ name: "NbdDevice, of our own server", open: ofOurServer });

const POOR: [string, Partial<FakeServerOptions>][] = [
  ["without structured replies", { structured: false }],
  ["without block status", { contexts: false }],
  ["that knows no GO", { go: false, zeroes: true }],
  ["that can only read and write", { flags: TransmissionFlag.hasFlags, contexts: false, sizes: undefined }],
  ["with flush, without FUA", { flags: ALL_FLAGS - TransmissionFlag.sendFua - TransmissionFlag.canMultiConn }],
  ["with blocks of 4096", { sizes: { minimum: 4096, preferred: 4096, maximum: 65536 } }],
  ["with blocks of 65536", { sizes: { minimum: 65536, preferred: 65536, maximum: 2 ** 20 } }],
];

for (const [name, options] of POOR) {
  blockDeviceContract({ name: `NbdDevice, of a server ${name}`, open: (size) => ofFakeServer({ ...options, size }) });
}

async function ofOurServer(size: number): Promise<BlockDevice> {
  const directory = await scratchDirectory();
  const path = join(directory.path, "nbd.sock");
  const server = new NbdServer({ exports: [{ name: "", device: new Served(size), readOnly: false }] });
  await server.listen({ path });
  const device = await NbdDevice.open({ place: { path }, exportName: "" }, { access: "read-write" });
  return new Disposing(device, async () => {
    await server.shutdown({ graceMs: 0 });
    await directory[Symbol.asyncDispose]();
  });
}

async function ofFakeServer(options: Partial<FakeServerOptions>): Promise<BlockDevice> {
  const server = await FakeNbdServer.start(options);
  const device = await NbdDevice.open(server.address, { access: "read-write" });
  return new Disposing(device, () => server[Symbol.asyncDispose]());
}

class Served extends MemoryDevice implements ServedDevice {
  readonly contexts = [];

  constructor(size: number) {
    super({ size });
  }

  hint(): void {}
}

/** Disposes of something else after a device. */
class Disposing extends FilterDevice {
  #other: (() => Promise<void>) | undefined;

  constructor(inner: BlockDevice, other: () => Promise<void>) {
    super(inner);
    this.#other = other;
  }

  override async [Symbol.asyncDispose](): Promise<void> {
    await super[Symbol.asyncDispose]();
    const other = this.#other;
    this.#other = undefined;
    await other?.();
  }
}
