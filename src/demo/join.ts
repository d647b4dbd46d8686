// Act 1: two images joined into one disk.
import { connectNbd } from '../nbd/index.ts';
import { byHand, check, IMAGE_SECTOR_COUNT, label, readLabel, SECTOR_SIZE, type Stage, say, title } from './stage.ts';

export async function join(stage: Stage): Promise<void> {
  title('1. Two images become one disk, without root');
  const [a, b] = [stage.makeImage('a.img'), stage.makeImage('b.img')];
  const table = `0 ${IMAGE_SECTOR_COUNT} linear ${a} 0\n${IMAGE_SECTOR_COUNT} ${IMAGE_SECTOR_COUNT} linear ${b} 0`;
  (await stage.dm.create('joined', table)).close();
  const service = await stage.serve();
  say(`table: ${table.replace('\n', '\n         ')}`);
  say(`served at ${service.uri('joined')}`);

  const client = await connectNbd(service.uri('joined'));
  check(client.byteLength === 2 * IMAGE_SECTOR_COUNT * SECTOR_SIZE, `the client sees ${client.byteLength} bytes`);
  const boundary = IMAGE_SECTOR_COUNT * SECTOR_SIZE;
  const before = await client.read(boundary - SECTOR_SIZE, 2 * SECTOR_SIZE);
  const labels = [readLabel(before.subarray(0, SECTOR_SIZE)), readLabel(before.subarray(SECTOR_SIZE))];
  check(
    labels[0] === label('a.img', IMAGE_SECTOR_COUNT - 1) && labels[1] === label('b.img', 0),
    `one read over the boundary gives "${labels[0]!.trim()}" and "${labels[1]!.trim()}"`,
  );
  const data = Buffer.alloc(2 * SECTOR_SIZE, 'written through NBD ');
  await client.write(boundary - SECTOR_SIZE, data, { fua: true });
  check(data.equals(await client.read(boundary - SECTOR_SIZE, 2 * SECTOR_SIZE)), 'one write over it is in both images');
  await client.close();
  byHand(`npx dmkit serve joined --table '${table}'`);
}
