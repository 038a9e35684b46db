// A web server that tells other things of the same file than it did when the clone was created: nothing is taken for granted.
import { join } from "node:path";
import { expect, test } from "vitest";
import { holds } from "../support/files.ts";
import { httpServer } from "../support/http-server.ts";
import { contentBytes } from "../support/random.ts";
import { clone, cloneOk, expectFailure } from "../support/run-clone.ts";
import { scratchDirectory } from "../support/scratch.ts";

const SIZE = 2 ** 20;

test("a source whose server no longer tells an entity tag is refused, unless that is accepted", async () => {
  await using directory = await scratchDirectory();
  const cwd = directory.path;
  const content = contentBytes(SIZE);
  await using server = await httpServer({ content, lastModified: undefined });
  await cloneOk(["create", server.url, "copy.img"], { cwd });
  server.object.etag = undefined;
  const refused = await clone(["hydrate", "copy.img"], { cwd });
  expectFailure(refused, 1, /its server no longer tells its entity tag/, /--accept-changed-source/);
  await cloneOk(["hydrate", "copy.img", "--accept-changed-source"], { cwd });
  expect(await holds(join(cwd, "copy.img"), content)).toBe(true);
});

test("a source that was known by samples must hold them also where its server tells entity tags by now", async () => {
  await using directory = await scratchDirectory();
  const cwd = directory.path;
  const content = contentBytes(SIZE);
  await using server = await httpServer({ content, etag: undefined, lastModified: undefined });
  await cloneOk(["create", server.url, "copy.img"], { cwd });
  server.object.etag = '"a"';
  server.object.content = contentBytes(SIZE);
  expectFailure(await clone(["hydrate", "copy.img"], { cwd }), 1, /its content is another/, /--accept-changed-source/);
  server.object.content = content;
  await cloneOk(["hydrate", "copy.img"], { cwd });
  expect(await holds(join(cwd, "copy.img"), content)).toBe(true);
});
