# What a server answers, asked with libnbd without its own checks: one line of JSON, probe name to errno name (or "ok").
# Run with Debian's python3 (package python3-libnbd): probe.py URI SIZE READ-ONLY-URI
import errno
import json
import sys

import nbd

uri, size, read_only_uri = sys.argv[1], int(sys.argv[2]), sys.argv[3]
answers = {}


def opened(where=uri):
    h = nbd.NBD()
    h.set_strict_mode(0)
    h.connect_uri(where)
    return h


def probe(name, action, where=uri):
    """Each in a connection of its own, which must live on afterwards."""
    h = opened(where)
    try:
        action(h)
        answers[name] = "ok"
    except nbd.Error as error:
        answers[name] = errno.errorcode.get(error.errnum, str(error.errnum))
    try:
        h.pread(512, 0)
        h.shutdown()
    except nbd.Error as error:
        answers[name] += " and dead: " + str(error)


block = bytes(512)
probe("read", lambda h: h.pread(4096, 0))
probe("read past end", lambda h: h.pread(512, size))
probe("read across end", lambda h: h.pread(1024, size - 512))
probe("read of nothing", lambda h: h.pread(0, 0))
probe("read unaligned", lambda h: h.pread(512, 1))
probe("read with unknown flag", lambda h: h.pread(512, 0, 0x8000))
probe("read with DF", lambda h: h.pread(512, 0, nbd.CMD_FLAG_DF))
probe("read of 64 MiB", lambda h: h.pread(64 << 20, 0))
probe("write", lambda h: h.pwrite(block, 0))
probe("write with FUA", lambda h: h.pwrite(block, 0, nbd.CMD_FLAG_FUA))
probe("write past end", lambda h: h.pwrite(block, size))
probe("write of nothing", lambda h: h.pwrite(b"", 0))
probe("write unaligned", lambda h: h.pwrite(block, 1))
probe("write of 40 MiB", lambda h: h.pwrite(bytes(40 << 20), 0))
probe("write of 64 MiB", lambda h: h.pwrite(bytes(64 << 20), 0))
probe("write read-only", lambda h: h.pwrite(block, 0), read_only_uri)
probe("flush", lambda h: h.flush())
probe("flush with FUA", lambda h: h.flush(nbd.CMD_FLAG_FUA))
probe("trim", lambda h: h.trim(4096, 0))
probe("trim past end", lambda h: h.trim(512, size))
probe("trim read-only", lambda h: h.trim(512, 0), read_only_uri)
probe("zero", lambda h: h.zero(4096, 0))
probe("zero with FUA and NO_HOLE", lambda h: h.zero(4096, 0, nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE))
probe("zero with FAST_ZERO", lambda h: h.zero(4096, 0, nbd.CMD_FLAG_FAST_ZERO))
probe("zero past end", lambda h: h.zero(512, size))
probe("zero of 4 GiB", lambda h: h.zero(0xFFFFFE00, 0))
probe("zero read-only", lambda h: h.zero(512, 0), read_only_uri)
probe("cache", lambda h: h.cache(512, 0))
probe("cache past end", lambda h: h.cache(512, size))
probe("status past end", lambda h: h.block_status(512, size, lambda *_: 0))
probe("status of nothing", lambda h: h.block_status(0, 0, lambda *_: 0))
probe("zero part of a block with FAST_ZERO", lambda h: h.zero(100, 10, nbd.CMD_FLAG_FAST_ZERO))


def holes():
    """What the map says after a few changes, in pieces and whole."""
    h = nbd.NBD()
    h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.connect_uri(uri)
    h.trim(4 << 20, 0)
    h.pwrite(b"x" * 65536, 1 << 20)

    def status(length, offset, flags=0):
        extents = []
        h.block_status(length, offset, lambda name, at, entries, error: extents.extend(entries) or 0, flags)
        return extents

    answers["map"] = status(4 << 20, 0)
    answers["map, one"] = status(4 << 20, 0, nbd.CMD_FLAG_REQ_ONE)
    answers["map, bytes"] = status(3, (1 << 20) + 65535)
    chunks = []
    h.pread_structured(256 << 10, 2 << 20, lambda data, at, kind, error: chunks.append([at, len(data), kind]) or 0)
    answers["hole"] = chunks == [[2 << 20, 256 << 10, nbd.READ_HOLE]]
    h.shutdown()


def random_bytes():
    """Changes of any bytes by four connections, against a model; each has its own bytes of every block."""
    import random

    rng = random.Random(4711)
    handles = [opened() for _ in range(4)]
    base, length = 8 << 20, 1 << 16
    handles[0].zero(length, base)
    model = bytearray(length)
    for _ in range(300):
        pending = []
        for i, h in enumerate(handles):
            at = rng.randrange(length // 64) * 64 + i * 16
            count = rng.randrange(1, 17)
            data = rng.randbytes(count)
            model[at : at + count] = data
            pending.append((h, h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), base + at)))
        for h, cookie in pending:
            while not h.aio_command_completed(cookie):
                h.poll(-1)
    answers["any bytes"] = handles[1].pread(length, base) == bytes(model)
    at = rng.randrange(length - 5000)
    answers["any bytes, a part"] = handles[2].pread(5000, base + at) == bytes(model[at : at + 5000])
    for h in handles:
        h.shutdown()


holes()
random_bytes()


def options():
    h = nbd.NBD()
    h.set_opt_mode(True)
    h.connect_uri(uri)
    names = []
    h.opt_list(lambda name, description: names.append([name, description]))
    answers["list"] = names
    h.set_export_name("not there")
    try:
        h.opt_info()
        answers["info for nothing there"] = "ok"
    except nbd.Error as error:
        answers["info for nothing there"] = errno.errorcode.get(error.errnum, str(error.errnum))
    h.set_export_name("disk")
    h.opt_info()
    answers["size by info"] = h.get_size()
    h.opt_abort()
    h = nbd.NBD()
    h.set_opt_mode(True)
    h.connect_uri(uri)
    h.set_export_name("disk")
    h.opt_go()
    answers["block sizes"] = [h.get_block_size(kind) for kind in (nbd.SIZE_MINIMUM, nbd.SIZE_PREFERRED, nbd.SIZE_MAXIMUM)]
    answers["pattern"] = "ok"
    data = bytes(i * 7 % 251 for i in range(1 << 16))
    h.pwrite(data, 8192)
    if h.pread(len(data), 8192) != data:
        answers["pattern"] = "differs"
    h.shutdown()


options()
print(json.dumps(answers))
