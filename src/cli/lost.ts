// The commands about devices that a daemon lost when it ended.
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { rawName } from '../block/file-name.ts';
import { connect, type DaemonClient } from '../client/index.ts';
import { chooseName, shownName } from './device-names.ts';
import { say } from './say.ts';

async function withClient<Result>(work: (client: DaemonClient) => Promise<Result>): Promise<Result> {
  const client = connect();
  try {
    return await work(client);
  } finally {
    await client.close();
  }
}

function warn(text: string): void {
  say(`dmkit: ${text}\n`);
}

/** Names as lost devices have them. */
async function lostNames(client: DaemonClient, words: readonly string[]): Promise<string[]> {
  const { devices } = await client.lost();
  return words.map((word) =>
    chooseName(
      word,
      devices.map(({ name }) => name),
    ),
  );
}

/** Makes lost devices again. @returns false where some could not be */
export async function restore(names: readonly string[], { force = false }: { force?: boolean }): Promise<boolean> {
  const results = await withClient(async (client) =>
    client.restore(names.length === 0 ? undefined : await lostNames(client, names), { force }),
  );
  for (const { name: kept, error, notices } of results) {
    const name = shownName(kept);
    if (error === null) process.stdout.write(`${name}\n`);
    else if (error.startsWith('not restored')) warn(`${name}: ${error}`);
    else warn(`${name} could not be restored: ${error}`);
    for (const notice of notices) warn(`${name}: ${notice}`);
  }
  if (results.some(({ error }) => error !== null)) {
    warn('devices that could not be restored stay listed: "dmkit lost" shows them, "dmkit forget NAME" drops one');
  }
  return results.every(({ error }) => error === null);
}

export async function listLost({ json = false }: { json?: boolean }): Promise<void> {
  const { devices, damage } = await withClient((client) => client.lost());
  for (const text of damage) warn(text);
  if (json) {
    process.stdout.write(`${JSON.stringify(devices, null, 2)}\n`);
    return;
  }
  if (devices.length === 0) process.stdout.write('No lost devices\n');
  for (const { name: kept, table, error } of devices) {
    const name = shownName(kept);
    for (const line of table.length === 0 ? ['(no table)'] : table) process.stdout.write(rawName(`${name}: ${line}\n`));
    if (error !== null) process.stdout.write(rawName(`${name}: could not be restored: ${error}\n`));
  }
}

export async function forget(names: readonly string[], { all = false }: { all?: boolean }): Promise<void> {
  await withClient(async (client) => {
    const wanted = all
      ? [...new Set((await client.lost()).devices.map(({ name }) => name))]
      : await lostNames(client, names);
    if (wanted.length === 0 && !all) throw new DmError(Errno.EINVAL, 'a name is needed, or --all');
    if (wanted.length > 0) await client.forget(wanted);
  });
}

export async function adopt(names: readonly string[]): Promise<void> {
  const sentences = await withClient(async (client) => client.adopt(await lostNames(client, names)));
  for (const text of sentences) process.stdout.write(rawName(`${text}\n`));
  if (sentences.length === 0) process.stdout.write('every disk is the same as before\n');
}
