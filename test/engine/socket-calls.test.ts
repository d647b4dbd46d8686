// How SocketPoll tells of what is ready, and how long it waits for more: with a library that answers from a script and a
// clock that the test turns.
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import type { Libc } from '../../src/engine/libc.ts';
import type { SocketLibrary } from '../../src/engine/socket-calls.ts';

/** On one processor nobody waits. */
vi.mock('node:os', async (original) => ({ ...(await original<object>()), availableParallelism: () => 4 }));
const { EPOLLIN, SocketPoll } = await import('../../src/engine/socket-calls.ts');

const MAX_SPIN_COUNT = 100;
const WORD_COUNT = process.arch === 'x64' ? 3 : 4;
const [ADD, REMOVE, CHANGE] = [1, 2, 3];

let now = 1000;
beforeEach(() => {
  now = 1000;
  vi.spyOn(performance, 'now').mockImplementation(() => now);
});
afterEach(() => {
  vi.restoreAllMocks();
});

interface Ready {
  key: number;
  events: number;
}

/** One poll, and what it did. */
class World {
  /** What each call of waitPoll finds: nothing (a miss), or an errno, or what is ready. Nothing once it is empty. */
  readonly script: (Ready[] | number | null)[] = [];
  waitCount = 0;
  readonly told: Ready[] = [];
  canWait = true;
  onTold: () => void = () => {};
  readonly controls: [number, number, Ready][] = [];
  controlResult = 0;
  isReferenced = true;
  readonly poll: InstanceType<typeof SocketPoll>;
  #callback: () => void = () => {};
  readonly #memory: ArrayBufferLike[] = [];
  readonly closed: string[] = [];

  constructor() {
    const libc = {
      addressOf: (buffer: ArrayBufferLike) => this.#memory.push(buffer) - 1,
    } as Pick<Libc, 'addressOf'> as Libc;
    const library: Pick<SocketLibrary, 'waitPoll' | 'controlPoll' | 'watch' | 'close'> = {
      close: (fd) => {
        this.closed.push(`descriptor ${fd}`);
      },
      waitPoll: (fd, events, count, timeout) => this.#wait(fd, events, count, timeout),
      controlPoll: (_pollFd, operation, fd, event) => {
        const words = new Int32Array(this.#memory[event]!);
        this.controls.push([operation, fd, { key: words[WORD_COUNT - 2]!, events: words[0]! }]);
        return this.controlResult;
      },
      watch: (_fd, callback) => {
        this.#callback = callback;
        return {
          ref: () => {
            this.isReferenced = true;
          },
          unref: () => {
            this.isReferenced = false;
          },
          close: () => {
            this.closed.push('watch');
          },
        };
      },
    };
    this.poll = new SocketPoll(library as SocketLibrary, libc, 77, (key, events) => {
      this.told.push({ key, events });
      this.onTold();
      return this.canWait;
    });
  }

  #wait(fd: number, events: number, count: number, timeout: number): number {
    expect([fd, count, timeout]).toEqual([77, 64, 0]);
    this.waitCount++;
    if (this.waitCount > 1_000_000) throw new Error('it asks for ever');
    const found = this.script.shift() ?? null;
    if (found === null) return 0;
    if (typeof found === 'number') return found;
    const words = new Int32Array(this.#memory[events]!);
    for (const [i, { key, events: bits }] of found.entries()) {
      words[i * WORD_COUNT] = bits;
      words[i * WORD_COUNT + WORD_COUNT - 2] = key;
    }
    return found.length;
  }

  /** The event loop says that something is ready, `sleptMilliseconds` after the last time. @returns calls of waitPoll */
  wakeUp(sleptMilliseconds: number, ...script: (Ready[] | number | null)[]): number {
    now += sleptMilliseconds;
    this.script.push(...(script.length === 0 ? [one] : script));
    const before = this.waitCount;
    this.#callback();
    return this.waitCount - before;
  }
}

const one: Ready[] = [{ key: 3, events: EPOLLIN }];

function makeWorld(): World {
  const world = new World();
  world.poll.add(5, 3, EPOLLIN);
  return world;
}

/** Wakes it up after short sleeps until it waits as long as it ever does. */
function grow(world: World): void {
  world.wakeUp(5);
  for (let i = 0; i < 5; i++) world.wakeUp(0.1);
}

/** An event, and then nothing: how many looks it takes before it sleeps. */
const looks = (spinCount: number): number => 1 + 1 + spinCount;

describe('how long it waits for more', () => {
  it('not at all at first, nor after long sleeps', () => {
    const world = makeWorld();
    for (let i = 0; i < 50; i++) expect(world.wakeUp(i % 2 === 0 ? 5 : 0.3)).toBe(looks(0));
    expect(world.told).toHaveLength(50);
  });

  it('longer after each short sleep, up to a bound; and half as long after each long one', () => {
    const world = makeWorld();
    expect(world.wakeUp(5)).toBe(looks(0));
    expect([1, 2, 3, 4, 5, 6].map(() => world.wakeUp(0.1))).toEqual([8, 16, 32, 64, 100, 100].map(looks));
    expect([1, 2, 3, 4, 5, 6, 7, 8].map(() => world.wakeUp(1))).toEqual([50, 25, 12, 6, 3, 1, 0, 0].map(looks));
    expect(world.wakeUp(0.1)).toBe(looks(8));
  });

  it('no more, when the longest was in vain again and again; then it begins anew', () => {
    const world = makeWorld();
    grow(world);
    const counts = Array.from({ length: 22 }, () => world.wakeUp(0.1));
    const vain = counts.filter((count) => count === looks(MAX_SPIN_COUNT)).length;
    expect(vain).toBeLessThan(20);
    const end = counts.indexOf(looks(0));
    expect(end).toBeGreaterThan(10);
    expect(counts.slice(end, end + 3)).toEqual([0, 8, 16].map(looks));
  });

  it('as long as ever, when it was not always in vain', () => {
    const world = makeWorld();
    grow(world);
    for (let i = 0; i < 100; i++) {
      // Every eighth time something comes while it waits.
      if (i % 8 === 0) expect(world.wakeUp(0.1, one, null, null, one)).toBe(2 + looks(MAX_SPIN_COUNT) + 1);
      else expect(world.wakeUp(0.1)).toBe(looks(MAX_SPIN_COUNT));
    }
  });

  it('never, when a handler says no, whatever the others say', () => {
    const world = makeWorld();
    grow(world);
    world.canWait = false;
    for (let i = 0; i < 50; i++) expect(world.wakeUp(0.1)).toBe(1);
    const before = world.waitCount;
    world.canWait = true;
    let count = 0;
    world.onTold = () => {
      world.canWait = ++count !== 1;
    };
    world.wakeUp(0.1, [...one, { key: 4, events: EPOLLIN }]);
    expect(world.waitCount - before).toBe(1);
    expect(count).toBe(2);
  });

  it('never after it let others have their turn: that was no sleep', () => {
    const world = makeWorld();
    world.canWait = false;
    for (let i = 0; i < 10; i++) world.wakeUp(0.01);
    world.canWait = true;
    expect(world.wakeUp(0.01)).toBe(looks(0));
  });

  it('never, when nobody is left', () => {
    const world = makeWorld();
    grow(world);
    world.onTold = () => world.poll.remove(5);
    expect(world.wakeUp(0.1)).toBe(1);
  });

  it('not past its turn, however much comes', () => {
    const world = makeWorld();
    world.onTold = () => {
      now += 0.3;
    };
    world.wakeUp(5, ...Array.from({ length: 100 }, () => one));
    expect(world.told).toHaveLength(4);
  });

  it.each([-4, -9])('a call that fails with %i is a look that found nothing', (errno) => {
    const world = makeWorld();
    expect(world.wakeUp(5, errno)).toBe(1);
    expect(world.told).toEqual([]);
    expect(world.wakeUp(5, one, errno)).toBe(looks(0));
  });
});

describe('what it watches', () => {
  it('tells all of one look with their keys', () => {
    const world = makeWorld();
    const all = Array.from({ length: 64 }, (_, key) => ({ key, events: 1 + (key % 31) }));
    world.wakeUp(5, all);
    expect(world.told).toEqual(all);
  });

  it('keeps the process alive while it watches something', () => {
    const world = new World();
    expect(world.isReferenced).toBe(false);
    expect(world.poll.add(5, 0, EPOLLIN)).toBe(0);
    expect(world.poll.add(6, 1, EPOLLIN)).toBe(0);
    world.poll.change(6, 1, 4);
    world.poll.remove(5);
    expect(world.isReferenced).toBe(true);
    world.poll.remove(6);
    expect(world.isReferenced).toBe(false);
    expect(world.controls.map(([operation, fd]) => [operation, fd])).toEqual([
      [ADD, 5],
      [ADD, 6],
      [CHANGE, 6],
      [REMOVE, 5],
      [REMOVE, 6],
    ]);
    expect(world.controls[2]![2]).toEqual({ key: 1, events: 4 });
  });

  it('gives its descriptor back after the loop has left it', () => {
    const world = new World();
    world.poll.close();
    expect(world.closed).toEqual(['watch', 'descriptor 77']);
  });

  it('counts nothing that the system refused', () => {
    const world = new World();
    world.controlResult = -28;
    expect(world.poll.add(5, 0, EPOLLIN)).toBe(-28);
    expect(world.isReferenced).toBe(false);
    world.controlResult = 0;
    world.poll.add(5, 0, EPOLLIN);
    world.poll.remove(5);
    expect(world.isReferenced).toBe(false);
  });
});
