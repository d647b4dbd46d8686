// Text from a peer, made safe for a terminal and for a log of lines.

/**
 * Control characters (ESC moves the cursor, sets titles, or worse), line ends of any kind, characters that are not seen,
 * marks that turn the direction of writing (they make one text look like another), and halves of surrogate pairs.
 */
const UNSAFE =
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what this is about
  /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;
const UNSAFE_IN_LINES = new RegExp(`(?!\\n)(?:${UNSAFE.source})`, 'g');

function escaped(character: string): string {
  // A byte of a file's name: as a shell takes it in $'…'.
  if (character >= '\udc80' && character <= '\udcff') {
    return `\\x${(character.charCodeAt(0) - 0xdc00).toString(16)}`;
  }
  return `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`;
}

/** One line in which every character can be seen: others stand as `\u001b`. The form is JSON's, so JSON stays JSON. */
export function printable(text: string): string {
  return text.replace(UNSAFE, escaped);
}

/** The same for text of several lines, whose line ends are ours. */
export function printableLines(text: string): string {
  return text.replace(UNSAFE_IN_LINES, escaped);
}
