"""The schema of a config, its validation, and the workdir that it belongs to.

Config files are ml_collections; ``validate`` turns one into the frozen dataclasses below, which is all that the other
modules see, and reports every fault at once. The groups in OPERATIONAL may differ when a run resumes; all other fields
are scientific and fixed for a workdir.
"""

import dataclasses
import difflib
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import typing
from collections.abc import Mapping

import ml_collections

from exit_jax.algorithm.types import ExItConfig
from exit_jax.domains import DOMAINS
from exit_jax.policy.decoder import DecoderConfig


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Adam with decoupled weight decay, after clipping by global norm."""

    learning_rate: float
    warmup_steps: int  # linear from 0
    decay_steps: int  # cosine to 0 at this step; 0 keeps the rate constant
    b1: float
    b2: float
    weight_decay: float
    max_grad_norm: float


@dataclasses.dataclass(frozen=True)
class WarmStartConfig:
    """Supervised phase before RL, on the domain's demonstrations."""

    num_steps: int  # 0 for none
    num_states: int  # prompts a batch
    group_size: int  # demonstrations a prompt
    optimizer: OptimizerConfig


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """K-step self-improvement on held-out tasks."""

    splits: tuple[str, ...]
    steps: tuple[int, ...]  # the k reported; 0 is the first response
    samples_per_task: int  # avg@n
    batch_size: int  # chains at once; a multiple of run.num_devices
    temperature: float  # 0 for greedy
    top_k: int
    top_p: float
    restart_every: int  # responses a chain of the rival that starts over at equal tokens
    num_chains_saved: int  # a split, for people to read
    seed: int


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """How a run is carried out; none of it changes the experiment."""

    num_iterations: int
    num_devices: int  # data axis of the mesh; 0 for all
    steps_per_call: int  # iterations in one compiled program, between two looks of the host
    checkpoint_every: int  # iterations; a multiple of steps_per_call
    keep_checkpoints: int
    warm_start_dir: str  # folder of finished warm starts; "" for one in the workdir
    profile: bool  # write a JAX trace of one call of steps_per_call iterations


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """The runs of --mode study."""

    variants: tuple[str, ...]  # values of the config file's argument "variant"
    seeds: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment."""

    name: str
    variant: str
    seed: int
    domain_name: str
    domain: typing.Any  # the settings of DOMAINS[domain_name]
    policy: DecoderConfig  # vocab_size is the domain's
    algorithm: ExItConfig
    optimizer: OptimizerConfig
    warm_start: WarmStartConfig
    eval: EvalConfig
    run: RunConfig
    study: StudyConfig


OPERATIONAL = ("run", "eval", "study")


class ConfigError(ValueError):
    """A config or a workdir that cannot be used; the message lists every fault and its remedy."""


def validate(config: ml_collections.ConfigDict, num_devices: int) -> Config:
    """Turn a config file's content into ``Config``.

    Args:
      num_devices: devices that JAX has; ``run.num_devices = 0`` stands for all of them.

    Raises:
      ConfigError: listing all unknown, missing, mistyped and contradictory fields together.
    """
    faults: list[str] = []
    parsed = _parse(Config, config.to_dict(), "config", faults)
    if faults:
        raise ConfigError(_list_faults(faults))
    faults = _contradictions(parsed, num_devices)
    if faults:
        raise ConfigError(_list_faults(faults))
    num_devices = parsed.run.num_devices or num_devices
    return dataclasses.replace(parsed, run=dataclasses.replace(parsed.run, num_devices=num_devices))


def _list_faults(faults: list[str]) -> str:
    return f"{len(faults)} fault(s) in the config:\n" + "\n".join(f"  - {fault}" for fault in faults)


def _parse(cls, values, path: str, faults: list[str]) -> typing.Any:
    """Build dataclass ``cls`` from a mapping; faults are appended, and None is returned if there are any below."""
    if not isinstance(values, Mapping):
        faults.append(f"{path} = {values!r} is not a group of fields")
        return None
    types = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    if cls is Config:
        domain = values.get("domain_name")
        if domain not in DOMAINS:
            faults.append(f"{path}.domain_name = {domain!r} is not one of {tuple(DOMAINS)}")
            names.remove("domain")
        else:
            types["domain"] = DOMAINS[domain][0]
    if cls is DecoderConfig:
        names.remove("vocab_size")  # the domain's
    for unknown in sorted(set(values) - set(names) - {"domain"}):
        near = difflib.get_close_matches(unknown, names, n=1)
        faults.append(f"{path}.{unknown} is unknown" + (f"; did you mean {near[0]}?" if near else ""))
    before = len(faults)
    fields = {}
    for name in names:
        if name not in values:
            faults.append(f"{path}.{name} is missing")
        else:
            fields[name] = _convert(types[name], values[name], f"{path}.{name}", faults)
    if len(faults) > before:
        return None
    if cls is DecoderConfig:
        fields["vocab_size"] = 0
    try:
        return cls(**fields)
    except (TypeError, ValueError) as error:
        faults.append(str(error))
        return None


def _convert(kind, value, path: str, faults: list[str]):
    """Check ``value`` against a type of the schema."""
    if dataclasses.is_dataclass(kind):
        return _parse(kind, value, path, faults)
    if typing.get_origin(kind) is tuple:
        args = typing.get_args(kind)
        if not isinstance(value, (tuple, list)):
            faults.append(f"{path} = {value!r} is not a tuple")
            return None
        if args[-1] is not Ellipsis and len(args) != len(value):
            faults.append(f"{path} = {value!r} does not have {len(args)} items")
            return None
        return tuple(_convert(args[0], item, f"{path}[{i}]", faults) for i, item in enumerate(value))
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        faults.append(f"{path} = {value!r} is a {type(value).__name__}, not a {kind.__name__}")
    return value


def _contradictions(c: Config, num_devices: int) -> list[str]:
    """Return one sentence a fault, naming the values, the rule and the remedy."""
    a, faults = c.algorithm, []

    def require(holds, message):
        if not holds:
            faults.append(message)

    def at_least(low, **values):
        for name, value in values.items():
            require(value >= low, f"{name.replace('__', '.')} = {value} is below {low}")

    at_least(1, algorithm__num_prompts=a.num_prompts, algorithm__num_epochs=a.num_epochs)
    at_least(1, algorithm__buffer_size=a.buffer_size, algorithm__reference_every=a.reference_every)
    at_least(2, algorithm__group_size=a.group_size)
    at_least(0, algorithm__min_buffer_size=a.min_buffer_size, algorithm__max_depth=a.max_depth)
    at_least(0, algorithm__score_temperature=a.score_temperature, algorithm__kl_coef=a.kl_coef)
    at_least(0, algorithm__clip_low=a.clip_low, algorithm__clip_high=a.clip_high, seed=c.seed)
    require(
        a.min_buffer_size <= a.buffer_size,
        f"algorithm.min_buffer_size = {a.min_buffer_size} is above algorithm.buffer_size = {a.buffer_size}, "
        "so nothing would ever be drawn from the buffer; lower the first",
    )
    for name in ("selection_prob", "divergence_prob", "reference_mix"):
        value = getattr(a, name)
        require(0.0 <= value <= 1.0, f"algorithm.{name} = {value} is not in [0, 1]")
    require(a.temperature > 0, f"algorithm.temperature = {a.temperature}: training must sample, so it must be above 0")
    require(
        a.self_iteration or not a.divergence_prob,
        "algorithm.divergence_prob > 0 needs algorithm.self_iteration: without it nothing is held to diverge from",
    )
    p = c.policy
    at_least(1, policy__num_layers=p.num_layers, policy__num_kv_heads=p.num_kv_heads, policy__mlp_dim=p.mlp_dim)
    require(p.head_dim % 2 == 0, f"policy.head_dim = {p.head_dim} is odd, but rotary embeddings turn pairs")
    require(
        p.num_kv_heads < 1 or p.num_heads % p.num_kv_heads == 0,
        f"policy.num_heads = {p.num_heads} is not a multiple of policy.num_kv_heads = {p.num_kv_heads}",
    )
    require(p.dtype in ("float32", "bfloat16"), f"policy.dtype = {p.dtype!r} is not float32 or bfloat16")

    r, e, w = c.run, c.eval, c.warm_start
    at_least(1, run__steps_per_call=r.steps_per_call, run__keep_checkpoints=r.keep_checkpoints)
    at_least(0, run__num_iterations=r.num_iterations, warm_start__num_steps=w.num_steps)
    at_least(1, eval__samples_per_task=e.samples_per_task, eval__batch_size=e.batch_size)
    at_least(1, eval__restart_every=e.restart_every)
    at_least(0, eval__top_k=e.top_k, eval__temperature=e.temperature)
    require(0.0 < e.top_p <= 1.0, f"eval.top_p = {e.top_p} is not in (0, 1]; 1.0 keeps all tokens")
    for name, value, divisor_name, divisor in (
        ("run.num_iterations", r.num_iterations, "run.steps_per_call", r.steps_per_call),
        ("run.checkpoint_every", r.checkpoint_every, "run.steps_per_call", r.steps_per_call),
        ("warm_start.num_steps", w.num_steps, "run.steps_per_call", r.steps_per_call),
    ):
        require(
            divisor < 1 or value % divisor == 0, f"{name} = {value} is not a multiple of {divisor_name} = {divisor}"
        )
    require(r.checkpoint_every > 0, f"run.checkpoint_every = {r.checkpoint_every} is below 1")
    require(
        0 <= r.num_devices <= num_devices,
        f"run.num_devices = {r.num_devices}, but JAX sees {num_devices} device(s); 0 takes all",
    )
    devices = r.num_devices or num_devices
    for name, value in (
        ("algorithm.num_prompts", a.num_prompts),
        ("warm_start.num_states", w.num_states),
        ("eval.batch_size", e.batch_size),
    ):
        require(
            devices < 1 or value % devices == 0,
            f"{name} = {value} is not a multiple of the mesh's data axis = {devices}; change it or run.num_devices",
        )
    require(e.steps and min(e.steps) >= 0, f"eval.steps = {e.steps} must list at least one k >= 0")
    for split in e.splits:
        require(split in ("train", "validation", "test"), f"eval.splits: {split!r} is not train, validation or test")
    return faults


def to_dict(config: Config) -> dict:
    """Return the config as plain nested dicts; tuples become lists, as they do in JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def digest(content) -> str:
    """Return a short stable hash of JSON-like content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _flatten(content, prefix="") -> dict[str, typing.Any]:
    if not isinstance(content, dict):
        return {prefix: content}
    return {
        key: leaf
        for name, value in content.items()
        for key, leaf in _flatten(value, f"{prefix}.{name}" if prefix else name).items()
    }


def open_workdir(workdir: str | os.PathLike, config: Config) -> pathlib.Path:
    """Create the workdir with its ``config.json``, or check that an existing one belongs to this experiment.

    Raises:
      ConfigError: if it cannot be written, or holds an experiment with other scientific fields.
    """
    path = pathlib.Path(workdir).expanduser().absolute()
    recorded = path / "config.json"
    ours = to_dict(config)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if recorded.exists():
            theirs = json.loads(recorded.read_text())["config"]
            _require_same_science(ours, theirs, path)
        elif any(path.glob("checkpoints/*")):
            raise ConfigError(f"{path} holds checkpoints but no config.json; choose another --workdir")
        write_json(recorded, {"config": ours, "versions": versions()})
    except OSError as error:
        raise ConfigError(f"cannot write the workdir {path}: {error.strerror}; choose another --workdir") from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ConfigError(f"{recorded} is damaged ({error!r}); restore it or choose another --workdir") from error
    return path


def _require_same_science(ours: dict, theirs: dict, path: pathlib.Path) -> None:
    scientific = lambda c: _flatten({k: v for k, v in c.items() if k not in OPERATIONAL})
    mine, held = scientific(ours), scientific(theirs)
    different = [
        f"{key}: {held.get(key, 'absent')!r} there, {mine.get(key, 'absent')!r} here"
        for key in sorted(mine.keys() | held.keys())
        if mine.get(key) != held.get(key)
    ]
    if different:
        rows = "\n".join(f"  - {row}" for row in different)
        raise ConfigError(f"{path} holds another experiment; choose another --workdir, or undo these changes:\n{rows}")


def write_json(path: pathlib.Path, content) -> None:
    """Write JSON through a temporary file, so that no reader and no crash meets half a file."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)


def versions() -> dict[str, str]:
    """Return versions of what determines a result, and the git revision of this checkout ("" outside one)."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    here = pathlib.Path(__file__).parent
    try:
        git = ["git", "-C", str(here), "describe", "--always", "--dirty"]
        revision = subprocess.run(git, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        revision = ""
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), "exit_jax_revision": revision, **found}
