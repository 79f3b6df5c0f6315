"""What all tests share: 8 virtual CPU devices, no implicit rank promotion, the peers' packages, small builders."""

import ctypes
import functools
import gc
import importlib
import os
import shutil
import sys
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
# small programs: compiling them costs more than running them, so XLA is told not to try hard (105 s -> 62 s for the policy)
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
    ]
)

import jax
import numpy as np
import pytest

from exit_jax.algorithm.settings import ExItConfig
from exit_jax.types import NO_ID, History

jax.config.update("jax_numpy_rank_promotion", "raise")


COMPILED = pytest.StashKey[str]()


def pytest_configure(config):
    """Keep what one process compiles for the other worker, the next file and the programs that tests start."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:  # the user's, or that of the process which started this one
        return
    config.stash[COMPILED] = tempfile.mkdtemp(prefix="exit_jax_tests_")
    settings = {
        "jax_compilation_cache_dir": config.stash[COMPILED],
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        os.environ[name.upper()] = str(value)
        jax.config.update(name, value)


def pytest_unconfigure(config):
    """Remove what was kept."""
    if folder := config.stash.get(COMPILED, ""):
        shutil.rmtree(folder, ignore_errors=True)


# files that take minutes in one process, the longest first: begun last, they would be waited for by one worker alone
LONGEST = (
    "tools_pipeline",
    "mutations",
    "train",
    "hosts",
    "mle_pipeline",
    "math_pipeline",
    "compile",
    "serve",
    "sampler",
    "checkpoint_policy",
)


def pytest_collection_modifyitems(items):
    """Begin with the files that take longest; the order within a file stays."""
    place = {f"test_{name}": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """Return ``tmp_path`` for modules of a user's own: what is imported from there is forgotten afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture(scope="module", autouse=True)
def free_compiled_programs():
    """Free what a file has compiled: a process may hold 65,530 memory mappings, and the programs of all files need more.

    So go the package's own caches, which hold programs, and what the allocator holds back: 2.6 GB a worker without this.
    """
    yield
    forget_programs()


@pytest.fixture
def free_after_test():
    """Free what a test has compiled, in a file whose tests together would compile too much."""
    yield
    forget_programs()


def forget_programs():
    """Let go of all compiled programs, and of what the allocator holds back."""
    for cached in [one for one in gc.get_objects() if type(one) is functools._lru_cache_wrapper]:
        if (cached.__module__ or "").startswith("exit_jax"):
            cached.cache_clear()
    jax.clear_caches()
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc's
        trim(0)


@pytest.fixture(scope="session")
def require_parity():
    """Return a function that imports a peer's modules; it skips without them, or fails if EXIT_JAX_REQUIRE_PARITY=1."""

    def require(*names):
        try:
            return [importlib.import_module(name) for name in names]
        except ImportError as error:
            if os.environ.get("EXIT_JAX_REQUIRE_PARITY") == "1":
                raise
            pytest.skip(f"parity: {error}")

    return require


@pytest.fixture(scope="session")
def exit_config():
    """Return a function that makes an ExItConfig: plain GRPO on a tiny batch but for the settings given."""
    plain = {
        "num_prompts": 4,
        "group_size": 2,
        "buffer_size": 8,
        "min_buffer_size": 4,
        "selection_prob": 0.5,
        "selection": "softmax",
        "score_temperature": 20.0,
        "self_iteration": True,
        "divergence_prob": 0.0,
        "max_depth": 0,
        "children": "all",
        "learnability_of": "quality",
        "reward": "quality",
        "diversity_bonus": False,
        "diversity_embedding": "grades",
        "diversity_cap": float("inf"),
        "advantage_norm": "group",
        "advantage_eps": 1e-6,
        "zero_variance": "keep",
        "clip_low": 0.2,
        "clip_high": 0.2,
        "ratio_level": "token",
        "aggregation": "sequence_mean",
        "mask_overlong": False,
        "kl_coef": 0.0,
        "kl_estimator": "k3",
        "entropy_coef": 0.0,
        "num_epochs": 1,
        "reference_every": 100,
        "reference_mix": 1.0,
        "temperature": 1.0,
        "recompute_logp": False,
        "rollout_lag": 0,
    }
    return lambda **settings: ExItConfig(**(plain | settings))


@pytest.fixture(scope="session")
def make_history():
    """Return a function that makes a History of the given leading shape, blank but for the fields given."""

    def make(*shape, width=4, **fields):
        fill = {"id": NO_ID, "task": 0, "turn": 0, "step": -1, "quality": 0.0, "born": 0, "parent": NO_ID}
        blank = {name: np.full(shape, value) for name, value in fill.items()}
        blank |= {"tokens": np.zeros((*shape, width)), "lengths": np.zeros((*shape, 4))}
        given = {name: np.broadcast_to(value, blank[name].shape) for name, value in fields.items()}
        dtype = lambda name: np.float32 if name == "quality" else np.int32
        return History(**{name: jax.numpy.asarray(value, dtype(name)) for name, value in (blank | given).items()})

    return make


@pytest.fixture(scope="session")
def driver(require_parity):
    """Return a headless Chromium."""
    (webdriver,) = require_parity("selenium.webdriver")
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if not all(programs):
        tell = pytest.fail if os.environ.get("EXIT_JAX_REQUIRE_PARITY") == "1" else pytest.skip
        tell("no chromium and chromedriver on the PATH; install the packages chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs[1]))
    yield started
    started.quit()
