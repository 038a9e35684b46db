// Properties are drawn from CLONE_TEST_SEED, too, where that is set. Without it fast-check, which each of them loads by itself, draws
// a seed of its own, and tells it where one fails.
const { CLONE_TEST_SEED = "" } = process.env;
if (CLONE_TEST_SEED !== "") {
  const { configureGlobal } = await import("fast-check");
  configureGlobal({ seed: Number.parseInt(CLONE_TEST_SEED, 10) });
}
