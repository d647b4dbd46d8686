// The mapper's indexes say what a walk over all devices would say: who has a lower device open, and who has a uuid.
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { DmError } from '../../src/block/errors.ts';
import { mapperOver, RecordingDevice, resume } from '../support/stack.ts';

type Step = { device: number; kind: 'load' | 'resume' | 'clear' | 'refuse' | 'remove'; lower: number };

const STEP: fc.Arbitrary<Step> = fc.record({
  device: fc.nat(3),
  kind: fc.constantFrom('load', 'resume', 'clear', 'refuse', 'remove'),
  lower: fc.nat(2),
});

describe('the devices on a lower device', () => {
  test('are those with a live or a waiting table that has it open, whatever was loaded, refused, cleared and removed', () => {
    fc.assert(
      fc.property(fc.array(STEP, { maxLength: 30 }), (steps) => {
        const lowers = ['a', 'b', 'c'].map((name) => new RecordingDevice(name, 100));
        const { mapper } = mapperOver(...lowers);
        for (const { device: number, kind, lower } of steps) {
          const name = `d${number}`;
          const device = mapper.has(name) ? mapper.get(name) : mapper.create(name);
          const { name: argument } = lowers[lower]!;
          if (kind === 'load') mapper.load(device, `0 8 linear ${argument} 0\n8 8 linear ${argument} 8`);
          if (kind === 'refuse') expect(() => mapper.load(device, `0 8 linear ${argument} 0\n8 8 nosuch`)).toThrow();
          if (kind === 'resume' && (device.table ?? device.inactiveTable) !== null) resume(device);
          if (kind === 'clear') device.clear();
          if (kind === 'remove') mapper.remove(device);
          for (const one of lowers) {
            const walked = mapper
              .list()
              .filter(({ table, inactiveTable }) => [table, inactiveTable].some((slot) => slot?.devices.includes(one)));
            expect([...mapper.devicesOn(one)].map(({ dmName }) => dmName).sort()).toEqual(
              walked.map(({ dmName }) => dmName),
            );
          }
        }
      }),
    );
  });

  test('are told of a mapped device too', () => {
    const { mapper } = mapperOver(new RecordingDevice('a', 100));
    const below = mapper.create('below');
    mapper.load(below, '0 8 linear a 0');
    const above = mapper.create('above');
    mapper.load(above, '0 8 linear dm:below 0');
    expect([...mapper.devicesOn(below)]).toEqual([above]);
    mapper.remove(above);
    expect([...mapper.devicesOn(below)]).toEqual([]);
  });
});

describe('a uuid', () => {
  const codeOf = (action: () => unknown): string => {
    try {
      action();
    } catch (error) {
      return (error as DmError).code;
    }
    return 'none';
  };

  test('is free once its device is detached, and then keeps that from coming back', () => {
    const { mapper } = mapperOver();
    const first = mapper.create('first', { uuid: 'U' });
    mapper.detach(first);
    expect(codeOf(() => mapper.getByUuid('U'))).toBe('ENXIO');
    const second = mapper.create('second', { uuid: 'U' });
    expect(codeOf(() => mapper.reattach(first))).toBe('EBUSY');
    expect(mapper.getByUuid('U')).toBe(second);
    mapper.detach(second);
    mapper.reattach(first);
    expect(mapper.getByUuid('U')).toBe(first);
  });

  test('that was given by a change which is undone is free again', () => {
    const { mapper } = mapperOver();
    const device = mapper.create('d');
    mapper.setUuid(device, 'U');
    expect(mapper.getByUuid('U')).toBe(device);
    mapper.unsetUuid(device);
    expect(codeOf(() => mapper.getByUuid('U'))).toBe('ENXIO');
    expect(device.uuid).toBe('');
    mapper.setUuid(device, 'V');
    expect(mapper.getByUuid('V')).toBe(device);
  });
});
