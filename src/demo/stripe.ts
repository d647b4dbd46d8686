// Act 2: chunks dealt round over three images.
import { connectNbd } from '../nbd/index.ts';
import { byHand, check, IMAGE_SECTOR_COUNT, label, readLabel, SECTOR_SIZE, type Stage, say, title } from './stage.ts';

const CHUNK_SECTOR_COUNT = 128;

export async function stripe(stage: Stage): Promise<void> {
  title('2. A stripe over three images');
  const names = ['s0.img', 's1.img', 's2.img'];
  const legs = names.map((name) => `${stage.makeImage(name)} 0`).join(' ');
  const table = `0 ${3 * IMAGE_SECTOR_COUNT} striped 3 ${CHUNK_SECTOR_COUNT} ${legs}`;
  (await stage.dm.create('stripe', table)).close();
  const service = await stage.serve();
  say(`table: ${table}`);
  say(`served at ${service.uri('stripe')}`);

  const client = await connectNbd(service.uri('stripe'));
  const all = await client.read(0, client.byteLength);
  let right = 0;
  for (let sector = 0; sector < 3 * IMAGE_SECTOR_COUNT; sector++) {
    const chunk = Math.floor(sector / CHUNK_SECTOR_COUNT);
    const onLeg = Math.floor(chunk / 3) * CHUNK_SECTOR_COUNT + (sector % CHUNK_SECTOR_COUNT);
    const found = readLabel(all.subarray(sector * SECTOR_SIZE, (sector + 1) * SECTOR_SIZE));
    if (found === label(names[chunk % 3]!, onLeg)) right++;
  }
  check(right === 3 * IMAGE_SECTOR_COUNT, `all ${right} sectors are where the kernel's striping puts them`);
  await client.close();
  byHand(`npx dmkit serve stripe --table '${table}'`);
}
