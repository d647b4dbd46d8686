// What the kernel says of a process together with everything it started: /proc.
import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';

let microsecondsPerTick;

function tickMicroseconds() {
  microsecondsPerTick ??= 1e6 / Number(execFileSync('getconf', ['CLK_TCK'], { encoding: 'utf8' }));
  return microsecondsPerTick;
}

/** Fields of /proc/PID/stat from the third on: the second is a name, which may hold anything. */
function statOf(pid) {
  const text = readFileSync(`/proc/${pid}/stat`, 'utf8');
  return text.slice(text.lastIndexOf(')') + 2).split(' ');
}

function childrenOf(pid) {
  return readdirSync(`/proc/${pid}/task`).flatMap((thread) =>
    readFileSync(`/proc/${pid}/task/${thread}/children`, 'utf8').split(' ').filter(Boolean).map(Number),
  );
}

/** Asks `ask` of the process and each of its descendants; what ends meanwhile is left out. */
function sumOfTree(pid, ask) {
  let sum = 0;
  const pids = [pid];
  for (let next = pids.pop(); next !== undefined; next = pids.pop()) {
    try {
      sum += ask(next);
      pids.push(...childrenOf(next));
    } catch (error) {
      if (next === pid || !['ENOENT', 'ESRCH'].includes(error.code)) throw error;
    }
  }
  return sum;
}

const UTIME = 11;
const STIME = 12;
const CUTIME = 13;
const CSTIME = 14;

/** CPU time, user and system, of the tree so far; of children that have ended and were waited for, too. */
export function cpuMicroseconds(pid) {
  return sumOfTree(pid, (one) => {
    const stat = statOf(one);
    return [UTIME, STIME, CUTIME, CSTIME].reduce((sum, field) => sum + Number(stat[field]), 0) * tickMicroseconds();
  });
}

/** CPU time of children of this process that have ended. */
export function endedChildrenMicroseconds() {
  const stat = statOf('self');
  return (Number(stat[CUTIME]) + Number(stat[CSTIME])) * tickMicroseconds();
}

/** Memory of the tree in KiB, pages that are shared counted in parts (PSS). */
export function pssKiB(pid) {
  return sumOfTree(pid, (one) => Number(/^Pss:\s+(\d+)/m.exec(readFileSync(`/proc/${one}/smaps_rollup`, 'utf8'))[1]));
}
