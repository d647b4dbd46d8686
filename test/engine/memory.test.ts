// Which memory engines take, and that what they refuse is refused before any I/O.
import { markAsUntransferable } from 'node:worker_threads';
import { describe, expect, it } from 'vitest';
import { REQ_OP_READ, REQ_OP_WRITE } from '../../src/block/bio.ts';
import { Errno } from '../../src/block/errno.ts';
import { threadCalls } from '../../src/engine/calls.ts';
import { checkMemory, trustMemory } from '../../src/engine/index.ts';
import { callsWith, ENGINES, libcWith, openImage, request, start, vecOf } from './harness.ts';

const WASM_PAGE = 65536;

interface WebAssemblyMemory {
  readonly buffer: ArrayBuffer;
  grow(pages: number): number;
}

function webAssemblyMemory(pages: number): WebAssemblyMemory {
  const { WebAssembly } = globalThis as unknown as {
    WebAssembly: { Memory: new (limits: { initial: number }) => WebAssemblyMemory };
  };
  return new WebAssembly.Memory({ initial: pages });
}

function resizable(): Uint8Array {
  const Resizable = ArrayBuffer as unknown as new (length: number, options: { maxByteLength: number }) => ArrayBuffer;
  return new Uint8Array(new Resizable(4096, { maxByteLength: 8192 }));
}

function detached(): Uint8Array {
  const page = new Uint8Array(4096);
  structuredClone(page.buffer, { transfer: [page.buffer] });
  return page;
}

const REFUSED: [string, () => Uint8Array][] = [
  ['a detached buffer', detached],
  ['a resizable buffer', resizable],
  ["WebAssembly's memory", () => new Uint8Array(webAssemblyMemory(1).buffer, 0, 4096)],
];

describe.each(ENGINES)('the %s engine', (engine) => {
  describe.each(REFUSED)('given %s', (_name, make) => {
    it.each([
      ['read', REQ_OP_READ],
      ['write', REQ_OP_WRITE],
    ])('fails a %s before any I/O', async (_op, op) => {
      const touched: string[] = [];
      const touch = (): never => {
        touched.push('call');
        throw new Error('no I/O was expected');
      };
      const libc = libcWith(() => ({ pread: touch, pwrite: touch, preadv: touch, pwritev: touch, preadv2: touch }));
      const options = { threads: callsWith({ read: touch, write: touch }), byte: 1 };
      const device = openImage(engine, engine === 'direct' ? { ...options, libc } : options);
      const page = make();
      const bio = await request(device, op, 0, 8, { vecs: [{ page, offset: 0, byteLength: 4096 }] });
      expect(bio.status).toBe(Errno.EFAULT);
      // Behind more pieces than one call takes.
      const many = Array.from({ length: 1100 }, () => vecOf(new Uint8Array(512))[0]!);
      const late = [...many, { page, offset: 0, byteLength: 4096 }];
      expect((await request(device, op, 0, 1108, { vecs: late })).status).toBe(Errno.EFAULT);
      expect(touched).toEqual([]);
      expect(device.file.pendingCount).toBe(0);
    });
  });

  it('takes shared memory, memory of WebAssembly pages in size, and memory inside a larger buffer', async () => {
    const device = openImage(engine, { byte: 3 });
    const pages = [
      new Uint8Array(new SharedArrayBuffer(4096)),
      new Uint8Array(WASM_PAGE).subarray(0, 4096),
      Buffer.from('x'.repeat(4096)),
    ];
    for (const page of pages) {
      expect((await request(device, REQ_OP_READ, 0, 8, { vecs: vecOf(page) })).status).toBe(0);
      expect(page.every((byte) => byte === 3)).toBe(true);
    }
  });

  it('keeps memory in this thread once another thread uses it', async () => {
    const libc = libcWith(() => ({ preadv2: () => -1, errno: () => Errno.EAGAIN }));
    const device = openImage(engine, {
      byte: 3,
      ...(engine === 'direct' ? { libc } : {}),
      threads: callsWith({
        read: (fd, views, position, done) => setTimeout(() => threadCalls.read(fd, views, position, done), 20),
      }),
    });
    const page = new Uint8Array(4096);
    const answer = request(device, REQ_OP_READ, 0, 8, { vecs: vecOf(page) });
    try {
      structuredClone(page.buffer, { transfer: [page.buffer] });
    } catch {
      // Newer Nodes refuse; older ones clone without a transfer.
    }
    expect(page.byteLength).toBe(4096);
    expect((await answer).status).toBe(0);
    expect(page.every((byte) => byte === 3)).toBe(true);
  });

  it('notices that memory it knew was transferred away', async () => {
    const device = openImage('direct', { byte: 3 });
    const page = new Uint8Array(4096);
    const ends: number[] = [];
    const read = () => start(device, REQ_OP_READ, 0, 8, (bio) => ends.push(bio.status), { vecs: vecs });
    const vecs = vecOf(page);
    read();
    structuredClone(page.buffer, { transfer: [page.buffer] });
    read();
    expect(ends).toEqual([0, Errno.EFAULT]);
  });
});

describe('checkMemory', () => {
  it.each(REFUSED)('throws for %s', (_name, make) => {
    expect(() => checkMemory(make())).toThrow(/memory/);
  });

  it('says what is wrong and what to do', () => {
    expect(() => checkMemory(resizable())).toThrow(/resizable; copy it/);
    expect(() => checkMemory(new Uint8Array(webAssemblyMemory(2).buffer))).toThrow(/WebAssembly's.*copy it/);
    expect(() => checkMemory(detached())).toThrow(/transferred away/);
    expect(() => checkMemory(new Uint8Array(10), 5, 6)).toThrow(/bytes 5 to 11 asked of memory that is 10 bytes long/);
    expect(() => checkMemory(new Uint8Array(10), -1, 6)).toThrow(/bytes -1/);
  });

  it('leaves good memory as it was, and transferable', () => {
    const page = new Uint8Array(WASM_PAGE).fill(5);
    checkMemory(page);
    expect(page.every((byte) => byte === 5)).toBe(true);
    const moved = structuredClone(page.buffer, { transfer: [page.buffer] });
    expect([page.byteLength, moved.byteLength]).toEqual([0, WASM_PAGE]);
  });

  it('can be told that memory stays where it is', () => {
    const page = new Uint8Array(WASM_PAGE);
    markAsUntransferable(page.buffer);
    trustMemory(page.buffer);
    checkMemory(page);
  });
});
