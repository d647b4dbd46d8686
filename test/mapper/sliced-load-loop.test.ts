// A load in slices on Node's own loop: its sockets are served while it goes on.
import { once } from 'node:events';
import { connect, createServer } from 'node:net';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { DeviceMapper } from '../../src/api/device-mapper.ts';
import { tempDir } from '../support/tmp.ts';

test('a peer on a socket gets at least 20 answers while 100,000 lines are loaded', async () => {
  const path = join(tempDir('slices'), 'echo');
  const server = createServer((socket) => {
    socket.on('data', (data) => socket.write(data));
    // The peer leaves in the middle of an answer.
    socket.on('error', () => {});
  }).listen(path);
  await once(server, 'listening');
  const peer = connect(path);
  await once(peer, 'connect');
  onTestFinished(() => {
    peer.destroy();
    server.close();
  });
  let answerCount = 0;
  peer.on('data', (data) => {
    answerCount++;
    peer.write(data);
  });
  peer.write('x');
  const dm = new DeviceMapper();
  const device = dm.mapper.create('d');
  const table = Array.from({ length: 100_000 }, (_, line) => `${line} 1 zero`).join('\n');
  const error = await new Promise((resolve) => dm.mapper.loadSliced(device, table, {}, resolve));
  // An answer takes two looks at the sockets, and a turn has slices of up to 4 ms: some 90 turns.
  expect([error, device.inactiveTable?.targets.length]).toEqual([null, 100_000]);
  expect(answerCount).toBeGreaterThanOrEqual(20);
  await dm.close();
});
