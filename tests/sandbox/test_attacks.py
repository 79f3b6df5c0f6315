"""Test that attacks fail in the sandbox and leave nothing behind, each beside the same without isolation, which succeeds.

An attack prints GOT when it has what it wanted. What could harm this machine without isolation runs isolated only.
"""

import dataclasses
import os
import pathlib
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading

import pytest

from exit_jax.sandbox import Job, Sandbox, launch, seccomp
from exit_jax.sandbox.levels import find_jail

IS_ROOT = os.geteuid() == 0
SYSCALL = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def call(*arguments):
    code = libc.syscall(*(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    return code if code >= 0 else -ctypes.get_errno()
import platform
def number(x86, arm):
    return x86 if platform.machine() == "x86_64" else arm
"""


@dataclasses.dataclass
class Host:
    """What there is to attack."""

    public: pathlib.Path
    values: dict[str, object]  # what a program is told of it
    contacts: list[str]  # what arrived at the sockets


@pytest.fixture
def host(tmp_path, monkeypatch):
    """Return a competition's folder, a file in the home folder, a folder that all may write to, and listening sockets."""
    public, private = tmp_path / "public", tmp_path / "private"
    public.mkdir()
    private.mkdir()
    (public / "train.csv").write_text("x,y\n1,2\n")
    answers = private / "answers.csv"
    answers.write_text("secret\n")
    outside = tmp_path / "outside"
    outside.mkdir()
    outside.chmod(0o777)
    monkeypatch.setenv("EXIT_JAX_TEST_SECRET", "hush")
    neighbour = subprocess.Popen(["sleep", "60"])  # has it in its environment
    short = pathlib.Path(tempfile.mkdtemp())  # a unix socket's path has 107 characters at most
    short.chmod(0o777)
    sockets = {
        "tcp": socket.create_server(("127.0.0.1", 0)),
        "udp": socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "unix": socket.socket(socket.AF_UNIX),
        "abstract": socket.socket(socket.AF_UNIX),
    }
    sockets["udp"].bind(("127.0.0.1", 0))
    sockets["unix"].bind(str(short / "s"))
    (short / "s").chmod(0o777)
    sockets["abstract"].bind(f"\0exit_jax-{os.getpid()}-{tmp_path.name}")
    for name in ("unix", "abstract"):
        sockets[name].listen()
    contacts: list[str] = []
    is_over = threading.Event()

    def listen():
        while not is_over.is_set():
            for name in sockets:
                if select.select([sockets[name]], [], [], 0.01)[0]:
                    data = sockets[name].recv(9) if name == "udp" else sockets[name].accept()[0].recv(9)
                    contacts.append(f"{name} {data!r}")

    listener = threading.Thread(target=listen)
    listener.start()
    with tempfile.NamedTemporaryFile("w", dir=pathlib.Path.home(), prefix=".exit_jax-test-") as home:
        home.write("secret")
        home.flush()
        values = {
            "answers": str(answers),
            "home": home.name,
            "outside": str(outside / "x"),
            "tcp": sockets["tcp"].getsockname()[1],
            "udp": sockets["udp"].getsockname()[1],
            "unix": str(short / "s"),
            "abstract": f"\0exit_jax-{os.getpid()}-{tmp_path.name}",
            "trainer": os.getpid(),
        }
        yield Host(public, values, contacts)
    neighbour.kill()
    neighbour.wait()
    is_over.set()
    listener.join()
    for listening in sockets.values():
        listening.close()
    (short / "s").unlink()
    short.rmdir()


def attack(sandbox: Sandbox, code: str, host: Host | None = None, **job):
    """Run a program that knows the host's names."""
    lines = [f"{name} = {value!r}" for name, value in (host.values if host else {}).items()]
    public = host.public if host else None
    return sandbox.run([Job("\n".join([*lines, textwrap.dedent(code)]), public=public, **job)])[0]


READS = {
    "the answers": "print('GOT', open(answers).read())",
    "the answers beside the data": "import os; print('GOT', open(os.environ['DATA_DIR'] + '/../private/answers.csv').read())",
    "the home folder": "print('GOT', open(home).read())",
    "the users": "print('GOT', open('/etc/passwd').read())",
    "answers by a link": "import os; os.symlink(answers, 'l'); print('GOT', open('l').read())",
    "answers by a hard link": "import os; os.link(answers, 'l'); print('GOT', open('l').read())",
    "a disk or the memory": """
        import os
        names = set(os.listdir('/dev')) - {'null', 'random', 'urandom', 'fd', 'stdin', 'stdout', 'stderr', 'shm'}
        print('GOT' if names else '')
        """,
    "environments of others": """
        import glob
        for path in glob.glob('/proc/*/environ') + glob.glob('/proc/*/task/*/environ'):
            try:
                if b'EXIT_JAX_TEST_SECRET=hush' in open(path, 'rb').read():
                    print('GOT')
            except OSError:
                pass
        """,
    "answers by /proc/*/root and cwd": """
        import glob
        for path in glob.glob('/proc/*/root') + glob.glob('/proc/*/cwd') + ['/proc/1/root', '/proc/self/root']:
            try:
                print('GOT', open(path + answers).read())
            except OSError:
                pass
        """,
    "descriptors of others": """
        import glob, os
        for path in glob.glob('/proc/*/fd/*'):
            try:
                if path.split('/')[2] not in ('self', 'thread-self', str(os.getpid())):
                    print('GOT', os.readlink(path))
            except OSError:
                pass
        """,
    "the trainer's command": """
        import glob
        for path in glob.glob('/proc/*/cmdline'):
            try:
                if b'pytest' in open(path, 'rb').read():
                    print('GOT')
            except OSError:
                pass
        """,
}
WRITES = {
    "outside": "open(outside, 'w').write('x'); print('GOT')",
    "the data": "import os; open(os.environ['DATA_DIR'] + '/x', 'w').write('x'); print('GOT')",
    "the packages": "import json, os; print('GOT' if os.access(json.__path__[0], os.W_OK) else '')",
    "the root": "import os; os.mkdir('/tmp/../exit_jax_x'); os.rmdir('/exit_jax_x'); print('GOT')",
}
CONTACTS = {
    "tcp": "import socket; socket.create_connection(('127.0.0.1', tcp), 3).send(b'hello'); print('GOT')",
    "udp": """
        import socket
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'hello', ('127.0.0.1', udp)); print('GOT')""",
    "unix": "import socket; s = socket.socket(socket.AF_UNIX); s.connect(unix); s.send(b'hello'); print('GOT')",
    "abstract": "import socket; s = socket.socket(socket.AF_UNIX); s.connect(abstract); s.send(b'hello'); print('GOT')",
}
CALLS = {
    "ptrace": "print('GOT' if call(number(101, 117), 0, 0, 0, 0) == 0 else '')",
    "another's memory": """
        import os
        if (child := os.fork()) == 0:
            import time; time.sleep(100)
        there, here = ctypes.create_string_buffer(b'secret'), ctypes.create_string_buffer(6)
        class Span(ctypes.Structure):
            _fields_ = [('at', ctypes.c_void_p), ('size', ctypes.c_size_t)]
        spans = [Span(ctypes.addressof(b), 6) for b in (here, there)]
        n = call(number(310, 270), child, ctypes.byref(spans[0]), 1, ctypes.byref(spans[1]), 1, 0)
        os.kill(child, 9)
        print('GOT' if n == 6 else n)
        """,
    "a user namespace": "print('GOT' if call(number(272, 97), 0x10000000) == 0 else '')",
    "a mount namespace by clone": """
        import os
        pid = call(number(56, 220), 0x10000000 | 0x00020000 | 17, 0, 0, 0, 0)
        if pid == 0:
            os._exit(0)
        print('GOT' if pid > 0 else pid)
        """,
    "shared memory of nobody": "import mmap; mmap.mmap(-1, 4096); print('GOT')",
    "a file of nobody": "import os; os.memfd_create('x'); print('GOT')",
    "system V memory": """
        key = call(number(29, 194), 0, 4096, 0o1600)
        call(number(31, 195), key, 0, 0)  # IPC_RMID: else it outlives the program, and a machine has room for 4096
        print('GOT' if key >= 0 else '')
        """,
    "asynchronous input and output": """
        context = ctypes.c_ulong(0)
        print('GOT' if call(number(206, 0), 1, ctypes.byref(context)) == 0 else '')
        """,
    "watches of files": "print('GOT' if call(number(294, 26), 0) >= 0 else '')",
    "a policy for memory": "print('GOT' if call(number(238, 237), 0, 0, 0) == 0 else '')",
    "idle input and output": "print('GOT' if call(number(251, 30), 1, 0, 3 << 13) == 0 else '')",
    "another personality": "print('GOT' if call(number(135, 92), 0x0040000) >= 0 else '')",
    "larger pipes": "import fcntl, os; fcntl.fcntl(os.pipe()[1], 1031, 1 << 17); print('GOT')",
    "a filter of its own": """
        program = ctypes.create_string_buffer(bytes.fromhex('0600000000 00ff7f'.replace(' ', '')))  # allow
        class Filter(ctypes.Structure):
            _fields_ = [('size', ctypes.c_ushort), ('lines', ctypes.c_void_p)]
        call(number(157, 167), 38, 1, 0, 0, 0)
        print('GOT' if call(number(157, 167), 22, 2, ctypes.byref(Filter(1, ctypes.addressof(program)))) == 0 else '')
        """,
    "sockets of the internet": "import socket; socket.socket(socket.AF_INET); print('GOT')",
    "sockets of the kernel": "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW); print('GOT')",
    "datagrams": "import socket; socket.socketpair(type=socket.SOCK_DGRAM); print('GOT')",
    "larger sockets": """
        import socket
        socket.socketpair()[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20); print('GOT')""",
}


@pytest.mark.parametrize("name", READS)
def test_reading(isolated, bare, host, name):
    result = attack(isolated, READS[name], host)
    assert "GOT" not in result.stdout
    assert "secret" not in result.stdout + result.stderr
    assert "GOT" in attack(bare, READS[name], host).stdout


@pytest.mark.parametrize("name", WRITES)
def test_writing(isolated, bare, host, name):
    before = sorted(host.public.parent.rglob("*"))
    assert "GOT" not in attack(isolated, WRITES[name], host).stdout
    assert sorted(host.public.parent.rglob("*")) == before
    if IS_ROOT or name not in ("the root", "the packages"):
        assert "GOT" in attack(bare, WRITES[name], host).stdout


@pytest.mark.parametrize("name", CONTACTS)
def test_network(isolated, bare, host, name):
    assert "GOT" not in attack(isolated, CONTACTS[name], host).stdout
    assert not host.contacts
    assert "GOT" in attack(bare, CONTACTS[name], host).stdout
    for _ in range(100):
        if not host.contacts:
            threading.Event().wait(0.02)
    assert host.contacts == [f"{name} b'hello'"]


@pytest.mark.parametrize("name", CONTACTS)
def test_network_without_the_filter(require_sandbox, host, name):
    """The namespace alone keeps programs off the network: not even a socket that opens reaches anything."""
    sandbox = Sandbox("bubblewrap", num_workers=1)
    attack(sandbox, CONTACTS[name], host)
    sandbox.close()
    assert not host.contacts


@pytest.mark.parametrize("name", CALLS)
def test_system_calls(isolated, bare, name):
    assert "GOT" not in attack(isolated, SYSCALL + textwrap.dedent(CALLS[name])).stdout
    if IS_ROOT or "namespace" not in name:  # some systems deny users namespaces
        assert "GOT" in attack(bare, SYSCALL + textwrap.dedent(CALLS[name])).stdout


def test_every_call_of_the_table_is_refused(isolated):
    """With zeros for arguments, by the kernel itself; those that are to be missing are missing."""
    if "seccomp" not in isolated.level:
        pytest.skip("there is no filter for this processor")
    column = 0 if os.uname().machine == "x86_64" else 1
    numbers = {name: pair[column] for name, pair in seccomp.DENIED.items() if pair[column] is not None}
    code = f"""
        answers = {{name: call(number, 0, 0, 0, 0, 0, 0) for name, number in {numbers}.items()}}
        print({{name: answer for name, answer in answers.items() if answer != -1}}, call(435, 0, 0), call(451), call(500))
        """
    result = attack(isolated, SYSCALL + textwrap.dedent(code))
    assert result.stdout == "{} -38 -38 -38\n", result  # ENOSYS
    assert len(numbers) > 75


@pytest.mark.parametrize("family", [3, 16, 17, 38, 40, 44])  # AX25, NETLINK, PACKET, ALG, VSOCK, XDP
def test_no_other_sockets(isolated, family):
    code = f"import socket\nfor kind in (1, 2, 3, 5): socket.socket({family}, kind); print('GOT')"
    result = attack(isolated, code)
    assert "GOT" not in result.stdout
    assert "Address family not supported" in result.stderr


def test_sockets_lead_nowhere_but_to_the_program_itself(isolated):
    """A program hears itself, by path and by name. Another one that runs meanwhile hears neither."""
    code = """
        import socket, time
        for name in ('/tmp/s', chr(0) + 'exit_jax-test-name'):
            if HEARS:
                server = socket.socket(socket.AF_UNIX)
                server.bind(name)
                server.listen()
            try:
                socket.socket(socket.AF_UNIX).connect(name)
                print('heard')
            except OSError:
                print('nobody')
        time.sleep(1)
        """
    jobs = [Job(textwrap.dedent(code).replace("HEARS", word)) for word in ("True", "False", "False")]
    assert [result.stdout.split() for result in isolated.run(jobs)] == [["heard"] * 2, ["nobody"] * 2, ["nobody"] * 2]


def test_calls_by_another_table_end_the_program(isolated):
    code = SYSCALL + "print('alive', flush=True); call(0x40000000 + 39); print('GOT')"
    result = attack(isolated, code)
    if os.uname().machine == "x86_64":
        assert (result.status, result.exit_code, result.stdout) == ("crashed", -signal.SIGSYS, "alive\n")


@pytest.mark.parametrize(
    "path", ["/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/1/mem", "/proc/1/oom_score_adj"]
)
def test_kernel_files_cannot_be_opened_for_writing(isolated, bare, path):
    code = f"open({path!r}, 'r+b', buffering=0); print('GOT')"
    assert "GOT" not in attack(isolated, code).stdout
    if IS_ROOT and "core_pattern" in path:
        assert "GOT" in attack(bare, code).stdout


def test_what_a_program_is(isolated):
    """No capability, no way to more privileges, a filter, three descriptors, a user that is not the trainer's."""
    code = """
        import os, resource
        print(len(os.listdir('/proc/self/fd')) - 1, os.getuid(), os.environ.get('EXIT_JAX_TEST_SECRET'))
        for line in open('/proc/self/status'):
            if line.startswith(('CapPrm', 'CapEff', 'CapAmb', 'NoNewPrivs', 'Seccomp:', 'Groups')):
                print(*line.split()[1:] or '-')
        print(sorted(os.listdir('/tmp/work')), os.getcwd(), resource.getrlimit(resource.RLIMIT_CORE))
        try:
            os.setuid(0)
        except OSError as error:
            print(error.errno)
        """
    lines = attack(isolated, code).stdout.splitlines()
    descriptors, uid, secret = lines[0].split()
    assert (descriptors, secret) == ("3", "None")
    assert int(uid) != os.geteuid()
    zero = "0" * 16
    assert lines[2:7] == [zero, zero, zero, "1", "2" if "seccomp" in isolated.level else "0"]
    assert lines[7:] == ["['solution.py'] /tmp/work (1, 1)", "1" if IS_ROOT else lines[-1]]


def test_no_two_runs_are_the_same_user(isolated):
    """Where the trainer is root. Elsewhere a user namespace hides the user that they are."""
    uids = {int(result.stdout) for result in isolated.run([Job("import os; print(os.getuid())")] * 3)}
    assert len(uids) == 3 if IS_ROOT else uids == {65534}
    assert min(uids) >= 1 << 15


def test_killing(isolated, bare, host):
    """A program can end neither the trainer nor the supervisor, which without isolation it can."""
    code = """
        import os, signal
        for pid in (trainer, -trainer):
            try:
                os.kill(pid, 0); print('GOT')
            except ProcessLookupError:
                pass
        """
    assert "GOT" not in attack(isolated, code, host).stdout
    assert "GOT" in attack(bare, code, host).stdout
    code = """
        import os, signal
        supervisor = os.getppid()  # asked once: after its end that is process 1, or whoever adopts orphans here
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGSTOP, signal.SIGKILL):
            try:
                os.kill(supervisor, number)
            except PermissionError:
                pass
        print('alive')
        """
    assert attack(isolated, code).stdout == "alive\n"
    assert attack(bare, code).status == "fault"


NAMED = "open('/proc/self/comm', 'w').write({mark!r})\nimport os, signal, sys, threading, time\n"


def test_fork_bomb(isolated, mark):
    code = """
        count = 0
        while True:
            try:
                if os.fork() == 0:
                    time.sleep(60)
                print((count := count + 1), flush=True)
            except OSError:
                time.sleep(0.01)
        """
    limited = Sandbox("auto", dataclasses.replace(isolated.limits, wall_secs=3.0), num_workers=1)
    result = attack(limited, NAMED.format(mark=mark) + textwrap.dedent(code))
    limited.close()
    assert result.status in ("timeout", "processes")
    assert 0 < int(result.stdout.split()[-1]) <= isolated.limits.num_processes + 8


def test_exponential_fork_bomb(isolated, mark):
    result = attack(isolated, NAMED.format(mark=mark) + "while True: os.fork()")
    assert result.status in ("crashed", "processes")


def test_fork_bomb_where_only_the_supervisor_counts(isolated, monkeypatch, mark):
    monkeypatch.setattr(launch, "max_tasks", lambda way, number: 500)
    code = NAMED.format(mark=mark) + "for _ in range(400):\n    os.fork() or time.sleep(60)\ntime.sleep(60)"
    result = launch.run(find_jail("auto"), Job(code), isolated.limits)
    assert result.status == "processes"
    assert result.secs < 60


def test_threads_count(isolated, mark):
    code = "for _ in range(40):\n    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
    result = attack(isolated, NAMED.format(mark=mark) + code)
    assert result.status == "processes" or "can't start new thread" in result.stderr


BOMBS = {
    "at once": "x = bytearray(2 << 30); time.sleep(100)",
    "bit by bit": "x = []\nwhile True: x.append(bytearray(1 << 20))",
    "in children": """
        for _ in range(8):
            if os.fork() == 0:
                x = bytearray(100 << 20); time.sleep(100)
        time.sleep(100)
        """,
    "behind a dead first thread": """
        import ctypes
        def grow():
            x = bytearray(1 << 30)
            time.sleep(100)
        threading.Thread(target=grow).start()
        ctypes.CDLL(None).syscall({exit})
        """,
}


@pytest.mark.parametrize("name", BOMBS)
def test_memory_bomb(isolated, bare, mark, name):
    code = textwrap.dedent(BOMBS[name]).replace("{exit}", "60" if os.uname().machine == "x86_64" else "93")
    for sandbox in (isolated, bare):
        result = attack(sandbox, NAMED.format(mark=mark) + code)
        assert (result.status, result.exit_code) == ("memory", None)
        assert result.secs < 60


def test_absurd_memory_is_an_error_of_the_program(isolated):
    result = attack(isolated, "bytearray(1 << 45)")
    assert result.status == "crashed"
    assert "MemoryError" in result.stderr


FILLERS = {
    "one file": "f = open('x', 'wb')\nwhile True: f.write(b'.' * (1 << 20)); f.flush()",
    "many files": "i = 0\nwhile True: open(str(i := i + 1), 'wb').write(b'.' * (1 << 20))",
    "shared memory": "i = 0\nwhile True: open(f'/dev/shm/{(i := i + 1)}', 'wb').write(b'.' * (1 << 20))",
    "the folder of temporary files": "i = 0\nwhile True: open(f'/tmp/{(i := i + 1)}', 'wb').write(b'.' * (1 << 20))",
}


@pytest.mark.parametrize("name", FILLERS)
@pytest.mark.parametrize("has_size", [True, False])
def test_disk_filler(isolated, name, has_size):
    """With bubblewrap's limit and, as before its version 0.7, without."""
    jail = find_jail("auto")
    jail = dataclasses.replace(jail, has_size=has_size and jail.has_size)
    result = launch.run(jail, Job(FILLERS[name]), isolated.limits)
    assert result.status in ("disk", "crashed") if name == "one file" else result.status == "disk"
    assert result.status == "disk" or "File too large" in result.stderr or result.exit_code == -signal.SIGXFSZ
    assert result.secs < 60


def test_disk_filler_with_empty_files(isolated):
    result = attack(isolated, "import os\ni = 0\nwhile True: os.close(os.open(str(i := i + 1), os.O_CREAT))")
    assert (result.status, result.reason) == ("disk", "more than 65536 files in the writable folder")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_endless_output(isolated, stream):
    result = attack(isolated, f"import sys\nwhile True: print('.' * 1000 + 'end', file=sys.{stream})")
    assert result.status == "output"
    assert len(getattr(result, stream)) == isolated.limits.output_bytes
    assert result.secs < 60


def test_output_keeps_its_end(isolated):
    result = attack(isolated, "for i in range(10000): print(i)")
    assert (result.status, result.stdout[-10:]) == ("ok", "9998\n9999\n")
    assert len(result.stdout) == isolated.limits.output_bytes


STUBBORN = {
    "ignoring signals": """
        for number in range(1, 65):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        while True:
            time.sleep(1)
        """,
    "stopped": "os.kill(os.getpid(), signal.SIGSTOP)",
    "without output": "os.close(1); os.close(2); time.sleep(60)",
    "in C": "sum(range(1 << 60))",
}


@pytest.mark.parametrize("name", STUBBORN)
def test_time_limit(isolated, mark, name):
    limited = Sandbox("auto", dataclasses.replace(isolated.limits, wall_secs=2.0), num_workers=1)
    result = attack(limited, NAMED.format(mark=mark) + "print('begun')\n" + textwrap.dedent(STUBBORN[name]))
    limited.close()
    assert (result.status, result.reason, result.stdout) == ("timeout", "more than 2 s by the clock", "begun\n")
    assert 2.0 <= result.secs < 30.0


def test_limit_of_processor_time_over_all_processes(isolated, mark):
    limited = Sandbox("auto", dataclasses.replace(isolated.limits, cpu_secs=1.0), num_workers=1)
    code = "for _ in range(3):\n    if os.fork() == 0:\n        while True: pass\ntime.sleep(60)"
    result = attack(limited, NAMED.format(mark=mark) + code)
    limited.close()
    assert (result.status, result.reason) == ("timeout", "more than 1 s of processor time")


DAEMON = """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(300)
    os._exit(0)
os.wait()
print('done')
"""


def test_double_forked_daemon(isolated, bare, mark, find_named, tmp_path):
    code = NAMED.format(mark=mark) + DAEMON
    for sandbox in (isolated, bare):
        result = attack(sandbox, code)
        assert (result.status, result.stdout) == ("ok", "done\n")
        assert not find_named(mark)
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)
    left = find_named(mark)
    assert len(left) == 1, "the control: a daemon does survive its parents"
    os.kill(left[0], signal.SIGKILL)
    for _ in range(200):
        if find_named(mark):
            threading.Event().wait(0.02)


SUBMISSIONS = {
    "a link": ("os.symlink('/dev/null', 'submission.csv')", "it is a link, not a regular file"),
    "a link to the data": (
        "os.symlink(os.environ.get('DATA_DIR', '/data') + '/train.csv', 'submission.csv')",
        "it is a link, not a regular file",
    ),
    "a pipe": ("os.mkfifo('submission.csv')", "it is a pipe, not a regular file"),
    "a folder": ("os.mkdir('submission.csv')", "it is a folder, not a regular file"),
    "huge": ("open('submission.csv', 'wb').truncate(2 << 20)", "it has 2097152 bytes, the limit is 1048576"),
    "missing": ("", "No such file or directory"),
}


@pytest.mark.parametrize("name", SUBMISSIONS)
def test_submissions_that_are_none(isolated, bare, name):
    code, reason = SUBMISSIONS[name]
    for sandbox in (isolated, bare):
        result = attack(
            sandbox, "import os\nopen('good.csv', 'w').write('1')\n" + code, collect=("good.csv", "submission.csv")
        )
        assert result.status == "ok"
        assert (result.files, result.faults) == ({"good.csv": b"1"}, {"submission.csv": reason})


def test_submission_that_is_a_device(isolated, bare):
    code = f"import os, stat; os.mknod('submission.csv', {stat.S_IFCHR | 0o666}, os.makedev(1, 5))"
    result = attack(isolated, code, collect=("submission.csv",))
    assert (result.status, list(result.files)) == ("crashed", [])
    if IS_ROOT:
        result = attack(bare, code, collect=("submission.csv",))
        assert result.faults == {"submission.csv": "it is a device, not a regular file"}


def test_private_submission(isolated):
    result = attack(isolated, "import os; open('s', 'w').write('1'); os.chmod('s', 0o600)", collect=("s",))
    assert (result.files, result.faults) == ({"s": b"1"}, {})


def test_a_folder_put_in_the_place_of_the_writable_one(isolated):
    """What is collected comes from the folder that the program began in."""
    code = """
        import os
        open('s', 'w').write('mine')
        try:
            os.rename('/tmp/work', '/tmp/old'); os.symlink('/etc', '/tmp/work')
        except OSError:
            pass
        """
    assert attack(isolated, code, collect=("s", "ld.so.cache")).files == {"s": b"mine"}
