// One measurement in a fresh process: child.mjs MODULE FILE BYTES SECONDS DEPTH ROUND prints operations per second.
// A module of this folder, maybe with a query (`?op=write`), exports `open(path, byteLength, depth, query)`, which gives
// { read(offset, lane), close() }: `read` moves 4 KiB between the file and a buffer of that lane's own, and gives a
// promise, or undefined when that is done already.
const [module, path, bytes, seconds, depth, round] = process.argv.slice(2);
const byteLength = Number(bytes);
const blocks = Math.floor(byteLength / 4096);

let state = (Number(round) + 1) * 2654435761;
function nextOffset() {
  state ^= state << 13;
  state ^= state >>> 17;
  state ^= state << 5;
  return ((state >>> 0) % blocks) * 4096;
}

const location = new URL(module, import.meta.url);
const { open } = await import(location);
const reader = await open(path, byteLength, Number(depth), location.searchParams);

/** Reads until `until`, and gives how many reads ended by then. The clock is read rarely: it costs as much as a read. */
async function lane(index, until) {
  let done = 0;
  for (;;) {
    for (let i = 0; i < 32; i += 1) {
      const pending = reader.read(nextOffset(), index);
      if (pending !== undefined) await pending;
    }
    done += 32;
    if (performance.now() >= until) return done;
  }
}

async function measure(duration) {
  const start = performance.now();
  const lanes = Array.from({ length: Number(depth) }, (_, index) => lane(index, start + duration * 1000));
  const done = (await Promise.all(lanes)).reduce((sum, count) => sum + count, 0);
  return done / ((performance.now() - start) / 1000);
}

await measure(Math.max(0.2, Number(seconds) / 5));
process.stdout.write(String(await measure(Number(seconds))));
await reader.close();
