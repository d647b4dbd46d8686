// dmsetup's words: from a command line to requests, output and an exit code. Nothing here knows a socket or a process.
import type { Control } from '../../control/requests.ts';
import { INFO_FIELDS } from './fields.ts';
import { CommandFailed, type DmsetupIo, UsageFailed } from './io.ts';
import {
  clear,
  create,
  load,
  mangle,
  message,
  remove,
  removeAll,
  rename,
  resume,
  suspend,
  wait,
  wipeTable,
} from './make.ts';
import { parseLine } from './options.ts';
import { fieldHelp } from './report.ts';
import { Session } from './session.ts';
import { deps, info, ls, splitname, table, targets, targetVersion, version } from './show.ts';
import { ARITY, isDmsetupWord, USAGE } from './usage.ts';

const EXIT_SUCCESS = 0;
const EXIT_FAILURE = 1;

const COMMANDS: Readonly<Record<string, (session: Session) => Promise<void>>> = {
  clear,
  create,
  deps,
  help,
  info,
  load,
  ls,
  mangle,
  message,
  mknodes,
  reload: load,
  remove,
  remove_all: removeAll,
  rename,
  resume,
  splitname,
  status: table,
  suspend,
  table,
  'target-version': targetVersion,
  targets,
  version,
  wait,
  wipe_table: wipeTable,
};

async function help(session: Session): Promise<void> {
  session.io.stderr(USAGE);
  if (session.has('columns')) session.io.stderr(`\n${fieldHelp(INFO_FIELDS)}`);
}

/** There are no nodes to make. */
async function mknodes(_session: Session): Promise<void> {}

/** Options of dmsetup's that would change what a command does to which devices, and that are not here. */
function refuseSelection(session: Session): void {
  if (session.has('select')) session.fail('Selecting devices by -S or --select is not there in dmkit.');
}

function prepare(argv: readonly string[], io: DmsetupIo, control: Control): Session | number {
  const line = parseLine(argv, io);
  const word = line.words[0];
  if (line.options.has('help')) {
    io.stderr(USAGE);
    return EXIT_SUCCESS;
  }
  if (line.options.has('version')) line.words.splice(0, line.words.length, 'version');
  else if (!isDmsetupWord(word)) throw new UsageFailed(word === undefined ? USAGE : `Unknown command.\n${USAGE}`);
  const session = new Session(line, io, control);
  const [min, max] = ARITY[session.command]!;
  // An address by option stands for the first word.
  const count = session.args.length;
  if (count < (session.isAddressedByOption ? Math.max(0, min - 1) : min) || count > max) {
    throw new UsageFailed(`Incorrect number of arguments.\n${USAGE}`);
  }
  return session;
}

/**
 * Runs one dmsetup command.
 *
 * @param argv without the program's name
 * @returns the exit code: 0 or 1. What it says went to `io`
 * @throws only what is no refusal of a device's: a daemon that cannot be reached (DmError with errno 0), a bug
 */
export async function runDmsetup(argv: readonly string[], io: DmsetupIo, control: Control): Promise<number> {
  let session: Session;
  try {
    const prepared = prepare(argv, io, control);
    if (typeof prepared === 'number') return prepared;
    session = prepared;
  } catch (error) {
    return told(error, io);
  }
  let exitCode = EXIT_SUCCESS;
  try {
    refuseSelection(session);
    await COMMANDS[session.command]!(session);
  } catch (error) {
    exitCode = told(error, io);
  }
  for (const finish of session.atEnd) finish();
  return exitCode;
}

function told(error: unknown, io: DmsetupIo): number {
  if (error instanceof UsageFailed) io.stderr(error.last);
  else if (error instanceof CommandFailed) io.stderr('Command failed.\n');
  else throw error;
  return EXIT_FAILURE;
}
