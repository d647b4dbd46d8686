// A thread of an NBD server, as a worker runs it: builds the devices that it is told of, serves the connections that it is
// given, stops when it is told to. See threads.ts.
import { parentPort, workerData } from 'node:worker_threads';
import { DeviceMapper } from '../api/device-mapper.ts';
import type { Disk } from '../api/disk.ts';
import { abandonRings, allowRing } from '../engine/index.ts';
import { allowSocketCalls } from '../engine/socket-calls.ts';
import { abandonSocketPoll, closeSocketPoll } from '../reactor/pulled-socket.ts';
import { parseTable } from '../table/text.ts';
import { MalformedError } from './protocol/info.ts';
import { descriptionOf } from './server/exports.ts';
import { shareRangeLock } from './server/range-lock.ts';
import { NbdServer } from './server/server.ts';
import { SharedGate } from './server/shared-gate.ts';
import { holdStill } from './thread-hold.ts';
import type { FromThread, ThreadPlan, ToThread } from './thread-plan.ts';
import { serverTls } from './tls.ts';

/** What devices get for their requests when nobody waits for the answers any more. */
const CLOSE_TIMEOUT_MILLISECONDS = 1000;

const port = parentPort!;
const plan = workerData as ThreadPlan;
const dm = new DeviceMapper({ heldFiles: plan.files });
const disks: Disk[] = [];

function post(message: FromThread): void {
  port.postMessage(message);
}

async function build(): Promise<NbdServer> {
  const { readOnly, threadIndex, threadCount } = plan;
  for (const device of plan.devices) {
    const { name, minor, lines } = device;
    (await dm.create(name, parseTable(lines.join('\n')), { minor, readOnly: device.readOnly })).close();
  }
  const server = new NbdServer({
    reactor: dm.loop,
    maxServerByteLength: plan.maxServerByteLength,
    ...(plan.tls === null ? {} : { tls: serverTls(plan.tls) }),
    onError: (error, peer) => post({ kind: 'error', error, isMalformed: error instanceof MalformedError, peer }),
    onEstablished: () => post({ kind: 'established' }),
    onGone: (wasEstablished) => post({ kind: 'gone', wasEstablished }),
  });
  for (const [index, name] of plan.names.entries()) {
    const disk = await dm.open(`/dev/mapper/${name}`, { readOnly });
    disks.push(disk);
    shareRangeLock(disk.device, new SharedGate(plan.gates[index]!, threadIndex, threadCount, dm.loop));
    server.exports.add({ name, device: disk.device, readOnly, ...descriptionOf(name, plan.descriptions) });
  }
  return server;
}

function accept(server: NbdServer, fd: number, peer: string): void {
  try {
    server.accept(dm.loop.adopt(fd, peer));
  } catch (error) {
    post({ kind: 'error', error: error as Error, isMalformed: false, peer });
    post({ kind: 'gone', wasEstablished: false });
  }
}

/** The process ends: from here on nothing is watched, and no memory of this thread is the kernel's. */
function hold(): void {
  abandonRings();
  abandonSocketPoll();
  holdStill(plan.held);
}

function stop(server: NbdServer): void {
  server.shutdown(async (failure) => {
    // Closing waits for what devices have, however long they take; who asked hears before that. The first answer counts.
    const timer = setTimeout(() => {
      post({ kind: 'stopped', reason: failure?.message ?? 'its devices do not close', hasEnded: false });
    }, CLOSE_TIMEOUT_MILLISECONDS);
    for (const disk of disks) disk.close();
    const error = await dm.close().then(
      () => null,
      (reason: Error) => reason,
    );
    clearTimeout(timer);
    closeSocketPoll();
    post({ kind: 'stopped', reason: (failure ?? error)?.message ?? null, hasEnded: error === null });
  });
}

try {
  // threads.ts ends this thread only when it has no connections and no requests, or holds still.
  allowRing();
  const server = await build();
  // Its descriptors are closed by nothing but itself.
  allowSocketCalls();
  port.on('message', (message: ToThread) => {
    if (message.kind === 'connection') accept(server, message.fd, message.peer);
    else if (message.kind === 'stop') stop(server);
    else hold();
  });
  post({ kind: 'ready' });
} catch (error) {
  post({ kind: 'unable', reason: (error as Error).message });
}
