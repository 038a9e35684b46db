/** All targets, in the order of their numbers: new ones come last, so that seeds stay good. */
import type { FuzzTarget } from "./target.ts";
import { commandLines } from "./targets/command-lines.ts";
import { controlAnswers, controlRequests } from "./targets/control-sockets.ts";
import { descriptors } from "./targets/descriptors.ts";
import { dumps } from "./targets/dumps.ts";
import * as text from "./targets/files-of-text.ts";
import { httpReplies, replyHeads, s3Dialogues } from "./targets/http-replies.ts";
import { imageChains, imageHeaders } from "./targets/image-headers.ts";
import { metadata } from "./targets/metadata-images.ts";
import { nbdHandshakes, nbdReplies } from "./targets/nbd-replies.ts";
import { nbdServer } from "./targets/nbd-servers.ts";
import * as words from "./targets/words.ts";

export const TARGETS: readonly FuzzTarget[] = [
  ...[words.sizes, words.locations, words.nbdUris, words.jsonImages, words.proxies, words.urls],
  ...[words.listenAddresses, words.dmMessages, words.tunings],
  ...[text.traces, text.netrcs, text.headerFiles, text.pskFiles, text.s3Errors, text.childOutput],
  ...[text.serviceEnvironments, descriptors, metadata, imageHeaders, imageChains, nbdServer, nbdReplies, nbdHandshakes],
  ...[controlRequests, controlAnswers, replyHeads, httpReplies, s3Dialogues, commandLines, dumps],
];
