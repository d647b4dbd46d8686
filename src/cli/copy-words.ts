// dmkit copy without commander, where the words leave no question.
import { parseCopy } from './copy-options.ts';
import { reportFailure } from './failure.ts';

const EXIT_FAILURE = 1;

/** @returns the exit code; null where commander has something to say */
export async function runCopyWords(argv: readonly string[]): Promise<number | null> {
  const parsed = parseCopy(argv);
  if (parsed === null) return null;
  try {
    const { runCopy } = await import('./copy.ts');
    return await runCopy(parsed.names, parsed.options);
  } catch (error) {
    reportFailure(error);
    return EXIT_FAILURE;
  }
}
