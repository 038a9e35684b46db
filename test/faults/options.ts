/** What `npm run test:faults` takes, and what it does by default, which is what CI does. All files of the campaign share them. */
export const OPTIONS = {
  /** Clones whose disk is logged by somebody else. */
  lives: 12,
  /** Rounds of clients of each. */
  rounds: 6,
};
