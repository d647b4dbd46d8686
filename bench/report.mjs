// The table of docs/performance.md, written from a result file.
import { readFileSync, writeFileSync } from 'node:fs';
import { basename } from 'node:path';
import { median, short } from './harness.mjs';
import { sectionsOf } from './results.mjs';

const BEGIN = '<!-- benchmark results: begin; written by npm run bench -- --report FILE -->';
const END = '<!-- benchmark results: end -->';

const NOTHING = '–';

/** A table's cell must not end before its text does. */
const escapeCell = (text) => text.replaceAll('|', '\\|').replace(/\s+/g, ' ');

function cell({ value, ratio, cpuMicroseconds, latencyMicroseconds }, unit) {
  const parts = [];
  if (value === undefined) return 'failed';
  if (ratio !== undefined) {
    parts.push(`**${ratio.median.toFixed(2)}** (${ratio.min.toFixed(2)}–${ratio.max.toFixed(2)})`);
  } else {
    parts.push(`${short(value.median)} ${unit}`);
  }
  if (cpuMicroseconds !== undefined) parts.push(`${short(cpuMicroseconds.median)} µs`);
  if (latencyMicroseconds !== undefined) {
    const { p50, p99, p999 } = latencyMicroseconds;
    parts.push([p50, p99, p999].map(short).join(' / '));
  }
  return parts.join('<br>');
}

function table(rows) {
  // In the order of the row that has most of them.
  const fullest = rows.toSorted((a, b) => b.contestants.length - a.contestants.length);
  const names = [...new Set(fullest.flatMap(({ contestants }) => contestants.map(({ name }) => name)))];
  const line = (cells) => `| ${cells.map(escapeCell).join(' | ')} |`;
  return [
    line(['', ...names]),
    line(['---', ...names.map(() => '---')]),
    ...rows.map((row) => {
      const by = new Map(row.contestants.map((one) => [one.name, one]));
      const cells = names.map((name) => (by.has(name) ? cell(by.get(name), row.unit) : NOTHING));
      return line([row.lessIsBetter ? `${row.label} (less is better)` : row.label, ...cells]);
    }),
  ];
}

/** Who was not there, or gave up: once for each reason. */
function absences(rows) {
  const notes = rows.flatMap(({ label, missing, failed }) => [
    ...missing.map(({ name, reason }) => `Missing: ${name} (${reason}).`),
    ...failed.map(({ name, reason }) => `Failed in “${label}”: ${name} (${reason.split('\n')[0]}).`),
  ]);
  return [...new Set(notes)].map(escapeCell);
}

function paragraph(lines) {
  return lines.length === 0 ? [] : ['', ...lines];
}

function conditionsOf({ machine, rounds, seconds, imageBytes, rows }) {
  const { cpu, cores, memoryGiB, platform, kernel, versions, date } = machine;
  const loads = rows.flatMap(({ loadBefore, loadAfter }) => [loadBefore, loadAfter]);
  return [
    `${cpu}, ${cores} cores, ${memoryGiB} GiB, ${platform}, Linux ${kernel}, ${date.slice(0, 10)}. ` +
      `${rounds} rounds of ${seconds} s, images of ${imageBytes / 2 ** 20} MiB. ` +
      `Load average while it ran: ${median(loads).toFixed(1)} in the middle, ${Math.max(...loads).toFixed(1)} at the most.`,
    `Versions: ${Object.entries(versions)
      .map(([name, version]) => `${name} ${version}`)
      .join(', ')}.`,
  ];
}

/** The tables as Markdown. @throws Error for a quick run, whose figures mean nothing */
export function formatReport(result) {
  if (result.quick) throw new Error('a result of --quick shows that the harness works, and nothing else');
  const sections = [...sectionsOf(result)].flatMap(([section, rows]) => [
    '',
    `### ${section}`,
    '',
    ...table(rows),
    ...paragraph(absences(rows)),
  ]);
  return [...conditionsOf(result), ...sections].join('\n');
}

/**
 * Puts the tables between the markers of a page, and the chart's picture above them.
 *
 * @returns where the chart is looked for
 * @throws Error for a page without markers, or a quick run
 */
export function writeReport(page, result) {
  const text = readFileSync(page, 'utf8');
  const begin = text.indexOf(BEGIN);
  const end = text.indexOf(END);
  if (begin < 0 || end < begin) throw new Error(`${page} lacks the lines\n${BEGIN}\n${END}`);
  const chart = page.replace(/\.md$/, '.svg');
  const image = `![How many times as good dmkit is as the others](${basename(chart)})`;
  const tables = `${image}\n\n${formatReport(result)}`;
  writeFileSync(page, `${text.slice(0, begin + BEGIN.length)}\n\n${tables}\n\n${text.slice(end)}`);
  return chart;
}
