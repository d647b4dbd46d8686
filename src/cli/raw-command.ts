// A command whose words are not all UTF-8: Node.js starts programs with text alone, so a shell puts the bytes together.
import { encodeName, isOddName } from '../block/file-name.ts';

const SHELL = '/bin/sh';

export interface Command {
  readonly program: string;
  readonly args: readonly string[];
}

/** A format for printf that prints `word`, in ASCII. */
function formatOf(word: string): string {
  const octal = (byte: number): string => `\\${byte.toString(8).padStart(3, '0')}`;
  return [...encodeName(word)].map(octal).join('');
}

/** The command, or one in its place that runs it with the bytes of its words; it becomes the program (exec). */
export function rawCommand(command: Command): Command {
  const words = [command.program, ...command.args];
  if (!words.some(isOddName)) return command;
  const plain: string[] = [];
  let script = '';
  const place = (word: string, index: number): string => {
    if (!isOddName(word)) return `"\${${plain.push(word)}}"`;
    // A substitution drops line ends at its end: a letter behind them keeps them.
    script += `w${index}=$(printf '${formatOf(word)}x'); w${index}=\${w${index}%x}; `;
    return `"$w${index}"`;
  };
  const places = words.map(place).join(' ');
  return { program: SHELL, args: ['-c', `${script}exec ${places}`, SHELL, ...plain] };
}
