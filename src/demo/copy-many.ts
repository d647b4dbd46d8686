// Act 6: dmkit copy. One image to three drives, one of them with a bad sector; when the fault is gone, the map finishes.
import { readFileSync, writeFileSync } from 'node:fs';
import { Copy } from '../copy/copy.ts';
import { byHand, check, IMAGE_SECTOR_COUNT, SECTOR_SIZE, type Stage, say, title } from './stage.ts';

const BAD_SECTOR = 1234;

async function copied(stage: Stage, source: string, names: string[], options: Parameters<typeof Copy.open>[3]) {
  const copy = await Copy.open(stage.dm, source, names, options);
  try {
    await copy.run();
  } finally {
    await copy.close();
  }
  return copy;
}

export async function copyMany(stage: Stage): Promise<void> {
  title('6. One image to three drives, one of them with a bad sector');
  const [source, ...images] = ['golden.img', 'c0.img', 'c1.img', 'c2.img'].map((name) => stage.makeImage(name));
  writeFileSync(source!, Buffer.alloc(IMAGE_SECTOR_COUNT * SECTOR_SIZE, 'golden '));
  const whole = `0 ${IMAGE_SECTOR_COUNT} linear ${images[1]} 0`;
  const after = IMAGE_SECTOR_COUNT - BAD_SECTOR - 1;
  const bad = `0 ${BAD_SECTOR} linear ${images[1]} 0\n${BAD_SECTOR} 1 error\n${BAD_SECTOR + 1} ${after} linear ${images[1]} ${BAD_SECTOR + 1}`;
  const drive = await stage.dm.create('worn', bad);
  stage.dm.devices.register('worn', drive.device);

  const mapfile = `${source}.map`;
  say(`copy it to c0.img, to a drive on c1.img that can't write sector ${BAD_SECTOR}, and to c2.img`);
  const first = await copied(stage, source!, [images[0]!, 'worn', images[2]!], { keepGoing: true, mapfile });
  const { failures } = first.destinations[1]!;
  check(
    failures.length === 1 && failures[0]!.start === BAD_SECTOR,
    `the drive lacks sector ${failures[0]?.start} alone`,
  );
  const golden = readFileSync(source!);
  for (const index of [0, 2])
    check(readFileSync(images[index]!).equals(golden), `c${index}.img is the same as the source`);

  say('the drive is mended: its table has no bad line any more');
  await stage.dm.load('worn', whole);
  await stage.dm.resume('worn');
  const second = await copied(stage, source!, ['worn'], { mapfile: `${mapfile}.2`, retry: true });
  check(second.destinations[0]!.totalSectorCount === 1, 'the map has one sector left to copy');
  check(second.complete && readFileSync(images[1]!).equals(golden), 'c1.img is the same as the source');
  stage.dm.devices.unregister('worn');
  drive.close();
  byHand(`dmkit copy ${source} new.img other.img --keep-going --verify`);
}
