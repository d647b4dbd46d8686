// Which threads of a server have the connections, and connections in all of them.
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { expect, onTestFinished } from 'vitest';
import { connectNbd, type NbdConnection } from '../../src/nbd/connect.ts';
import type { Serving } from './cli.ts';

export const patient = { timeout: 150_000, interval: 20 };

/** For each epoll descriptor of a process what it watches. */
function watchedByPolls(pid: number): string[][] {
  const polls: string[][] = [];
  for (const fd of readdirSync(`/proc/${pid}/fdinfo`)) {
    try {
      const targets = [...readFileSync(`/proc/${pid}/fdinfo/${fd}`, 'utf8').matchAll(/^tfd:\s*(\d+)/gm)];
      polls.push(targets.map(([, target]) => readlinkSync(`/proc/${pid}/fd/${target}`)));
    } catch {
      // Closed meanwhile.
    }
  }
  return polls;
}

const isSocket = (name: string): boolean => name.startsWith('socket:');

/**
 * How many connections each thread of a process reads by itself: the sockets in each epoll descriptor that has nothing
 * else. Node's own have other things as well.
 */
export function connectionsByThread(pid: number): number[] {
  return watchedByPolls(pid)
    .filter((names) => names.length > 0 && names.every(isSocket))
    .map((names) => names.length);
}

/** How many sockets each thread has in Node's own loop, where it has any: connections under TLS, and what listens. */
export function socketsByLoop(pid: number): number[] {
  return watchedByPolls(pid)
    .filter((names) => names.some(isSocket) && !names.every(isSocket))
    .map((names) => names.filter(isSocket).length);
}

/** A client until the test ends. */
export async function client(uri: string): Promise<NbdConnection> {
  const connection = await connectNbd(uri);
  onTestFinished(async () => {
    await connection.close().catch(() => {});
  });
  return connection;
}

/** So many connections that every thread has some. Threads are there soon after the server, not before. */
export async function clientsOfAllThreads(
  serving: Pick<Serving, 'pid' | 'uris'>,
  threadCount: number,
): Promise<NbdConnection[]> {
  const uri = serving.uris[0]!;
  // The threads are there when one more connection is nobody else's.
  await expect
    .poll(async () => {
      const probes = await Promise.all(Array.from({ length: threadCount }, () => connectNbd(uri)));
      const used = probes.length;
      const spread = connectionsByThread(serving.pid).filter((count) => count === 1).length;
      await Promise.all(probes.map((probe) => probe.close()));
      return spread >= used;
    }, patient)
    .toBe(true);
  const clients: NbdConnection[] = [];
  for (let i = 0; i < 2 * threadCount; i++) clients.push(await client(uri));
  return clients;
}
