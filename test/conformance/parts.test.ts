// The parts of the conformance run that need no kernel: the text of cases, content, answers, comparison, the draw.
import { describe, expect, test } from 'vitest';
import {
  formatDisk,
  formatStep,
  fullSteps,
  type Outcome,
  parseDisk,
  parseStep,
  readCase,
} from '../../conformance/case.ts';
import { randomCases, writtenCases } from '../../conformance/cases.ts';
import { compare, Tally } from '../../conformance/compare.ts';
import { phasesOf } from '../../conformance/exchange.ts';
import { answerOf, parseAnswers } from '../../conformance/guest/answers.ts';
import { planJob } from '../../conformance/guest/job.ts';
import { runHere } from '../../conformance/here.ts';
import { noise, packContent, shortHash, unpackContent } from '../../conformance/noise.ts';

describe('the text of a case', () => {
  test.each([
    'create x',
    'create x ro :: 0 8 linear @a 0\n8 8 zero',
    'load x :: ',
    'fails load x :: 0 8 linear @a  :: ',
    'resume x',
    'suspend x noflush',
    'message x 8 :: two words',
    'read x 0+8',
    'write x 9007199254740990+1 from=7 fua',
    'start write a 1+2 from=0',
    'finish',
    'discard x 1+2',
    'write-zeroes x 1+2',
    'zero-out x 1+2',
    'flush x',
    'contents a',
    'until x :: 16/16 0 AA',
    'poke c 8 :: 02000000',
    'deps x inactive',
    'info x',
    'tables',
    'statuses',
    'remove-all',
    'handover',
  ])('%j is read and written back', (line) => {
    expect(formatStep(parseStep(line))).toBe(line);
  });

  test.each(['', 'nonsense x', 'read', 'read x', 'read x 5', 'write x 5-6', 'handover x', 'start resume x', 'resume'])(
    '%j is no step',
    (line) => {
      expect(() => parseStep(line)).toThrow('is no step');
    },
  );

  test('disks', () => {
    for (const line of ['a 100 seed=1', 'cow 8 zero', 'b 96 seed=2 block=4096', 'f 64 seed=3 file']) {
      expect(formatDisk(parseDisk(line))).toBe(line);
    }
    for (const line of ['a', 'A 8 zero', 'a 0 zero', 'a 7 zero block=4096', 'a 8 what=1']) {
      expect(() => parseDisk(line)).toThrow();
    }
  });

  test('a phase ends with a look at everything, and a device that may be suspended is resumed before', () => {
    const one = readCase(
      't/1',
      ['a 8 zero'],
      ['create x :: 0 8 zero', 'suspend x', 'handover', 'create y :: 0 8 zero'],
    );
    expect(fullSteps(one).map(formatStep)).toEqual([
      ...[
        'create x :: 0 8 zero',
        'suspend x',
        'resume x',
        'tables',
        'statuses',
        'contents x',
        'remove-all',
        'handover',
      ],
      ...['create y :: 0 8 zero', 'tables', 'statuses', 'contents y', 'remove-all'],
    ]);
  });
});

test('cases are drawn alike from one seed, and differently from another', () => {
  const texts = (seed: number) => randomCases(seed, 20).map((one) => one.steps.map(formatStep));
  expect(texts(7)).toEqual(texts(7));
  expect(texts(7)).not.toEqual(texts(8));
  // A case does not depend on how many come after it.
  const more = new Map(randomCases(7, 20).map((one) => [one.name, one]));
  for (const one of randomCases(7, 3)) expect(more.get(one.name)).toEqual(one);
});

test('written cases have names of their own', () => {
  const names = writtenCases().map((one) => one.name);
  expect(new Set(names).size).toBe(names.length);
});

test('content is packed into few characters, whatever it is', () => {
  const mixed = Buffer.concat([noise(65536, 9), new Uint8Array(512 * 3), noise(3, 2), Buffer.alloc(512, 'x')]);
  expect(packContent(mixed)).toMatch(/^n65536\+9 z3 n3\+2 =\S+$/);
  expect(Buffer.compare(unpackContent(packContent(mixed)), mixed)).toBe(0);
});

describe('answers of the guest', () => {
  const one = readCase(
    't/1',
    ['a 8 zero'],
    ['create x :: 0 9 linear @a 0', 'read x 0+1', 'message x 0 :: hi', 'deps x', 'table x'],
  );
  const [planned] = planJob([{ one }]).cases;
  const text = [
    '@case 0',
    '@disk a vdd1 254:49',
    '@step 0',
    'device-mapper: reload ioctl on x (253:0) failed: Invalid argument',
    'Command failed.',
    '@rc 1',
    '[   12.3] device-mapper: table: 253:0: vdd1 too small for target: start=0, len=9, dev_size=8',
    '[   12.3] device-mapper: table: unable to set up device queue for new table.',
    '[   12.4] something else',
    '@step 1',
    "/sbin/dd: error reading '/dev/mapper/x': Input/output error",
    '@rc 1',
    '@step 2',
    '@rc missing',
    '@step 3',
    '2 dependencies\t: (254, 49) (253, 1)',
    '@rc 0',
    '@step 4',
    '0 8 linear 254:49 0',
    '@rc 0',
  ].join('\r\n');
  const { cases, finished } = parseAnswers(text);

  test('errors by name, the reason that was logged, devices by their names', () => {
    expect(finished).toBe(false);
    const answers = [0, 1, 2, 3, 4].map((number) => answerOf(planned!, cases.get(0)!, number, () => new Uint8Array(0)));
    expect(answers).toEqual([
      'EINVAL at reload: a too small for target: start=0, len=9, dev_size=8',
      'EIO',
      'no device',
      'a 253:1',
      '0 8 linear a 0',
    ]);
  });
});

describe('the comparison', () => {
  const one = readCase('t/1', ['a 8 seed=1'], ['fails create x :: 0 9 linear @a 0', 'contents a']);
  const outcome = (first: string, hash = 'h'): Outcome => ({
    answers: [first, '8 h', '', '', 'no device', 'ok'],
    disks: { a: hash },
    states: [],
  });

  test('finds answers and contents that differ, and refusals that were none', () => {
    expect(compare(one, outcome('EINVAL'), outcome('EINVAL'), new Tally())).toEqual([]);
    expect(compare(one, outcome('EINVAL'), outcome('ENODEV'), new Tally()).join()).toMatch(
      /kernel: EINVAL\s+dmkit: {2}ENODEV/,
    );
    expect(compare(one, outcome('EINVAL'), outcome('EINVAL', 'other'), new Tally()).join()).toContain(
      'disk a in the end',
    );
    expect(compare(one, outcome('ok'), outcome('ok'), new Tally()).join()).toContain(
      'the kernel did not refuse it: ok',
    );
  });

  test('lets pass what the list names, and knows that it was seen', () => {
    const listed = readCase('core/a regular file', ['a 8 seed=1'], ['create x :: 0 9 linear @a 0', 'contents a']);
    const tally = new Tally();
    expect(tally.unused()).toContain('image files');
    expect(compare(listed, outcome('ENODEV'), outcome('ok'), tally)).toEqual([]);
    expect(tally.unused()).not.toContain('image files');
  });
});

test('disks that another run left are where a phase goes on, in memory and in files', async () => {
  const one = readCase(
    't/1',
    ['a 40 seed=1', 'b 40 zero'],
    ['create x :: 0 40 linear @a 0', 'write x 3+9 from=5', 'handover', 'create y :: 0 40 linear @a 0', 'read y 0+40'],
  );
  const whole = await runHere(one);
  expect(shortHash(whole.states[0]!.a!)).toBe(whole.disks.a);
  const [, second] = phasesOf(one, whole);
  for (const files of [false, true]) {
    const again = await runHere(second!.one, { contents: whole.states[0]!, files });
    expect(compare(second!.one, second!.kernel, again, new Tally())).toEqual([]);
  }
  const blank = await runHere(second!.one);
  expect(compare(second!.one, second!.kernel, blank, new Tally())).not.toEqual([]);
});
