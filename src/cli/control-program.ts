// dmkit's own commands around the daemon, beside dmsetup's words.
import type { Command } from 'commander';
import type { DaemonCommandOptions } from './daemon.ts';
import { addSnapshotCommands } from './snapshot-program.ts';
import type { TransferOptions } from './transfer.ts';

const collect = (value: string, before: string[]): string[] => [...before, value];

const BATCH_HELP = `
A line has the words of a dmkit or dmsetup command, with or without "dmkit" or "dmsetup" before them, quoted as for a shell:
  create load|reload clear suspend resume remove rename    as dmsetup takes them; tables with --table
  snapshot create, snapshot drop
Blank lines and lines that begin with # are passed over. Where a line fails nothing has changed, and the line is named.

Example:
  suspend data
  load data --table '0 2048 linear new.img 0'
  resume data
  remove old`;

function addDaemonCommands(program: Command, setExitCode: (code: number) => void): void {
  program
    .command('daemon')
    .description('hold the devices, in the foreground; other commands start it in the background when they need it')
    .option('--idle-exit <seconds>', 'end after so long without devices and commands (DMKIT_IDLE_EXIT)')
    .option(
      '--reconnect <seconds>',
      'how long the server of an NBD URI that went away is waited for; 60 (DMKIT_RECONNECT)',
    )
    .option('--ready-descriptor <number>', 'say "ready" over this file descriptor, then close it')
    .action(async (options: DaemonCommandOptions) => (await import('./daemon.ts')).runDaemon(options));
  program
    .command('shutdown')
    .description('take every device down and end the daemon')
    .option('--force', 'cut NBD clients off')
    .action(async (options: { force?: boolean }) => (await import('./daemon.ts')).shutdownDaemon(options));
  program
    .command('restore')
    .description('make the devices again that a daemon lost when it ended unexpectedly: all, or those named')
    .argument('[name...]')
    .option('--force', 'accept disks that are not the same, and resume origins whose overlays are missing')
    .action(async (names: string[], options: { force?: boolean }) =>
      setExitCode((await (await import('./lost.ts')).restore(names, options)) ? 0 : 1),
    );
  program
    .command('lost')
    .description('list the devices that a daemon lost and that are neither restored nor forgotten')
    .option('--json', 'as JSON')
    .action(async (options: { json?: boolean }) => (await import('./lost.ts')).listLost(options));
  program
    .command('forget')
    .description('forget lost devices: no restore makes them again')
    .argument('[name...]')
    .option('--all', 'every lost device')
    .action(async (names: string[], options: { all?: boolean }) => (await import('./lost.ts')).forget(names, options));
  program
    .command('adopt')
    .description('accept the disks that lost devices lead to now, such as files that were copied from another machine')
    .argument('<name...>')
    .action(async (names: string[]) => (await import('./lost.ts')).adopt(names));
  program
    .command('batch')
    .description('run commands, one a line, as one change: all of them, or none')
    .argument('[file]', 'standard input where it is left out or -')
    .option('--json', 'print the replies as JSON')
    .addHelpText('after', BATCH_HELP)
    .action(async (file: string | undefined, options: { json?: boolean }) =>
      setExitCode(await (await import('./batch.ts')).runBatchCommand(file, options)),
    );
  program
    .command('refresh')
    .description('take over the sizes that the files and disks below a device have now')
    .argument('<name>')
    .action(async (name: string) => (await import('./daemon.ts')).refresh(name));
  program
    .command('logs')
    .description('print the daemon’s log')
    .action(async () => (await import('./daemon.ts')).printLogs());
}

function addDeviceCommands(program: Command, setExitCode: (code: number) => void): void {
  program
    .command('uri')
    .description('print where NBD clients find a device')
    .argument('<name>')
    .action(async (name: string) => (await import('./daemon.ts')).printUri(name));
  for (const [word, text] of [
    ['read', 'print sectors of a device to standard output'],
    ['write', 'write standard input to sectors of a device, durably'],
  ] as const) {
    program
      .command(word)
      .description(text)
      .argument('<name>')
      .option('--sector <number>', 'the first sector; 0 unless given')
      .option('--count <number>', 'how many sectors at the most; to the end unless given')
      .action(async (name: string, options: TransferOptions) => {
        const { readDevice, writeDevice } = await import('./transfer.ts');
        await (word === 'read' ? readDevice : writeDevice)(name, options);
      });
  }
  program
    .command('exec')
    .description('run a command for which dmsetup and blockdev are dmkit’s')
    .argument('<command...>')
    .option('--map <device=image>', 'an image in the place of a device that the command names', collect, [])
    .passThroughOptions()
    .action(async (command: string[], options: { map: string[] }) => {
      setExitCode(await (await import('./exec.ts')).execCommand(command, options.map));
    });
}

const WORDS_HELP = `
dmsetup's words, on devices that a daemon holds (started by the first create):
  create load|reload suspend resume clear remove remove_all wipe_table rename message wait mangle mknodes
  info ls table status deps targets target-version version splitname
  dmkit dmsetup help    what they take; --json makes a listing machine-readable`;

/** Adds the commands to the program. */
export function addControlCommands(program: Command, setExitCode: (code: number) => void): void {
  program.enablePositionalOptions();
  addDaemonCommands(program, setExitCode);
  addDeviceCommands(program, setExitCode);
  addSnapshotCommands(program, setExitCode);
  program.addHelpText('after', WORDS_HELP);
}
