// dmkit copy's words are read by two parsers: what the quick one takes, commander takes for the same.
import { Command } from 'commander';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { COPY_OPTIONS, parseCopy } from '../../src/cli/copy-options.ts';
import { runs } from '../support/seed.ts';

function byCommander(argv: readonly string[]): { names: string[]; options: object } | null {
  const program = new Command('copy')
    .argument('<device...>')
    .exitOverride()
    .configureOutput({ writeErr: () => {} });
  for (const { flags, description } of COPY_OPTIONS) program.option(flags, description);
  try {
    program.parse(argv, { from: 'user' });
    return { names: program.args, options: program.opts() };
  } catch {
    return null;
  }
}

const name = fc.constantFrom('a.img', '/dev/sdb', 'b.img:0+8', 'nbd://host/x', '', '-', 'no such', '=');
const flag = fc.constantFrom(...COPY_OPTIONS.map(({ flags }) => flags.split(' ')[0]!));
const odd = fc.constantFrom(
  '--',
  '--help',
  '-h',
  '-x',
  '--nosuch',
  '--rate=5M',
  '--mapfile=',
  '--zero=1',
  '--no-zero',
  '50M',
);

describe("dmkit copy's options", () => {
  it('are what commander makes of them, or are left to it', () => {
    let takenCount = 0;
    fc.assert(
      fc.property(fc.array(fc.oneof(name, name, flag, odd), { maxLength: 6 }), (argv) => {
        const quick = parseCopy(argv);
        if (quick === null) return;
        takenCount++;
        expect(quick).toEqual(byCommander(argv));
      }),
      { numRuns: runs(2000) },
    );
    expect(takenCount).toBeGreaterThan(0);
  });

  it('are understood without commander, every one of them', () => {
    const argv = COPY_OPTIONS.flatMap(({ flags }) => flags.split(' '));
    expect(parseCopy(['a', ...argv, 'b'])).toEqual({
      names: ['a', 'b'],
      options: {
        keepGoing: true,
        verify: true,
        zero: true,
        skipHoles: true,
        rate: '<bytes>',
        mapfile: '<file>',
        retry: true,
        force: true,
        json: true,
      },
    });
  });

  it.each([[[]], [['--help', 'a']], [['a', '--rate']], [['a', '--nosuch']], [['--zero=1', 'a']]])(
    '%j are left to commander',
    (argv) => {
      expect(parseCopy(argv)).toBeNull();
    },
  );
});
