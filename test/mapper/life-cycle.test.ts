// The rules of a mapped device's life, one by one: states, names, events, users. Each test is a rule that an implementer
// gets wrong.
import { describe, expect, test } from 'vitest';
import { REQ_OP_DISCARD, REQ_OP_FLUSH, REQ_OP_READ, REQ_OP_WRITE, REQ_RAHEAD } from '../../src/block/bio.ts';
import { Errno } from '../../src/block/errno.ts';
import type { DmError } from '../../src/block/errors.ts';
import { type AnyTargetType, DM_MAPIO_REMAPPED, DM_MAPIO_REQUEUE, TargetError } from '../../src/block/target.ts';
import { Mapper } from '../../src/mapper/mapper.ts';
import { builtinTargets, Targets } from '../../src/targets/index.ts';
import { activate, CountingResolver, mapperOver, RecordingDevice, resume, submit } from '../support/stack.ts';

function codeOf(action: () => unknown): string {
  try {
    action();
  } catch (error) {
    return (error as DmError).code;
  }
  return 'none';
}

function stack(...types: AnyTargetType[]) {
  const a = new RecordingDevice('a', 100);
  const b = new RecordingDevice('b', 100);
  const resolver = new CountingResolver(a, b);
  return { a, b, resolver, mapper: new Mapper(new Targets([...builtinTargets, ...types]), resolver, 253) };
}

/** A linear-like target on device a that tells of every call in `log`; `override` changes it. */
function hooked(log: string[], override: Partial<AnyTargetType> = {}): AnyTargetType {
  return {
    name: 'hooked',
    version: [1, 0, 0],
    construct: (_target, args, setup) => ({ device: setup.getDevice('a'), tag: args[0], raise: setup.raiseEvent }),
    map: (target, bio) => {
      bio.device = target.context.device;
      return DM_MAPIO_REMAPPED;
    },
    presuspend: (target) => void log.push(`presuspend ${target.context.tag}`),
    presuspendUndo: (target) => void log.push(`undo ${target.context.tag}`),
    postsuspend: (target) => void log.push(`postsuspend ${target.context.tag}`),
    preresume: (target) => void log.push(`preresume ${target.context.tag}`),
    resume: (target) => void log.push(`resume ${target.context.tag}`),
    destruct: (target) => void log.push(`destruct ${target.context.tag}`),
    ...override,
  };
}

describe('a new device', () => {
  test('is active, of size 0 and was never loaded; the first load that succeeds changes only the last', () => {
    const { mapper } = stack();
    const device = mapper.create('d');
    expect([device.suspended, device.sectorCount, device.everLoaded]).toEqual([false, 0, false]);
    expect(codeOf(() => mapper.load(device, '0 8 nosuch'))).toBe('EINVAL');
    expect(device.everLoaded).toBe(false);
    mapper.load(device, '0 8 zero');
    expect([device.suspended, device.sectorCount, device.everLoaded]).toEqual([false, 0, true]);
  });

  test('can be suspended without a table, and removed suspended', () => {
    const { mapper } = stack();
    const device = mapper.create('d');
    device.suspend({}, () => {});
    expect(device.suspended).toBe(true);
    mapper.remove(device);
    expect(mapper.list()).toEqual([]);
  });
});

describe('suspend', () => {
  test('is interrupted: everything is undone, the device is active and what was held back goes on', () => {
    const log: string[] = [];
    const { mapper, a } = stack(hooked(log));
    const device = activate(mapper, 'd', '0 64 hooked 1');
    a.hold = true;
    const first = submit(device, REQ_OP_READ, 0, 1);
    log.length = 0;
    const change = device.suspend({}, () => log.push('done'));
    const second = submit(device, REQ_OP_READ, 1, 1);
    expect([device.suspended, a.log]).toEqual([false, ['read 0+1']]);
    change.cancel();
    expect([device.suspended, a.log]).toEqual([false, ['read 0+1', 'read 1+1']]);
    a.release();
    expect([first.ended, second.ended]).toEqual([true, true]);
    expect(log).toEqual(['presuspend 1', 'undo 1']);
    change.cancel();
    device.suspend({}, () => log.push('done'));
    expect(log.slice(2)).toEqual(['presuspend 1', 'postsuspend 1', 'done']);
  });

  test('takes turns with other changes: a resume that comes meanwhile waits for it', () => {
    const { mapper, a } = stack();
    const device = activate(mapper, 'd', '0 64 linear a 0');
    const log: string[] = [];
    a.hold = true;
    submit(device, REQ_OP_READ, 0, 1);
    device.suspend({}, () => log.push('suspended'));
    device.resume({}, () => log.push('resumed'));
    const third = device.suspend({}, () => log.push('suspended again'));
    third.cancel();
    expect(log).toEqual([]);
    a.release();
    expect([log, device.suspended]).toEqual([['suspended', 'resumed'], false]);
  });

  test('fails read-ahead instead of holding it back', () => {
    const { mapper } = stack();
    const device = activate(mapper, 'd', '0 64 linear a 0');
    device.suspend({}, () => {});
    expect(submit(device, REQ_OP_READ, 0, 1, { flags: REQ_RAHEAD })).toMatchObject({ ended: true, status: Errno.EIO });
  });

  /** From the suspend to the resume it gives back what reaches it. */
  function givingBack() {
    let giveBack = false;
    const type = hooked([], {
      map: (target, bio) => {
        if (giveBack) return DM_MAPIO_REQUEUE;
        bio.device = target.context.device;
        return DM_MAPIO_REMAPPED;
      },
      presuspend: () => {
        giveBack = true;
      },
      resume: () => {
        giveBack = false;
      },
    });
    return {
      type,
      start: () => {
        giveBack = true;
      },
    };
  }

  test('what a target gives back fails with EIO outside of a noflush suspend', () => {
    const { type, start } = givingBack();
    const { mapper } = stack(type);
    const device = activate(mapper, 'd', '0 64 hooked 1');
    start();
    expect(submit(device, REQ_OP_READ, 7, 1).status).toBe(Errno.EIO);
  });

  test.each([
    [true, 0],
    [false, Errno.EIO],
  ])('the later pieces of a request that come back during a suspend with noflush %s: %d', (noflush, status) => {
    // Two lines: the suspend begins while the first piece is with its device, the second piece is given back.
    const { type } = givingBack();
    const { mapper, a, b } = stack(type);
    const device = activate(mapper, 'd', '0 8 linear b 0\n8 8 hooked 1');
    b.submit = function submitAndSuspend(bio) {
      device.suspend({ noflush }, () => {});
      RecordingDevice.prototype.submit.call(b, bio);
    };
    const bio = submit(device, REQ_OP_READ, 0, 16);
    expect([bio.ended, device.suspended]).toEqual([!noflush, true]);
    b.submit = RecordingDevice.prototype.submit;
    resume(device);
    expect([bio.ended, bio.status, a.log]).toEqual([true, status, noflush ? ['read 8+8'] : []]);
  });

  test('a question about allocation waits for the resume, too', () => {
    const { mapper } = stack();
    const device = activate(mapper, 'd', '0 64 linear a 0');
    const answers: number[] = [];
    device.suspend({}, () => {});
    device.queryExtent(0, 64, (_errno, count) => answers.push(count));
    expect(answers).toEqual([]);
    mapper.load(device, '0 16 zero');
    resume(device);
    expect(answers).toEqual([16]);
  });
});

describe('resume', () => {
  test('of an active device suspends it, swaps and wakes, in the kernel’s order', () => {
    const log: string[] = [];
    const { mapper } = stack(hooked(log));
    const device = activate(mapper, 'd', '0 64 hooked 1');
    mapper.load(device, '0 32 hooked 2');
    expect(log).toEqual(['preresume 1', 'resume 1']);
    log.length = 0;
    resume(device);
    expect(log).toEqual(['presuspend 1', 'postsuspend 1', 'preresume 2', 'resume 2', 'destruct 1']);
  });

  test('of an active device without an inactive table changes nothing', () => {
    const log: string[] = [];
    const { mapper } = stack(hooked(log));
    const device = activate(mapper, 'd', '0 64 hooked 1');
    log.length = 0;
    resume(device);
    expect(log).toEqual([]);
  });

  test('that a target refuses leaves the device suspended with the new table', () => {
    let refuse = false;
    const type = hooked([], {
      preresume: () => {
        if (refuse) throw new TargetError('not yet');
      },
    });
    const { mapper } = stack(type);
    const device = activate(mapper, 'd', '0 64 zero');
    mapper.load(device, '0 32 hooked 2');
    refuse = true;
    expect(() => resume(device)).toThrow('not yet');
    expect([device.suspended, device.sectorCount]).toEqual([true, 32]);
    refuse = false;
    resume(device);
    expect(device.suspended).toBe(false);
  });

  test('that is interrupted loses the table it was about to make live and keeps the old one', () => {
    const { mapper, a, b, resolver } = stack();
    const device = activate(mapper, 'd', '0 64 linear a 0');
    a.hold = true;
    submit(device, REQ_OP_READ, 0, 1);
    mapper.load(device, '0 32 linear b 0');
    const change = device.resume({}, () => {
      throw new Error('it was interrupted');
    });
    expect(device.inactiveTable).toBeNull();
    change.cancel();
    expect([device.suspended, device.lines('table')]).toEqual([false, ['0 64 linear a 0']]);
    expect(resolver.openCount(b)).toBe(0);
  });

  test('a cycle through a table on its way to be live is found', () => {
    const { mapper, a } = stack();
    const low = activate(mapper, 'low', '0 64 linear a 0');
    const top = activate(mapper, 'top', '0 64 linear a 0');
    a.hold = true;
    submit(top, REQ_OP_READ, 0, 1);
    mapper.load(top, '0 64 linear dm:low 0');
    top.resume({}, () => {});
    expect(codeOf(() => mapper.load(low, '0 64 linear dm:top 0'))).toBe('EINVAL');
  });

  test('read-only follows the table that is live, not the one that waits', () => {
    const { mapper } = stack();
    const device = activate(mapper, 'd', '0 64 linear a 0', { readOnly: true });
    mapper.load(device, '0 64 linear a 0');
    expect([device.readOnly, device.inactiveTable!.readOnly]).toEqual([true, false]);
    resume(device);
    expect(device.readOnly).toBe(false);
  });

  test('an immutable target is replaced by its own type alone', () => {
    const { mapper } = stack(hooked([], { immutable: true }));
    const device = activate(mapper, 'd', '0 64 hooked 1');
    expect(codeOf(() => mapper.load(device, '0 64 zero'))).toBe('EINVAL');
    mapper.load(device, '0 64 hooked 2');
  });
});

describe('names and uuids', () => {
  test('rename: its own name and others’ are busy, slashes are not names', () => {
    const { mapper } = stack();
    const device = mapper.create('a');
    mapper.create('b');
    expect(codeOf(() => mapper.rename(device, 'a'))).toBe('EBUSY');
    expect(codeOf(() => mapper.rename(device, 'b'))).toBe('EBUSY');
    expect(codeOf(() => mapper.rename(device, 'x/y'))).toBe('EINVAL');
    mapper.rename(device, 'c');
    expect([mapper.has('a'), mapper.get('c') === device]).toEqual([false, true]);
  });

  test('a uuid is set once; one that is taken, by itself too, is busy', () => {
    const { mapper } = stack();
    const one = mapper.create('one');
    const two = mapper.create('two');
    mapper.setUuid(one, 'U');
    expect(codeOf(() => mapper.setUuid(one, 'U'))).toBe('EBUSY');
    expect(codeOf(() => mapper.setUuid(two, 'U'))).toBe('EBUSY');
    expect(codeOf(() => mapper.setUuid(one, 'V'))).toBe('EINVAL');
    expect(codeOf(() => mapper.setUuid(two, 'x'.repeat(129)))).toBe('EINVAL');
    expect(mapper.getByUuid('U')).toBe(one);
    expect(codeOf(() => mapper.getByUuid(''))).toBe('ENXIO');
  });

  test('by number: only our own major', () => {
    const { mapper } = stack();
    const device = mapper.create('d', { minor: 4 });
    expect(mapper.getByNumber(253, 4)).toBe(device);
    expect(codeOf(() => mapper.getByNumber(8, 4))).toBe('ENXIO');
  });
});

describe('events', () => {
  test('move on rename and setuuid where a table is live, and not on suspend, resume, load or swap', () => {
    const { mapper } = stack();
    const device = mapper.create('a');
    mapper.rename(device, 'b');
    mapper.load(device, '0 8 zero');
    mapper.rename(device, 'c');
    expect(device.eventNumber).toBe(0);
    resume(device);
    device.suspend({}, () => {});
    resume(device);
    mapper.load(device, '0 16 zero');
    resume(device);
    expect(device.eventNumber).toBe(0);
    mapper.rename(device, 'd');
    mapper.setUuid(device, 'U');
    expect(device.eventNumber).toBe(2);
  });

  test('wait returns at once for any other number, else at a rename, a target’s event or the removal', () => {
    let raise = (): void => {};
    const type = hooked([], {
      construct: (_target, _args, setup) => {
        raise = setup.raiseEvent;
        return { device: setup.getDevice('a'), tag: 1 };
      },
    });
    const { mapper } = stack(type);
    const device = activate(mapper, 'd', '0 8 hooked');
    const log: string[] = [];
    device.waitForEvent(99, () => log.push('99'));
    expect(log).toEqual(['99']);
    device.waitForEvent(0, () => log.push('rename'));
    const stop = device.waitForEvent(0, () => log.push('never'));
    stop();
    mapper.rename(device, 'e');
    device.waitForEvent(0, () => log.push('old number'));
    device.waitForEvent(1, () => log.push('target'));
    raise();
    device.waitForEvent(2, () => log.push('removal'));
    mapper.remove(device);
    expect(log).toEqual(['99', 'rename', 'old number', 'target', 'removal']);
  });
});

describe('users', () => {
  test('one for each device below, whatever the lines and slots', () => {
    const { mapper } = stack();
    const low = activate(mapper, 'low', '0 8 zero');
    activate(mapper, 'h1', '0 8 linear 253:0 0');
    const h2 = activate(mapper, 'h2', '0 4 linear 253:0 0\n4 4 linear dm:low 0');
    expect(low.openCount).toBe(2);
    const other = mapper.create('other');
    mapper.load(other, '0 8 linear 253:0 0');
    expect(low.openCount).toBe(3);
    other.clear();
    expect(low.openCount).toBe(2);
    mapper.load(h2, '0 8 linear dm:low 0');
    expect(low.openCount).toBe(2);
    mapper.load(h2, '0 8 linear dm:low 0', { readOnly: true });
    expect(low.openCount).toBe(3);
    resume(h2);
    expect(low.openCount).toBe(2);
    mapper.remove(h2);
    expect(low.openCount).toBe(1);
  });

  test('a removal that is deferred: still opened, gone with the last user, called off by a message', () => {
    const { mapper } = stack();
    const device = activate(mapper, 'd', '0 8 linear a 0');
    mapper.acquire(device);
    expect(codeOf(() => mapper.remove(device))).toBe('EBUSY');
    mapper.remove(device, { deferred: true });
    expect([device.deferredRemove, mapper.has('d')]).toEqual([true, true]);
    mapper.acquire(device);
    mapper.release(device);
    device.message(0, '@cancel_deferred_remove');
    expect(device.deferredRemove).toBe(false);
    mapper.release(device);
    expect(mapper.has('d')).toBe(true);
    mapper.acquire(device);
    mapper.remove(device, { deferred: true });
    mapper.release(device);
    expect(mapper.has('d')).toBe(false);
  });

  test('a deferred removal at the bottom of a stack goes when the device on top goes', () => {
    const { mapper, resolver } = stack();
    const low = activate(mapper, 'low', '0 8 linear a 0');
    activate(mapper, 'top', '0 8 linear dm:low 0');
    mapper.remove(low, { deferred: true });
    expect(mapper.removeAll()).toEqual([]);
    expect(resolver.totalOpenCount).toBe(0);
  });

  test('removing all leaves what is open, and defers it where that is asked', () => {
    const { mapper } = stack();
    const device = activate(mapper, 'd', '0 8 zero');
    activate(mapper, 'e', '0 8 zero');
    mapper.acquire(device);
    expect(mapper.removeAll()).toEqual([device]);
    expect(device.deferredRemove).toBe(false);
    expect(mapper.removeAll({ deferred: true })).toEqual([device]);
    mapper.release(device);
    expect(mapper.list()).toEqual([]);
  });

  test('a removal waits for what is in flight before anything is closed; the name is free at once', () => {
    const { mapper, a, resolver } = stack();
    const device = activate(mapper, 'd', '0 64 linear a 0');
    const gone: string[] = [];
    mapper.onRemove = (removed) => gone.push(removed.dmName);
    a.hold = true;
    const bio = submit(device, REQ_OP_WRITE, 0, 1);
    let done = false;
    mapper.remove(device, {}, () => {
      done = true;
    });
    expect([mapper.has('d'), done, resolver.openCount(a)]).toEqual([false, false, 1]);
    a.release();
    expect([bio.status, done, resolver.openCount(a), gone]).toEqual([0, true, 0, ['d']]);
    expect(submit(device, REQ_OP_READ, 0, 1).status).toBe(Errno.EIO);
  });

  test('what is held back when a suspended device is removed fails with EIO', () => {
    const { mapper } = stack();
    const device = activate(mapper, 'd', '0 64 linear a 0');
    device.suspend({}, () => {});
    const bio = submit(device, REQ_OP_READ, 0, 1);
    mapper.remove(device);
    expect(bio).toMatchObject({ ended: true, status: Errno.EIO });
  });
});

describe('messages', () => {
  const type = hooked([], { message: (_target, args) => (args[0] === 'say' ? args.slice(1).join('+') : undefined) });

  test.each([
    ['hello', 0, 'Target type does not support messages'],
    ['hello', 99, 'Target message sector outside device.'],
    ['', 0, 'Empty message received.'],
    ['@bogus', 0, 'Unsupported message sent to DM core: @bogus'],
  ])('%j to sector %d: %s', (text, sector, reason) => {
    const { mapper } = stack();
    const device = activate(mapper, 'd', '0 64 zero');
    expect(() => device.message(sector, text)).toThrow(reason);
    expect(codeOf(() => device.message(sector, text))).toBe('EINVAL');
  });

  test('a device without a table takes none; the target of the sector answers', () => {
    const { mapper } = stack(type);
    expect(() => mapper.create('e').message(0, 'hi')).toThrow('The device has no table.');
    const device = activate(mapper, 'd', '0 8 zero\n8 8 hooked 1');
    expect(device.message(9, 'say a b')).toBe('a+b');
    expect(device.message(9, 'other')).toBeUndefined();
  });
});

test.each([REQ_OP_WRITE, REQ_OP_DISCARD])(
  'what waited and crosses the new end fails whole, nothing is done: %d',
  (op) => {
    const { mapper, a } = mapperOverOne();
    const device = activate(mapper, 'd', '0 64 linear a 0');
    device.suspend({}, () => {});
    const bio = submit(device, op, 4, 8);
    const flush = submit(device, REQ_OP_FLUSH, 60, 8);
    mapper.load(device, '0 8 linear a 0');
    resume(device);
    expect([bio.status, flush.status, a.log]).toEqual([Errno.EIO, 0, ['flush 0+0']]);
  },
);

test('what waited during a suspend is not overtaken by what comes while it goes out', () => {
  const { mapper, a } = mapperOverOne();
  const device = activate(mapper, 'd', '0 64 linear a 0');
  device.suspend({}, () => {});
  const first = submit(device, REQ_OP_WRITE, 1, 1);
  submit(device, REQ_OP_WRITE, 2, 1);
  first.onEnd = () => void submit(device, REQ_OP_WRITE, 3, 1);
  resume(device);
  expect(a.log).toEqual(['write 1+1', 'write 2+1', 'write 3+1']);
});

test('a suspend from within the end of one that waited begins when the rest has gone out', () => {
  const { mapper, a } = mapperOverOne();
  const device = activate(mapper, 'd', '0 64 linear a 0');
  device.suspend({}, () => {});
  const first = submit(device, REQ_OP_WRITE, 1, 1);
  const second = submit(device, REQ_OP_WRITE, 2, 1);
  first.onEnd = () => void device.suspend({}, () => {});
  device.resume({}, () => {});
  expect([a.log, second.ended, device.suspended]).toEqual([['write 1+1', 'write 2+1'], true, true]);
});

function mapperOverOne() {
  const a = new RecordingDevice('a', 100);
  return { a, mapper: mapperOver(a).mapper };
}
