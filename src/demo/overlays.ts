// Act 7: two overlays on one golden image, written, compared, and one of them merged.
import { readFileSync } from 'node:fs';
import { connect } from '../client/index.ts';
import { connectNbd } from '../nbd/index.ts';
import { withDaemon } from './command.ts';
import { check, label, readLabel, SECTOR_SIZE, type Stage, say, title } from './stage.ts';

const NAMES = ['vm1', 'vm2'];
const CHUNK_SECTOR_COUNT = 32;
/** Where each machine writes; the first two stretches are neighbours. */
const WRITTEN_SECTORS = [64, 96, 4096];

async function write(uri: string, name: string): Promise<void> {
  const client = await connectNbd(uri);
  for (const sector of WRITTEN_SECTORS) {
    const data = Buffer.alloc(CHUNK_SECTOR_COUNT * SECTOR_SIZE);
    for (let i = 0; i < CHUNK_SECTOR_COUNT; i++) data.write(label(name, sector + i), i * SECTOR_SIZE);
    await client.write(sector * SECTOR_SIZE, data);
  }
  await client.close();
}

function tell(output: Buffer): string[] {
  const lines = output.toString().trimEnd().split('\n');
  for (const line of lines) say(line);
  return lines;
}

export async function overlays(stage: Stage): Promise<void> {
  title('7. Two machines on one golden image; what one of them wrote becomes part of it');
  const image = stage.makeImage('base.img');
  const before = readFileSync(image);
  await withDaemon(async (dmkit, folder) => {
    for (const name of NAMES) tell(dmkit(['snapshot', 'create', image, name]));
    const client = connect({ folder });
    for (const name of NAMES) await write(await client.uri(name), name);
    await client.close();
    check(readFileSync(image).equals(before), 'both machines have written, and the image is as it was');
    const lines = tell(dmkit(['snapshot', 'diff', 'vm1']));
    check(lines.includes('64 64') && lines.includes('4096 32'), 'these are the sectors that vm1 wrote');
    tell(dmkit(['snapshot', 'merge', 'vm1', '--delete-cow']));
    const after = readFileSync(image);
    const found = WRITTEN_SECTORS.map((sector) => readLabel(after.subarray(sector * SECTOR_SIZE)));
    check(found[2] === label('vm1', 4096), `sector 4096 of the image says "${found[2]!.trim()}"`);
    tell(dmkit(['snapshot', 'list']));
    const own = readLabel(dmkit(['read', 'vm2', '--sector', '4096', '--count', '1']));
    check(own === label('vm2', 4096), `and vm2 still reads "${own.trim()}" there`);
  });
}
