// What the tests of remote devices share: a server of ours on a socket, a proxy before it, patience.
import { createConnection, createServer, type Server, type Socket } from 'node:net';
import { join } from 'node:path';
import { onTestFinished } from 'vitest';
import { MemoryDevice } from '../../src/devices/memory.ts';
import { formatNbdUri, NbdServer, NodeLoop } from '../../src/nbd/index.ts';
import { tempDir } from '../support/tmp.ts';

export const SECTOR_COUNT = 16_384;

/** Our server on a socket, whose connections a test can cut. */
export async function serve(device = new MemoryDevice('disk', SECTOR_COUNT), socket = join(tempDir(), 's.sock')) {
  const loop = new NodeLoop();
  const transports = new Set<{ destroy(): void }>();
  let accepting = true;
  let count = 0;
  const server = new NbdServer({ reactor: loop, exports: [{ name: 'disk', device }], onError: () => {} });
  await new Promise<void>((resolve, reject) => {
    loop.listen(
      { unix: socket },
      (transport) => {
        transports.add(transport);
        count++;
        if (accepting) server.accept(transport);
        else transport.destroy();
      },
      (error, listener) => {
        if (listener === null) reject(error);
        else resolve();
        onTestFinished(() => listener?.close());
      },
    );
  });
  const cut = (): void => {
    for (const transport of transports) transport.destroy();
    transports.clear();
  };
  onTestFinished(cut);
  return {
    device,
    uri: formatNbdUri({ socket, exportName: 'disk' }),
    socket,
    /** Connections that were ever made, and those that are there. */
    acceptedCount: () => count,
    connectionCount: () => server.statistics.connectionCount,
    cut,
    shut: () => {
      accepting = false;
      cut();
    },
    reopen: () => {
      accepting = true;
    },
  };
}

/** A socket whose connections go on to `target`. */
export async function plainProxy(
  socket: string,
  target: () => string,
  onPair: (client: Socket, to: Socket) => void = pipe,
) {
  const sockets = new Set<Socket>();
  const server: Server = createServer((client) => {
    const to = createConnection(target());
    for (const one of [client, to]) {
      sockets.add(one);
      one.on('error', () => {});
      one.on('close', () => {
        client.destroy();
        to.destroy();
      });
    }
    onPair(client, to);
  });
  await new Promise<void>((resolve) => server.listen(socket, resolve));
  const cut = (): void => {
    for (const one of sockets) one.destroy();
    sockets.clear();
  };
  onTestFinished(() => {
    cut();
    server.close();
  });
  return { cut };
}

export function pipe(client: Socket, to: Socket): void {
  client.pipe(to);
  to.pipe(client);
}

/** Until it succeeds. */
export async function eventually(work: () => Promise<unknown>): Promise<void> {
  for (let attempt = 0; ; attempt++) {
    try {
      await work();
      return;
    } catch (error) {
      if (attempt > 100) throw error;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }
}
