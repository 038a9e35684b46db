/** What `npm run test:sim` can be asked for: one place for all its files, which are all given the same options. */

/** No run. */
export const NONE = 2 ** 40;

/** Each with its default, which is what CI looks at. */
export const OPTIONS = {
  /** Crash states that are looked at in the search. */
  states: 20_000,
  /** The seed of one run that is looked at instead of the search, and which states of it: all of them, unless one is named. */
  replay: NONE,
  generation: NONE,
  cut: NONE,
  subset: NONE,
};
