// File names that are not UTF-8: Node.js loses their bytes, so that they must not be taken for other names.
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test, vi } from 'vitest';
import { home } from '../support/home.ts';

vi.setConfig({ testTimeout: 240_000 });

test('a file name that is not UTF-8 is refused with a way out, and the way out leads there', async () => {
  const { shell, folder } = home();
  await shell('name=$(printf "caf\\351.img"); cp a.img "$name"; ln -s "$name" link.img; mkdir there');
  const refusal = expect.stringMatching(/^dmkit: the argument .*caf\\xe9\.img.* is not UTF-8, .*ln -s FILE LINK.*\n$/);
  for (const command of [
    'copy "$name" out.img',
    'copy a.img there/"$name"',
    'serve x --table "0 128 linear $name 0" --run true',
    'create x --table "0 128 linear $name 0"',
    'snapshot create "$name" v',
    'exec cat "$name"',
  ]) {
    const result = await shell(`name=$(printf "caf\\351.img"); $dmkit ${command}`);
    expect([command, result.code, result.stdout, result.stderr]).toEqual([command, 1, '', refusal]);
  }
  // Nothing of another name was made.
  expect(readdirSync(join(folder, 'there'))).toEqual([]);
  expect((await shell('$dmkit copy link.img out.img && cmp out.img a.img')).code).toBe(0);
  expect((await shell('$dmkit snapshot create link.img v && $dmkit read v | cmp - a.img')).code).toBe(0);
  // A table on standard input and the working folder lose their bytes as well.
  const piped = await shell('printf "0 128 linear caf\\351.img 0" | $dmkit create y');
  expect([piped.code, piped.stderr]).toEqual([1, expect.stringContaining('can be given by a link to it')]);
  // The character that stands for lost bytes may be meant.
  expect((await shell('cp a.img "\uFFFD.img" && $dmkit copy "\uFFFD.img" out2.img')).code).toBe(0);
});
