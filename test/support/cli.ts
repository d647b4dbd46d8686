// The dmkit command as a user starts it: the built one, in a process of its own.
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { onTestFinished } from 'vitest';
import { type RunOptions, type RunResult, run, type Started, type StartOptions, start } from './process.ts';

const main = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));

function built(): string {
  if (!existsSync(main)) throw new Error('dist/ is missing: npm run build');
  return main;
}

/** Runs `dmkit ARGS` to its end. */
export function dmkit(args: readonly string[], options: RunOptions = {}): Promise<RunResult> {
  return run(process.execPath, [built(), ...args], options);
}

/** A running `dmkit serve`. */
export interface Serving extends Started {
  /** URIs in the order of the names. */
  uris: string[];
}

/** Starts `dmkit serve ARGS`, waits until every URI is there, and stops it when the test ends. */
export async function serve(
  args: readonly string[],
  options: StartOptions & { exports?: number } = {},
): Promise<Serving> {
  const { exports: exportCount = 1, ...rest } = options;
  const started = await start(process.execPath, [built(), 'serve', ...args], {
    ready: new RegExp(`(?:^nbd\\S*\\n){${exportCount}}`, 'm'),
    timeoutSeconds: 240,
    ...rest,
  });
  onTestFinished(async () => void (await started.stop()));
  return { ...started, uris: started.match![0].trim().split('\n') };
}
