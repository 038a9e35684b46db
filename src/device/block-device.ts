/**
 * What every device is to the rest of the program: a fixed range of bytes. Files, block devices, memory, and later
 * NBD, HTTP and S3 implement it; filters (`device/filters/`) forward everything and override what they change.
 */

/** A run of bytes with one status, as NBD's `base:allocation` tells it. Offsets and lengths are bytes. */
export interface Extent {
  offset: number;
  length: number;
  /** Nothing is allocated here (NBD_STATE_HOLE). */
  hole: boolean;
  /** It is known to read as zeros (NBD_STATE_ZERO). A device that cannot tell says false. */
  zero: boolean;
}

/** How a range is to be made zero. */
export interface ZeroOptions {
  /** Whether the range may be deallocated on the way (true: punch where possible). Default true. */
  mayPunch?: boolean;
  /** Durable on return. */
  fua?: boolean;
}

/** An offer to do a request at once, without a promise: what a server under load needs for bytes that are in memory. */
export interface ImmediateIo {
  /**
   * Fills `buffer` from `offset` now, if that cannot wait for a disk. False, with `buffer` undefined, where it might: then
   * `read()` serves it. @throws {DeviceError}
   */
  tryRead(offset: number, buffer: Uint8Array): boolean;
  /** Writes `data` now, as `write()` without `fua`, if that cannot wait for a disk; else false. @throws {DeviceError} */
  tryWrite(offset: number, data: Uint8Array): boolean;
}

/**
 * A fixed range of bytes. Offsets and lengths are bytes; no read or write is ever short. The caller owns a buffer; the
 * callee forgets it when its promise settles. Requests in flight at the same time complete in any order. A request
 * outside 0 … size is a RangeError, a write to a device opened read-only a TypeError: both are the caller's mistakes.
 */
export interface BlockDevice extends AsyncDisposable, Partial<ImmediateIo> {
  /** Path or URI, for messages; never holds a credential. */
  readonly name: string;
  /** Length in bytes. */
  readonly size: number;
  readonly readOnly: boolean;
  /** Offsets and lengths are best multiples of this (bytes); any other are served too, only slower. A power of two. */
  readonly blockSize: number;

  /** Fills `buffer` from `offset`. @throws {DeviceError} on an I/O error; `buffer` is then undefined. */
  read(offset: number, buffer: Uint8Array): Promise<void>;
  /** Durable after the next `flush()`, or on return if `fua`. @throws {DeviceError} on an I/O error, ENOSPC included. */
  write(offset: number, data: Uint8Array, options?: { fua?: boolean }): Promise<void>;
  /**
   * Makes every write, zero and discard that has returned durable. @throws {DeviceError}; from then on trust nothing
   * that was not flushed before: the kernel reports a lost write once, so trying again would lie. A file, and an export of
   * a server, makes durable what others have written as well, also where it is open for reading only.
   */
  flush(): Promise<void>;
  /** Makes the range read as zeros, by the cheapest means the device has. @throws {DeviceError} */
  zero(offset: number, length: number, options?: ZeroOptions): Promise<void>;
  /**
   * Whether `zero()` of whole blocks takes no longer than a discard would, without writing the bytes. A device without
   * this method cannot. Asking changes nothing. @throws {DeviceError}
   */
  canZeroFast?(options: { mayPunch: boolean }): Promise<boolean>;
  /** Says that the content is not needed any more; what it reads as afterwards is undefined. @throws {DeviceError} */
  discard(offset: number, length: number): Promise<void>;
  /**
   * The status of every byte of the range, ascending, without gaps, clipped to it. True only at the moment of asking.
   * A device that knows nothing answers one extent, neither hole nor zero. @throws {DeviceError}
   */
  extents(offset: number, length: number): Promise<Extent[]>;
  /**
   * Makes the range share the bytes of `source` from `sourceOffset` on without copying (reflink). Resolves to false,
   * with nothing changed, where the two cannot share. @throws {DeviceError} for errors that are not about sharing.
   */
  reflinkFrom?(source: BlockDevice, sourceOffset: number, offset: number, length: number): Promise<boolean>;
}
