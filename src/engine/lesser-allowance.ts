import type { CopyAllowance } from "./region-copier.ts";

/** Of two allowances, whichever is less. */
export class LesserAllowance implements CopyAllowance {
  readonly #one: CopyAllowance;
  readonly #other: CopyAllowance;

  constructor(one: CopyAllowance, other: CopyAllowance) {
    this.#one = one;
    this.#other = other;
  }

  get pieceLength(): number {
    return Math.min(this.#one.pieceLength, this.#other.pieceLength);
  }

  /** In bytes, since pieces of the one may be longer than those of the other. */
  get depth(): number {
    const bytes = Math.min(this.#one.depth * this.#one.pieceLength, this.#other.depth * this.#other.pieceLength);
    return Math.max(1, Math.floor(bytes / this.pieceLength));
  }

  get shareLength(): number {
    return Math.min(this.#one.shareLength, this.#other.shareLength);
  }
}
