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
    for number in range(600):
        said = verdict(machine, number)
        if number > 450 or number == 435:
            assert said == 0x00050000 | errno.ENOSYS
        elif number == {"x86_64": 41, "aarch64": 198}[machine]:
            assert said == 0x00050000 | errno.EAFNOSUPPORT
        else:
            assert said == (DENIED if number in denied else ALLOWED), number
    assert len(denied) > 60


def test_the_worst_calls_are_denied():
    """By their numbers in the kernel's own table of x86-64, whatever ours says."""
    worst = {"ptrace": 101, "pivot_root": 155, "mount": 165, "init_module": 175, "kexec_load": 246, "add_key": 248}
    worst |= {"keyctl": 250, "unshare": 272, "perf_event_open": 298, "open_by_handle_at": 304, "setns": 308}
    worst |= {"process_vm_readv": 310, "finit_module": 313, "bpf": 321, "userfaultfd": 323, "io_uring_setup": 425}
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


@pytest.mark.parametrize(("column", "machine"), list(enumerate(AUDIT)))
def test_numbers_are_the_headers(column, machine):
    if not HEADERS[machine].exists():
        pytest.skip("the kernel's headers are not installed (linux-libc-dev)")
    found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\n", HEADERS[machine].read_text())
    numbers = {name: int(number) for name, number in found}
    tables = seccomp.DENIED | seccomp.MISSING | {name: rule[0] for name, rule in seccomp.DENIED_IF.items()}
    for name, pair in tables.items():
        if (kept := name.partition(" ")[0]) in numbers or pair[column] is not None:
            assert numbers.get(kept) == pair[column], name
