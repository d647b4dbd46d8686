// Commits to the record file named, until it is killed: says on stdout what it was told is there. Each commit sets two
// keys to its number, with enough beside them that a compaction comes.
import { writeSync } from 'node:fs';
import { RecordFile } from '../../dist/control/record-file.js';

const { file } = RecordFile.open(process.argv[2]);
writeSync(1, 'open\n');
for (let number = 1; number <= 6; number++) {
  const changes = new Map([
    ['a', number],
    ['b', number],
    ['filler', [String(number).repeat(30_000)]],
  ]);
  if (number === 4) file.commitNow(changes);
  else await file.commit(changes, { durable: number % 2 === 1 });
  writeSync(1, `${number}\n`);
}
file.close();
