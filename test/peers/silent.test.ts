// Hosts that connect and say nothing, again and again, and honest clients under TLS, which all come in.
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { issueCertificate, makeAuthority } from '../support/certificates.ts';
import { serve } from '../support/cli.ts';
import { describePeer, peer, run } from '../support/peers.ts';
import { tempDir } from '../support/tmp.ts';

const SILENT_COUNT = 300;
const HONEST_COUNT = 15;

/** Opens a silent connection again whenever it is closed. @returns how often one was */
function besiege(port: number): { closedCount: () => number } {
  const sockets = new Set<Socket>();
  let closedCount = 0;
  let isOver = false;
  const open = (): void => {
    if (isOver) return;
    const socket = connect(port, '127.0.0.1');
    sockets.add(socket);
    socket.resume();
    socket.on('error', () => {});
    socket.on('close', () => {
      sockets.delete(socket);
      closedCount++;
      setTimeout(open, 20);
    });
  };
  for (let i = 0; i < SILENT_COUNT; i++) open();
  onTestFinished(() => {
    isOver = true;
    for (const socket of sockets) socket.destroy();
  });
  return { closedCount: () => closedCount };
}

describePeer(['psktool', 'certtool', 'nbdinfo'], `${SILENT_COUNT} silent hosts`, () => {
  test.each([
    ['shared keys', 1],
    ['shared keys', 2],
    ['certificates', 1],
    ['certificates', 2],
  ])('keep out no client with %s: --threads %i', async (kind, threads) => {
    const folder = tempDir('silent');
    const credentials: string[] = [];
    if (kind === 'shared keys') {
      const psk = join(folder, 'keys.psk');
      expect((await run(peer('psktool'), ['-u', 'alice', '-p', psk])).code).toBe(0);
      credentials.push('--tls-psk', psk);
    } else {
      await makeAuthority(folder);
      await issueCertificate(folder, folder, 'server');
      credentials.push('--tls-certificates', folder);
    }
    const table = ['d', '--table', '0 64 zero', '--nbd', 'tcp:127.0.0.1:0', '--threads', `${threads}`];
    const { uris } = await serve([...table, '--tls', 'require', ...credentials]);
    const port = Number(/:(\d+)\//.exec(uris[0]!)![1]);
    const { closedCount } = besiege(port);
    await expect.poll(closedCount).toBeGreaterThan(0);
    for (let i = 0; i < HONEST_COUNT; i++) {
      const result = await run(peer('nbdinfo'), ['--size', uris[0]!]);
      expect([result.code, result.stdout, result.stderr]).toEqual([0, '32768\n', '']);
    }
  });
});
