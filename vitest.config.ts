import { defineConfig } from "vitest/config";

const reportFile = process.env.VITEST_JSON_REPORT;

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    // These need a Ceph, and have a configuration of their own, which brings one up.
    exclude: ["test/ceph/**", "**/node_modules/**"],
    globalSetup: ["test/support/global-setup.ts"],
    setupFiles: ["test/support/seeded-properties.ts"],
    // Most tests wait for processes and disks: as many at once as there are processors, not one fewer.
    maxWorkers: "100%",
    // Tests start processes and make file systems, and the machine may be busy: these end a hang, they measure nothing.
    testTimeout: 60_000,
    hookTimeout: 60_000,
    // For those who count: a JSON report beside the one for people.
    reporters:
      reportFile === undefined || reportFile === "" ? ["default"] : ["default", ["json", { outputFile: reportFile }]],
  },
});
