// @ts-check
/** Values of the benchmarks' options. */

/**
 * @param {string} name of the option
 * @param {string} text
 */
export function positive(name, text) {
  const value = Number(text);
  if (!Number.isSafeInteger(value) || value < 1) fail(`--${name} is a positive integer, not ${text}`);
  return value;
}

/**
 * Bytes of a size such as 512M or 2G (powers of 1024).
 * @param {string} text
 */
export function parseSize(text) {
  const match = /^(\d+)([KMG]?)$/.exec(text);
  if (match === null) fail(`--size is a number with K, M or G, not ${text}`);
  return positive("size", match[1] ?? "") * 1024 ** " KMG".indexOf(match[2] || " ");
}

/**
 * The tables that are asked for.
 * @param {string} text separated by commas
 * @param {readonly string[]} known
 */
export function parseTables(text, known) {
  const tables = text.split(",");
  for (const table of tables) if (!known.includes(table)) fail(`--only knows ${known.join(", ")}, not ${table}`);
  return tables;
}

/**
 * Ends the program before it has made anything.
 * @param {string} message
 * @returns {never}
 */
export function fail(message) {
  process.stderr.write(`${message}\n`);
  process.exit(2);
}
