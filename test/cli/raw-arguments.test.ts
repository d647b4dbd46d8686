// File names that are not UTF-8: every command takes them, and what it prints leads back to them.
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { home } from '../support/home.ts';
import { find } from '../support/peers.ts';

const NAME = Buffer.from('caf\xe9 \xff\xc3#.img', 'latin1');
const SET_NAME = 'name=$(printf "caf\\351 \\377\\303#.img"); word=$(printf "caf\\351\\\\ \\377\\303\\\\#.img");';

type Shell = (script: string) => Promise<{ code: number | null; stdout: string; stderr: string; stdoutBytes: Buffer }>;

function oddHome(): { run: Shell; folder: string; daemonPid: () => Promise<number> } {
  const { shell, folder, daemonPid } = home();
  return { folder, daemonPid, run: (script) => shell(`${SET_NAME} ${script}`) };
}

async function succeed(run: Shell, script: string): Promise<Buffer> {
  const result = await run(script);
  expect([script, result.code, result.stderr]).toEqual([script, 0, expect.not.stringMatching(/dmkit:|fail/i)]);
  return result.stdoutBytes;
}

/** Names in a folder, as bytes. */
function namesIn(folder: string): string[] {
  return (readdirSync(folder, { encoding: 'buffer' }) as unknown as Buffer[])
    .map((name) => name.toString('latin1'))
    .sort();
}

test('copies from and to such files, with maps and verification', async () => {
  const { run, folder } = oddHome();
  await succeed(run, 'cp a.img "$name"; mkdir there');
  await succeed(run, '$dmkit copy "$name" out.img --verify && cmp out.img a.img');
  await succeed(run, '$dmkit copy a.img "there/$name" --mapfile "there/$name.map" && cmp "there/$name" a.img');
  await succeed(run, 'rm "there/$name"; : > "there/$name"; truncate -s $(stat -c %s a.img) "there/$name"');
  expect(namesIn(join(folder, 'there'))).toEqual([NAME.toString('latin1'), `${NAME.toString('latin1')}.map`]);
  await succeed(run, '$dmkit copy - "there/second$name" < a.img && cmp "there/second$name" a.img');
  await succeed(run, '$dmkit copy "$name" - | cmp - a.img');
  // A refusal names the file in a form that a shell takes.
  const refused = await run('$dmkit copy "no$name" out2.img');
  expect([refused.code, refused.stderr]).toEqual([1, expect.stringContaining('nocaf\\xe9 \\xff\\xc3#.img')]);
  expect(refused.stderr).not.toMatch(/\ufffd|udc/);
  // The character that stands for lost bytes may be meant.
  await succeed(run, 'cp a.img "\uFFFD.img" && $dmkit copy "\uFFFD.img" out3.img && cmp out3.img a.img');
});

test('tables of serve: as an argument, in a file of such a name, on standard input; and for its command', async () => {
  const { run } = oddHome();
  await succeed(
    run,
    'cp a.img "$name"; sectors=$(($(stat -c %s a.img) / 512)); echo "0 $sectors linear $word 0" > "$name.table"',
  );
  const command = '\'printf %s "$uri"; test -f \'"$word"';
  expect((await succeed(run, `$dmkit serve x --table "0 8 linear $word 0" --run ${command}`)).toString()).toMatch(
    /^nbd\+unix:\/\/\/x\?socket=\/\S+$/,
  );
  await succeed(run, '$dmkit serve x --table-file "$name.table" --run true');
  await succeed(run, '$dmkit serve x --table-file - --run true < "$name.table"');
  if (find('nbdcopy') !== undefined) {
    await succeed(
      run,
      '$dmkit serve x --table-file "$name.table" --threads 2 --run \'nbdcopy "$uri" out.img\' && cmp out.img a.img',
    );
  }
  const refused = await run('$dmkit serve x --table "0 8 linear $word 0" --nbd "unix:./$name"');
  expect([refused.code, refused.stderr]).toEqual([
    1,
    expect.stringMatching(/^dmkit: cannot listen at .*\\xe9.*UTF-8.*\n$/),
  ]);
});

test('the daemon’s devices: what is printed can be given back, also after a crash', async () => {
  const { run, daemonPid } = oddHome();
  await succeed(run, 'cp a.img "$name"; truncate -s 1M "b$name"');
  await succeed(run, '$dmkit create x --table "0 8 linear $word 0"');
  const table = await succeed(run, '$dmkit table x');
  expect(table.includes(Buffer.from('caf\xe9\\ \xff\xc3\\#.img', 'latin1'))).toBe(true);
  await succeed(
    run,
    '$dmkit table x > t; $dmkit create y --readonly < t; $dmkit load x t && $dmkit suspend x && $dmkit resume x',
  );
  expect(await succeed(run, '$dmkit table x')).toEqual(table);
  await succeed(
    run,
    '$dmkit remove y; $dmkit read x --count 8 | cmp -n 4096 - "$name"; $dmkit deps -o blkdevname x; $dmkit ls --tree',
  );
  await succeed(run, 'printf "load x --table \'0 8 linear b%s 0\'\\nresume x\\n" "$word" | $dmkit batch');
  expect((await succeed(run, '$dmkit status x; $dmkit table x')).includes(Buffer.from('bcaf\xe9', 'latin1'))).toBe(
    true,
  );
  const after = await succeed(run, '$dmkit table x');
  process.kill(await daemonPid(), 'SIGKILL');
  // The kernel takes its time to give back what a ring of a killed process held.
  for (let attempt = 0; attempt < 100 && (await run('$dmkit restore')).code !== 0; attempt++);
  expect(await succeed(run, '$dmkit table x')).toEqual(after);
  await succeed(run, '$dmkit remove x');
});

test('exec and blockdev: the command and the images in the place of devices get their bytes', async () => {
  const { run } = oddHome();
  await succeed(run, 'cp a.img "$name"; printf "#!/bin/sh\\ncat \\"\\$1\\"\\n" > "prog$name"; chmod +x "prog$name"');
  expect(await succeed(run, '$dmkit exec -- "./prog$name" "$name"')).toEqual(await succeed(run, 'cat a.img'));
  const size = await succeed(run, '$dmkit blockdev --getsz "$name"');
  expect(await succeed(run, '$dmkit exec --map "/dev/odd=$name" -- blockdev --getsz /dev/odd')).toEqual(size);
  await succeed(
    run,
    '$dmkit exec --map "/dev/odd=$name" -- dmsetup create m --table "0 8 linear /dev/odd 0" && $dmkit remove m',
  );
  expect((await run('$dmkit exec -- "./no$name"')).code).toBe(127);
});

test('snapshots of such an image, with a store of such a name, through their life', async () => {
  const { run, folder } = oddHome();
  await succeed(run, 'cp a.img "$name"; mkdir "dir$name"');
  await succeed(run, '$dmkit snapshot create "$name" v && $dmkit read v | cmp - a.img');
  await succeed(run, '$dmkit snapshot create "$name" w --cow "dir$name/w$name"');
  await succeed(
    run,
    'head -c 4096 /dev/urandom | $dmkit write w; $dmkit snapshot diff w; $dmkit snapshot list; $dmkit snapshot list --json',
  );
  expect(namesIn(folder)).toContain(`dir${NAME.toString('latin1')}`);
  await succeed(run, '$dmkit snapshot drop v --delete-cow || $dmkit snapshot drop v');
  await succeed(run, '$dmkit snapshot merge w --delete-cow && ! cmp -s "$name" a.img');
  expect(readdirSync(folder).filter((name) => name.startsWith('w'))).toEqual([]);
});

test('a working folder of such a name: relative names and /proc lead into it', async () => {
  const { run } = oddHome();
  await succeed(
    run,
    'mkdir "$name.d" && cp a.img "$name.d/in.img" && cd "$name.d" && $dmkit serve x --table "0 8 linear in.img 0" --nbd unix:"$OLDPWD"/s --run true',
  );
  await succeed(
    run,
    'cd "$name.d" && $dmkit create x --table "0 8 linear in.img 0" && $dmkit table x && $dmkit snapshot create in.img v && $dmkit snapshot drop v && $dmkit remove x',
  );
});

test('a device’s own name that is not UTF-8 is refused, or mangled as dmsetup does it', async () => {
  const { run } = oddHome();
  const refused = await run('$dmkit create "$name" --manglename none --table "0 8 zero"');
  expect([refused.code, refused.stdout]).toEqual([1, '']);
  expect(refused.stderr).toContain('It is not UTF-8, and NBD carries no other names');
  await succeed(run, '$dmkit create "$name" --table "0 8 zero" && $dmkit info "$name" && $dmkit remove "$name"');
});
