// Act 4: dm-io. One buffer written to three devices at once, one of which fails.

import { dmIoPromise } from '../api/dm-io-promise.ts';
import { REQ_OP_WRITE } from '../block/bio.ts';
import { DmIoError } from '../dm-io/index.ts';
import { byHand, check, IMAGE_SECTOR_COUNT, SECTOR_SIZE, type Stage, say, title } from './stage.ts';

const FIRST_SECTOR = 2040;
const SECTOR_COUNT = 16;
const BAD_SECTOR = 2048;

export async function writeMany(stage: Stage): Promise<void> {
  title('4. One buffer, three drives at once, one of them bad');
  const after = IMAGE_SECTOR_COUNT - BAD_SECTOR - 1;
  const images = ['d0.img', 'd1.img', 'd2.img'].map((name) => stage.makeImage(name));
  const whole = (image: string) => `0 ${IMAGE_SECTOR_COUNT} linear ${image} 0`;
  const bad = `0 ${BAD_SECTOR} linear ${images[1]} 0\n${BAD_SECTOR} 1 error\n${BAD_SECTOR + 1} ${after} linear ${images[1]} ${BAD_SECTOR + 1}`;
  const tables = [whole(images[0]!), bad, whole(images[2]!)];
  const drives = [];
  for (const [index, table] of tables.entries()) drives.push(await stage.dm.create(`drive${index}`, table));

  const client = stage.dm.dmIoClient();
  const buffer = Buffer.alloc(SECTOR_COUNT * SECTOR_SIZE, 'the same for all ');
  const regions = drives.map((drive) => ({ bdev: drive.device, sector: FIRST_SECTOR, count: SECTOR_COUNT }));
  say(`write ${SECTOR_COUNT} sectors at ${FIRST_SECTOR} of drive0, drive1 and drive2 in one request`);
  const failure = await dmIoPromise({ op: REQ_OP_WRITE, memory: { type: 'buffer', buffer }, client }, regions).catch(
    (error: unknown) => error,
  );
  if (!(failure instanceof DmIoError)) throw new Error('the request should have failed');
  check(failure.errorBits === 0b010n, `error bits 0b${failure.errorBits.toString(2).padStart(3, '0')}: drive1 alone`);
  const { cause } = failure.failedRegions[0]!;
  check(cause.sector === BAD_SECTOR, `its cause: ${cause.message}`);
  for (const index of [0, 2]) {
    const back = await drives[index]!.read(FIRST_SECTOR, SECTOR_COUNT);
    check(back.equals(buffer), `drive${index} has the whole buffer`);
  }
  client.close();
  for (const drive of drives) drive.close();
  byHand(`node --input-type=module -e "${program(images)}"`);
}

/** The same in a line, on the first image and a device that always fails. */
function program(images: readonly string[]): string {
  return [
    "import { DeviceMapper, dmIoPromise } from 'dmkit'",
    'const dm = new DeviceMapper()',
    `const a = await dm.open('${images[0]}'), b = await dm.create('b', '0 8 error')`,
    'const regions = [a, b].map((d) => ({ bdev: d.device, sector: 0, count: 8 }))',
    "const memory = { type: 'buffer', buffer: Buffer.alloc(4096) }",
    'await dmIoPromise({ op: 1, memory, client: dm.dmIoClient() }, regions).catch((e) => console.log(e.errorBits, e.message))',
    'await dm.close()',
  ].join('; ');
}
