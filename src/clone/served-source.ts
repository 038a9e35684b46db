/** A source of ours as a program of another reads it: qemu, which finds an image in it. */
import { CloneError, DeviceError } from "../base/errors.ts";
import type { BlockDevice } from "../device/block-device.ts";
import { FilterDevice } from "../device/filters/filter-device.ts";
import { ReadOnlyDevice } from "../device/filters/read-only.ts";
import type { ServedDevice } from "../device/served-device.ts";
import { UnnamedSocket } from "../device/unnamed-socket.ts";
import { NbdServer } from "../nbd/server.ts";

/**
 * What is served: the device, whose first bytes are the ones that were looked at, so that nobody is shown a header that names no
 * other files and then one that does. It remembers why a read failed, which NBD tells no more of than EIO.
 */
class CheckedSource extends FilterDevice implements ServedDevice {
  readonly contexts = [];
  readonly #head: Uint8Array;
  #failures: { number: number; error: DeviceError | undefined } = { number: 0, error: undefined };

  constructor(device: BlockDevice, head: Uint8Array) {
    super(new ReadOnlyDevice(device));
    this.#head = head;
  }

  get failures(): { number: number; error: DeviceError | undefined } {
    return this.#failures;
  }

  hint(): void {}

  override async read(offset: number, buffer: Uint8Array): Promise<void> {
    try {
      await super.read(offset, buffer);
    } catch (error) {
      if (error instanceof DeviceError) this.#failures = { number: this.#failures.number + 1, error };
      throw error;
    }
    this.#showHead(offset, buffer);
  }

  override tryRead(offset: number, buffer: Uint8Array): boolean {
    if (!super.tryRead(offset, buffer)) return false;
    this.#showHead(offset, buffer);
    return true;
  }

  #showHead(offset: number, buffer: Uint8Array): void {
    if (offset < this.#head.length) buffer.set(this.#head.subarray(offset, offset + buffer.length));
  }

  /** The owner of the device disposes of it. */
  override async [Symbol.asyncDispose](): Promise<void> {}
}

/** A server of one device for one program, which is handed the socket. */
export class ServedSource implements AsyncDisposable {
  readonly #device: CheckedSource;
  readonly #server: NbdServer;
  readonly #socket: UnnamedSocket;

  private constructor(device: CheckedSource, server: NbdServer, socket: UnnamedSocket) {
    this.#device = device;
    this.#server = server;
    this.#socket = socket;
  }

  /**
   * Serves a device until disposed of; the device stays the caller's.
   * @param head what it begins with, whatever it says later
   * @throws {CloneError} where no socket can be made
   */
  static async open(device: BlockDevice, head: Uint8Array): Promise<ServedSource> {
    const checked = new CheckedSource(device, head);
    const server = new NbdServer({ exports: [{ name: "", device: checked, readOnly: true }] });
    const socket = new UnnamedSocket();
    try {
      await socket.bind((path) => server.listen({ path }));
      return new ServedSource(checked, server, socket);
    } catch (error) {
      await server.shutdown({ graceMs: 0 });
      if (error instanceof CloneError) throw error;
      throw new CloneError("failed", `Cannot serve "${device.name}" to qemu-nbd: ${String(error)}`, { cause: error });
    }
  }

  /** What the program is shown. */
  get device(): BlockDevice {
    return this.#device;
  }

  /** The descriptor of the socket, for the program to inherit. */
  get fd(): number {
    return this.#socket.fd;
  }

  /** How many reads have failed, and why the last one did. */
  get failures(): { number: number; error: DeviceError | undefined } {
    return this.#device.failures;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#server.shutdown({ graceMs: 0 });
    this.#socket[Symbol.dispose]();
  }
}
