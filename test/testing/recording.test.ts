import { describe, expect, test } from 'vitest';
import { REQ_PREFLUSH } from '../../src/block/bio.ts';
import { type CrashState, issue, SimulatedDevice, SimulatedReactor } from '../../src/testing/index.ts';

const filled = (value: number, sectorCount = 1) => new Uint8Array(sectorCount * 512).fill(value);
const firstBytes = (state: CrashState, sectorCount: number) =>
  Array.from({ length: sectorCount }, (_, sector) => state.image.read(sector, 1)[0]).join('');

function recorded(seed = 1) {
  const disk = new SimulatedDevice('disk', 64, { seed });
  return { disk, recording: disk.record() };
}

describe('a recording', () => {
  test('lists events in words', () => {
    const { disk, recording } = recorded();
    issue(disk, 'write', { sector: 8, data: filled(1, 2), flags: REQ_PREFLUSH });
    issue(disk, 'read', { sectorCount: 1 });
    issue(disk, 'flush');
    expect(recording.events).toEqual([
      'preflush of write 8+2 preflush ended',
      'write 8+2 preflush submitted',
      'write 8+2 preflush ended',
      'flush ended',
    ]);
    expect(recording.eventCount).toBe(4);
  });

  test('gives every outcome of a crash where there are few', () => {
    const { disk, recording } = recorded();
    issue(disk, 'write', { sector: 0, data: filled(1, 2) });
    issue(disk, 'write', { sector: 1, data: filled(2, 2) });
    const last = [...recording.crashStates({ fromEvent: 4, statesPerEvent: 16 })].map((state) => firstBytes(state, 3));
    // Sector 1 is one of 0, 1, 2; sectors 0 and 2 are theirs or not.
    expect(last.toSorted()).toEqual(
      ['000', '002', '010', '012', '020', '022', '100', '102', '110', '112', '120', '122'].toSorted(),
    );
  });

  test('gives a bounded number of different outcomes where there are many, the extremes and near-extremes among them', () => {
    const { disk, recording } = recorded();
    for (let sector = 0; sector < 16; sector++) issue(disk, 'write', { sector, data: filled(1) });
    const states = [...recording.crashStates({ fromEvent: 32, statesPerEvent: 10 })].map((state) =>
      firstBytes(state, 16),
    );
    expect(states.length).toBe(10);
    expect(new Set(states).size).toBe(10);
    expect(states.slice(0, 2)).toEqual(['0'.repeat(16), '1'.repeat(16)]);
    const onesIn = states.map((state) => state.replaceAll('0', '').length);
    expect(onesIn).toContain(15);
    expect(onesIn).toContain(1);
  });

  test('is the same for the same seed', () => {
    const statesOf = (seed: number) => {
      const { disk, recording } = recorded(1);
      for (let i = 0; i < 20; i++) issue(disk, 'write', { sector: i % 7, data: filled(i + 1, 3) });
      return [...recording.crashStates({ seed })].map((state) => `${state} ${firstBytes(state, 10)}`);
    };
    expect(statesOf(5)).toEqual(statesOf(5));
    expect(statesOf(5)).not.toEqual(statesOf(6));
  });

  test('replays any event with any choice, and a state names both', () => {
    const { disk, recording } = recorded();
    for (let i = 0; i < 10; i++) {
      issue(disk, 'write', { sector: i, data: filled(i + 1, 4) });
      if (i % 3 === 0) issue(disk, 'flush');
    }
    let count = 0;
    for (const { eventIndex, choice, image } of recording.crashStates()) {
      expect(recording.replayUntil(eventIndex, choice).equals(image)).toBe(true);
      count++;
    }
    expect(count).toBeGreaterThan(50);
    expect(() => recording.replayUntil(recording.eventCount + 1, 'all')).toThrow(RangeError);
    const [state] = recording.crashStates({ fromEvent: 2 });
    expect(`${state}`).toBe('crash after event 2 (write 0+4 ended), choice "none", seed 1');
  });

  test('begins with what was volatile already', () => {
    const reactor = new SimulatedReactor({ seed: 1 });
    const disk = new SimulatedDevice('disk', 64, { seed: 1, reactor, latency: { write: 10 } });
    issue(disk, 'write', { sector: 0, data: filled(1) });
    reactor.runUntilIdle();
    issue(disk, 'write', { sector: 1, data: filled(2) });
    const recording = disk.record();
    const states = () => [...recording.crashStates()].map((state) => `${state.eventIndex}: ${firstBytes(state, 2)}`);
    expect(states().toSorted()).toEqual(['0: 00', '0: 02', '0: 10', '0: 12']);
    issue(disk, 'flush');
    reactor.runUntilIdle();
    // The flush ended at once: before the second write did.
    expect(recording.events).toEqual(['flush ended', 'write 1+1 ended']);
    expect(states().slice(4).toSorted()).toEqual(['1: 10', '1: 12', '2: 10', '2: 12']);
  });

  test('knows what had been noted, and stops', () => {
    const { disk, recording } = recorded();
    issue(disk, 'write', { data: filled(1) });
    recording.note('first');
    issue(disk, 'flush');
    recording.note('second');
    recording.stop();
    issue(disk, 'write', { sector: 1, data: filled(2) });
    const notes = [0, 1, 2, 3].map((eventCount) => {
      const [state] = recording.crashStates({ fromEvent: eventCount, toEvent: eventCount });
      return state!.notes.join();
    });
    expect(notes).toEqual(['', '', 'first', 'first,second']);
    expect(recording.eventCount).toBe(3);
  });

  test('opens a disk without the faults of the recorded one', () => {
    const disk = new SimulatedDevice('disk', 64, { seed: 1, faults: [{ kind: 'error', op: 'read' }] });
    const recording = disk.record();
    issue(disk, 'write', { data: filled(1) });
    const states = [...recording.crashStates({ fromEvent: 2 })];
    const opened = states.map((state) => state.open());
    expect(opened.map((other) => issue(other, 'read', { sectorCount: 1 }).data[0]).toSorted()).toEqual([0, 1]);
    const failing = states[0]!.open({ faults: [{ kind: 'error' }] });
    expect(issue(failing, 'read', { sectorCount: 1 }).errno).toBe(5);
  });

  test('goes on through the crash of its disk', () => {
    const { disk, recording } = recorded();
    issue(disk, 'write', { data: filled(1) });
    disk.crash();
    expect([...recording.crashStates({ fromEvent: 2 })].length).toBe(2);
  });
});
