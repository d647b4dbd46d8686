// How the tests run: two forks at most (the suites start servers and clients of their own). The limits are for tests that
// hang: a test that takes a second alone may take a minute beside other work, so none of them judges speed.
import { defineConfig } from 'vitest/config';

// Longer where everything runs more often (DMKIT_RUNS).
const HANG_MILLISECONDS = 300_000 * Math.max(1, Number(process.env.DMKIT_RUNS) || 1);

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
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
  },
});
