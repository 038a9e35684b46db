/** Judges single damaged images. An image follows from its number alone: base, blow, and where it strikes. */
import { seededRandom } from "../support/random.ts";
import { type BaseImage, baseImage } from "./base-image.ts";
import { BLOWS, type Blow, strike } from "./blows.ts";
import { Evidence } from "./evidence.ts";
import { Judgement } from "./judge.ts";
import { RepairJudgement } from "./judge-repair.ts";

/** Images that come of one base. */
const FAMILY = 12;
/** Bytes of an image of which each is repaired; of larger ones every fourth. */
const EACH_REPAIRED = 2 ** 23;

/** What is done to the image of a number. */
export function blowOf(number: number): Blow {
  return BLOWS[number % BLOWS.length] as Blow;
}

/** Judges images, those of near numbers faster: they have the same base. */
export class ImageJudge {
  readonly #bases = new Map<number, Promise<BaseImage>>();

  /** @param count is told what came out, and each decision of a repair @throws {Violation} */
  async judge(number: number, count: (what: string) => void): Promise<void> {
    const family = Math.floor(number / FAMILY);
    const random = seededRandom(Math.imul(number, 0x85ebca6b) ^ family);
    const struck = await this.#base(family);
    const evidence = new Evidence(struck, strike(struck, await this.#base(family + 1), blowOf(number), random));
    try {
      count(await new Judgement(evidence, random).judge());
      const isRepaired = struck.bytes.length < EACH_REPAIRED || random.oneIn(4);
      if (isRepaired) count(await new RepairJudgement(evidence, count).judge());
    } catch (error) {
      if (error instanceof Error) error.message = `${struck.name}, ${blowOf(number)}: ${error.message}`;
      throw error;
    }
  }

  /** Lets go of the bases. */
  forget(): void {
    this.#bases.clear();
  }

  /** Few are kept: the next images are of the same family. */
  async #base(family: number): Promise<BaseImage> {
    let image = this.#bases.get(family);
    if (image === undefined) {
      image = baseImage(family);
      this.#bases.set(family, image);
      if (this.#bases.size > 3) this.#bases.delete(this.#bases.keys().next().value as number);
    }
    return await image;
  }
}
