"""What the tests of the sandbox share: one isolated and one bare, and a way to find what a program left behind."""

import os
import pathlib
import shutil
import uuid

import pytest

from exit_jax.sandbox import Limits, Sandbox

LIMITS = Limits(
    wall_secs=120.0,  # the machine may be busy
    cpu_secs=60.0,
    memory_bytes=512 << 20,
    disk_bytes=32 << 20,
    num_processes=32,
    output_bytes=4096,
    file_bytes=1 << 20,
)


@pytest.fixture(scope="session")
def require_sandbox():
    """Skip without bubblewrap, or fail if EXIT_JAX_REQUIRE_SANDBOX=1."""
    if shutil.which("bwrap") is None:
        assert os.environ.get("EXIT_JAX_REQUIRE_SANDBOX") != "1", "bubblewrap is required here, and not installed"
        pytest.skip("bubblewrap is not installed (apt-get install bubblewrap)")


@pytest.fixture(scope="session")
def isolated(require_sandbox):
    """Return a sandbox of the strongest level."""
    sandbox = Sandbox("auto", LIMITS, num_workers=2)
    yield sandbox
    sandbox.close()


@pytest.fixture(scope="session")
def bare():
    """Return a sandbox without isolation: the control that shows that an attack can succeed."""
    sandbox = Sandbox("none", LIMITS, num_workers=2)
    yield sandbox
    sandbox.close()


@pytest.fixture
def mark():
    """Return a name for processes; the test fails if one of that name is left."""
    name = "t" + uuid.uuid4().hex[:12]
    yield name
    assert not named(name), "processes were left behind"


def named(name: str) -> list[int]:
    """Return the processes on this machine that have a name, and are not dead: who buries orphans may be slow, or nobody."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/comm"):
        try:
            if path.read_text().strip() == name and "\nState:\tZ" not in path.with_name("status").read_text():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.fixture(scope="session")
def find_named():
    """Return the function that finds processes by name."""
    return named
