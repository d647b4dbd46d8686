// dmkit batch: commands of a file, one a line, as one request: all of them, or none.
import { readFileSync } from 'node:fs';
import { Errno, errnoFromException, errnoMessage } from '../block/errno.ts';
import { DmError, TableError } from '../block/errors.ts';
import { decodeName, rawName } from '../block/file-name.ts';
import { ClientControl } from '../client/connect.ts';
import {
  BATCH_STEPS,
  type BatchStep,
  type Control,
  type Reply,
  type RequestArgs,
  type RequestName,
} from '../control/requests.ts';
import { runDmsetup } from './dmsetup/interpreter.ts';
import { mapDevice, processIo } from './process-io.ts';
import { tellLost } from './words.ts';

/** Commands that say more than requests of a batch can. */
const DMSETUP_WORDS = ['create', 'load', 'reload', 'clear', 'suspend', 'resume', 'remove', 'rename'];

interface Step {
  name: BatchStep;
  args: object;
  /** From 1. */
  lineNumber: number;
}

function refuse(source: string, lineNumber: number, text: string): DmError {
  return new DmError(Errno.EINVAL, `${source}, line ${lineNumber}: ${text}; nothing was changed`);
}

/** Words of a line, as a shell takes them apart: blanks, quotes and backslashes. @throws DmError for an open quote */
export function splitLine(line: string): string[] {
  const words: string[] = [];
  let word: string | null = null;
  for (let at = 0; at < line.length; at++) {
    const character = line[at]!;
    if (character === "'" || character === '"') {
      word ??= '';
      for (at++; line[at] !== character; at++) {
        if (at >= line.length) throw new DmError(Errno.EINVAL, `the ${character} at its beginning has no partner`);
        if (character === '"' && line[at] === '\\' && /["\\$`]/.test(line[at + 1] ?? '')) at++;
        word += line[at];
      }
    } else if (character === '\\' && at + 1 < line.length) word = (word ?? '') + line[++at];
    else if (/\s/.test(character)) {
      if (word !== null) words.push(word);
      word = null;
    } else if (character === '#' && word === null) break;
    else word = (word ?? '') + character;
  }
  if (word !== null) words.push(word);
  return words;
}

/** Takes requests down instead of asking them. */
class StepRecorder implements Control {
  readonly steps: { name: BatchStep; args: object }[] = [];

  call<Name extends RequestName>(name: Name, args: RequestArgs<Name>): Promise<Reply<Name>> {
    if (!BATCH_STEPS.includes(name as BatchStep)) {
      throw new DmError(Errno.EINVAL, `a command that asks for "${name}" can't be in a batch`);
    }
    this.steps.push({ name: name as BatchStep, args });
    // No command looks at the reply of these but for a load's notices.
    return Promise.resolve({ notices: [] } as unknown as Reply<Name>);
  }
}

async function stepsOf(words: readonly string[]): Promise<{ name: BatchStep; args: object }[]> {
  const [first, second] = words;
  if (first === 'snapshot') {
    if (second !== 'create' && second !== 'drop') {
      throw new DmError(Errno.EINVAL, `"snapshot ${second ?? ''}" can't be in a batch: it takes create and drop`);
    }
    const { overlayStep } = await import('./snapshot-program.ts');
    return [await overlayStep(words.slice(1))];
  }
  if (!DMSETUP_WORDS.includes(first!)) {
    throw new DmError(Errno.EINVAL, `"${first}" can't be in a batch: it takes ${DMSETUP_WORDS.join(', ')}, snapshot`);
  }
  const recorder = new StepRecorder();
  let said = '';
  const say = (text: string): void => {
    said += text;
  };
  const io = {
    ...processIo('dmkit', () => []),
    stdout: say,
    stderr: say,
    note: say,
    mapDevice,
    readStdin: (): string => {
      throw new DmError(Errno.EINVAL, 'a table comes with --table or from a file here');
    },
  };
  if ((await runDmsetup(words, io, recorder)) !== 0) {
    throw new DmError(Errno.EINVAL, said.replace(/\n?Command failed\.\n$/, '').trimEnd());
  }
  return recorder.steps;
}

async function readSteps(source: string, text: string): Promise<Step[]> {
  const steps: Step[] = [];
  for (const [index, line] of text.split('\n').entries()) {
    try {
      const words = splitLine(line);
      if (words[0] === 'dmkit' || words[0] === 'dmsetup') words.shift();
      if (words.length === 0) continue;
      for (const step of await stepsOf(words)) steps.push({ ...step, lineNumber: index + 1 });
    } catch (error) {
      if (!(error instanceof DmError)) throw error;
      throw refuse(source, index + 1, error.message);
    }
  }
  return steps;
}

function readSource(file: string | undefined): { source: string; text: string } {
  const isStdin = file === undefined || file === '-';
  try {
    return { source: isStdin ? 'standard input' : file, text: decodeName(readFileSync(isStdin ? 0 : rawName(file))) };
  } catch (error) {
    const errno = errnoFromException(error);
    throw new DmError(errno, `cannot read ${isStdin ? 'standard input' : file}: ${errnoMessage(errno)}`);
  }
}

/** @returns the exit code */
export async function runBatchCommand(file: string | undefined, { json = false }: { json?: boolean }): Promise<number> {
  const { source, text } = readSource(file);
  const steps = await readSteps(source, text);
  if (steps.length === 0) return 0;
  const control = new ClientControl({ onLost: tellLost });
  try {
    const replies = await control.call(
      'batch',
      { steps: steps.map(({ name, args }) => ({ name, args })) },
      { onNotice: (notice) => void process.stderr.write(rawName(`dmkit: ${notice}\n`)) },
    );
    if (json) process.stdout.write(`${JSON.stringify(replies, null, 2)}\n`);
    return 0;
  } catch (error) {
    if (!(error instanceof DmError) || error.stepIndex === undefined) throw error;
    const { lineNumber } = steps[error.stepIndex]!;
    const reason = error instanceof TableError ? error.reason : error.message;
    const cause = error.cause instanceof Error ? `: ${error.cause.message}` : '';
    throw refuse(source, lineNumber, `${reason}${cause} (${errnoMessage(error.errno)})`);
  } finally {
    await control.close();
  }
}
