// Act 5: a device that outlives the command that made it.
import { withDaemon } from './command.ts';
import { check, IMAGE_SECTOR_COUNT, label, readLabel, type Stage, title } from './stage.ts';

export async function keep(stage: Stage): Promise<void> {
  title('5. A device stays between two commands, as in the kernel');
  const image = stage.makeImage('kept.img');
  await withDaemon(async (dmkit) => {
    dmkit(['create', 'kept', '--table', `0 ${IMAGE_SECTOR_COUNT - 8} linear ${image} 8`]);
    const sector = dmkit(['read', 'kept', '--sector', '2', '--count', '1']);
    check(readLabel(sector) === label('kept.img', 10), `the second command reads "${readLabel(sector).trim()}"`);
  });
}
