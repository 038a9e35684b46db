/** A range, cut. Bytes. */
export interface PieceRange {
  offset: number;
  length: number;
}

/**
 * Does something with a range in pieces of at most `most` bytes, cut at multiples of it, `parallel` of them at the same time.
 * After one has failed no more are begun, and those that were begun are waited for: their buffers are the caller's.
 * @throws what the first to fail threw
 */
export async function inPieces(
  { offset, length }: PieceRange,
  { most, parallel }: { most: number; parallel: number },
  each: (piece: PieceRange) => Promise<void>,
): Promise<void> {
  const end = offset + length;
  if (length <= most) return length === 0 ? undefined : await each({ offset, length });
  let at = offset;
  let failure: { error: unknown } | undefined;
  const work = async (): Promise<void> => {
    while (at < end && failure === undefined) {
      const start = at;
      at = Math.min(end, start - (start % most) + most);
      try {
        await each({ offset: start, length: at - start });
      } catch (error) {
        failure ??= { error };
      }
    }
  };
  await Promise.all(Array.from({ length: Math.min(parallel, Math.ceil(length / most) + 1) }, work));
  if (failure !== undefined) throw failure.error;
}
