import { describe, expect, test } from 'vitest';
import { SimulatedReactor } from '../../src/testing/index.ts';

describe('SimulatedReactor', () => {
  test('runs in the order of time, and woken callbacks in the order of the calls, before time goes on', () => {
    const reactor = new SimulatedReactor({ seed: 1 });
    const order: string[] = [];
    for (const milliseconds of [30, 10, 20, 0]) reactor.after(milliseconds, () => order.push(`${reactor.now()}`));
    for (const name of ['a', 'b', 'c']) reactor.wake(() => order.push(name));
    reactor.runUntilIdle();
    expect(order).toEqual(['a', 'b', 'c', '0', '10', '20', '30']);
    expect(reactor.idle).toBe(true);
  });

  test('shuffles what is due at the same time, the same way for the same seed', () => {
    const orderOf = (seed: number): number[] => {
      const reactor = new SimulatedReactor({ seed });
      const order: number[] = [];
      for (let i = 0; i < 100; i++) reactor.after(5, () => order.push(i));
      reactor.runUntilIdle();
      return order;
    };
    expect(orderOf(1)).toEqual(orderOf(1));
    expect(orderOf(1)).not.toEqual(orderOf(2));
    expect(orderOf(1).toSorted((a, b) => a - b)).toEqual(Array.from({ length: 100 }, (_, i) => i));
  });

  test('keeps thousands of timers in order', () => {
    const reactor = new SimulatedReactor({ seed: 3 });
    const times: number[] = [];
    for (let i = 0; i < 5000; i++) reactor.after((i * 7919) % 1009, () => times.push(reactor.now()));
    reactor.runUntilIdle();
    expect(times).toEqual(times.toSorted((a, b) => a - b));
    expect(times.length).toBe(5000);
  });

  test('run goes so far and no further, and includes what its callbacks add', () => {
    const reactor = new SimulatedReactor({ seed: 1 });
    const ticks: number[] = [];
    const tick = () => {
      ticks.push(reactor.now());
      reactor.after(10, tick);
    };
    reactor.after(10, tick);
    reactor.run(35);
    expect(ticks).toEqual([10, 20, 30]);
    expect(reactor.now()).toBe(35);
    reactor.run(5);
    expect(ticks.at(-1)).toBe(40);
  });

  test('afterSockets comes after everything that is due at that moment, in the order of the calls, and takes no time', () => {
    const reactor = new SimulatedReactor({ seed: 1 });
    const order: string[] = [];
    reactor.run(5);
    for (const name of ['a', 'b', 'c']) reactor.afterSockets(() => order.push(`${name} ${reactor.now()}`));
    for (let timer = 0; timer < 20; timer++) reactor.after(0, () => order.push('timer'));
    reactor.after(1, () => order.push('later'));
    reactor.wake(() => order.push('woken'));
    reactor.runUntilIdle();
    expect(order).toEqual(['woken', ...Array(20).fill('timer'), 'a 5', 'b 5', 'c 5', 'later']);
  });

  test('a cancelled timer does not run', () => {
    const reactor = new SimulatedReactor({ seed: 1 });
    reactor.after(1, () => expect.unreachable()).cancel();
    expect(reactor.idle).toBe(true);
    expect(reactor.step()).toBe(false);
  });

  test('runUntil stops at the condition, and says when it can not come', () => {
    const reactor = new SimulatedReactor({ seed: 1 });
    let count = 0;
    for (let i = 0; i < 5; i++) reactor.after(i, () => count++);
    reactor.runUntil(() => count === 3);
    expect(count).toBe(3);
    expect(() => reactor.runUntil(() => count === 6)).toThrow('condition is still false');
  });

  test('does not run for ever, and lets exceptions out', () => {
    const reactor = new SimulatedReactor({ seed: 9, maxCallbackCount: 100 });
    const again = () => reactor.wake(again);
    again();
    expect(() => reactor.runUntilIdle()).toThrow('still not done after 100 callbacks (seed 9)');
    const other = new SimulatedReactor();
    other.wake(() => {
      throw new Error('mine');
    });
    expect(() => other.run(1)).toThrow('mine');
  });

  test('settle gives what the promise gives', async () => {
    const reactor = new SimulatedReactor({ seed: 1 });
    const sleep = (milliseconds: number) => new Promise<void>((resolve) => void reactor.after(milliseconds, resolve));
    await expect(reactor.settle(sleep(5).then(() => 7))).resolves.toBe(7);
    await expect(reactor.settle(sleep(5).then(() => Promise.reject(new Error('no'))))).rejects.toThrow('no');
    await expect(reactor.settle(new Promise(() => {}))).rejects.toThrow('still pending');
    expect(reactor.now()).toBe(10);
    const endless = new SimulatedReactor({ maxCallbackCount: 10 });
    const again = () => endless.wake(again);
    again();
    await expect(endless.settle(new Promise(() => {}))).rejects.toThrow('still not done');
  });
});
