import type { Clock } from "../base/clock.ts";
import type { BlockDevice } from "../device/block-device.ts";
import { isTransient, retryPauseMs } from "./source-errors.ts";

/**
 * Reads, and after a passing error again, `retry` times, with short pauses between.
 * @throws {DeviceError} the last error
 * @throws the reason of `signal` when it aborts in a pause
 */
export async function readPatiently(
  device: BlockDevice,
  { offset, buffer }: { offset: number; buffer: Uint8Array },
  { retry, clock, signal }: { retry: number; clock: Clock; signal: AbortSignal },
): Promise<void> {
  for (let attempt = 0; ; attempt++) {
    try {
      return await device.read(offset, buffer);
    } catch (error) {
      if (!isTransient(error) || error.away || attempt === retry) throw error;
      await clock.sleep(retryPauseMs(attempt, Math.random()), signal);
      signal.throwIfAborted();
    }
  }
}
