// A chart of ratios as SVG: for each row how many times as good the first contestant is as the others.
import { sectionsOf } from './results.mjs';

const COLUMN_WIDTH = 620;
const COLUMN_COUNT = 2;
const MARGIN = 24;
const NAME_WIDTH = 236;
const VALUE_WIDTH = 46;
const BAR_HEIGHT = 11;
const BAR_STEP = 15;
const ROW_TITLE_HEIGHT = 18;
const ROW_GAP = 5;
const SECTION_TITLE_HEIGHT = 26;
const AXIS_HEIGHT = 34;
const HEAD_HEIGHT = 84;
const FOOT_LINE_HEIGHT = 15;
const FOOT_CHARACTERS = 190;

/** A colour for each family of contestants, told by its first word; whatever else there is shares the last. */
const FAMILIES = [
  ['nbdkit', /^nbdkit/, '#1b9e77'],
  ['qemu', /^qemu/, '#d95f02'],
  ['nbd-server', /^nbd-server/, '#7570b3'],
  ['fio', /^fio/, '#e7298a'],
  ['Node.js', /^(fs\.|FileHandle|node )/, '#66a61e'],
  ['dmkit, another way', /^(dmkit|dm-io)/, '#3b7dd8'],
  ['ceiling: a server that moves no data', null, '#bbbbbb'],
  ['others', /./, '#8c6d31'],
];

function familyOf({ name, isCeiling }) {
  return FAMILIES.find(([, pattern]) => (isCeiling ? pattern === null : pattern?.test(name)));
}

const escapeText = (text) => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');

function text(x, y, content, { size = 11, anchor = 'start', weight = 'normal', fill = '#222' } = {}) {
  return `<text x="${x}" y="${y}" font-size="${size}" text-anchor="${anchor}" font-weight="${weight}" fill="${fill}">${escapeText(content)}</text>`;
}

function rectangle(x, y, width, height, fill) {
  return `<rect x="${x.toFixed(1)}" y="${y}" width="${Math.max(width, 0.5).toFixed(1)}" height="${height}" fill="${fill}"/>`;
}

function path(x1, y1, x2, y2, stroke, dashes = '') {
  return `<line x1="${x1.toFixed(1)}" y1="${y1}" x2="${x2.toFixed(1)}" y2="${y2}" stroke="${stroke}" stroke-width="1"${dashes && ` stroke-dasharray="${dashes}"`}/>`;
}

const compared = ({ contestants }) => contestants.filter(({ ratio }) => ratio !== undefined);

const heightOfRow = (row) => ROW_TITLE_HEIGHT + compared(row).length * BAR_STEP + ROW_GAP;

const heightOfSection = (rows) =>
  SECTION_TITLE_HEIGHT + AXIS_HEIGHT + rows.reduce((sum, row) => sum + heightOfRow(row), 0);

/** A logarithmic axis between powers of two that hold every ratio of the section, and 1/2 to 2 in any case. */
function axisOf(rows, left, width) {
  const ratios = rows.flatMap((row) => compared(row).flatMap(({ ratio }) => [ratio.min, ratio.max]));
  const low = Math.floor(Math.log2(Math.min(0.5, ...ratios)));
  const high = Math.ceil(Math.log2(Math.max(2, ...ratios)));
  const step = Math.ceil((high - low) / 8);
  const ticks = Array.from({ length: high - low + 1 }, (_, i) => low + i).filter((power) => power % step === 0);
  const at = (ratio) => left + ((Math.log2(ratio) - low) / (high - low)) * width;
  return { at, ticks: ticks.map((power) => 2 ** power) };
}

const tickText = (ratio) => (ratio < 1 ? `1/${1 / ratio}` : String(ratio));

function drawAxis({ at, ticks }, top, bottom) {
  return ticks.flatMap((ratio) => [
    path(at(ratio), top, at(ratio), bottom, ratio === 1 ? '#222' : '#ddd'),
    text(at(ratio).toFixed(1), bottom + 13, tickText(ratio), { size: 10, anchor: 'middle', fill: '#555' }),
  ]);
}

function drawBar(contestant, axis, x, y) {
  const { name, ratio } = contestant;
  const [from, to] = [axis.at(1), axis.at(ratio.median)].sort((a, b) => a - b);
  const middle = y + BAR_HEIGHT / 2;
  const [, , colour] = familyOf(contestant);
  return [
    text(x + NAME_WIDTH - 6, y + 9, name, { size: 10, anchor: 'end', fill: '#444' }),
    rectangle(from, y, to - from, BAR_HEIGHT, colour),
    path(axis.at(ratio.min), middle, axis.at(ratio.max), middle, '#222'),
    path(axis.at(ratio.min), y + 2, axis.at(ratio.min), y + BAR_HEIGHT - 2, '#222'),
    path(axis.at(ratio.max), y + 2, axis.at(ratio.max), y + BAR_HEIGHT - 2, '#222'),
    text(x + COLUMN_WIDTH, y + 9, ratio.median.toFixed(2), { size: 10, anchor: 'end' }),
  ];
}

function drawSection(title, rows, x, y) {
  const axis = axisOf(rows, x + NAME_WIDTH, COLUMN_WIDTH - NAME_WIDTH - VALUE_WIDTH);
  const top = y + SECTION_TITLE_HEIGHT;
  const bottom = y + heightOfSection(rows) - AXIS_HEIGHT;
  const parts = [text(x, y + 16, title, { size: 13, weight: 'bold' }), ...drawAxis(axis, top, bottom)];
  let at = top;
  for (const row of rows) {
    const base = compared(row)[0].ratioOf;
    parts.push(text(x + 6, at + 13, `${row.label}: ${base} against`, { weight: 'bold' }));
    at += ROW_TITLE_HEIGHT;
    for (const contestant of compared(row)) {
      parts.push(...drawBar(contestant, axis, x, at));
      at += BAR_STEP;
    }
    at += ROW_GAP;
  }
  return parts;
}

function drawLegend(rows, y) {
  const used = new Set(rows.flatMap((row) => compared(row).map(familyOf)));
  let x = MARGIN;
  return FAMILIES.filter((family) => used.has(family)).flatMap(([title, , colour]) => {
    const parts = [rectangle(x, y - 9, 11, 11, colour), text(x + 16, y, title)];
    x += 16 + title.length * 6.5 + 22;
    return parts;
  });
}

/** Lines of text no longer than they may be, broken at commas. */
function wrap(words) {
  const lines = [''];
  for (const word of words) {
    const last = lines.length - 1;
    const joined = lines[last] === '' ? word : `${lines[last]}, ${word}`;
    if (joined.length > FOOT_CHARACTERS) lines.push(word);
    else lines[last] = joined;
  }
  return lines;
}

function footLines({ machine, rounds, seconds }) {
  const { cpu, cores, memoryGiB, platform, kernel, versions, date } = machine;
  return [
    `${cpu}, ${cores} cores, ${memoryGiB} GiB, ${platform}, Linux ${kernel}; ${date.slice(0, 10)}; ${rounds} rounds of ${seconds} s`,
    ...wrap(Object.entries(versions).map(([name, version]) => `${name} ${version}`)),
  ];
}

/** Sections in columns: each goes where the least is. */
function placeSections(sections) {
  const heights = Array.from({ length: COLUMN_COUNT }, () => HEAD_HEIGHT);
  const placed = sections.map(([title, rows]) => {
    const column = heights.indexOf(Math.min(...heights));
    const place = { title, rows, x: MARGIN + column * (COLUMN_WIDTH + MARGIN * 2), y: heights[column] };
    heights[column] += heightOfSection(rows);
    return place;
  });
  return { placed, height: Math.max(...heights) };
}

/** The chart of a result. @throws Error where nothing was compared, or only to see that it works */
export function drawChart(result) {
  if (result.quick) throw new Error('a result of --quick shows that the harness works, and nothing else');
  const sections = [...sectionsOf(result)]
    .map(([title, rows]) => [title, rows.filter((row) => compared(row).length > 0)])
    .filter(([, rows]) => rows.length > 0);
  if (sections.length === 0) throw new Error('no row of this result compares anything');
  const { placed, height } = placeSections(sections);
  const foot = footLines(result);
  const width = COLUMN_COUNT * COLUMN_WIDTH + (COLUMN_COUNT - 1) * MARGIN * 2 + MARGIN * 2;
  const fullHeight = height + foot.length * FOOT_LINE_HEIGHT + MARGIN;
  const parts = [
    rectangle(0, 0, width, fullHeight, '#fff'),
    text(
      MARGIN,
      28,
      'How many times as good the first one is as each other: right of 1 it is better, left of 1 worse',
      { size: 16, weight: 'bold' },
    ),
    text(
      MARGIN,
      46,
      'Median of the ratios within a round; the thin line goes from the lowest to the highest. Logarithmic.',
    ),
    ...drawLegend(
      sections.flatMap(([, rows]) => rows),
      68,
    ),
    ...placed.flatMap(({ title, rows, x, y }) => drawSection(title, rows, x, y)),
    ...foot.map((line, i) => text(MARGIN, height + 10 + i * FOOT_LINE_HEIGHT, line, { size: 10, fill: '#555' })),
  ];
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${fullHeight}" viewBox="0 0 ${width} ${fullHeight}" font-family="system-ui, sans-serif">\n<title>How many times as good the first contestant of each row is as the others</title>\n${parts.join('\n')}\n</svg>\n`;
}
