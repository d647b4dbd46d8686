// A short run of both fuzzers; `npm run fuzz -- --minutes N --seed S` runs them for long. A failure says which round: its
// number alone repeats it (DMKIT_FUZZ_ROUND).
import { expect, it } from 'vitest';
import { runs, seed } from '../support/seed.ts';
import { fuzzClient } from './fuzz/client.ts';
import { fuzzServer } from './fuzz/server.ts';

const seconds = Number(process.env.DMKIT_FUZZ_SECONDS ?? 0);
const only = process.env.DMKIT_FUZZ_ROUND;

function fuzz(name: string, round: (seed: number) => void, count: number): void {
  const title = `${name} withstands ${seconds > 0 ? `${seconds} s` : `${count} rounds`}`;
  it(
    title,
    () => {
      const end = performance.now() + seconds * 1000;
      let done = 0;
      for (; seconds > 0 ? performance.now() < end : done < count; done++) {
        const number = only === undefined ? (seed + done) | 0 : Number(only);
        try {
          round(number);
        } catch (error) {
          throw new Error(`round ${number} failed; repeat it with DMKIT_FUZZ_ROUND=${number}`, { cause: error });
        }
        if (only !== undefined) break;
      }
      if (seconds > 0) process.stderr.write(`${name}: ${done} rounds from ${seed} on\n`);
      expect(done).toBeGreaterThanOrEqual(only === undefined ? 1 : 0);
    },
    (seconds + 300) * 1000,
  );
}

fuzz('the server', fuzzServer, runs(150));
fuzz('the client', fuzzClient, runs(1500));
