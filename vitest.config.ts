// How the tests run: two forks at most (the suites start servers and clients of their own). The limits are for tests that
// hang: a test that takes a second alone may take a minute beside other work, so none of them judges speed.
import { defineConfig } from 'vitest/config';

// Longer where everything runs more often (DMKIT_RUNS).
const HANG_MILLISECONDS = 300_000 * Math.max(1, Number(process.env.DMKIT_RUNS) || 1);

// Files that leave nothing in their process follow each other in one: the start of a fork and the loading of modules cost
// more than most of them. All others (processes, threads, signals, descriptors that are counted) have a fork each.
const shared = [
  'test/{block,conformance,dm-io,files,kcopyd,snapshot,table,targets,testing}/**/*.test.ts',
  'test/mapper/!(million).test.ts',
];

const all = ['test/**/*.test.ts'];

export default defineConfig({
  test: {
    pool: 'forks',
    maxWorkers: 2,
    testTimeout: HANG_MILLISECONDS,
    hookTimeout: HANG_MILLISECONDS,
    teardownTimeout: 60_000,
    expect: { poll: { timeout: HANG_MILLISECONDS / 2 } },
    // What is built is loaded as users load it, not once more compiled.
    server: { deps: { external: [/\/dist\//] } },
    globalSetup: ['test/support/fresh-build.ts'],
    setupFiles: ['test/support/file-limit.ts', 'test/support/seed.ts', 'test/support/tmp.ts'],
    reporters: ['default'],
    projects: [
      { extends: true, test: { name: 'shared', include: shared, isolate: false } },
      { extends: true, test: { name: 'alone', include: all, exclude: shared } },
    ],
  },
});
