/** QEMU's control socket: commands with their answers, and events. */
import { once } from "node:events";
import { createConnection, type Socket } from "node:net";
import { createInterface } from "node:readline";

/** One connection to a QEMU that was started with `-qmp unix:PATH,server=on,wait=off`. */
export class Qmp {
  readonly #socket: Socket;
  readonly #waiting = new Map<number, { resolve(value: unknown): void; reject(reason: Error): void }>();
  readonly #events: { event: string; device: string }[] = [];
  #wake: () => void = () => {};
  #last = 0;

  private constructor(socket: Socket) {
    this.#socket = socket;
    const lines = createInterface({ input: socket });
    lines.on("line", (line) => this.#take(JSON.parse(line)));
    lines.on("error", () => lines.close());
    socket.on("close", () => {
      for (const { reject } of this.#waiting.values()) reject(new Error("QEMU has ended"));
      this.#waiting.clear();
    });
  }

  static async connect(path: string): Promise<Qmp> {
    const socket = createConnection({ path });
    socket.on("error", () => socket.destroy());
    await once(socket, "connect");
    const qmp = new Qmp(socket);
    await qmp.execute("qmp_capabilities");
    return qmp;
  }

  /** Rejects with what QEMU says where it refuses the command, or has ended. */
  execute(command: string, args: Record<string, unknown> = {}): Promise<unknown> {
    this.#last += 1;
    const id = this.#last;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#socket.write(`${JSON.stringify({ execute: command, arguments: args, id })}\n`);
    });
  }

  /** Unplugs a device; resolves when the guest has let go of it. */
  async unplug(device: string): Promise<void> {
    await this.execute("device_del", { id: device });
    for (;;) {
      const at = this.#events.findIndex((told) => told.event === "DEVICE_DELETED" && told.device === device);
      if (at >= 0) {
        this.#events.splice(at, 1);
        return;
      }
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }

  close(): void {
    this.#socket.destroy();
  }

  #take(message: {
    id?: number;
    return?: unknown;
    error?: { desc: string };
    event?: string;
    data?: { device?: string };
  }) {
    if (message.event !== undefined) {
      this.#events.push({ event: message.event, device: message.data?.device ?? "" });
      this.#wake();
      return;
    }
    const waiting = this.#waiting.get(message.id ?? 0);
    if (waiting === undefined) return; // its greeting
    this.#waiting.delete(message.id ?? 0);
    if (message.error === undefined) waiting.resolve(message.return);
    else waiting.reject(new Error(`QEMU: ${message.error.desc}`));
  }
}
