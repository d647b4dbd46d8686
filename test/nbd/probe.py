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
