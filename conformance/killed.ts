// npm run conformance:killed: SIGKILL for dmkit in the middle of its writes, and for the virtual machine in the middle of
// the kernel's. What each left is opened by both, which must see the same: what had ended, and of the write under way each
// sector old or new.
import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { DeviceMapper } from '../src/api/device-mapper.ts';
import { freshSeed, mixSeed, randomFromSeed } from '../src/testing/random.ts';
import { type Case, parseDisk, readCase } from './case.ts';
import { compare, describeCase, Tally } from './compare.ts';
import type { Contents } from './disks.ts';
import { Kernel, prepareGuest } from './guest/kernel.ts';
import { runHere } from './here.ts';
import { type KilledPlan, killedPlan, killedProblem } from './killed-plan.ts';
import { diskContent } from './noise.ts';

const DEFAULT_COUNT = 24;
/** Each is a boot of its own. */
const DEFAULT_BOOT_COUNT = 4;
const MAX_MILLISECONDS = 200;
const MAX_GUEST_MILLISECONDS = 15_000;

interface Killed {
  name: string;
  plan: KilledPlan;
  endedCount: number;
  contents: Contents;
}

export async function main(folder: string, args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: { seed: { type: 'string' }, count: { type: 'string' }, boots: { type: 'string' } },
  });
  const seed = Number(values.seed ?? freshSeed());
  prepareGuest(join(folder, 'guest', 'build-guest'));
  console.log(`seed ${seed}: repeat with npm run conformance:killed -- --seed ${seed}`);
  const kernel = await Kernel.start(2, console.log);
  const all: Killed[] = [];
  for (let number = 0; number < Number(values.count ?? DEFAULT_COUNT); number++) {
    all.push(await killDmkit(seed, number));
  }
  for (let number = 0; number < Number(values.boots ?? DEFAULT_BOOT_COUNT); number++) {
    all.push(await killKernel(kernel, mixSeed(seed, 1), number));
  }
  const problems = await openAll(kernel, all);
  for (const text of problems) console.log(`\n${text}`);
  const counts = all.map(({ endedCount }) => endedCount).join(' ');
  console.log(`\n${all.length} killed after ${counts} writes; ${problems.length} problems, seed ${seed}`);
  if (problems.length > 0) process.exitCode = 1;
}

async function killDmkit(seed: number, number: number): Promise<Killed> {
  const plan = killedPlan(seed, number);
  const folder = mkdtempSync(join(tmpdir(), 'dmkit-killed-'));
  try {
    for (const disk of plan.disks.map(parseDisk)) writeFileSync(join(folder, `${disk.name}.img`), diskContent(disk));
    const script = fileURLToPath(new URL('killed-writer.js', import.meta.url));
    const child = spawn(process.execPath, [script, folder, String(seed), String(number)], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    let said = '';
    const milliseconds = randomFromSeed(mixSeed(seed, number))() * MAX_MILLISECONDS;
    child.stdout.on('data', (text: Buffer) => {
      if (said === '') setTimeout(() => child.kill('SIGKILL'), milliseconds);
      said += text;
    });
    await new Promise((resolve) => child.once('close', resolve));
    const contents = Object.fromEntries(['a', 'c'].map((name) => [name, readFileSync(join(folder, `${name}.img`))]));
    const endedCount = said.split('@end').length - 1;
    return { name: `killed/dmkit ${number}, chunks of ${plan.chunk}`, plan, endedCount, contents };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** The steps before the first write: the kernel's origin is suspended while its snapshot is made. */
function beginSteps(plan: KilledPlan): string[] {
  return [`create o :: ${plan.originTable}`, 'suspend o', `create s :: ${plan.snapshotTable}`, 'resume o'];
}

async function killKernel(kernel: Kernel, seed: number, number: number): Promise<Killed> {
  // A few sizes far apart.
  const plan = killedPlan(seed, number * 5);
  const writes = plan.writes.map(({ on, sector, sectorCount, from }) => {
    return `write ${on} ${sector}+${sectorCount} from=${from}`;
  });
  const begin = beginSteps(plan);
  const name = `killed/kernel ${number}, chunks of ${plan.chunk}`;
  const one = readCase(name, plan.disks, [...begin, ...writes]);
  const milliseconds = randomFromSeed(mixSeed(seed, number))() * MAX_GUEST_MILLISECONDS;
  const { endedCount, contents } = await kernel.runKilled({ one }, begin.length, milliseconds);
  return { name, plan, endedCount: Math.min(endedCount - begin.length, writes.length), contents };
}

/** What both sides see is the same, and goes on in the same way. */
function openingCase({ name, plan }: Killed): Case {
  const whole = `0+${plan.size}`;
  const steps = [`create s :: ${plan.snapshotTable}`, 'status s', `read s ${whole}`, `create o :: ${plan.originTable}`];
  steps.push(`write o 0+${Math.min(plan.size, 100)} from=0`, `read s ${whole}`, 'write s 1+2 from=200', 'status s');
  return readCase(name, plan.disks, steps);
}

async function openAll(kernel: Kernel, all: readonly Killed[]): Promise<string[]> {
  const cases = all.map((killed) => ({ one: openingCase(killed), contents: killed.contents }));
  const run = await kernel.run(cases);
  const problems = [...run.trouble];
  for (const [index, killed] of all.entries()) {
    const { one, contents } = cases[index]!;
    const found = await lookAt(killed);
    const theirs = run.outcomes[index];
    if (theirs !== null && theirs !== undefined) {
      found.push(...compare(one, theirs, await runHere(one, { contents, files: true }), new Tally()));
    }
    if (found.length > 0) problems.push(`${describeCase(one)}\n${found.join('\n')}`);
  }
  return problems;
}

/** The contents, against what had been written. */
async function lookAt({ plan, endedCount, contents }: Killed): Promise<string[]> {
  const folder = mkdtempSync(join(tmpdir(), 'dmkit-killed-'));
  const dm = new DeviceMapper({ baseFolder: folder });
  try {
    for (const [name, bytes] of Object.entries(contents)) writeFileSync(join(folder, `${name}.img`), bytes);
    const snapshot = await dm.create('s', plan.snapshotTable.replace(/@([a-z])/g, '$1.img'));
    const seen = { s: await snapshot.read(0, plan.size), o: contents.a! };
    return (['s', 'o'] as const).flatMap((on) => killedProblem(plan, on, endedCount, seen[on]) ?? []);
  } catch (error) {
    return [`dmkit cannot open it: ${(error as Error).message}`];
  } finally {
    await dm.close();
    rmSync(folder, { recursive: true, force: true });
  }
}
