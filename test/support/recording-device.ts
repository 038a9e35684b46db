import { FilterDevice } from "../../src/device/filters/filter-device.ts";

/** Notes what is asked of the device, in blocks of 4096 bytes: `write 5+3`, `read 0+1`, `flush`. */
export class RecordingDevice extends FilterDevice {
  readonly log: string[] = [];

  override async read(offset: number, buffer: Uint8Array): Promise<void> {
    this.log.push(`read ${offset / 4096}+${buffer.length / 4096}`);
    await super.read(offset, buffer);
  }

  override async write(offset: number, data: Uint8Array, options?: { fua?: boolean }): Promise<void> {
    this.log.push(`write ${offset / 4096}+${data.length / 4096}`);
    await super.write(offset, data, options);
  }

  /** Every request shall be noted. */
  override tryRead(): boolean {
    return false;
  }

  override tryWrite(): boolean {
    return false;
  }

  override async flush(): Promise<void> {
    this.log.push("flush");
    await super.flush();
  }

  /** The changes noted since the last call. */
  takeChanges(): string[] {
    return this.log.splice(0).filter((entry) => !entry.startsWith("read"));
  }
}
