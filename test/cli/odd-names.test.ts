// Every one of dmsetup's commands with names that shells, URIs and tables take for something else. The list of commands is the
// program's own: a new one fails here until a line says how it takes a name.
import { expect, test, vi } from 'vitest';
import { ARITY } from '../../src/cli/dmsetup/usage.ts';
import { home } from '../support/home.ts';

vi.setConfig({ testTimeout: 600_000 });

const NAME = `my 100% "disk" & it's?c=d;~ ü😀`;
const OTHER = 'a#b<c>|$(d) `e` *';
const TABLE = ['--table', '0 8 linear a.img 0'];

/** In this order; each leaves both devices there, with live tables, for the next. Null: it takes no name of a device. */
const CALLS: Record<string, string[][] | null> = {
  info: [
    ['info', NAME, OTHER],
    ['info', '-c', `/dev/mapper/${NAME}`, `dm:${OTHER}`],
  ],
  table: [
    ['table', NAME, OTHER],
    ['table', '--concise', NAME],
  ],
  status: [['status', NAME, OTHER]],
  deps: [['deps', NAME, OTHER]],
  mangle: [['mangle', NAME]],
  mknodes: [['mknodes', NAME]],
  message: null,
  load: [['load', NAME, ...TABLE]],
  reload: [['reload', OTHER, ...TABLE]],
  clear: [['clear', NAME, OTHER]],
  suspend: [['suspend', NAME, OTHER]],
  resume: [['resume', NAME, OTHER]],
  wait: [['wait', NAME, '4000']],
  rename: [
    ['rename', NAME, 'between'],
    ['rename', 'between', NAME],
    ['rename', OTHER, `${OTHER}2`],
    ['rename', `${OTHER}2`, OTHER],
  ],
  wipe_table: [['wipe_table', OTHER]],
  splitname: [['splitname', NAME]],
  ls: null,
  create: null,
  remove: null,
  remove_all: null,
  help: null,
  targets: null,
  'target-version': null,
  version: null,
};

test('each command of the list has its line here', () => {
  expect(Object.keys(CALLS).sort()).toEqual(Object.keys(ARITY).sort());
});

test('every command takes the names that create took, several at a time where it takes several', async () => {
  const { call } = home();
  const ok = async (args: string[]): Promise<string> => {
    const result = await call(args);
    expect([args, result.code, result.stderr]).toEqual([args, 0, '']);
    return result.stdout;
  };
  await ok(['create', NAME, ...TABLE, '--readonly']);
  await ok(['create', OTHER, '--table', '0 8 linear a.img 8']);
  for (const args of Object.values(CALLS).flatMap((calls) => calls ?? [])) await ok(args);
  // It reaches the device: a linear line knows no message.
  const refused = await call(['message', NAME, '0', 'hello']);
  expect([refused.code, refused.stderr]).toEqual([1, expect.stringContaining(`message ioctl on ${NAME}`)]);
  const listed = await ok(['ls']);
  for (const name of [NAME, OTHER]) expect(listed).toContain(`${name}\t(`);
  expect(await ok(['ls', '--tree'])).toContain(NAME);
  await ok(['remove', NAME, OTHER]);
  expect(await ok(['ls'])).toBe('No devices found\n');
});
