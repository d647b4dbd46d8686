#!/usr/bin/env node
// The dmkit command: one subcommand a file; what a command does not need is not loaded, so that starting costs little.
import { hasInheritedSocket } from './activation.ts';
import { guardFailures } from './failure.ts';
import { guardOutput } from './output.ts';
import { restoreLostBytes } from './raw-arguments.ts';
import { isStdioServer } from './stdio-word.ts';

async function main(): Promise<void> {
  // Not process.exit: what is still to be printed to a pipe would be cut off.
  restoreLostBytes(process.argv);
  process.exitCode = await run(process.argv.slice(2));
}

async function run(argv: readonly string[]): Promise<number> {
  const exitCode =
    argv[0] === 'copy'
      ? await (await import('./copy-words.ts')).runCopyWords(argv.slice(1))
      : await (await import('./words.ts')).runWord(argv);
  return exitCode ?? (await import('./program.ts')).runProgram();
}

guardFailures();
// To touch process.stdout makes a pipe non-blocking for everybody who shares it, so what belongs to another is left alone.
if (!hasInheritedSocket() && !isStdioServer(process.argv.slice(2))) guardOutput();

await main();
