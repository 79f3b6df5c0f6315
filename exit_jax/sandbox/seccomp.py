"""The filter of system calls, as a classic BPF program in bytes, for x86-64 and 64-bit Arm.

It denies what a program that reads data and fits a model has no use for: tracing, mounts, namespaces, keys, sockets, kernel
interfaces with a history of holes, and kinds of memory that do not show in a process's resident set, which is what the
supervisor counts. What is denied fails with an error, so that a library that only tries goes on; a call by another
architecture's table ends the program. Calls newer than the tables do not exist here ("not implemented").
"""

import errno
import platform
import struct

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
    "ustat": (136, None),
    "sysfs": (139, None),
    "unshare": (272, 97),
    "setns": (308, 268),
    # sockets, the pairs of asyncio and of duplex pipes included: their buffers are memory that nobody counts
    "socket": (41, 198),
    "socketpair": (53, 199),
    # kernel interfaces
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
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
NEW_NAMESPACES = 0x7E020000  # of clone's flags
SHARED_ANONYMOUS = 0x21  # of mmap's flags
# (numbers, argument, test, value): denied where the test holds. Process 1 is the supervisor, which without root runs as the
# program's own user: no program may starve it
DENIED_IF = {
    "clone": ((56, 220), 0, "any", NEW_NAMESPACES),
    "mmap": ((9, 222), 3, "all", SHARED_ANONYMOUS),  # unmapped but for one page, the rest of it stays, uncounted
    "prlimit64": ((302, 261), 0, "is", 1),
    "sched_setscheduler": ((144, 119), 0, "is", 1),
    "sched_setparam": ((142, 118), 0, "is", 1),
    "sched_setattr": ((314, 274), 0, "is", 1),
    "sched_setaffinity": ((203, 122), 0, "is", 1),
    "setpriority": ((141, 140), 1, "is", 1),
    "setpriority of a user or group": ((141, 140), 0, "any", 0xFFFFFFFF),
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
    for name, numbers in DENIED.items():
        if (number := numbers[column]) is not None:
            kind = errno.EAFNOSUPPORT if name == "socket" else errno.EPERM
            lines += [instruction(EQUAL, number, jump_false=1), refuse(kind)]
    for numbers, argument, test, value in DENIED_IF.values():
        lines += conditional(numbers[column], argument, test, value)
    return b"".join([*lines, instruction(RETURN, ALLOW)])


def conditional(number: int, argument: int, test: str, value: int) -> list[bytes]:
    """Return lines that refuse a call where the low 32 bits of an argument are (``is``) a value, or have ``any`` or ``all``
    of its bits. The number is loaded before and after.
    """
    inner = [instruction(LOAD, 16 + 8 * argument)]  # little-endian: the low half comes first
    if test == "all":
        inner.append(instruction(AND, value))
    inner.append(instruction(ANY_BIT if test == "any" else EQUAL, value, jump_false=1))
    inner += [refuse(errno.EPERM), instruction(LOAD, NUMBER)]
    return [instruction(EQUAL, number, jump_false=len(inner)), *inner]


def refuse(code: int) -> bytes:
    """Return the line that makes a call fail with an errno."""
    return instruction(RETURN, 0x00050000 | code)


def instruction(code: int, value: int, jump_true: int = 0, jump_false: int = 0) -> bytes:
    """Return one ``struct sock_filter``; a jump is the number of lines to leave out."""
    return struct.pack("=HBBI", code, jump_true, jump_false, value)
