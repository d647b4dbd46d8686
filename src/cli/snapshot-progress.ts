// How a merge is watched: a bar on a terminal, a line now and then elsewhere, events for programs.
import { SECTOR_SIZE } from '../block/sector.ts';
import type { MergeProgress } from '../client/index.ts';
import { bytesText } from './copy-progress.ts';

const LINE_MILLISECONDS = 5000;
const EVENT_MILLISECONDS = 1000;

export interface MergeWatch {
  show(progress: MergeProgress): void;
  stop(): void;
}

/** Says something not more often than every so many milliseconds, and for the first time when `last` is so long ago. */
function seldom(milliseconds: number, last: number, say: (progress: MergeProgress) => void): MergeWatch {
  let at = last;
  return {
    show: (progress) => {
      const now = performance.now();
      if (now - at < milliseconds) return;
      at = now;
      say(progress);
    },
    stop: () => {},
  };
}

function textOf({ leftChunkCount, chunkSectorCount }: MergeProgress): string {
  return `${leftChunkCount} chunks, ${bytesText(leftChunkCount * chunkSectorCount * SECTOR_SIZE)}, left`;
}

async function bar(name: string): Promise<MergeWatch> {
  const { default: cliProgress } = await import('cli-progress');
  const format = `${name} {bar} {percentage}% {left}`;
  const one = new cliProgress.SingleBar(
    { format, hideCursor: true, stream: process.stderr, barsize: 24 },
    cliProgress.Presets.legacy,
  );
  let started = false;
  return {
    show: (progress) => {
      const { leftChunkCount, totalChunkCount } = progress;
      const done = totalChunkCount === 0 ? 1 : totalChunkCount - leftChunkCount;
      if (!started) one.start(Math.max(1, totalChunkCount), done, { left: textOf(progress) });
      started = true;
      one.setTotal(Math.max(1, totalChunkCount));
      one.update(done, { left: textOf(progress) });
    },
    stop: () => {
      if (started) one.stop();
    },
  };
}

export async function watchMerge(name: string, json: boolean): Promise<MergeWatch> {
  if (json) {
    return seldom(EVENT_MILLISECONDS, Number.NEGATIVE_INFINITY, (progress) => {
      process.stdout.write(`${JSON.stringify({ event: 'progress', name, ...progress })}\n`);
    });
  }
  if (process.stderr.isTTY) return bar(name);
  // A short merge needs no words.
  return seldom(
    LINE_MILLISECONDS,
    performance.now(),
    (progress) => void process.stderr.write(`${name}: ${textOf(progress)}\n`),
  );
}
