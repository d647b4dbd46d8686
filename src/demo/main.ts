// npm run demo: short acts on image files made here, each read back through our own NBD client, each with the one
// command that does the same by hand. It ends by itself; with --keep it goes on serving until a signal comes.
import { copyMany } from './copy-many.ts';
import { failingDisk } from './failing-disk.ts';
import { join } from './join.ts';
import { keep } from './keep.ts';
import { overlays } from './overlays.ts';
import { Stage, say, title } from './stage.ts';
import { stripe } from './stripe.ts';
import { writeMany } from './write-many.ts';

const ACTS = [join, stripe, failingDisk, writeMany, keep, copyMany, overlays];

/** Below the folder the demo is started in, so that the commands it prints work there afterwards. */
const FOLDER = 'dmkit-demo';

function stopSignal(): Promise<void> {
  return new Promise((resolve) => {
    for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => resolve());
  });
}

async function main(): Promise<void> {
  const stage = new Stage(FOLDER);
  try {
    for (const act of ACTS) await act(stage);
    title(`Done. The images are in ${FOLDER}/ for the commands above.`);
    if (process.argv.includes('--keep')) {
      const service = await stage.serve();
      for (const device of stage.dm.mapper.list()) say(service.uri(device.dmName));
      say('serving until ctrl-C');
      await stopSignal();
    }
  } finally {
    await stage.close();
  }
}

try {
  await main();
} catch (error) {
  process.stderr.write(`the demo failed: ${error instanceof Error ? error.stack : String(error)}\n`);
  process.exitCode = 1;
}
