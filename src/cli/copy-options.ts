// The options of dmkit copy, once for both who read them: Node's own parser, which a copy starts faster with, and
// commander, which knows how to help.
import { parseArgs } from 'node:util';
import type { CopyCommandOptions } from './copy.ts';

interface CopyOption {
  /** As it is typed, with its value, if it takes one. */
  readonly flags: `--${string}`;
  readonly description: string;
}

export const COPY_OPTIONS: readonly CopyOption[] = [
  { flags: '--keep-going', description: 'narrow what fails to the failing blocks, and do the rest' },
  { flags: '--verify', description: 'read everything back, from the medium where that can be had, and compare' },
  { flags: '--zero', description: 'fill the destinations with zeroes' },
  { flags: '--skip-holes', description: 'leave alone what the source has no data for, instead of zeroing it' },
  { flags: '--rate <bytes>', description: 'bytes a second for each destination, with a unit: 50M, 500000B' },
  {
    flags: '--mapfile <file>',
    description: "keep GNU ddrescue's map of what is done; FILE.1, FILE.2 … for several destinations",
  },
  { flags: '--retry', description: 'go on with what the map lacks; maps are found by their disks, in any order' },
  {
    flags: '--force',
    description: 'with --retry: believe a map that belongs to other disks, or does not say to which',
  },
  { flags: '--json', description: 'one JSON object a line' },
];

const camelCase = (name: string): string => name.replace(/-(.)/g, (_, letter: string) => letter.toUpperCase());

/** @returns null where commander has something to say: help, or what is wrong */
export function parseCopy(argv: readonly string[]): { names: string[]; options: CopyCommandOptions } | null {
  const known = COPY_OPTIONS.map(({ flags }) => {
    const [name, value] = flags.slice(2).split(' ');
    return [name!, { type: value === undefined ? 'boolean' : 'string' }] as const;
  });
  try {
    const { values, positionals } = parseArgs({
      args: [...argv],
      options: Object.fromEntries(known),
      allowPositionals: true,
    });
    if (positionals.length === 0) return null;
    const options = Object.fromEntries(Object.entries(values).map(([name, value]) => [camelCase(name), value]));
    return { names: positionals, options };
  } catch {
    return null;
  }
}
