// dmkit's own subcommands, their options and their help. A subcommand's file is loaded when it runs.
import { Command, CommanderError, Option } from 'commander';
import { version } from '../block/version.ts';
import { addControlCommands } from './control-program.ts';
import type { CopyCommandOptions } from './copy.ts';
import { COPY_OPTIONS } from './copy-options.ts';
import { reportFailure } from './failure.ts';
import type { ServeOptions } from './serve.ts';

const EXIT_FAILURE = 1;

/** `--table` and `--table-file` fill one list, in the order of the command line. */
function tableOptions(command: Command): Command {
  const tables: ServeOptions['tables'] = [];
  const add = (kind: 'text' | 'file') => (value: string) => {
    tables.push({ kind, value });
    return tables;
  };
  return command
    .addOption(new Option('--table <table>', 'the table of the device named before it').argParser(add('text')))
    .addOption(new Option('--table-file <file>', 'the same, from a file; - is standard input').argParser(add('file')))
    .hook('preAction', (self) => void self.setOptionValue('tables', tables));
}

const collect = (value: string, before: string[] | undefined): string[] => [...(before ?? []), value];

function buildProgram(setExitCode: (code: number) => void): Command {
  const program = new Command('dmkit')
    .description("Linux device mapper's block services in user space: no root, no kernel module.")
    .version(`dmkit ${version}`, '-V, --version', 'print the version')
    .showHelpAfterError('(try --help)')
    .exitOverride();

  tableOptions(program.command('serve'))
    .description('build devices out of tables and serve them over NBD, in the foreground')
    .argument('<name...>', 'names of the devices; each has its own --table or --table-file, in the same order')
    .option('--read-only', 'nothing can be written through any device')
    .addOption(
      new Option('--description <text>', 'what clients are told of the device named before it').argParser(collect),
    )
    .addOption(
      new Option(
        '--nbd <address>',
        'unix:PATH or tcp:HOST:PORT; may be given several times; without it, a Unix socket in a new folder',
      ).argParser(collect),
    )
    .option('--stdio', 'serve one client on standard input and output, and end when it leaves: for ssh and inetd')
    .option('--allow-remote', 'let --nbd name a TCP address that other machines reach')
    .addOption(
      new Option('--tls <mode>', 'encrypt: require where credentials are given, else off').choices([
        'off',
        'allow',
        'require',
      ]),
    )
    .option('--tls-certificates <dir>', 'server-cert.pem and server-key.pem in there, ca-cert.pem to verify clients')
    .option('--tls-psk <file>', 'shared keys instead: lines NAME:HEXKEY, as psktool makes them')
    .option('--tls-verify-peer', 'clients need a certificate of the authority in ca-cert.pem')
    .option(
      '--reconnect <seconds>',
      'how long the server of an NBD URI that went away is waited for; 60 (DMKIT_RECONNECT)',
    )
    .option(
      '--threads <count>',
      'threads that share the connections; one for each processor, 4 at the most, 1 for more than 64 devices',
    )
    .option('--run <command>', 'run a shell command with $uri set, then stop and exit with its code')
    .addHelpText('after', SERVE_HELP)
    .action(async (names: string[], options: Omit<ServeOptions, 'names'>) => {
      const { serve } = await import('./serve.ts');
      setExitCode(await serve({ ...options, names }));
    });

  const copy = program
    .command('copy')
    .description('copy one image or device to as many as 64')
    .argument('<device...>', 'the source, then the destinations; with --zero, destinations alone')
    .addHelpText('after', COPY_HELP)
    .action(async (names: string[], options: CopyCommandOptions) => {
      setExitCode(await (await import('./copy.ts')).runCopy(names, options));
    });
  for (const { flags, description } of COPY_OPTIONS) copy.option(flags, description);

  addControlCommands(program, setExitCode);
  return program;
}

const COPY_HELP = `
SOURCE and DESTINATION are image files, block devices, /dev/mapper/NAME of dmkit's own, or NBD URIs; each may end in
:SECTOR+COUNT, in sectors of 512 bytes. An image that is not there is made. Every destination goes at its own pace, and one
that fails does not stop the others. Parts of the source that are known to be zeroes are zeroed, not sent. A source - is standard
input, of any length; - as the only destination is standard output. ./- is a file of that name.

What failed is named in the last lines. Exit code: 0 all is done, 1 something failed, 130 stopped by ctrl-C, 129 by a hang-up.

Examples:
  dmkit copy golden.img /dev/sdb /dev/sdc /dev/sdd --verify
  dmkit copy golden.img a.img b.img --keep-going --mapfile copy.map
  dmkit copy golden.img a.img b.img --mapfile copy.map --retry
  xz -dc golden.img.xz | dmkit copy - /dev/sdb /dev/sdc --verify
  dmkit copy nbd://host/disk local.img
  dmkit copy disk.img:0+2048 /dev/mapper/new:34816+2048
  dmkit copy --zero /dev/sdb:0+2048`;

const SERVE_HELP = `
A table has dmsetup's form, one line a target: START LENGTH TYPE PARAMETERS, in sectors of 512 bytes.
  linear DEVICE OFFSET | striped STRIPES CHUNK [DEVICE OFFSET]... | zero | error
DEVICE is an image, a block device, MAJOR:MINOR, /dev/mapper/NAME of a device named earlier, or an NBD URI.

Connections are shared out to threads (--threads) where all lines are linear, striped, zero or error over images and
block devices.

The command prints a URI for each device and address when it is ready, with the absolute path of its socket. SIGINT, SIGTERM or SIGHUP
stops it: no new client, what is in flight is finished and flushed. Under nohup SIGHUP is ignored. Started with a listening socket (LISTEN_FDS), it serves that and prints nothing.

Examples:
  dmkit serve disk --table '0 204800 linear a.img 0'
  dmkit serve both --table '0 2048 linear a.img 0
  2048 2048 linear b.img 0' --nbd unix:both.sock
  dmkit serve stripe --table '0 4096 striped 2 128 a.img 0 b.img 0' --run 'nbdinfo "$uri"'
  dmkit serve disk --table '0 204800 linear a.img 0' --nbd tcp:0.0.0.0:10809 --allow-remote --tls-psk keys.psk
  dmkit serve disk --table '0 204800 linear a.img 0' --nbd unix:disk.sock --nbd 'tcp:[::1]:10809' --description 'Build 7'
  nbdcopy -- [ dmkit serve disk --table '0 204800 linear a.img 0' ] out.img
  nbdsh -c 'h.connect_command(["dmkit", "serve", "disk", "--stdio", "--table", "0 204800 linear a.img 0"])'
  dmkit serve low --table-file low.table top --table '0 100 linear /dev/mapper/low 8' --read-only`;

/** Runs one of dmkit's own subcommands. @returns the exit code */
export async function runProgram(): Promise<number> {
  let exitCode = 0;
  const program = buildProgram((code) => {
    exitCode = code;
  });
  try {
    await program.parseAsync();
  } catch (error) {
    // Help and version end here too, with code 0; what commander refused it has printed already.
    if (error instanceof CommanderError) return error.exitCode;
    reportFailure(error);
    return EXIT_FAILURE;
  }
  return exitCode;
}
