// What is made of benchmark results: merged files, the tables of a page, the chart. And one row that is really measured.
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { run } from '../support/process.ts';
import { tempDir } from '../support/tmp.ts';

const program = fileURLToPath(new URL('../../bench/run.mjs', import.meta.url));
const BEGIN = '<!-- benchmark results: begin; written by npm run bench -- --report FILE -->';
const END = '<!-- benchmark results: end -->';

const bench = (...args: string[]) => run(process.execPath, [program, ...args], { timeoutSeconds: 240 });

const spread = (median: number) => ({ median, min: median / 2, max: median * 2 });

function row(name: string, section: string, ratio: number) {
  return {
    name,
    what: name,
    fileSystem: 'tmpfs',
    section,
    label: `${name}, labelled`,
    unit: 'ops/s',
    lessIsBetter: false,
    rounds: 3,
    loadBefore: 0.5,
    loadAfter: 1.5,
    missing: [{ name: 'absent', reason: 'no absent: scripts/install-peers' }],
    failed: [],
    contestants: [
      { name: 'dmkit', value: spread(1000), values: [500, 1000, 2000], cpuMicroseconds: spread(10) },
      {
        name: 'a < b & c | d',
        value: spread(500),
        values: [250, 500, 1000],
        latencyMicroseconds: { p50: 1, p99: 22, p999: 333 },
        ratio: spread(ratio),
        ratioOf: 'dmkit',
      },
    ],
  };
}

function result(rows: object[], changes: object = {}, kernel = '6.1.0') {
  const machine = {
    date: '2026-01-02T03:04:05.000Z',
    cpu: 'A processor',
    cores: 2,
    memoryGiB: 4,
    platform: 'linux x64',
    kernel,
    versions: { dmkit: '0.1.0', fio: '3.33' },
  };
  return { machine, rounds: 3, seconds: 2, imageBytes: 2 ** 26, copyBytes: 2 ** 27, quick: false, rows, ...changes };
}

function save(folder: string, name: string, content: unknown): string {
  const path = join(folder, name);
  writeFileSync(path, typeof content === 'string' ? content : JSON.stringify(content));
  return path;
}

test('parts of a run are merged; a row that is in two is the later one', async () => {
  const folder = tempDir('bench');
  const one = save(folder, 'one.json', result([row('first', 'S', 2), row('second', 'S', 2)]));
  const two = save(folder, 'two.json', result([row('second', 'S', 4), row('third', 'T', 2)]));
  const out = join(folder, 'all.json');
  expect(await bench('--merge', one, two, '--json', out)).toMatchObject({ code: 0, stderr: '' });
  const { rows } = JSON.parse(readFileSync(out, 'utf8'));
  expect(rows.map(({ name }: { name: string }) => name)).toEqual(['first', 'second', 'third']);
  expect(rows[1].contestants[1].ratio.median).toBe(4);
});

test.each([
  ['another kernel', result([], {}, '6.2.0'), 'kernel: 6.1.0 and 6.2.0'],
  ['other times', result([], { seconds: 1 }), 'seconds: 2 and 1'],
  ['a quick run', result([], { quick: true }), 'quick: false and true'],
])('parts under other conditions are not merged: %s', async (_what, other, said) => {
  const folder = tempDir('bench');
  const out = join(folder, 'all.json');
  const paths = [save(folder, 'one.json', result([row('first', 'S', 2)])), save(folder, 'two.json', other)];
  const { code, stderr } = await bench('--merge', ...paths, '--json', out);
  expect(code).toBe(1);
  expect(stderr).toContain(said);
  expect(existsSync(out)).toBe(false);
});

test.each([
  ['no JSON', '{', 'give a file that npm run bench wrote'],
  ['no result', '{"machine":{}}', 'has no machine or no rows'],
  ['an old row', result([{ name: 'old', contestants: [] }]), 'row old was written by another version'],
])('a file that is no result is refused: %s', async (_what, content, said) => {
  const path = save(tempDir('bench'), 'r.json', content);
  const { code, stderr } = await bench('--report', path, join(path, 'page.md'));
  expect([code, stderr]).toEqual([1, expect.stringContaining(said)]);
});

test('the report replaces what is between the markers of a page, and draws the chart beside it', async () => {
  const folder = tempDir('bench');
  const path = save(folder, 'r.json', result([row('first', 'Section one', 2), row('second', 'Section two', 0.25)]));
  const page = save(folder, 'page.md', `before\n${BEGIN}\nold figures\n${END}\nafter\n`);
  for (let times = 0; times < 2; times++) {
    expect(await bench('--report', path, page)).toMatchObject({ code: 0, stderr: '' });
  }
  const text = readFileSync(page, 'utf8');
  expect(text).toMatch(/^before\n<!--/);
  expect(text).toMatch(/-->\nafter\n$/);
  expect(text).not.toContain('old figures');
  expect(text.match(/### Section one/g)).toHaveLength(1);
  expect(text).toContain('](page.svg)');
  expect(text).toContain('A processor, 2 cores, 4 GiB, linux x64, Linux 6.1.0');
  expect(text).toContain('| first, labelled | 1.00k ops/s<br>10.0 µs | **2.00** (1.00–4.00)<br>1.00 / 22.0 / 333 |');
  expect(text).toContain('a < b & c \\| d');
  expect(text.match(/Missing: absent/g)).toHaveLength(2);
  const chart = readFileSync(join(folder, 'page.svg'), 'utf8');
  expect(chart).toContain('a &lt; b &amp; c | d');
  expect(chart).toContain('>Section two<');
  expect(chart).toContain('fio 3.33');
  // One background, one mark of the legend, one bar for each ratio.
  expect(chart.match(/<rect /g)).toHaveLength(4);
  expect(chart).not.toMatch(/NaN|undefined|Infinity/);
});

test('bars lie on the side of 1 that their ratio is on', async () => {
  const folder = tempDir('bench');
  const better = save(folder, 'better.json', result([row('first', 'S', 4)]));
  const worse = save(folder, 'worse.json', result([row('first', 'S', 0.25)]));
  const ends = [];
  for (const path of [better, worse]) {
    const chart = `${path}.svg`;
    expect(await bench('--chart', path, chart)).toMatchObject({ code: 0, stderr: '' });
    const text = readFileSync(chart, 'utf8');
    // The line of 1 is the dark one of the axis.
    const one = Number(/<line x1="([\d.]+)"[^>]*y2="[\d.]+" stroke="#222" stroke-width="1"\/>/.exec(text)![1]);
    const [x, width] = /<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)" height="11" fill="#8c6d31"\/>\n<line/
      .exec(text)!
      .slice(1)
      .map(Number);
    ends.push([Math.round(x! - one), Math.round(x! + width! - one)]);
  }
  expect(ends[0]![0]).toBe(0);
  expect(ends[0]![1]).toBeGreaterThan(0);
  expect(ends[1]![0]).toBeLessThan(0);
  expect(ends[1]![1]).toBe(0);
});

test('a page without markers, and a quick run, are refused before anything is written', async () => {
  const folder = tempDir('bench');
  const page = save(folder, 'page.md', 'no markers\n');
  const good = save(folder, 'r.json', result([row('first', 'S', 2)]));
  const quick = save(folder, 'quick.json', result([row('first', 'S', 2)], { quick: true }));
  const without = await bench('--report', good, page);
  expect([without.code, without.stderr]).toEqual([1, expect.stringContaining(`${page} lacks the lines`)]);
  writeFileSync(page, `${BEGIN}\n${END}\n`);
  const hasty = await bench('--report', quick, page);
  expect([hasty.code, hasty.stderr]).toEqual([1, expect.stringContaining('--quick')]);
  expect(readFileSync(page, 'utf8')).toBe(`${BEGIN}\n${END}\n`);
  expect(existsSync(join(folder, 'page.svg'))).toBe(false);
});

test('a pattern that no row matches is told', async () => {
  const { code, stderr } = await bench('--rows', '^no such row$');
  expect([code, stderr]).toEqual([1, expect.stringContaining('no row')]);
});

test('a row is measured: figures, ratios, CPU time and the load', async () => {
  const out = join(tempDir('bench'), 'r.json');
  const args = ['--quick', '--rounds', '2', '--seconds', '0.01', '--rows', '^start-up$', '--json', out];
  expect(await bench(...args)).toMatchObject({ code: 0, stderr: '' });
  const { quick, rows } = JSON.parse(readFileSync(out, 'utf8'));
  expect(quick).toBe(true);
  const [measured] = rows;
  expect(measured).toMatchObject({ name: 'start-up', missing: [], failed: [], rounds: 2 });
  expect(measured.loadAfter).toBeGreaterThanOrEqual(0);
  const [bare, ...others] = measured.contestants;
  expect(bare.ratio).toBeUndefined();
  expect(others.length).toBeGreaterThan(3);
  for (const { values, ratio, ratioOf, cpuMicroseconds } of others) {
    expect(ratioOf).toBe('node -e 0');
    expect(values).toHaveLength(2);
    // Less is better: the ratio is theirs to the first one's.
    const expected = values.map((value: number, round: number) => value / bare.values[round]);
    expect(ratio.min).toBeCloseTo(Math.min(...expected), 9);
    expect(ratio.max).toBeCloseTo(Math.max(...expected), 9);
    expect(cpuMicroseconds.median).toBeGreaterThan(0);
  }
});
