// dmkit snapshot: the command line of it. What the words do is loaded when they run.
import { Command, CommanderError, Option } from 'commander';
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import type { BatchStep } from '../control/requests.ts';
import type { CreateCommandOptions, DiffCommandOptions, MergeCommandOptions } from './snapshot.ts';

const CREATE_HELP = `
ORIGIN is an image, a block device or one of dmkit's devices (/dev/mapper/NAME). A golden image that nobody writes needs
nothing else. Where the origin itself shall go on being written, do that through a snapshot-origin, which --origin-name
makes; once there is one, it is suspended for the moment in which the overlay begins.
SIZE has a unit: s (sectors of 512 bytes), K, M, G or T. The store's file is sparse; a full one ends a persistent overlay,
makes an overflow one read-only, and everything of a transient one is gone with its device.

Several names make several overlays of one moment. With --and they have other origins: a machine with several disks needs that.

Examples:
  dmkit snapshot create golden.img vm1
  dmkit snapshot create sda.img before-a --and sdb.img before-b
  dmkit snapshot create golden.img vm2 --cow-folder /scratch --size 2G --chunk 64K --store overflow --lazy-commit
  dmkit snapshot create disk.img before-upgrade --origin-name disk
  dmkit snapshot create golden.img vm1 --cow vm1.cow    # goes on with a store that is there`;

const DIFF_HELP = `
A line for each stretch that differs, in sectors of 512 bytes: first sector, number of sectors. Whole chunks are told, also
those that were written with what they had.`;

const MERGE_HELP = `
The origin has everything when the command ends, and the overlay is gone. A device that maps the origin (snapshot-origin)
may be in use meanwhile, and shows merged chunks from the start. Once begun, a merge goes on in the daemon to its end, also
after a crash and "dmkit restore"; the same command waits for it. Other overlays of the origin keep their content if they are
devices now. Stores that are only files belong to the origin as it was: they are named, and refused afterwards.`;

/** Adds the command to the program. */
export function addSnapshotCommands(program: Command, setExitCode: (code: number) => void): void {
  const snapshot = program
    .command('snapshot')
    .description('overlays: make, list, compare, merge and drop them')
    .helpCommand(false);
  const load = () => import('./snapshot.ts');

  createOptions(snapshot.command('create')).action(
    async (origin: string, names: string[], options: CreateCommandOptions) => {
      await (await load()).createOverlays(origin, names, options);
    },
  );
  snapshot
    .command('list')
    .description('every overlay: its origin, chunks used, and how it is')
    .option('--json', 'with counters, as JSON')
    .action(async (options: { json?: boolean }) => (await load()).listOverlays(options));
  snapshot
    .command('diff')
    .description('what differs from the origin')
    .argument('[name]', 'an overlay')
    .option('--cow <file>', 'a store that no device has, instead')
    .option('--json', 'as JSON')
    .addHelpText('after', DIFF_HELP)
    .action(async (name: string | undefined, options: DiffCommandOptions) => {
      await (await load()).diffOverlay(name, options);
    });
  snapshot
    .command('merge')
    .description('write an overlay into its origin, and wait until it is there')
    .argument('<name>')
    .option('--delete-cow', "delete the store's file at the end")
    .option('--json', 'one JSON object a line')
    .addHelpText('after', MERGE_HELP)
    .action(async (name: string, options: MergeCommandOptions) => {
      setExitCode(await (await load()).mergeOverlay(name, options));
    });
  dropOptions(snapshot.command('drop')).action(
    async (names: string[], options: { deleteCow?: boolean; json?: boolean }) => {
      await (await load()).dropOverlays(names, options);
    },
  );
}

function createOptions(command: Command): Command {
  return command
    .description('make overlays: devices that show the origin and keep their own writes in a store')
    .argument('<origin>')
    .argument('<name...>')
    .option('--and <origin and name...>', 'further overlays of the same moment: ORIGIN NAME [ORIGIN NAME]...')
    .option('--cow <file>', 'the store; an existing one goes on. Without it NAME.cow is made, which must be new')
    .option(
      '--cow-folder <folder>',
      "the folder in which NAME.cow is made; without it the folder of the origin's image",
    )
    .option('--size <size>', 'bytes of the store; without it there is room for a change of everything')
    .option('--chunk <size>', 'a power of two; without it 16K, or the size in an existing store')
    .addOption(
      new Option('--store <kind>', 'how long the changes are kept, and what a full store does')
        .choices(['persistent', 'overflow', 'transient'])
        .default('persistent'),
    )
    .option('--lazy-commit', 'records of first writes may wait for a flush')
    .option('--origin-name <name>', 'the origin is written through this device, which is made where it is missing')
    .option('--force', 'go on with a store of another origin, or of another content of it')
    .option('--dry-run', 'print the commands that would do it')
    .option('--json', 'print what is done, with its tables, as JSON')
    .addHelpText('after', CREATE_HELP);
}

function dropOptions(command: Command): Command {
  return command
    .description('take overlays away; their stores stay')
    .argument('<name...>')
    .option('--delete-cow', "delete the stores' files, too")
    .option('--json', 'print what is done as JSON');
}

/** A line of a batch that makes or drops overlays, as a request. @throws DmError for words that make no sense */
export async function overlayStep(words: readonly string[]): Promise<{ name: BatchStep; args: object }> {
  const [{ createArgs }, { newName, originInBatch }] = await Promise.all([
    import('./snapshot.ts'),
    import('./device-names.ts'),
  ]);
  let step: { name: BatchStep; args: object } | null = null;
  let said = '';
  const program = new Command('snapshot').exitOverride().helpCommand(false);
  const say = (text: string): void => {
    said += text;
  };
  program.configureOutput({ writeErr: say, writeOut: say });
  createOptions(program.command('create'))
    .copyInheritedSettings(program)
    .action((origin: string, names: string[], options: CreateCommandOptions) => {
      const overlays = createArgs(origin, names, options).map((one) => ({ ...one, origin: originInBatch(one.origin) }));
      step = { name: 'overlayCreate', args: { overlays } };
    });
  dropOptions(program.command('drop'))
    .copyInheritedSettings(program)
    .action((names: string[], { deleteCow = false }: { deleteCow?: boolean }) => {
      step = { name: 'overlayDrop', args: { names: names.map(newName), deleteCow } };
    });
  try {
    program.parse(words, { from: 'user' });
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    throw new DmError(Errno.EINVAL, said.trim().replace(/^error: /, ''));
  }
  if (step === null) throw new DmError(Errno.EINVAL, said.trim());
  return step;
}
