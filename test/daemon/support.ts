// A daemon in the test's own process, and programs that talk to it.
import { join } from 'node:path';
import { onTestFinished } from 'vitest';
import { ClientControl } from '../../src/client/connect.ts';
import { DaemonClient } from '../../src/client/index.ts';
import { type Daemon, type DaemonOptions, startDaemon } from '../../src/daemon/daemon.ts';
import { DaemonFolder } from '../../src/daemon/folder.ts';
import { tempDir } from '../support/tmp.ts';

export interface Running {
  daemon: Daemon;
  folder: DaemonFolder;
  client: DaemonClient;
}

/** A new client of a daemon; closed when the test ends. */
export function clientOf(folder: DaemonFolder): DaemonClient {
  const client = new DaemonClient(new ClientControl({ folder }));
  onTestFinished(() => client.close());
  return client;
}

/** Starts a daemon, and stops it when the test ends. */
export async function running(
  options: Partial<DaemonOptions> = {},
  folder: DaemonFolder = new DaemonFolder(join(tempDir('d'), 'd')),
): Promise<Running> {
  const daemon = await startDaemon({ folder, ...options });
  onTestFinished(() => daemon.stop('shutdown'));
  return { daemon, folder, client: clientOf(folder) };
}
