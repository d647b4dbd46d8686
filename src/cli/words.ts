// dmsetup's words on dmkit's command line: looked for before anything else is loaded, because scripts say them often.
import { commandOf } from './dmsetup/options.ts';
import { isDmsetupWord } from './dmsetup/usage.ts';

const EXIT_FAILURE = 1;

/** What is said when a daemon ended and took devices along. */
export function tellLost(names: readonly string[]): void {
  const what = names.length === 1 ? `the device ${names[0]} is` : `the devices ${names.join(', ')} are`;
  process.stderr.write(
    `dmkit: the daemon ended without being told to, and ${what} gone. "dmkit restore" makes them again, "dmkit forget NAME" or "dmkit forget --all" forgets them.\n`,
  );
}

/** Runs `argv` where it is one of dmsetup's commands. @returns the exit code; null where it is not */
export async function runWord(argv: readonly string[]): Promise<number | null> {
  if (argv[0] === 'dmsetup') return run('dmsetup', argv.slice(1));
  if (argv[0] === 'blockdev') {
    const { runBlockdev } = await import('./blockdev.ts');
    return runBlockdev(argv.slice(1));
  }
  const word = commandOf(argv);
  // `dmkit help` and `dmkit serve --table …` are dmkit's own.
  if (!isDmsetupWord(word) || word === 'help' || isHelpAsked(argv)) return null;
  return run('dmkit', argv);
}

function isHelpAsked(argv: readonly string[]): boolean {
  return argv.includes('--help') || argv.includes('-h');
}

async function run(programName: string, argv: readonly string[]): Promise<number> {
  const [{ ClientControl }, { runDmsetup }, { processIo }] = await Promise.all([
    import('../client/connect.ts'),
    import('./dmsetup/interpreter.ts'),
    import('./process-io.ts'),
  ]);
  const control = new ClientControl({ onLost: tellLost });
  const needsVersion = argv.some((word) => word === 'version' || word.startsWith('--v'));
  const lines = needsVersion ? (await import('./version.ts')).versionLines : () => [];
  try {
    return await runDmsetup(argv, processIo(programName, lines), control);
  } catch (error) {
    (await import('./failure.ts')).reportFailure(error);
    return EXIT_FAILURE;
  } finally {
    await control.close();
  }
}
