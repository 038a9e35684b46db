/**
 * Watches how much memory is asked for in one piece, by whatever runs in this thread: a length that a message announces must
 * not be believed before it is checked. Content counts nothing, as in `Buffer.from(text)`: it is there already.
 */

const SIZED = ["alloc", "allocUnsafe", "allocUnsafeSlow"] as const;
const ARRAYS = ["ArrayBuffer", "Uint8Array", "Uint16Array", "Uint32Array", "Int32Array", "Float64Array"] as const;

/** Counts from its making until it is disposed of. */
export class Allocations implements Disposable {
  /** The largest piece since `reset()`, bytes. */
  largest = 0;
  readonly #restore: (() => void)[] = [];

  constructor() {
    const note = (bytes: unknown): void => {
      if (typeof bytes === "number" && bytes > this.largest) this.largest = bytes;
    };
    for (const name of SIZED) {
      const own = Buffer[name];
      const watched = function (this: unknown, size: number, ...more: never[]): Buffer {
        note(size);
        return Reflect.apply(own, Buffer, [size, ...more]) as Buffer;
      };
      Object.assign(Buffer, { [name]: watched });
      this.#restore.push(() => Object.assign(Buffer, { [name]: own }));
    }
    const scope = globalThis as unknown as Record<string, new (...args: unknown[]) => object>;
    for (const name of ARRAYS) {
      const own = scope[name] as new (...args: unknown[]) => object;
      const unit = (own as { BYTES_PER_ELEMENT?: number }).BYTES_PER_ELEMENT ?? 1;
      scope[name] = new Proxy(own, {
        construct(target, args, newTarget) {
          if (typeof args[0] === "number") note(args[0] * unit);
          return Reflect.construct(target, args, newTarget);
        },
      });
      this.#restore.push(() => {
        scope[name] = own;
      });
    }
  }

  reset(): void {
    this.largest = 0;
  }

  [Symbol.dispose](): void {
    for (const restore of this.#restore) restore();
    this.#restore.length = 0;
  }
}
