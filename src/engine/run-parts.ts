/**
 * Works on the parts of one request, `width` of them at a time. Parts are made one by one, just before the work on each
 * begins, in the same turn of the event loop: what was decided about a part still holds then.
 *
 * It settles when all that had begun has: nothing that belongs to a request may reach a device, or the client's buffer,
 * after its answer. After an error no more parts are begun; the first one is thrown.
 */
export async function runParts<Part>(
  parts: Iterator<Part>,
  width: number,
  run: (part: Part) => Promise<void>,
): Promise<void> {
  let failed = false;
  let failure: unknown;
  const work = async (first: Part): Promise<void> => {
    let part = first;
    try {
      for (;;) {
        await run(part);
        if (failed) return;
        const next = parts.next();
        if (next.done) return;
        part = next.value;
      }
    } catch (error) {
      if (!failed) failure = error;
      failed = true;
    }
  };
  const workers: Promise<void>[] = [];
  while (workers.length < width && !failed) {
    const next = parts.next();
    if (next.done) break;
    workers.push(work(next.value));
  }
  await Promise.all(workers);
  if (failed) throw failure;
}
