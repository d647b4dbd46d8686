// How a device's name stands among a table's words, where white space separates.

/** `name` with a backslash before each character that would end a word, start a comment or read as an escape. */
export function escapeArgument(name: string): string {
  return name.replace(/[ \t\v\f\r#]|\\(?=[\s\\#]|$)/g, (character) => `\\${character}`);
}
