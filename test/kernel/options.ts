/** What the campaign with the kernel can be asked for, and what it does unasked: what CI has it do. */
export const OPTIONS = {
  /** Every state in every shape, both ways, ended by either; more kills, more legs. */
  all: 0,
  /** The number of one round trip, which is run alone. */
  only: -1,
  /** Boots that end in a kill. */
  kills: 1,
  /** How often a clone with little metadata goes there and back. */
  legs: 3,
};
