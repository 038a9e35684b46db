// The tests with a real Ceph, which `npm test` leaves out: `npm run test:ceph`.
import { fileURLToPath } from "node:url";
import { defineConfig } from "vitest/config";

const reportFile = process.env.VITEST_JSON_REPORT;

export default defineConfig({
  test: {
    root: fileURLToPath(new URL("../../", import.meta.url)),
    include: ["test/ceph/**/*.test.ts"],
    globalSetup: ["test/support/global-setup.ts", "test/support/ceph.ts"],
    // Four daemons work for each of them: more at once are no faster, and a Ceph that waits for processors stops serving.
    fileParallelism: false,
    // These end a hang, they measure nothing.
    testTimeout: 180_000,
    hookTimeout: 300_000,
    reporters:
      reportFile === undefined || reportFile === "" ? ["default"] : ["default", ["json", { outputFile: reportFile }]],
  },
});
