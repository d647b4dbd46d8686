// Looked for before anything else is loaded: where standard output is a client's, nothing may touch process.stdout.

/** Whether a command line hands standard input and output over to a client (dmkit serve --stdio). */
export function isStdioServer(argv: readonly string[]): boolean {
  return argv[0] === 'serve' && argv.includes('--stdio');
}
