// One boot's work: many cases as one shell script, and what its disks hold. Every disk of a case is a partition (made for
// the case, without a partition table) of one of two large disks, of 512- and of 4096-byte blocks, so that a case has
// disks of any size at the price of an image's stretch.
import {
  type Case,
  type DiskSpec,
  fullSteps,
  type IoStep,
  MAX_CONTENT_SECTOR_COUNT,
  retryBlockSize,
  type Step,
} from '../case.ts';

const SECTOR_SIZE = 512;
/** A look at the image's start must not find a partition table in somebody's noise. */
const FIRST_SECTOR = 2048;
const STRETCH_ALIGNMENT = 2048;

/** A case as the guest runs it; a disk that is not in `contents` holds what its line says. */
export interface GuestCase {
  one: Case;
  contents?: Record<string, Uint8Array>;
}

/** Where a disk of a case lies. */
export interface Place {
  image: 'disk512' | 'disk4096';
  firstSector: number;
  partition: number;
}

/** Where on the result disk an answer's bytes are. */
interface Slot {
  byteOffset: number;
  /** How many: known for a read; `contents` tells. */
  byteLength: number;
}

export interface PlannedCase extends GuestCase {
  steps: Step[];
  places: Map<string, Place>;
  /** By step; a handover has one for each disk. */
  slots: Map<number, Slot[]>;
}

export interface Job {
  script: string;
  cases: PlannedCase[];
  sectorCounts: Record<Place['image'], number>;
  resultByteLength: number;
}

export const NODES: Record<Place['image'], string> = { disk512: 'vdd', disk4096: 'vde' };

// Short names, because a job calls them thousands of times. $1 is the step's number everywhere; ranges are in bytes.
// Paths, because busybox's shell prefers its own dd and fallocate to those it finds.
const PRELUDE = `
P=/dev/vdb R=/dev/vdc
case_() { echo "@case $1" >&3; }
disk() { /sbin/addpart /dev/$2 $3 $4 $5 >&3 2>&1; read -r v </sys/class/block/$2$3/dev; echo "@disk $1 $2$3 $v" >&3; }
undisk() { /sbin/delpart /dev/$1 $2 >&3 2>&1 || echo "@trouble delpart $1$2" >&3; }
end() { r=$?; echo "@rc $r" >&3; }
node() { echo "@step $1" >&3; [ -b "$2" ] || { echo '@rc missing' >&3; return 1; }; }
dm() { echo "@step $1" >&3; shift; /sbin/dmsetup "$@" >&3 2>&1 </dev/null; end; [ $r = 0 ] || dmesg -c >&3; }
removeall() { echo "@step $1" >&3; /sbin/dmsetup remove_all >&3 2>&1; end
  for d in /sys/class/block/dm-*; do [ -e "$d" ] && echo "@trouble $d was left" >&3; done; }
w() { node $1 $2 && { /sbin/dd if=$P of=$2 bs=$4 count=1 skip=$5 seek=$3 iflag=direct,skip_bytes oflag=direct,seek_bytes$6 \\
  conv=notrunc status=none >&3 2>&1; end; }; }
r() { node $1 $2 && { /sbin/dd if=$2 of=$R bs=$4 count=1 skip=$3 seek=$5 iflag=direct,skip_bytes oflag=seek_bytes \\
  conv=notrunc status=none >&3 2>&1; end; }; }
k() { node $1 $2 && { /sbin/dd if=$2 of=$R bs=1048576 count=1 seek=$3 iflag=direct oflag=seek_bytes conv=notrunc >/run/o 2>&1 ||
  /sbin/dd if=$2 of=$R bs=$4 count=1048576 seek=$3 iflag=direct,count_bytes oflag=seek_bytes conv=notrunc,noerror,sync >/run/o 2>&1
  tail -n 1 /run/o >&3; echo '@rc 0' >&3; }; }
t() { node $1 $2 && { /sbin/blkdiscard -f -o $3 -l $4 $2 >&3 2>&1; end; }; }
p() { node $1 $2 && { /sbin/fallocate -p -o $3 -l $4 $2 >&3 2>&1; end; }; }
z() { node $1 $2 && { /sbin/fallocate -z -o $3 -l $4 $2 >&3 2>&1; end; }; }
x() { node $1 $2 && { printf "$4" | /sbin/dd of=$2 bs=65536 seek=$3 iflag=fullblock oflag=seek_bytes conv=notrunc,fsync \\
  status=none >&3 2>&1; end; }; }
y() { node $1 $2 && { /sbin/sync $2 >&3 2>&1; end; }; }
bg() { ("$@") 3>/run/bg & b=$!; sleep 0.3; }
fg() { wait $b; cat /run/bg >&3; }
u() { echo "@step $1" >&3; for i in 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9; do
  o=$(/sbin/dmsetup status "$2" 2>&1); case "$o" in *"$3"*) break;; esac; sleep 0.2; done; echo "$o" >&3; echo '@rc 0' >&3; }
ok() { echo "@step $1" >&3; echo '@rc 0' >&3; }
`;

/** Plans the boot for `cases`. */
export function planJob(cases: readonly GuestCase[]): Job {
  const sectorCounts = { disk512: FIRST_SECTOR, disk4096: FIRST_SECTOR };
  const job: Job = { script: '', cases: [], sectorCounts, resultByteLength: 0 };
  const lines = [PRELUDE];
  for (const [number, guestCase] of cases.entries()) {
    const planned = placeCase(job, guestCase);
    job.cases.push(planned);
    lines.push(`case_ ${number}`, ...caseLines(job, planned));
  }
  job.script = `${lines.join('\n')}\n`;
  return job;
}

function placeCase(job: Job, guestCase: GuestCase): PlannedCase {
  const places = new Map<string, Place>();
  const partitions = { disk512: 0, disk4096: 0 };
  for (const disk of guestCase.one.disks) {
    if (disk.isFile) continue;
    const image = disk.blockSize === 4096 ? 'disk4096' : 'disk512';
    const firstSector = job.sectorCounts[image];
    places.set(disk.name, { image, firstSector, partition: ++partitions[image] });
    job.sectorCounts[image] += Math.ceil(disk.sectorCount / STRETCH_ALIGNMENT) * STRETCH_ALIGNMENT;
  }
  return { ...guestCase, steps: fullSteps(guestCase.one), places, slots: new Map() };
}

/** The path of a disk in the guest. */
function diskPath(disk: DiskSpec, places: ReadonlyMap<string, Place>): string {
  const place = places.get(disk.name);
  return place === undefined ? `/run/${disk.name}` : `/dev/${NODES[place.image]}${place.partition}`;
}

function caseLines(job: Job, planned: PlannedCase): string[] {
  const lines: string[] = [];
  const closing: string[] = [];
  for (const disk of planned.one.disks) {
    const place = planned.places.get(disk.name);
    if (place === undefined) {
      lines.push(`truncate -s ${disk.sectorCount * SECTOR_SIZE} /run/${disk.name}`);
      continue;
    }
    const node = NODES[place.image];
    lines.push(`disk ${disk.name} ${node} ${place.partition} ${place.firstSector} ${disk.sectorCount}`);
    closing.push(`undisk ${node} ${place.partition}`);
  }
  for (const [number, step] of planned.steps.entries()) lines.push(...stepLines(job, planned, number, step));
  return [...lines, ...closing];
}

/** Bytes as the shell's printf takes them. */
function octal(hex: string): string {
  const bytes = [...Buffer.from(hex, 'hex')];
  return bytes.map((byte) => `\\${byte.toString(8).padStart(3, '0')}`).join('');
}

function takeSlot(job: Job, planned: PlannedCase, number: number, byteLength: number): Slot {
  const slot = { byteOffset: job.resultByteLength, byteLength };
  job.resultByteLength += Math.ceil(byteLength / 4096) * 4096;
  planned.slots.set(number, [...(planned.slots.get(number) ?? []), slot]);
  return slot;
}

function stepLines(job: Job, planned: PlannedCase, number: number, step: Step): string[] {
  if ('sectorCount' in step) return ioLines(job, planned, number, step);
  switch (step.verb) {
    case 'contents': {
      const slot = takeSlot(job, planned, number, MAX_CONTENT_SECTOR_COUNT * SECTOR_SIZE);
      return [`k ${number} ${pathOf(planned, step.on)} ${slot.byteOffset} ${retryBlockSize(planned.one)}`];
    }
    case 'until':
      return [`u ${number} ${quote(step.on)} ${quote(step.text)}`];
    case 'poke':
      return [`x ${number} ${pathOf(planned, step.on)} ${step.byteOffset} '${octal(step.hex)}'`];
    case 'flush':
      return [`y ${number} ${pathOf(planned, step.on)}`];
    case 'remove-all':
      return [`removeall ${number}`];
    case 'finish':
      return ['fg'];
    case 'handover':
      return handoverLines(job, planned, number);
    default:
      return [`dm ${number} ${dmsetupWords(planned, step).map(quote).join(' ')}`];
  }
}

function handoverLines(job: Job, planned: PlannedCase, number: number): string[] {
  const lines = planned.one.disks.map((disk) => {
    const slot = takeSlot(job, planned, number, disk.sectorCount * SECTOR_SIZE);
    return `r ${number} ${diskPath(disk, planned.places)} 0 ${slot.byteLength} ${slot.byteOffset}`;
  });
  return [...lines, `ok ${number}`];
}

function ioLines(job: Job, planned: PlannedCase, number: number, step: IoStep): string[] {
  if (step.started) {
    const finish = planned.steps.findIndex((other, index) => index > number && other.verb === 'finish');
    const [line] = ioLines(job, planned, finish, { ...step, started: false });
    return [`bg ${line}`, `ok ${number}`];
  }
  const path = pathOf(planned, step.on);
  // Past 2^44 sectors a number of bytes is no exact number any more.
  const range = `${BigInt(step.sector) * 512n} ${step.sectorCount * SECTOR_SIZE}`;
  switch (step.verb) {
    case 'read': {
      const slot = takeSlot(job, planned, number, step.sectorCount * SECTOR_SIZE);
      return [`r ${number} ${path} ${range} ${slot.byteOffset}`];
    }
    case 'write':
      return [`w ${number} ${path} ${range} ${step.from * SECTOR_SIZE}${step.fua ? ' ,dsync' : ''}`];
    case 'discard':
      return [`t ${number} ${path} ${range}`];
    case 'write-zeroes':
      return [`p ${number} ${path} ${range}`];
    case 'zero-out':
      return [`z ${number} ${path} ${range}`];
  }
}

function pathOf(planned: PlannedCase, on: string): string {
  const disk = planned.one.disks.find((one) => one.name === on);
  return disk === undefined ? `/dev/mapper/${on}` : diskPath(disk, planned.places);
}

/** `@a` in a table or message is the path of disk a. */
function resolveText(planned: PlannedCase, text: string): string {
  return text.replace(/@([a-z][a-z0-9]*)/g, (word, name: string) => {
    const disk = planned.one.disks.find((one) => one.name === name);
    return disk === undefined ? word : diskPath(disk, planned.places);
  });
}

function dmsetupWords(planned: PlannedCase, step: Step): string[] {
  if (step.verb === 'tables') return ['table'];
  if (step.verb === 'statuses') return ['status'];
  if (!('on' in step)) throw new Error(`${step.verb} is nothing for dmsetup`);
  if ('table' in step) {
    const options = step.readOnly ? ['-r'] : [];
    const table = step.table === null ? ['--notable'] : ['--table', resolveText(planned, step.table)];
    return [step.verb, step.on, ...options, ...table];
  }
  if (step.verb === 'message') {
    return ['message', step.on, step.sector, ...resolveText(planned, step.text).split(' ').filter(Boolean)];
  }
  if ('noflush' in step) return [step.verb, step.on, ...(step.noflush ? ['--noflush'] : [])];
  if (step.verb === 'info') return ['info', '-c', '--noheadings', '-o', 'attr,open,segments,events', step.on];
  const inactive = 'inactive' in step && step.inactive ? ['--inactive'] : [];
  return [step.verb, step.on, ...inactive];
}

function quote(word: string): string {
  return /^[\w./:=,+-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}
