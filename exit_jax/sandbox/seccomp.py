"""The filter of system calls, as a classic BPF program in bytes, for x86-64 and 64-bit Arm.

It denies what a program that reads data and fits a model has no use for: tracing, mounts, namespaces, keys, the network,
kernel interfaces with a history of holes, and kinds of memory that the supervisor (meter.py) cannot count. What is denied fails
with an error, so that a library that only tries goes on; a call by another architecture's table ends the program. Calls newer
than the tables do not exist here ("not implemented").

Sockets between the program's own processes are allowed, for torch's workers, multiprocessing's managers and asyncio need
them: unix streams, whose names lead nowhere outside (a path needs a file, and other names are the network namespace's).
"""

import errno
import platform
import struct
from typing import NamedTuple

LAST_CALL = 450  # newer ones have the same numbers everywhere
# numbers on (x86-64, 64-bit Arm); None: there is no such call
DENIED = {
    # tracing and other processes' memory
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "perf_event_open": (298, 241),
    # file systems and namespaces
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "landlock_create_ruleset": (444, 444),  # rules without number
    "landlock_add_rule": (445, 445),
    "inotify_init": (253, None),  # queues of 16,384 names each
    "inotify_init1": (294, 26),
    "setxattr": (188, 5),  # access lists of 64 KiB a file, outside of the folder's size
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "sync": (162, 81),  # flushes the disks of the whole machine
    "syncfs": (306, 267),
    "ustat": (136, None),
    "sysfs": (139, None),
    "unshare": (272, 97),
    "setns": (308, 268),
    # kernel interfaces
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_setup": (206, 0),  # events count against a limit of the whole machine, fs.aio-max-nr
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "seccomp": (317, 277),
    "personality": (135, 92),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "create_module": (174, None),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "syslog": (103, 116),
    "vhangup": (153, 58),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "uselib": (134, None),
    "_sysctl": (156, None),
    "nfsservctl": (180, 42),
    "lookup_dcookie": (212, 18),
    "ioprio_set": (251, 30),
    "mbind": (237, 235),  # a policy for each page of a file, kept with the file
    "set_mempolicy": (238, 237),
    "set_mempolicy_home_node": (450, 450),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    "remap_file_pages": (216, 234),
    # memory that no process need have mapped
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "vmsplice": (278, 75),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
}


class Rule(NamedTuple):
    """Calls that are denied where the test holds for the low 32 bits of an argument."""

    numbers: tuple[int, int]
    argument: int
    test: str  # "is" or "is not" the value, after the mask; "any" of the value's bits
    value: int
    mask: int = 0xFFFFFFFF
    code: int = errno.EPERM


NEW_NAMESPACES = 0x7E020000  # clone's flags
SHARED_ANONYMOUS = 0x21  # mmap's flags
AF_UNIX, SOCK_STREAM, SOCKET_TYPES, MSG_OOB, SO_REUSEADDR = 1, 1, 0xF, 1, 2
F_SETPIPE_SZ, PR_SET_SECCOMP, PR_SCHED_CORE, PR_SET_VMA = 1031, 22, 62, 0x53564D41
# process 1 is the supervisor, which without root runs as the program's own user: no program may starve it
DENIED_IF = {
    "clone": Rule((56, 220), 0, "any", NEW_NAMESPACES),
    # unmapped but for one page, the rest of it stays, uncounted
    "mmap": Rule((9, 222), 3, "is", SHARED_ANONYMOUS, mask=SHARED_ANONYMOUS),
    "prlimit64": Rule((302, 261), 0, "is", 1),
    "sched_setscheduler": Rule((144, 119), 0, "is", 1),
    "sched_setparam": Rule((142, 118), 0, "is", 1),
    "sched_setattr": Rule((314, 274), 0, "is", 1),
    "sched_setaffinity": Rule((203, 122), 0, "is", 1),
    "setpriority": Rule((141, 140), 1, "is", 1),
    "setpriority of a user or group": Rule((141, 140), 0, "any", 0xFFFFFFFF),
    "socket of another family": Rule((41, 198), 0, "is not", AF_UNIX, code=errno.EAFNOSUPPORT),
    # a datagram's socket holds other sockets' buffers when they are gone
    "socket of another type": Rule((41, 198), 1, "is not", SOCK_STREAM, SOCKET_TYPES, errno.ESOCKTNOSUPPORT),
    "socketpair of another family": Rule((53, 199), 0, "is not", AF_UNIX, code=errno.EAFNOSUPPORT),
    "socketpair of another type": Rule((53, 199), 1, "is not", SOCK_STREAM, SOCKET_TYPES, errno.ESOCKTNOSUPPORT),
    "setsockopt": Rule((54, 208), 2, "is not", SO_REUSEADDR),  # larger buffers, filters
    "sendto": Rule((44, 206), 3, "any", MSG_OOB),  # several holes so far, and no use
    "sendmsg": Rule((46, 211), 2, "any", MSG_OOB),
    "sendmmsg": Rule((307, 269), 3, "any", MSG_OOB),
    "recvfrom": Rule((45, 207), 3, "any", MSG_OOB),
    "recvmsg": Rule((47, 212), 2, "any", MSG_OOB),
    "recvmmsg": Rule((299, 243), 3, "any", MSG_OOB),
    "fcntl": Rule((72, 25), 1, "is", F_SETPIPE_SZ),
    "prctl of a filter": Rule((157, 167), 0, "is", PR_SET_SECCOMP),  # compiled ones share a limit of the machine's
    "prctl of cores": Rule((157, 167), 0, "is", PR_SCHED_CORE),  # leaves other programs' hardware threads idle
    "prctl of names": Rule((157, 167), 0, "is", PR_SET_VMA),  # one for each mapping
}
MISSING = {"clone3": (435, 435)}  # its flags are out of the filter's sight; C libraries then use clone
# audit's name, column of the tables
ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1), "arm64": (0xC00000B7, 1)}
X32 = 0x40000000  # the bit of x86-64's table of 32-bit pointers

LOAD, EQUAL, ABOVE, ANY_BIT, AND, RETURN = 0x20, 0x15, 0x25, 0x45, 0x54, 0x06
ALLOW, KILL = 0x7FFF0000, 0x80000000
NUMBER, ARCHITECTURE = 0, 4  # offsets in seccomp_data


def program(machine: str | None = None) -> bytes | None:
    """Return the filter as an array of ``struct sock_filter``, or None if the machine is of neither kind."""
    if (found := ARCHITECTURES.get(machine or platform.machine())) is None:
        return None
    audit, column = found
    not_there = refuse(errno.ENOSYS)
    lines = [
        instruction(LOAD, ARCHITECTURE),
        instruction(EQUAL, audit, jump_true=1),
        instruction(RETURN, KILL),
        instruction(LOAD, NUMBER),
        instruction(ANY_BIT, X32, jump_false=1),
        instruction(RETURN, KILL),
        instruction(ABOVE, LAST_CALL, jump_false=1),
        not_there,
    ]
    for numbers in MISSING.values():
        lines += [instruction(EQUAL, numbers[column], jump_false=1), not_there]
    for numbers in DENIED.values():
        if (number := numbers[column]) is not None:
            lines += [instruction(EQUAL, number, jump_false=1), refuse(errno.EPERM)]
    for rule in DENIED_IF.values():
        lines += conditional(rule.numbers[column], rule)
    return b"".join([*lines, instruction(RETURN, ALLOW)])


def conditional(number: int, rule: Rule) -> list[bytes]:
    """Return the lines of a rule. The call's number is loaded before and after."""
    inner = [instruction(LOAD, 16 + 8 * rule.argument)]  # little-endian: the low half comes first
    if rule.mask != 0xFFFFFFFF:
        inner.append(instruction(AND, rule.mask))
    holds = {"jump_true": 1} if rule.test == "is not" else {"jump_false": 1}
    inner.append(instruction(ANY_BIT if rule.test == "any" else EQUAL, rule.value, **holds))
    inner += [refuse(rule.code), instruction(LOAD, NUMBER)]
    return [instruction(EQUAL, number, jump_false=len(inner)), *inner]


def refuse(code: int) -> bytes:
    """Return the line that makes a call fail with an errno."""
    return instruction(RETURN, 0x00050000 | code)


def instruction(code: int, value: int, jump_true: int = 0, jump_false: int = 0) -> bytes:
    """Return one ``struct sock_filter``; a jump is the number of lines to leave out."""
    return struct.pack("=HBBI", code, jump_true, jump_false, value)
