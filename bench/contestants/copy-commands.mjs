// What copies images: the command line of each. `durable`: it ends when the data is on the disk, as dmkit copy does.
import { fileURLToPath } from 'node:url';
import { dmkitCommand, dmkitCommandMissing, missing } from '../servers.mjs';

const copyFile = fileURLToPath(new URL('copy-file.mjs', import.meta.url));

/** A command line for the shell, of paths that the harness made: there is nothing in them to quote. */
const shell = (text) => ['sh', ['-c', text]];
const thenSync = (command, paths, durable) => shell(durable ? `${command} && sync -d ${paths.join(' ')}` : command);

const dmkit = {
  name: 'dmkit copy',
  available: dmkitCommandMissing,
  command: (source, destinations) => [process.execPath, [dmkitCommand, 'copy', source, ...destinations]],
};

const convert = (source, destination, durable) => [
  'qemu-img',
  [
    'convert',
    '-n',
    '-W',
    '-m',
    '8',
    ...(durable ? ['-t', 'writeback'] : []),
    '-f',
    'raw',
    '-O',
    'raw',
    source,
    destination,
  ],
];

const nbdcopy = (source, destination, durable) => `nbdcopy ${durable ? '--flush ' : ''}${source} ${destination}`;

/** One source, one file. Those that cut it first are said to. */
export const ONE_TO_ONE = [
  dmkit,
  {
    name: 'dd bs=1M',
    command: (source, [to], durable) => [
      'dd',
      [`if=${source}`, `of=${to}`, 'bs=1M', `conv=notrunc${durable ? ',fdatasync' : ''}`, 'status=none'],
    ],
  },
  { name: 'cp (cuts first)', command: (source, to, durable) => thenSync(`cp ${source} ${to}`, to, durable) },
  {
    name: 'cp, no reflink, not sparse (cuts first)',
    command: (source, to, durable) => thenSync(`cp --reflink=never --sparse=never ${source} ${to}`, to, durable),
  },
  {
    name: 'fs.copyFile of Node.js (cuts first)',
    command: (source, [to], durable) => [process.execPath, [copyFile, source, to, ...(durable ? ['durable'] : [])]],
  },
  {
    name: 'qemu-img convert -n -W -m 8',
    available: () => missing('qemu-img'),
    command: (source, [to], durable) => convert(source, to, durable),
  },
  {
    name: 'nbdcopy (cuts first)',
    available: () => missing('nbdcopy'),
    command: (source, [to], durable) => shell(nbdcopy(source, to, durable)),
  },
];

/** One source, four files. */
export const ONE_TO_FOUR = [
  dmkit,
  {
    name: 'cat | tee (cuts first)',
    command: (source, to, durable) => thenSync(`cat ${source} | tee ${to.slice(1).join(' ')} > ${to[0]}`, to, durable),
  },
  {
    name: 'nbdcopy, one after another (cuts first)',
    available: () => missing('nbdcopy'),
    command: (source, to, durable) => shell(to.map((one) => nbdcopy(source, one, durable)).join(' && ')),
  },
  {
    name: 'nbdcopy, side by side (cuts first)',
    available: () => missing('nbdcopy'),
    command: (source, to, durable) =>
      shell(
        `${to.map((one, i) => `${nbdcopy(source, one, durable)} & p${i}=$!;`).join(' ')} ${to.map((_, i) => `wait $p${i}`).join(' && ')}`,
      ),
  },
];

/** One source, one export. */
export const TO_NBD = [
  dmkit,
  {
    name: 'nbdcopy',
    available: () => missing('nbdcopy'),
    command: (source, [to]) => ['nbdcopy', ['--flush', source, to]],
  },
  {
    name: 'qemu-img convert -n -W -m 8',
    available: () => missing('qemu-img'),
    command: (source, [to]) => convert(source, to, true),
  },
];
