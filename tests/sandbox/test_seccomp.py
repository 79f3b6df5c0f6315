"""Test the filter of system calls, line by line in a machine of our own, for both kinds of processor."""

import errno
import pathlib
import re
import struct

import pytest

from exit_jax.sandbox import seccomp

AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOWED = 0x7FFF0000
DENIED = 0x00050000 | errno.EPERM
KILLED = 0x80000000
NO_FAMILY, NO_TYPE = (0x00050000 | code for code in (errno.EAFNOSUPPORT, errno.ESOCKTNOSUPPORT))
HEADERS = {
    "x86_64": pathlib.Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": pathlib.Path("/usr/include/asm-generic/unistd.h"),
}


def verdict(machine: str, number: int, *arguments: int, audit: int | None = None) -> int:
    """Return what the filter says of a call: a machine for classic BPF, by the codes in the kernel's headers."""
    program = seccomp.program(machine)
    assert program is not None
    data = struct.pack("<IIQ6Q", number, audit or AUDIT[machine], 0, *(*arguments, *[0] * 6)[:6])
    at, accumulator = 0, 0
    while True:
        code, yes, no, value = struct.unpack_from("=HBBI", program, 8 * at)
        at += 1
        if code == 0x20:  # BPF_LD | BPF_W | BPF_ABS
            accumulator = struct.unpack_from("<I", data, value)[0]
        elif code == 0x54:  # BPF_ALU | BPF_AND | BPF_K
            accumulator &= value
        elif code == 0x06:  # BPF_RET | BPF_K
            return value
        else:  # BPF_JMP | BPF_JEQ, BPF_JGT, BPF_JSET | BPF_K
            holds = {0x15: accumulator == value, 0x25: accumulator > value, 0x45: bool(accumulator & value)}[code]
            at += yes if holds else no


@pytest.mark.parametrize(("column", "machine"), list(enumerate(AUDIT)))
def test_every_call_by_number(column, machine):
    """Of all numbers, those of the table are denied, those after the last known one do not exist, the others are allowed."""
    denied = {numbers[column] for numbers in seccomp.DENIED.values()} - {None}
    sockets = {"x86_64": (41, 53), "aarch64": (198, 199)}[machine]
    denied.add({"x86_64": 54, "aarch64": 208}[machine])  # setsockopt but for one option, which is not 0
    for number in range(600):
        said = verdict(machine, number)
        if number > 450 or number == 435:
            assert said == 0x00050000 | errno.ENOSYS
        elif number in sockets:
            assert said == NO_FAMILY
        else:
            assert said == (DENIED if number in denied else ALLOWED), number
    assert len(denied) > 75


def test_the_worst_calls_are_denied():
    """By their numbers in the kernel's own table of x86-64, whatever ours says."""
    worst = {"ptrace": 101, "pivot_root": 155, "mount": 165, "init_module": 175, "kexec_load": 246, "add_key": 248}
    worst |= {"keyctl": 250, "unshare": 272, "perf_event_open": 298, "open_by_handle_at": 304, "setns": 308}
    worst |= {"process_vm_readv": 310, "finit_module": 313, "bpf": 321, "userfaultfd": 323, "io_uring_setup": 425}
    worst |= {"io_setup": 206, "inotify_init": 253, "inotify_init1": 294, "setxattr": 188, "landlock_add_rule": 445}
    assert {name: verdict("x86_64", number) for name, number in worst.items()} == dict.fromkeys(worst, DENIED)


def test_other_tables():
    assert verdict("x86_64", 0, audit=0x40000003) == KILLED  # 32-bit x86
    assert verdict("aarch64", 0, audit=0x40000028) == KILLED  # 32-bit Arm
    assert verdict("x86_64", 0x40000000) == KILLED  # x32
    assert seccomp.program("riscv64") is None


@pytest.mark.parametrize(
    ("machine", "clone", "mmap", "setpriority"), [("x86_64", 56, 9, 141), ("aarch64", 220, 222, 140)]
)
def test_arguments(machine, clone, mmap, setpriority):
    assert verdict(machine, clone, 0x3D0F00) == ALLOWED  # a thread's flags
    assert verdict(machine, clone, 0x01200011) == ALLOWED  # fork's
    for flag in (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert verdict(machine, clone, flag | 17) == DENIED  # NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
    for flags, said in ((0x22, ALLOWED), (0x01, ALLOWED), (0x21, DENIED), (0x23, DENIED), (0x8021, DENIED)):
        assert verdict(machine, mmap, 0, 4096, 3, flags) == said
    for arguments, said in (((0, 0), ALLOWED), ((0, 7), ALLOWED), ((0, 1), DENIED), ((1, 0), DENIED), ((2, 0), DENIED)):
        assert verdict(machine, setpriority, *arguments) == said


@pytest.mark.parametrize(
    ("machine", "socket", "socketpair", "setsockopt", "fcntl", "prctl"),
    [("x86_64", 41, 53, 54, 72, 157), ("aarch64", 198, 199, 208, 25, 167)],
)
def test_sockets_and_other_options(machine, socket, socketpair, setsockopt, fcntl, prctl):
    """Unix streams alone, whatever flags come with the type."""
    for number in (socket, socketpair):
        for kind in (1, 1 | 0o4000, 1 | 0o2000000):  # SOCK_STREAM, NONBLOCK, CLOEXEC
            assert verdict(machine, number, 1, kind) == ALLOWED
        for family in (0, 2, 10, 16, 17, 38, 40):  # INET, INET6, NETLINK, PACKET, ALG, VSOCK
            assert verdict(machine, number, family, 1) == NO_FAMILY
        for kind in (0, 2, 3, 5, 2 | 0o4000):  # DGRAM, RAW, SEQPACKET
            assert verdict(machine, number, 1, kind) == NO_TYPE
    assert verdict(machine, setsockopt, 3, 1, 2) == ALLOWED  # SO_REUSEADDR
    for option in (7, 8, 26, 32, 33, 50):  # buffers, filters
        assert verdict(machine, setsockopt, 3, 1, option) == DENIED
    for command in (0, 1, 2, 3, 4, 6, 1030, 1032):  # DUPFD, flags, locks, DUPFD_CLOEXEC, GETPIPE_SZ
        assert verdict(machine, fcntl, 3, command) == ALLOWED
    assert verdict(machine, fcntl, 3, 1031) == DENIED
    for option, said in ((1, ALLOWED), (4, ALLOWED), (15, ALLOWED), (22, DENIED), (62, DENIED), (0x53564D41, DENIED)):
        assert verdict(machine, prctl, option, 2) == said


@pytest.mark.parametrize(
    ("machine", "calls"),
    [
        ("x86_64", {44: 3, 45: 3, 46: 2, 47: 2, 299: 3, 307: 3}),
        ("aarch64", {206: 3, 207: 3, 211: 2, 212: 2, 243: 3, 269: 3}),
    ],
)
def test_no_out_of_band_data(machine, calls):
    for number, place in calls.items():
        for flags, said in ((0, ALLOWED), (0x4000, ALLOWED), (1, DENIED), (0x4041, DENIED)):
            assert verdict(machine, number, *[0] * place, flags) == said


@pytest.mark.parametrize(("column", "machine"), list(enumerate(AUDIT)))
def test_numbers_are_the_headers(column, machine):
    if not HEADERS[machine].exists():
        pytest.skip("the kernel's headers are not installed (linux-libc-dev)")
    found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\n", HEADERS[machine].read_text())
    numbers = {name: int(number) for name, number in found}
    tables = seccomp.DENIED | seccomp.MISSING | {name: rule.numbers for name, rule in seccomp.DENIED_IF.items()}
    for name, pair in tables.items():
        if (kept := name.partition(" ")[0]) in numbers or pair[column] is not None:
            assert numbers.get(kept) == pair[column], name
