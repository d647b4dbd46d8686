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

/** What `ask` gives; undefined where the process or thread has ended meanwhile. */
function unlessGone(ask) {
  try {
    return ask();
  } catch (error) {
    if (['ENOENT', 'ESRCH'].includes(error.code)) return undefined;
    throw error;
  }
}

function childrenOf(pid) {
  const threads = unlessGone(() => readdirSync(`/proc/${pid}/task`)) ?? [];
  return threads.flatMap((thread) => {
    const text = unlessGone(() => readFileSync(`/proc/${pid}/task/${thread}/children`, 'utf8')) ?? '';
    return text.split(' ').filter(Boolean).map(Number);
  });
}

/** Asks `ask` of the process and each of its descendants; what ends meanwhile is left out. */
function sumOfTree(pid, ask) {
  let sum = 0;
  const pids = [pid];
  for (let next = pids.pop(); next !== undefined; next = pids.pop()) {
    const one = next;
    sum += unlessGone(() => ask(one)) ?? 0;
    pids.push(...childrenOf(one));
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
  return sumOfTree(pid, (one) => {
    // Of a process that has ended, but was not waited for, the file is empty.
    const pss = /^Pss:\s+(\d+)/m.exec(readFileSync(`/proc/${one}/smaps_rollup`, 'utf8'));
    return Number(pss?.[1] ?? 0);
  });
}
