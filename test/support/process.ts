// Child processes that cannot outlive their time: every one leads a process group of its own, which gets SIGTERM when
// its time is up and SIGKILL two seconds later.
import { type ChildProcess, spawn } from 'node:child_process';

export interface RunOptions {
  timeoutSeconds?: number;
  input?: string | Uint8Array;
  env?: Record<string, string | undefined>;
  cwd?: string;
  signal?: AbortSignal;
}

export interface RunResult {
  /** The exit code; null when a signal ended the process (its own, an abort, or the time limit). */
  code: number | null;
  stdout: string;
  stderr: string;
  /** Standard output as it came, for programs that print an image. */
  stdoutBytes: Buffer;
  timedOut: boolean;
}

export interface StartOptions {
  timeoutSeconds?: number;
  env?: Record<string, string | undefined>;
  cwd?: string;
  /** What the program prints (standard output or error) when it is ready. Without it, ready is when it has started. */
  ready?: RegExp;
  readySeconds?: number;
}

export interface Started {
  pid: number;
  /** What `ready` matched. */
  match: RegExpMatchArray | undefined;
  output(): string;
  exited: Promise<number | null>;
  /** SIGTERM, SIGKILL after two seconds; resolves when the process is gone. */
  stop(): Promise<number | null>;
}

// For programs that hang: a busy machine takes its time to start one.
const DEFAULT_SECONDS = 120;
const KILL_AFTER_MS = 2_000;
const MAX_OUTPUT_BYTES = 256 << 20;
const living = new Set<number>();

function signalGroup(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(-pid, signal);
  } catch {
    // The group has ended.
  }
}

process.on('exit', () => {
  for (const pid of living) signalGroup(pid, 'SIGKILL');
});

interface Limited {
  child: ChildProcess;
  end(): void;
  hasTimedOut(): boolean;
}

function spawnLimited(
  command: string,
  args: readonly string[],
  options: RunOptions,
  stdin: 'pipe' | 'ignore',
): Limited {
  const seconds = options.timeoutSeconds ?? DEFAULT_SECONDS;
  const child = spawn(command, args, {
    cwd: options.cwd,
    detached: true,
    env: { ...process.env, ...options.env },
    stdio: [stdin, 'pipe', 'pipe'],
  });
  const pid = child.pid;
  let timedOut = false;
  let killTimer: NodeJS.Timeout | undefined;
  const end = (): void => {
    if (pid === undefined || killTimer !== undefined) return;
    signalGroup(pid, 'SIGTERM');
    killTimer = setTimeout(signalGroup, KILL_AFTER_MS, pid, 'SIGKILL');
  };
  const limitTimer = setTimeout(() => {
    timedOut = true;
    end();
  }, seconds * 1000);
  options.signal?.addEventListener('abort', end);
  if (options.signal?.aborted) end();
  if (pid !== undefined) living.add(pid);
  const settle = (): void => {
    clearTimeout(limitTimer);
    clearTimeout(killTimer);
    options.signal?.removeEventListener('abort', end);
    // What it left behind in its group (a server that went into the background) ends with it.
    if (pid !== undefined && living.delete(pid)) signalGroup(pid, 'SIGKILL');
  };
  child.on('close', settle);
  child.on('error', settle);
  return { child, end, hasTimedOut: () => timedOut };
}

function collect(stream: NodeJS.ReadableStream, onOverflow: () => void): () => Buffer {
  const chunks: Buffer[] = [];
  let byteLength = 0;
  stream.on('data', (chunk: Buffer) => {
    byteLength += chunk.length;
    if (byteLength > MAX_OUTPUT_BYTES) onOverflow();
    else chunks.push(chunk);
  });
  return () => Buffer.concat(chunks);
}

/** Runs a program to its end. It rejects only when the program could not be started. */
export function run(command: string, args: readonly string[] = [], options: RunOptions = {}): Promise<RunResult> {
  return new Promise((resolve, reject) => {
    const { child, end, hasTimedOut } = spawnLimited(command, args, options, 'pipe');
    const stdout = collect(child.stdout!, end);
    const stderr = collect(child.stderr!, end);
    child.on('error', reject);
    child.on('close', (code) => {
      const late = hasTimedOut() ? `\nkilled after ${options.timeoutSeconds ?? DEFAULT_SECONDS} s: ${command}\n` : '';
      resolve({
        code,
        stdout: stdout().toString(),
        stderr: stderr().toString() + late,
        stdoutBytes: stdout(),
        timedOut: hasTimedOut(),
      });
    });
    // A program that doesn't read its input closes the pipe: that is no failure of the run.
    child.stdin!.on('error', () => {});
    child.stdin!.end(options.input);
  });
}

/** Starts a server and resolves when it says that it is ready. Stop it in a `finally` or with `onTestFinished`. */
export async function start(command: string, args: readonly string[], options: StartOptions = {}): Promise<Started> {
  const { ready, readySeconds = DEFAULT_SECONDS, ...rest } = options;
  const { child, end } = spawnLimited(command, args, rest, 'ignore');
  const exited = new Promise<number | null>((resolve) => {
    child.on('close', resolve);
    child.on('error', () => resolve(127));
  });
  const stop = (): Promise<number | null> => {
    end();
    return exited;
  };
  let output = '';
  const match = await new Promise<RegExpMatchArray | undefined>((resolve, reject) => {
    const timer = setTimeout(() => fail(`was not ready after ${readySeconds} s`), readySeconds * 1000);
    const fail = (what: string): void => {
      clearTimeout(timer);
      void stop().then(() => reject(new Error(`${command} ${what}\n${output}`)));
    };
    const look = (): void => {
      const found = ready === undefined ? undefined : output.match(ready);
      if (found === null) return;
      clearTimeout(timer);
      resolve(found);
    };
    const take = (chunk: Buffer): void => {
      output += chunk;
      look();
    };
    child.stdout!.on('data', take);
    child.stderr!.on('data', take);
    child.on('spawn', look);
    child.on('error', (error) => fail(`could not be started: ${error.message}`));
    child.on('close', (code) => fail(`ended with ${code} before it was ready`));
  });
  return { pid: child.pid!, match, output: () => output, exited, stop };
}
