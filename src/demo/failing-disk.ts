// Act 3: a disk with a bad spot, and who learns what of it.
import { IoError } from '../block/errors.ts';
import { connectNbd } from '../nbd/index.ts';
import { byHand, check, IMAGE_SECTOR_COUNT, SECTOR_SIZE, type Stage, say, title } from './stage.ts';

const BAD_SECTOR = 1000;
const BAD_SECTOR_COUNT = 8;

export async function failingDisk(stage: Stage): Promise<void> {
  title(`3. A disk that fails at sector ${BAD_SECTOR}`);
  const image = stage.makeImage('bad.img');
  const after = BAD_SECTOR + BAD_SECTOR_COUNT;
  const table = [
    `0 ${BAD_SECTOR} linear ${image} 0`,
    `${BAD_SECTOR} ${BAD_SECTOR_COUNT} error`,
    `${after} ${IMAGE_SECTOR_COUNT - after} linear ${image} ${after}`,
  ].join('\n');
  const disk = await stage.dm.create('bad', table);
  const service = await stage.serve();
  say(`table: ${table.replaceAll('\n', '\n         ')}`);
  say(`served at ${service.uri('bad')}`);

  const client = await connectNbd(service.uri('bad'));
  const offset = (BAD_SECTOR - 8) * SECTOR_SIZE;
  const answer = await client.read(offset, 32 * SECTOR_SIZE).catch((error: Error) => error);
  check(answer instanceof Error && /EIO/.test(answer.message), `the NBD client is told: ${(answer as Error).message}`);
  const good = await client.read(offset, 8 * SECTOR_SIZE);
  check(good.byteLength === 8 * SECTOR_SIZE, 'and on the same connection the sectors in front of it are still read');
  await client.close();

  const failure = await disk.read(BAD_SECTOR - 8, 32).catch((error: unknown) => error);
  check(
    failure instanceof IoError && failure.sector === BAD_SECTOR,
    `a program that uses the library is told: ${(failure as Error).message}`,
  );
  disk.close();
  byHand(`npx dmkit serve bad --table '${table}'`);
}
