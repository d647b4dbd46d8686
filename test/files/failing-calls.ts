// Lets a call to the file system fail: the Nth of some kinds, as src/files/calls.ts names them. Undone when the test ends.
import { onTestFinished } from 'vitest';
import { type FileCalls, fileCalls, type Told } from '../../src/files/calls.ts';

export type CallName = keyof FileCalls;
// biome-ignore lint/suspicious/noExplicitAny: calls of any form are wrapped alike
type AnyCall = (...args: any[]) => any;

const original = { ...fileCalls };

/** Puts Node's own calls back. */
export function restoreCalls(): void {
  Object.assign(fileCalls, original);
}

/** Wraps the calls named; `wrap` gets the call that was there. */
function wrapCalls(names: readonly CallName[], wrap: (call: AnyCall, name: CallName) => AnyCall): void {
  for (const name of names) Object.assign(fileCalls, { [name]: wrap(fileCalls[name] as AnyCall, name) });
}

/** Every call that changes a file or makes it durable. */
export const ALL_CALLS = Object.keys(fileCalls) as CallName[];

function systemError(code: string): NodeJS.ErrnoException {
  return Object.assign(new Error(`${code}: injected`), { code });
}

/** Fails `call` with `code`, in the way that its kind tells of an error. */
export function failingWhen(names: readonly CallName[], code: (name: CallName) => string | null): void {
  wrapCalls(names, (call, name) => (...args) => {
    const failure = code(name);
    if (failure === null) return call(...args);
    if (!name.endsWith('Later')) throw systemError(failure);
    setImmediate(() => (args.at(-1) as Told)(systemError(failure)));
  });
}

/** The `nth` call of those named fails (and, with `andAfter`, all that come after it). */
export function injectFailure(names: readonly CallName[], nth: number, code: string, andAfter = false) {
  let count = 0;
  failingWhen(names, () => (++count === nth || (andAfter && count > nth) ? code : null));
  onTestFinished(restoreCalls);
  return { restore: restoreCalls, happened: () => count >= nth };
}

/** Writes take so many bytes at most. */
export function shortWrites(limit: number): void {
  wrapCalls(['write', 'writeLater'], (call, name) => (fd, bytes, offset, length, ...rest) => {
    const short = Math.min(length, limit);
    if (short > 0) return call(fd, bytes, offset, short, ...rest);
    if (name === 'write') return 0;
    setImmediate(() => (rest.at(-1) as Told)(null, 0));
  });
  onTestFinished(restoreCalls);
}
