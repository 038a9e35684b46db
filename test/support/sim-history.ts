/**
 * What the sectors of a clone may hold at any moment of a run, told from the changes that clients asked for: as `ByteHistory`
 * tells it while a disk is used, but of moments past, and strict about sectors. The parts of a sector that
 * the same changes cover hold the bytes of one of them as a whole: old or new, never some of each, never anything else.
 *
 *     change     begun ─────────── ended (certain, or not known) ─────────── durable
 *
 * At a cut a change is certain if it had succeeded and been durable by then. Allowed is every change begun by then, unless a certain
 * one was begun after its end. What failed is never certain, nor is a discard that does not zero.
 */
import { SECTOR, SparseImage } from "./sim-image.ts";

/** A change that a client asked for. Moments. */
export interface ClientChange {
  readonly what: string;
  readonly offset: number;
  readonly bytes: Buffer;
  readonly begunAt: number;
  /** Infinity while it is under way. */
  endedAt: number;
  certain: boolean;
  /** From when on it survives a power cut; Infinity as long as it may not. */
  durableAt: number;
}

/** Bytes that a client was given. */
export interface ClientRead {
  readonly what: string;
  readonly offset: number;
  readonly bytes: Buffer;
  readonly begunAt: number;
  readonly endedAt: number;
  /** Only what was durable when it began is certain to be found. */
  readonly durableOnly: boolean;
}

/** A part of one sector that the same changes cover. */
interface Segment {
  offset: number;
  length: number;
  /** In the order they began. */
  changes: ClientChange[];
  original: Buffer;
}

/** Bytes that cannot be right. */
export interface WrongBytes {
  offset: number;
  /** A sentence. */
  what: string;
}

/** Where the bytes at an offset are, or were. */
export type ImageAt = (offset: number) => SparseImage;

/** The changes of one run, and what they allow. */
export class SectorHistory {
  readonly #born: SparseImage;
  readonly #moment: () => number;
  readonly #changes: ClientChange[] = [];
  #segments: Segment[] | undefined;
  readonly #known = new Set<number>();

  /** `born`: what the clone shows at first, durably. */
  constructor(born: SparseImage, moment: () => number) {
    this.#born = born;
    this.#moment = moment;
  }

  /** A change is asked for; `bytes` stay the caller's. */
  begin(what: string, offset: number, bytes: Uint8Array): ClientChange {
    const change: ClientChange = {
      what,
      offset,
      bytes: Buffer.from(bytes),
      begunAt: this.#moment(),
      endedAt: Infinity,
      certain: false,
      durableAt: Infinity,
    };
    this.#changes.push(change);
    this.#segments = undefined;
    return change;
  }

  /** It was answered. */
  end(change: ClientChange, { certain, durable = false }: { certain: boolean; durable?: boolean }): void {
    change.endedAt = this.#moment();
    change.certain = certain;
    if (durable) change.durableAt = change.endedAt;
  }

  /** A flush that was asked for at `askedAt` has succeeded. */
  flushed(askedAt: number): void {
    const now = this.#moment();
    for (const change of this.#changes) {
      if (change.endedAt < askedAt) change.durableAt = Math.min(change.durableAt, now);
    }
  }

  /** How many changes a power cut at `cut` must not undo; they only become more. */
  certainAt(cut: number): number {
    return this.#changes.filter(({ certain, endedAt, durableAt }) => certain && Math.max(endedAt, durableAt) <= cut)
      .length;
  }

  /** What is wrong with what a power cut at `cut` has left, a sentence. `imageAt`: where the truth about a byte is then. */
  checkCut(cut: number, imageAt: ImageAt): WrongBytes | undefined {
    for (const segment of this.#allSegments()) {
      const image = imageAt(segment.offset);
      const wrong = explain(segment, image, segment.offset, cut, (change) => change.durableAt <= cut);
      if (wrong !== undefined) return wrong;
    }
    return undefined;
  }

  /** Pages in which nothing was, and which nobody has changed, must be zeros; resolves to one that is not. */
  checkRest(image: SparseImage, concerns: (offset: number) => boolean): WrongBytes | undefined {
    this.#allSegments();
    for (const [page, bytes] of image.pages) {
      if (this.#known.has(page) || !concerns(page * 4096)) continue;
      const at = bytes.findIndex((byte) => byte !== 0);
      const offset = page * 4096 + at;
      if (at >= 0) return { offset, what: `byte ${offset} is ${bytes[at]}, and may be zero only` };
    }
    return undefined;
  }

  /** What is wrong with bytes that a client was given, a sentence. */
  checkRead({ offset, bytes, begunAt, endedAt, durableOnly }: ClientRead): WrongBytes | undefined {
    const end = offset + bytes.length;
    const isCertain = (change: ClientChange): boolean =>
      change.endedAt < begunAt && (!durableOnly || change.durableAt < begunAt);
    for (const segment of this.#allSegments()) {
      const from = Math.max(offset, segment.offset);
      const to = Math.min(end, segment.offset + segment.length);
      if (from >= to) continue;
      const part = { ...segment, offset: from, length: to - from };
      part.original = segment.original.subarray(from - segment.offset, to - segment.offset);
      const wrong = explain(part, bytes, from - offset, endedAt, isCertain);
      if (wrong !== undefined) return wrong;
    }
    return undefined;
  }

  /** The changes that touch a byte, for people. */
  accountOf(offset: number): string[] {
    return this.#changes.filter((change) => covers(change, offset, 1)).map(shown);
  }

  #allSegments(): Segment[] {
    if (this.#segments !== undefined) return this.#segments;
    const segments: Segment[] = [];
    const pages = new Set(this.#born.pages.keys());
    for (const { offset, bytes } of this.#changes) {
      const [first, last] = [Math.floor(offset / 4096), Math.ceil((offset + bytes.length) / 4096)];
      // A long change of zeros over nothing is what it was.
      const page = bytes.some((byte) => byte !== 0);
      for (let at = first; at < last; at++) if (page || last - first <= 64) pages.add(at);
    }
    this.#known.clear();
    for (const page of [...pages].sort((a, b) => a - b)) {
      this.#known.add(page);
      const inPage = this.#changes.filter((change) => covers(change, page * 4096, 4096));
      const end = Math.min(this.#born.size, (page + 1) * 4096);
      for (let sector = page * 4096; sector < end; sector += SECTOR) segments.push(...this.#cut(sector, inPage));
    }
    this.#segments = segments;
    return segments;
  }

  #cut(sector: number, inPage: ClientChange[]): Segment[] {
    const end = sector + SECTOR;
    const touching = inPage.filter((change) => covers(change, sector, SECTOR));
    const cuts = touching
      .flatMap(({ offset, bytes }) => [offset, offset + bytes.length])
      .filter((at) => at > sector && at < end);
    const ends = [...new Set([...cuts, end])].sort((a, b) => a - b);
    let from = sector;
    return ends.map((to) => {
      const original = Buffer.alloc(to - from);
      this.#born.read(from, original);
      const changes = touching.filter((change) => change.offset <= from && change.offset + change.bytes.length >= to);
      const segment = { offset: from, length: to - from, changes, original };
      from = to;
      return segment;
    });
  }
}

/** What is wrong with a part of a sector, found in `bytes` at `at`; it may hold anything begun by `until`. */
function explain(
  { offset, length, changes, original }: Segment,
  bytes: Buffer | SparseImage,
  at: number,
  until: number,
  isCertain: (change: ClientChange) => boolean,
): WrongBytes | undefined {
  const isThere = (other: Buffer, from: number): boolean =>
    bytes instanceof SparseImage
      ? bytes.holds(at, length, other, from)
      : other.compare(bytes, at, at + length, from, from + length) === 0;
  let lastCertain = 0;
  for (const change of changes) {
    if (change.certain && change.endedAt <= until && isCertain(change))
      lastCertain = Math.max(lastCertain, change.begunAt);
  }
  const mayBe = (change: ClientChange): boolean => change.begunAt <= until && change.endedAt >= lastCertain;
  if (lastCertain === 0 && isThere(original, 0)) return undefined;
  if (changes.some((change) => mayBe(change) && isThere(change.bytes, offset - change.offset))) return undefined;
  const allowed = changes.filter(mayBe).map(shown);
  const found = bytes instanceof SparseImage ? byteAt(bytes, at) : bytes[at];
  const may = [...(lastCertain === 0 ? [`${original[0]} as at first`] : []), ...allowed].join("; ");
  return { offset, what: `bytes ${offset} to ${offset + length} begin with ${found}, and may be ${may}` };
}

function byteAt(image: SparseImage, at: number): number {
  const byte = Buffer.alloc(1);
  image.read(at, byte);
  return byte[0] as number;
}

function covers({ offset, bytes }: ClientChange, from: number, length: number): boolean {
  return offset < from + length && from < offset + bytes.length;
}

function shown({ what, bytes, begunAt, endedAt, certain, durableAt }: ClientChange): string {
  const end = endedAt === Infinity ? "not ended" : `ended ${endedAt}${certain ? "" : " without success"}`;
  return `${bytes[0]} of ${what} (begun ${begunAt}, ${end}${durableAt === Infinity ? "" : `, durable ${durableAt}`})`;
}
