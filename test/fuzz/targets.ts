/** All targets, in the order of their numbers: new ones come last, so that seeds stay good. */
import type { FuzzTarget } from "./target.ts";
import * as text from "./targets/files-of-text.ts";
import * as words from "./targets/words.ts";

export const TARGETS: readonly FuzzTarget[] = [
  ...[words.sizes, words.locations, words.nbdUris, words.jsonImages, words.proxies, words.urls],
  ...[words.listenAddresses, words.dmMessages, words.tunings],
  ...[text.traces, text.netrcs, text.headerFiles, text.pskFiles, text.s3Errors, text.childOutput],
  ...[text.serviceEnvironments],
];
