// The kernel's side: cases in, what the kernel did out. Many cases go into one boot, several boots run side by side.
import { spawnSync } from 'node:child_process';
import {
  closeSync,
  existsSync,
  ftruncateSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import type { Outcome } from '../case.ts';
import { diskContent, noise, PAYLOAD_SECTOR_COUNT, shortHash } from '../noise.ts';
import { answerOf, parseAnswers, type RawCase, troubleOf } from './answers.ts';
import { type GuestCase, type Job, NODES, type Place, type PlannedCase, planJob } from './job.ts';
import { type BootOptions, boot, chooseAccelerator } from './qemu.ts';

/** Which kernel answered. */
export interface GuestVersion {
  release: string;
  package: string;
  version: string;
  sha256: string;
  dmsetup: string;
}

/** What a batch gave: an outcome for each case, and why there is none for some. */
export interface KernelRun {
  outcomes: (Outcome | null)[];
  trouble: string[];
}

const CASES_A_BOOT = 64;
const BOOT_SECONDS = 120;
/** Where KVM works, a guest is up in two. */
const KVM_TRIAL_SECONDS = 20;
const SECONDS_A_CASE = 8;
const KILL_POLL_MILLISECONDS = 20;

/** Where kernel packages and the guest are kept: $DMKIT_CACHE, or ~/.cache/dmkit. */
export function cacheFolder(): string {
  return process.env.DMKIT_CACHE ?? join(homedir(), '.cache', 'dmkit');
}

/** Makes the guest where there is none; gives its version. @throws Error with the builder's words */
export function prepareGuest(buildScript: string): GuestVersion {
  const guest = join(cacheFolder(), 'guest');
  const scripts = [buildScript, join(buildScript, '..', 'init')].map((path) => readFileSync(path, 'utf8')).join('');
  const mark = join(guest, 'made-by');
  if (!existsSync(mark) || readFileSync(mark, 'utf8') !== scripts) {
    const { status, error } = spawnSync(buildScript, [cacheFolder()], { stdio: 'inherit', timeout: 600_000 });
    if (status !== 0) throw error ?? new Error(`${buildScript} failed`);
    writeFileSync(mark, scripts);
  }
  return JSON.parse(readFileSync(join(guest, 'guest.json'), 'utf8')) as GuestVersion;
}

/** The guest, ready to take cases. */
export class Kernel {
  readonly #accelerator: 'kvm' | 'tcg';
  readonly #parallel: number;
  readonly #report: (line: string) => void;

  private constructor(accelerator: 'kvm' | 'tcg', parallel: number, report: (line: string) => void) {
    this.#accelerator = accelerator;
    this.#parallel = parallel;
    this.#report = report;
  }

  /** @param parallel boots at one time */
  static async start(parallel: number, report: (line: string) => void): Promise<Kernel> {
    mkdirSync(cacheFolder(), { recursive: true });
    const accelerator = await chooseAccelerator(cacheFolder(), async () => {
      const { trouble } = await runJob(planJob([]), 'kvm', KVM_TRIAL_SECONDS, false);
      return trouble === null;
    });
    report(`the guest runs under ${accelerator === 'kvm' ? 'KVM' : 'emulation'}`);
    return new Kernel(accelerator, parallel, report);
  }

  /** Runs all `cases`; the outcomes are in their order. */
  async run(cases: readonly GuestCase[]): Promise<KernelRun> {
    const run: KernelRun = { outcomes: cases.map(() => null), trouble: [] };
    const bootCount = Math.max(this.#parallel, Math.ceil(cases.length / CASES_A_BOOT));
    const size = Math.max(1, Math.ceil(cases.length / bootCount));
    const starts = Array.from({ length: Math.ceil(cases.length / size) }, (_, index) => index * size);
    const worker = async () => {
      for (let start = starts.shift(); start !== undefined; start = starts.shift()) {
        await this.#runBoot(cases, start, Math.min(cases.length, start + size), run);
      }
    };
    await Promise.all(Array.from({ length: this.#parallel }, worker));
    return run;
  }

  /**
   * Kills the guest `milliseconds` after the case's first `stepCount` steps. What it had written by then is on the disks,
   * as after a power failure of a machine whose disks have no caches.
   */
  async runKilled(guestCase: GuestCase, stepCount: number, milliseconds: number): Promise<KilledRun> {
    const job = planJob([guestCase]);
    const folder = mkdtempSync(join(cacheFolder(), 'boot-'));
    const steps = () => {
      const path = join(folder, 'answers.log');
      return [
        ...(parseAnswers(existsSync(path) ? readFileSync(path, 'latin1') : '')
          .cases.get(0)
          ?.steps.values() ?? []),
      ];
    };
    let poll: NodeJS.Timeout | undefined;
    const onStart = (kill: () => void): void => {
      poll = setInterval(() => {
        if (steps().length <= stepCount) return;
        clearInterval(poll);
        setTimeout(kill, milliseconds);
      }, KILL_POLL_MILLISECONDS);
    };
    await boot({ ...prepareBoot(job, folder, this.#accelerator), limitSeconds: BOOT_SECONDS, onStart });
    clearInterval(poll);
    const [planned] = job.cases;
    const contents: Record<string, Uint8Array> = {};
    for (const disk of guestCase.one.disks) {
      const place = planned!.places.get(disk.name)!;
      contents[disk.name] = readAt(join(folder, place.image), place.firstSector * 512, disk.sectorCount * 512);
    }
    const endedCount = steps().filter((step) => step.code === '0').length;
    rmSync(folder, { recursive: true, force: true });
    return { endedCount, contents };
  }

  async #runBoot(cases: readonly GuestCase[], start: number, end: number, run: KernelRun): Promise<void> {
    const before = performance.now();
    const job = planJob(cases.slice(start, end));
    const limit = BOOT_SECONDS + SECONDS_A_CASE * (end - start);
    const { outcomes, trouble } = await runJob(job, this.#accelerator, limit);
    for (const [index, outcome] of outcomes.entries()) run.outcomes[start + index] = outcome;
    if (trouble !== null) run.trouble.push(trouble);
    const seconds = ((performance.now() - before) / 1000).toFixed(0);
    this.#report(`cases ${start + 1} to ${end} of ${cases.length}: ${seconds} s`);
  }
}

/** What a guest that was killed had done. */
interface KilledRun {
  /** Steps that had ended. */
  endedCount: number;
  contents: Record<string, Uint8Array>;
}

interface JobRun {
  outcomes: (Outcome | null)[];
  trouble: string | null;
}

/** One boot. Its folder stays when something went wrong, with `keep`. */
async function runJob(job: Job, accelerator: 'kvm' | 'tcg', limitSeconds: number, keep = true): Promise<JobRun> {
  const folder = mkdtempSync(join(cacheFolder(), 'boot-'));
  const failure = await boot({ ...prepareBoot(job, folder, accelerator), limitSeconds });
  const run = readJob(job, folder, failure);
  if (run.trouble === null || !keep) rmSync(folder, { recursive: true, force: true });
  else run.trouble += `\n  what the guest wrote is in ${folder}`;
  return run;
}

/** Fills the folder of a boot. */
function prepareBoot(job: Job, folder: string, accelerator: 'kvm' | 'tcg'): Omit<BootOptions, 'limitSeconds'> {
  const path = (name: string) => join(folder, name);
  writeFileSync(path('job'), job.script);
  padToSector(path('job'), job.script);
  writeFileSync(path('payload'), noise(0, PAYLOAD_SECTOR_COUNT));
  makeSparse(path('results'), Math.max(job.resultByteLength, 4096));
  for (const image of Object.keys(NODES) as Place['image'][]) fillDisks(path(image), image, job);
  return {
    guestFolder: join(cacheFolder(), 'guest'),
    accelerator,
    folder,
    jobByteLength: Buffer.byteLength(job.script),
    drives: [
      { path: path('job'), readOnly: true },
      { path: path('payload'), readOnly: true },
      { path: path('results') },
      { path: path('disk512') },
      { path: path('disk4096'), blockSize: 4096 },
    ],
  };
}

function padToSector(path: string, text: string): void {
  makeSparse(path, Math.ceil((Buffer.byteLength(text) + 1) / 512) * 512);
}

function makeSparse(path: string, byteLength: number): void {
  const fd = openSync(path, existsSync(path) ? 'r+' : 'w+');
  ftruncateSync(fd, byteLength);
  closeSync(fd);
}

function fillDisks(path: string, image: Place['image'], job: Job): void {
  makeSparse(path, job.sectorCounts[image] * 512);
  const fd = openSync(path, 'r+');
  for (const { one, contents, places } of job.cases) {
    for (const disk of one.disks) {
      const place = places.get(disk.name);
      if (place?.image !== image) continue;
      const content = contents?.[disk.name] ?? (disk.seed === null ? null : diskContent(disk));
      if (content !== null) writeSync(fd, content, 0, content.byteLength, place.firstSector * 512);
    }
  }
  closeSync(fd);
}

function readAt(path: string, byteOffset: number, byteLength: number): Uint8Array {
  const fd = openSync(path, 'r');
  const bytes = new Uint8Array(byteLength);
  readSync(fd, bytes, 0, byteLength, byteOffset);
  closeSync(fd);
  return bytes;
}

function readJob(job: Job, folder: string, failure: string | null): JobRun {
  const log = join(folder, 'answers.log');
  const { cases, finished } = parseAnswers(existsSync(log) ? readFileSync(log, 'latin1') : '');
  const trouble: string[] = [];
  if (failure !== null) trouble.push(failure);
  else if (!finished) trouble.push('the guest ended before its job did');
  const outcomes = job.cases.map((planned, number) => {
    const rawCase = cases.get(number);
    const outcome = rawCase === undefined ? null : readCase(planned, rawCase, folder);
    const odd = troubleOf(planned.one, rawCase, outcome?.answers ?? []);
    if (odd !== null) trouble.push(odd);
    return odd === null ? outcome : null;
  });
  return { outcomes, trouble: trouble.length === 0 ? null : trouble.join('\n') };
}

function readCase(planned: PlannedCase, rawCase: RawCase, folder: string): Outcome {
  const result = (byteOffset: number, byteLength: number) => readAt(join(folder, 'results'), byteOffset, byteLength);
  const answers = planned.steps.map((_, number) => answerOf(planned, rawCase, number, result));
  const disks: Record<string, string> = {};
  for (const disk of planned.one.disks) {
    const place = planned.places.get(disk.name);
    if (place === undefined) continue;
    disks[disk.name] = shortHash(readAt(join(folder, place.image), place.firstSector * 512, disk.sectorCount * 512));
  }
  const states = planned.steps.flatMap((step, number) => {
    if (step.verb !== 'handover') return [];
    const slots = planned.slots.get(number) ?? [];
    const names = planned.one.disks.map((disk) => disk.name);
    return [Object.fromEntries(slots.map((slot, at) => [names[at]!, result(slot.byteOffset, slot.byteLength)]))];
  });
  return { answers, disks, states };
}
