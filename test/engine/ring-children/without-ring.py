# Runs a program under a seccomp filter that answers io_uring_setup (425 everywhere) with an errno, as containers do:
# without-ring.py ERRNO PROGRAM ARGUMENT...
import ctypes
import os
import struct
import sys

PR_SET_NO_NEW_PRIVS = 38
PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
SECCOMP_RET_ALLOW = 0x7FFF0000
SECCOMP_RET_ERRNO = 0x00050000

BPF_LOAD_WORD = 0x20
BPF_JUMP_IF_EQUAL = 0x15
BPF_RETURN = 0x06

instructions = [
    (BPF_LOAD_WORD, 0, 0, 0),
    (BPF_JUMP_IF_EQUAL, 0, 1, 425),
    (BPF_RETURN, 0, 0, SECCOMP_RET_ERRNO | int(sys.argv[1])),
    (BPF_RETURN, 0, 0, SECCOMP_RET_ALLOW),
]
code = b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)
memory = ctypes.create_string_buffer(code)


class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


program = Program(len(instructions), ctypes.addressof(memory))
prctl = ctypes.CDLL(None, use_errno=True).prctl
if prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 or prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program)) != 0:
    sys.exit(f"no seccomp filter here: errno {ctypes.get_errno()}")
os.execvp(sys.argv[2], sys.argv[2:])
