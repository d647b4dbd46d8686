// dmkit snapshot: the command line of it. What the words do is loaded when they run.
import { type Command, Option } from 'commander';
import type { CreateCommandOptions, DiffCommandOptions, MergeCommandOptions } from './snapshot.ts';

const CREATE_HELP = `
ORIGIN is an image, a block device or one of dmkit's devices (/dev/mapper/NAME). A golden image that nobody writes needs
nothing else. Where the origin itself shall go on being written, do that through a snapshot-origin, which --origin-name
makes; once there is one, it is suspended for the moment in which the overlay begins.
SIZE has a unit: s (sectors of 512 bytes), K, M, G or T. The store's file is sparse; a full one ends a persistent overlay,
makes an overflow one read-only, and everything of a transient one is gone with its device.

Examples:
  dmkit snapshot create golden.img vm1
  dmkit snapshot create golden.img vm2 --cow-folder /scratch --size 2G --chunk 64K --store overflow --lazy-commit
  dmkit snapshot create disk.img before-upgrade --origin-name disk
  dmkit snapshot create golden.img vm1 --cow vm1.cow    # goes on with a store that is there`;

const DIFF_HELP = `
A line for each stretch that differs, in sectors of 512 bytes: first sector, number of sectors. Whole chunks are told, also
those that were written with what they had.`;

const MERGE_HELP = `
The origin has everything when the command ends, and the overlay is gone. A device that maps the origin (snapshot-origin)
may be in use meanwhile, and shows what is merged from the start. Interrupted in whatever way, the same command goes on.
Other overlays of the origin keep what they show if they are devices now: one that is only a file is worth nothing
afterwards.`;

/** Adds the command to the program. */
export function addSnapshotCommands(program: Command, setExitCode: (code: number) => void): void {
  const snapshot = program
    .command('snapshot')
    .description('overlays: make, list, compare, merge and drop them')
    .helpCommand(false);
  const load = () => import('./snapshot.ts');

  snapshot
    .command('create')
    .description('make an overlay: a device that shows the origin and keeps what is written to it in a store')
    .argument('<origin>')
    .argument('<name>')
    .option('--cow <file>', 'the store; one that is there goes on. NAME.cow, which must be new, unless given')
    .option('--cow-folder <folder>', "where NAME.cow is made; beside the origin's image unless given")
    .option('--size <size>', 'of the store; room for a change of everything unless given')
    .option('--chunk <size>', 'a power of two; 16K unless given, or what the store says')
    .addOption(
      new Option('--store <kind>', 'what becomes of it')
        .choices(['persistent', 'overflow', 'transient'])
        .default('persistent'),
    )
    .option('--lazy-commit', 'records of first writes may wait for a flush')
    .option('--origin-name <name>', 'the origin is written through this device, made where it is missing')
    .option('--dry-run', 'print the commands that would do it')
    .option('--json', 'print what is done, with its tables, as JSON')
    .addHelpText('after', CREATE_HELP)
    .action(async (origin: string, name: string, options: CreateCommandOptions) => {
      await (await load()).createOverlay(origin, name, options);
    });
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
  snapshot
    .command('drop')
    .description('take an overlay away; its store stays')
    .argument('<name>')
    .option('--delete-cow', "delete the store's file, too")
    .option('--json', 'print what is done as JSON')
    .action(async (name: string, options: { deleteCow?: boolean; json?: boolean }) => {
      await (await load()).dropOverlay(name, options);
    });
}
