"""Test that limits hold against programs that evade them: processor time, memory of the kernel, places, descriptors.

Each program stops by itself after a bounded amount of work and then prints GOT; times by the clock are never compared.
"""

import dataclasses
import os
import subprocess
import sys
import textwrap
import time

import pytest

from exit_jax.sandbox import Job, Limits, Sandbox, launch, meter, supervisor

LEVELS = ("bubblewrap+seccomp", "bubblewrap", "none")


@pytest.fixture(scope="module")
def sandboxes(isolated, bare, require_sandbox):
    """Return a sandbox of each level that there is here."""
    weaker = Sandbox("bubblewrap", isolated.limits, num_workers=2)
    yield {isolated.level: isolated, "bubblewrap": weaker, "none": bare}
    weaker.close()


@pytest.fixture
def run_within(sandboxes):
    """Return a function that runs a program at a level under other limits."""
    made = []

    def run(code: str, level: str = "", **limits):
        sandbox = sandboxes.get(level) or next(iter(sandboxes.values()))
        made.append(Sandbox(sandbox.level, dataclasses.replace(sandbox.limits, **limits), num_workers=1))
        return made[-1].run([Job(textwrap.dedent(code))])[0]

    yield run
    for sandbox in made:
        sandbox.close()


# 10 s of processor time in children of 15 ms; each tells what it has burnt when it is done
SHORT_CHILDREN = """
import ctypes, os, signal, sys, threading, time

def burn():
    while time.process_time() < 0.015:
        pass

def child(work=burn):
    if os.fork() == 0:
        work()
        os.write(1, b"%.4f\\n" % time.process_time())
        os._exit(0)

{setup}
for _ in range(600):
    {child}
    time.sleep(0.016)
print("GOT")
"""
IGNORED = "signal.signal(signal.SIGCHLD, signal.SIG_IGN)"
# struct sigaction of the C library: a handler, a mask of 1024 bits, flags; 2 is SA_NOCLDWAIT
NOT_WAITED_FOR = """
class Action(ctypes.Structure):
    _fields_ = [("handler", ctypes.c_void_p), ("mask", ctypes.c_ulong * 16), ("flags", ctypes.c_int)]
assert ctypes.CDLL(None).sigaction(signal.SIGCHLD, ctypes.byref(Action(flags=2)), None) == 0
"""
IN_A_THREAD = """
def beside():
    thread = threading.Thread(target=burn)
    thread.start()
    thread.join()
"""
ORPHANS = """
if os.fork() == 0:  # a parent that adopts what its children leave, and forgets it
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
else:
    os.wait()
    os._exit(0)
"""
EVASIONS = {
    "ignored": ("bubblewrap+seccomp", IGNORED, "child()"),
    "ignored, without isolation": ("none", IGNORED, "child()"),
    "adopted, in threads, not waited for": (
        "bubblewrap+seccomp",
        NOT_WAITED_FOR + IN_A_THREAD + ORPHANS,
        "child(lambda: child(beside))",
    ),
    "ignored, without a filter": ("bubblewrap", IGNORED, "child()"),
    "not waited for": ("bubblewrap+seccomp", NOT_WAITED_FOR, "child()"),
    "in threads": ("bubblewrap+seccomp", IGNORED + IN_A_THREAD, "child(beside)"),
    "adopted": ("bubblewrap+seccomp", IGNORED + ORPHANS, "child(child)"),
    "waited for": ("bubblewrap+seccomp", "", "child(child); os.wait()"),  # which no limit ever missed
}
FAST = list(EVASIONS)[:3]


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in EVASIONS]
)
def test_processor_time_of_children(run_within, mark, name):
    """By its own account a program has burnt no more than some times its limit; where nobody counts, it gets to its end."""
    level, setup, child = EVASIONS[name]
    setup = f"open('/proc/self/comm', 'w').write({mark!r})\n{setup}"
    result = run_within(SHORT_CHILDREN.format(setup=setup, child=child), level, cpu_secs=1.0, num_processes=200)
    assert (result.status, result.reason) == ("timeout", "more than 1 s of processor time")
    assert sum(map(float, result.stdout.split())) < 7.0


def in_a_fresh_process(code: str) -> list[float]:
    """Return the numbers that a program prints; in the tests' own process, other children and descriptors would count, too."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    return [float(number) for number in done.stdout.split()]


def test_the_sample_is_no_more_than_was_used():
    """Over children that are waited for, where the kernel knows better."""
    used, sampled = in_a_fresh_process("""
        import os, time
        from exit_jax.sandbox import meter

        measured = meter.Meter(True, 0, True)
        if os.fork() == 0:
            for _ in range(60):
                if os.fork() == 0:
                    while time.process_time() < 0.02:
                        pass
                    os._exit(0)
                os.wait()
            os._exit(0)
        while os.waitpid(-1, os.WNOHANG) == (0, 0):
            time.sleep(0.01)
            measured.look()
        print(meter.cpu_secs_of_children(), measured._sampled_secs)
        """)
    assert 0.2 * used < sampled < 1.25 * used + 0.3


MAPPINGS = """
import ctypes, mmap, os, time
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

def split(pages):  # every other page is another mapping, of about 250 bytes of the kernel's
    start = libc.mmap(None, 4096 * pages, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    for page in range(0, pages, 2):
        libc.mprotect(start + 4096 * page, 4096, mmap.PROT_READ)
"""
# programs that hold little memory of their own and much of the kernel's, with a limit that is above the one and below the other
KERNEL_MEMORY = {
    # 12 x 60,000 x 256 bytes = 176 MiB, beside 13 x 8 MiB
    "mappings in forks": (160, MAPPINGS + "split(60000)\nfor _ in range(12):\n    if os.fork() == 0: break"),
    "mappings in each": (160, MAPPINGS + "for _ in range(12):\n    if os.fork() == 0: break\nsplit(60000)"),
    "mappings in orphans": (
        160,
        MAPPINGS
        + "split(60000)\nfor _ in range(12):\n    if os.fork() == 0:\n        if os.fork(): os._exit(0)\n        break",
    ),
    # 100 x 100 x 30 x 256 bytes = 73 MiB: a watch stays after its number is given to another
    "watches": (
        48,
        """
        import os, select, time
        files = [os.eventfd(0) for _ in range(100)]
        watchers = [select.epoll() for _ in range(100)]
        for number in range(220, 250):
            for file in files:
                os.dup2(file, number)
                for watcher in watchers:
                    watcher.register(number)
        """,
    ),
    # 120 pairs x 2 x 208 KiB = 49 MiB
    "pairs of sockets": (
        48,
        """
        import socket, time
        pairs = [socket.socketpair() for _ in range(120)]
        for end in sum(pairs, ()):
            end.setblocking(False)
            try:
                while True: end.send(bytes(65536))
            except BlockingIOError: pass
        """,
    ),
    # as much, and no descriptor is left of it
    "a queue of gone clients": (
        48,
        """
        import socket, time
        server = socket.socket(socket.AF_UNIX)
        server.bind('s')
        server.listen(1000)
        for _ in range(400):
            client = socket.socket(socket.AF_UNIX)
            client.connect('s')
            client.setblocking(False)
            try:
                while True: client.send(bytes(65536))
            except BlockingIOError: pass
            client.close()
        """,
    ),
    # 40,000 x 1 KiB
    "names": (32, "import os, time\nopen('f', 'w').close()\nfor i in range(40000): os.link('f', f'{i:0200}')"),
    "long links": (32, "import os, time\nfor i in range(40000): os.symlink('x' * 100, str(i))"),
    "deep folders": (32, "import os, time\nfor i in range(40000): os.mkdir('d'); os.chdir('d')"),
    # those of one file would be slow to make
    "locked parts of files": (
        512,
        """
        import fcntl, time
        files = [open(str(i), 'w') for i in range(50)]
        for file in files:
            for part in range(100): fcntl.lockf(file, fcntl.LOCK_EX, 1, 2 * part)
        """,
    ),
}


@pytest.mark.parametrize("name", KERNEL_MEMORY)
def test_kernel_memory_counts(run_within, mark, name):
    megabytes, code = KERNEL_MEMORY[name]
    head = f"open('/proc/self/comm', 'w').write({mark!r})\n"
    result = run_within(head + textwrap.dedent(code) + "\ntime.sleep(40)\nprint('GOT')", memory_bytes=megabytes << 20)
    assert (result.status, result.exit_code, result.stdout) == ("memory", None, ""), result


@pytest.mark.parametrize("level", LEVELS)
def test_timers_and_signals_under_way_have_a_limit(run_within, level):
    """By the kernel, at all levels; each is some 400 bytes of its memory."""
    code = """
        import ctypes, platform, signal
        libc = ctypes.CDLL(None)
        timer = ctypes.c_void_p()
        create, queue = (222, 129) if platform.machine() == 'x86_64' else (107, 138)  # timer_create, rt_sigqueueinfo
        timers = signals = 0
        while timers < 20000 and libc.syscall(create, 0, None, ctypes.byref(timer)) == 0:
            timers += 1
        signal.pthread_sigmask(signal.SIG_BLOCK, [40])
        import os
        details = (ctypes.c_int * 32)(40, 0, -1)  # si_signo, si_errno, SI_QUEUE
        while signals < 20000 and libc.syscall(queue, os.getpid(), 40, details) == 0:
            signals += 1
        print(timers + signals)
        """
    result = run_within(code, level)
    assert 0 < int(result.stdout) <= supervisor.MAX_SIGNALS, result


def test_descriptors_count():
    """Each may hold two pages of a pipe."""
    few, many = in_a_fresh_process("""
        import os
        from exit_jax.sandbox import meter

        if os.fork() == 0:  # with a table as large as this process needs, not its parent
            print(meter.memory_in("/proc/self"))
            files = [os.eventfd(0) for _ in range(500)]
            print(meter.memory_in("/proc/self"), flush=True)
            os._exit(0)
        os.wait()
        """)
    assert many - few > 128 * meter.DESCRIPTOR_BYTES  # the resident pages differ by some, too


def test_a_process_that_hides_counts_in_full(monkeypatch):
    def refuse(path, limit):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(meter, "count_lines", refuse)
    assert meter.objects_of(os.getpid(), 100) is None
    with subprocess.Popen(["sleep", "60"]) as process:
        hides, cannot = (meter.Meter(True, 0, sees_all).look()[0] for sees_all in (True, False))
        process.kill()
    assert hides > meter.UNSEEN_OBJECTS * meter.OBJECT_BYTES > cannot


def test_many_mappings_are_counted_in_steps():
    """What is beyond the first step is taken for the most that the next one sees, until that one has seen it."""
    counts, process = [], meter.Process("", 0)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as child:
        child.stdin.write(b"!")
        assert child.stdout.read(1) == b"!", "it has started, and makes no more mappings"
        with open(f"/proc/{child.pid}/maps") as file:
            num_mappings = len(file.readlines())
        assert meter.objects_of(child.pid, 10**6) == num_mappings
        assert meter.objects_of(child.pid, 3) > 3
        measured = meter.Meter(True, 0, True)
        measured._processes[child.pid], process.max_objects = process, 1
        for _ in range(3):
            process.waits_since = 1.0
            measured._count_objects()
            counts.append(process.objects)
        child.stdin.close()
    assert counts == [meter.MORE, meter.MORE**2, num_mappings], "cat has 30 to 40 mappings"


@pytest.mark.parametrize("level", LEVELS)
def test_no_descriptor_of_the_trainer_reaches_a_program(run_within, level):
    """Also where the trainer has so many that new ones have high numbers."""
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(120)]
    for fd in held[:60]:
        os.set_inheritable(fd, True)
    try:
        result = run_within("import os; print(sorted(os.listdir('/proc/self/fd')))", level)
    finally:
        for fd in held:
            os.close(fd)
    assert result.stdout == "['0', '1', '2', '3']\n", "the last is that of the folder"


@pytest.mark.parametrize("level", LEVELS)
def test_first_in_line_for_the_memory_killer(run_within, level):
    """Lowered, the place is taken again at the next look; in a child, too."""
    code = """
        import os, time
        child = os.fork()
        try:
            open('/proc/self/oom_score_adj', 'w').write('0')
        except OSError:
            pass
        for _ in range(3000):
            if (place := open('/proc/self/oom_score_adj').read()) == '1000\\n':
                break
            time.sleep(0.01)
        if child == 0:
            os._exit(place != '1000\\n')
        print(repr(place), os.waitstatus_to_exitcode(os.wait()[1]))
        """
    assert run_within(code, level).stdout == "'1000\\n' 0\n"


PRIVILEGES = {
    "limits": """
        import resource
        for kind in range(resource.RLIM_NLIMITS if hasattr(resource, 'RLIM_NLIMITS') else 16):
            try:
                soft, hard = resource.getrlimit(kind)
                if hard != resource.RLIM_INFINITY:
                    resource.setrlimit(kind, (resource.RLIM_INFINITY,) * 2)
                    print('GOT', kind)
            except (OSError, ValueError):
                pass
        """,
    "niceness": "import os; os.nice(-5); print('GOT')",
    "a share of the real time": "import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)); print('GOT')",
    "round robin": "import os; os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1)); print('GOT')",
    "pages that stay": """
        import ctypes
        libc = ctypes.CDLL(None)
        if libc.mlockall(3) == 0 or libc.mlock(ctypes.create_string_buffer(1 << 20), 1 << 20) == 0:
            print('GOT')
        """,
    "another user": "import os; os.setuid(0) if os.getuid() else os.setuid(1); print('GOT')",
    "another root": "import os; os.chroot('/tmp'); print('GOT')",
    "the clock": "import time; time.clock_settime(time.CLOCK_REALTIME, time.time()); print('GOT')",
    "a device": "import os; os.mknod('/tmp/x', 0o20666, os.makedev(1, 5)); print('GOT')",
    "the supervisor's limits": "import resource; resource.prlimit(1, resource.RLIMIT_NOFILE, (64, 64)); print('GOT')",
    "the supervisor's processors": "import os; os.sched_setaffinity(1, {0}); print('GOT')",
    "the supervisor's end": """
        import os, signal
        for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGSEGV):
            try:
                os.kill(1, number)
            except PermissionError:
                pass
        """,
    "a dump of memory": """
        import os, resource
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))
        except ValueError:
            pass
        if os.fork() == 0:
            os.abort()
        _, status = os.wait()
        print('GOT' if os.WCOREDUMP(status) or len(os.listdir('.')) > 1 else '')
        """,
    "a larger file than the folder": "open('x', 'wb').truncate(1 << 40); print('GOT')",
    "a longer name than there are": "open('x' * 256, 'w'); print('GOT')",
}


@pytest.mark.parametrize("name", PRIVILEGES)
def test_what_a_program_cannot_take(isolated, name):
    result = isolated.run([Job(textwrap.dedent(PRIVILEGES[name]))])[0]
    assert "GOT" not in result.stdout
    assert result.status in ("ok", "crashed")


def test_priority_for_root_is_there_without_isolation(bare):
    """The control: what is refused above is there where nobody refuses it."""
    if os.geteuid():
        pytest.skip("only root has it")
    assert "GOT" in bare.run([Job(textwrap.dedent(PRIVILEGES["niceness"]))])[0].stdout


@pytest.mark.parametrize(("looks", "status"), [([9, 0, 9, 0], "ok"), ([0, 9, 9, 0], "memory")])
def test_memory_must_be_too_much_twice_in_a_row(monkeypatch, looks, status):
    """Between vfork and exec a child has its parent's memory, which then counts for two."""
    left = iter([*looks, *[0] * 1000])
    monkeypatch.setattr(supervisor.Meter, "look", lambda self: (next(left), 0.0, 1, 0))
    limits = dataclasses.asdict(Limits(memory_bytes=8))
    request = {"limits": limits, "bare": True, "socket_bytes": 0, "sees_all": True}
    with subprocess.Popen(["sleep", "0.5"]) as process:
        found = supervisor.watch(request, process.pid, [], time.monotonic())
        process.kill()
    assert found[0] == status


@pytest.mark.parametrize("level", ["bubblewrap+seccomp", "none"])
def test_deep_folders_of_unwritable_ones_are_removed(run_within, level, tmp_path, monkeypatch):
    monkeypatch.setattr(launch.tempfile, "tempdir", str(tmp_path))
    code = """
        import os
        for index in range(1200):
            os.mkdir('folder')
            os.chdir('folder')
        open('file', 'w').close()
        os.symlink('/', 'root')
        os.chmod('.', 0)
        print('done')
        """
    assert run_within(code, level).stdout == "done\n"
    assert not list(tmp_path.iterdir())
