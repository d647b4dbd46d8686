// Makes docs/control-protocol.md of the table of requests: `npm run build && node scripts/protocol-page.mjs`.
import { writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const HEAD = `# The control socket

This page is made from \`src/control/requests.ts\` by \`scripts/protocol-page.mjs\`; a test compares the two.

Each message is a length in four bytes, big-endian, and JSON of that length. A message with \`texts\`, a list of lengths, has so
many bytes of tables behind it; \`{"text": 0}\` in its JSON stands for the first of them.

| from | message |
| --- | --- |
| daemon, once | \`{"dmkit": {"protocol": 2, "version": …}}\` |
| client, once | \`{"hello": {"protocol": 2, "version": …, "pid": …, "command": …}}\` |
| client | \`{"id", "name", "args"}\`, or \`{"cancel": id}\`, which interrupts a request: it is undone |
| daemon | \`{"id", "reply"}\` or \`{"id", "error"}\`; before that, any number of \`{"id", "progress"}\` and \`{"id", "notice"}\` |

A client of another protocol gets a sentence and ends. Requests of a client that disconnects are undone; a merge goes on.

| bound | what happens there |
| --- | --- |
| 1 MiB of JSON in a request, 16 braces inside each other | the client is cut off before anything is parsed |
| 256 MiB of tables behind a message | the client is cut off |
| 256 requests of a client under way, 1 MiB of answers that it has not taken | nothing more is read from it until it goes on |
| 256 clients | one more is closed |

An argument that does not fit is answered with \`EINVAL\` and a sentence. A path in an argument is absolute, or starts in
\`folder\`. A device is \`{name}\` or \`{uuid}\` or \`{major, minor}\`.

`;

const noDaemon = ({ starts, withoutDaemon }) => {
  if (starts) return 'one is started';
  if (withoutDaemon.name === 'noDevice') return '`ENXIO`';
  return withoutDaemon.name === 'noDaemon' ? '`DM_NO_DAEMON`' : 'answered as by a daemon without devices';
};

/** The page, as text. */
export function renderProtocolPage(requests) {
  const sections = Object.entries(requests).map(([name, request]) => {
    const rows = Object.entries(request.args).map(
      ([argument, shape]) =>
        `| \`${argument}\` | ${shape.describe.replaceAll('|', '\\|')} | ${shape.isOptional ? '' : 'yes'} |`,
    );
    const args =
      rows.length === 0
        ? 'No arguments.'
        : ['| argument | value | needed |', '| --- | --- | --- |', ...rows].join('\n');
    return `## ${name}\n${request.title}\n\n${args}\n\nReply: ${request.reply}. Without a daemon: ${noDaemon(request)}.\n`;
  });
  return HEAD + sections.join('\n');
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { REQUESTS } = await import('../dist/control/requests.js');
  writeFileSync(new URL('../docs/control-protocol.md', import.meta.url), renderProtocolPage(REQUESTS));
}
