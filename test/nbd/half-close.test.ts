// A client that sends all of its requests, closes its side, and only then reads.
import { once } from 'node:events';
import { connect } from 'node:net';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { encodeGoRequest } from '../../src/nbd/protocol/info.ts';
import { serve } from '../support/cli.ts';
import { tempDir } from '../support/tmp.ts';
import { option, request, u32 } from './support.ts';
import { WireClient } from './wire-client.ts';

const COUNT = 3000;

test.each(['node', 'auto'])('gets every answer: DMKIT_SOCKETS=%s', async (sockets) => {
  const path = join(tempDir('half'), 's');
  const args = ['x', '--table', '0 2048 zero', '--nbd', `unix:${path}`, '--threads', '1'];
  await serve(args, { env: { DMKIT_SOCKETS: sockets } });
  const socket = connect({ path, allowHalfOpen: true });
  const client = new WireClient(socket, 'simple');
  await once(socket, 'connect');
  socket.write(Buffer.concat([u32(3), option(7, encodeGoRequest('', []))]));
  await client.read(18);
  for (let type = 0; type !== 1; ) {
    const header = await client.read(20);
    await client.read(header.readUInt32BE(16));
    type = header.readUInt32BE(12);
  }
  socket.pause();
  const messages = Array.from({ length: COUNT }, (_, cookie) => request({ type: 0, cookie, length: 4096 }));
  socket.end(Buffer.concat(messages));
  await new Promise((resolve) => setTimeout(resolve, 300));
  socket.resume();
  expect((await client.read(COUNT * (16 + 4096))).byteLength).toBe(COUNT * (16 + 4096));
  await client.ended();
});
