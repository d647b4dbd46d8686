// How the tests run: two forks at most (the suites start servers and clients of their own), every test, hook and file
// under a time limit.
import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    pool: 'forks',
    maxWorkers: 2,
    testTimeout: 30_000,
    hookTimeout: 30_000,
    teardownTimeout: 10_000,
    setupFiles: ['test/support/file-limit.ts', 'test/support/seed.ts'],
    reporters: ['default'],
  },
});
