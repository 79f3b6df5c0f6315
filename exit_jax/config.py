"""The schema of a config, its validation, and the workdir that it belongs to.

Config files are ml_collections; ``validate`` turns one into the frozen dataclasses below, which is all that the other
modules see, and reports every fault at once. The groups in OPERATIONAL may differ when a run resumes; all other fields
are scientific and fixed for a workdir.
"""

import dataclasses
import difflib
import hashlib
import importlib.metadata
import itertools
import json
import os
import pathlib
import platform
import subprocess
import typing
from collections.abc import Mapping

import ml_collections

from exit_jax import domains, learning
from exit_jax.algorithm.types import ExItConfig
from exit_jax.domains.domain import field_defaults
from exit_jax.embedding.settings import EncoderConfig
from exit_jax.errors import ConfigError
from exit_jax.parallel import hosts
from exit_jax.parallel.mesh import MeshConfig
from exit_jax.policy.shape import ATTENTION, COMPUTE_FIELDS, PROJECTIONS, REMAT, DecoderConfig


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An optimiser of optax, after clipping by global norm."""

    kind: str  # of OPTIMIZERS
    learning_rate: float
    warmup_steps: int  # linear from 0
    decay_steps: int  # cosine to 0 at this step; 0 keeps the rate constant
    b1: float  # of the first moment; adafactor has none
    b2: float  # of the second moment; adafactor has a schedule of its own
    weight_decay: float
    max_grad_norm: float


OPTIMIZERS = ("adamw", "lion", "adafactor")


@dataclasses.dataclass(frozen=True)
class WarmStartConfig:
    """Supervised phase before RL, on the domain's demonstrations."""

    # of parameters, LoRA's frozen ones too, and of demonstrations, so that runs of all seeds begin alike; -1 for the run's own
    seed: int
    num_steps: int  # 0 for none
    num_states: int  # prompts a batch
    group_size: int  # demonstrations a prompt
    optimizer: OptimizerConfig


@dataclasses.dataclass(frozen=True)
class TrainSamplingConfig:
    """How training samples from the policy; the paper's way is to cut nothing off, with the parameters as they are."""

    top_k: int  # 0 for all
    top_p: float  # 1.0 for all
    min_p: float  # 0.0 for all
    min_tokens: int  # no stop token before this many others
    int8: bool  # from a copy whose layers have int8 kernels (``decoder.quantise``); the learner and evaluation have not


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """K-step self-improvement on held-out tasks."""

    splits: tuple[str, ...]
    steps: tuple[int, ...]  # the k reported; 0 is the first response
    samples_per_task: int  # avg@n
    batch_size: int  # chains at once; a multiple of the mesh's data x fsdp
    # how to sample, the next four and the last three, is what the checkpoint's generation_config.json says, where it says so
    from_checkpoint: bool
    temperature: float  # 0 for greedy
    top_k: int
    top_p: float
    min_p: float
    restart_every: int  # responses a chain of the rival that starts over; 1 for independent ones, 0 for no rival
    greedy: bool  # search, too, each step from the best solution so far
    num_chains_saved: int  # a split, for people to read
    seed: int
    # further ones of generation_config.json, as transformers applies them
    repetition_penalty: float = 1.0  # on the logits of tokens that the prompt or the response holds; 1.0 for none
    min_tokens: int = 0  # no stop token, nor the end of a stop sequence, before this many others
    suppress_tokens: tuple[int, ...] = ()  # ids that are never sampled


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """How a run is carried out; none of it changes the experiment."""

    num_iterations: int
    mesh: MeshConfig
    num_microbatches: int  # parts of a batch whose gradients are added up, to save memory
    # widths, below the domain's, that a batch of shorter prompts is cut to; () for none
    prompt_buckets: tuple[int, ...]
    response_buckets: tuple[int, ...]  # widths that a batch of shorter responses is cut to before it is learnt from
    sampler_slots: int  # rows a prompt that are sampled at once; one that has ended makes room for another; 0 for all
    token_chunk: int  # positions of a row whose logits exist at once; 0 for all
    steps_per_call: int  # iterations in one compiled program, between two looks of the host
    checkpoint_every: int  # iterations; a multiple of steps_per_call
    keep_checkpoints: int
    warm_start_dir: str  # folder of finished warm starts; "" for one in the workdir
    export_dtype: str  # of the tensors that --mode export writes
    profile: bool  # write a JAX trace of one call of steps_per_call iterations
    allow_idle_updates: bool = False  # train on at a learning rate of 0, as after a decay that ends before the run


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
    domain: typing.Any  # of the type domains.settings_of(domain_name)
    checkpoint: str  # Hugging Face folder or hub id that gives the policy's shape and weights; "" for fresh ones
    policy: DecoderConfig  # vocab_size 0 stands for the domain's
    algorithm: ExItConfig
    sampling: TrainSamplingConfig
    optimizer: OptimizerConfig
    warm_start: WarmStartConfig
    encoder: EncoderConfig  # of responses, for the diversity bonus
    eval: EvalConfig
    run: RunConfig
    study: StudyConfig


OPERATIONAL = (
    *("run", "eval", "study", "policy.attention", "policy.remat", "policy.unroll_layers", "policy.decode_stages"),
    *("domain.data_dir", "domain.files_dir", "domain.cache_dir", "domain.num_workers"),
)
# what a warm start depends on, besides the domain's demonstrations
WARM_START_DEPENDS_ON = ("seed", "checkpoint", "policy", "warm_start", "domain_name")


def validate(config: ml_collections.ConfigDict, num_devices: int | None, trains: bool = True) -> Config:
    """Turn a config file's content into ``Config``.

    Args:
      trains: whether settings under which nothing is learnt are faults, too; a run that was made by them may be evaluated.
      num_devices: devices that JAX has; ``run.mesh.data = 0`` takes those that the other axes leave. None for as many as the
        mesh asks for, where nothing is computed on it.

    Raises:
      ConfigError: listing all unknown, missing, mistyped and contradictory fields together.
    """
    faults: list[str] = []
    parsed = _parse(Config, _with_shape(config.to_dict(), faults), "config", faults)
    if faults:
        raise ConfigError(_list_faults(faults))
    mesh = parsed.run.mesh
    devices: int = max(mesh.data, 1) * mesh.fsdp * mesh.tensor if num_devices is None else num_devices
    if not mesh.data:
        rest = devices // max(mesh.fsdp * mesh.tensor, 1)
        mesh = dataclasses.replace(mesh, data=max(rest, 1))
        parsed = dataclasses.replace(parsed, run=dataclasses.replace(parsed.run, mesh=mesh))
    faults = [*contradictions(parsed, devices), *(learning.faults_of(parsed) if trains else [])]
    if faults:
        raise ConfigError(_list_faults(faults))
    return parsed


def domain_fields(config: ml_collections.ConfigDict) -> tuple[str, typing.Any]:
    """Return name and settings of a config's domain, whatever the rest says: its data needs no checkpoint and no mesh.

    Raises:
      ConfigError: as ``validate``, for this group alone.
    """
    faults: list[str] = []
    name = config.get("domain_name")
    if name not in domains.NAMES:
        raise ConfigError(_list_faults([f"config.domain_name = {name!r} is not one of {domains.NAMES}"]))
    fields = _parse(domains.settings_of(name), config.to_dict().get("domain"), "config.domain", faults)
    if faults or fields is None:
        raise ConfigError(_list_faults(faults or ["config.domain is missing"]))
    return name, fields


def _with_shape(values: dict, faults: list[str]) -> dict:
    """Add the shape of the decoder that ``checkpoint`` names to the group ``policy``."""
    policy = values.get("policy")
    if not values.get("checkpoint") or not isinstance(values["checkpoint"], str) or not isinstance(policy, dict):
        return values
    from exit_jax.policy.hf import config as hf_config
    from exit_jax.policy.hf import generation

    given = sorted(set(policy) & {f.name for f in dataclasses.fields(DecoderConfig)} - set(COMPUTE_FIELDS))
    if given:
        faults.append(
            f"config.policy gives {', '.join(given)}, but the shape is that of config.checkpoint; remove them"
        )
    try:
        folder = hf_config.resolve(values["checkpoint"])
        shape = hf_config.read(folder)
        hf_config.check_tokenizer(folder, shape["vocab_size"])
        given = values.get("eval")
        if isinstance(given, dict) and given.get("from_checkpoint") is True:
            values = values | {"eval": given | generation.read(folder)}
        return values | {"policy": policy | shape}
    except ValueError as error:
        faults.append(str(error))
        return values | {"policy": None}


def _list_faults(faults: list[str]) -> str:
    return f"{len(faults)} fault(s) in the config:\n" + "\n".join(f"  - {fault}" for fault in faults)


def _parse(cls, values, path: str, faults: list[str]) -> typing.Any:
    """Build dataclass ``cls`` from a mapping; faults are appended, and None is returned if there are any below."""
    if values is None:  # has been reported
        return None
    if not isinstance(values, Mapping):
        faults.append(f"{path} = {values!r} is not a group of fields")
        return None
    types, defaults = field_types(cls, values), field_defaults(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    if cls is Config and values.get("domain_name") not in domains.NAMES:
        faults.append(f"{path}.domain_name = {values.get('domain_name')!r} is not one of {domains.NAMES}")
        names.remove("domain")
    for unknown in sorted(set(values) - set(names) - {"domain"}):
        near = difflib.get_close_matches(unknown, names, n=1)
        faults.append(f"{path}.{unknown} is unknown" + (f"; did you mean {near[0]}?" if near else ""))
    before = len(faults)
    fields = {}
    for name in names:
        if name in values:
            fields[name] = _convert(types[name], values[name], f"{path}.{name}", faults)
        elif name not in defaults:
            faults.append(f"{path}.{name} is missing")
    if len(faults) > before:
        return None
    try:
        return cls(**fields)
    except (TypeError, ValueError) as error:
        faults.append(str(error))
        return None


def field_types(cls, values: Mapping) -> dict[str, typing.Any]:
    """Return the types of a group's fields; those of ``domain`` are the named domain's."""
    types = typing.get_type_hints(cls)
    if cls is Config and values.get("domain_name") in domains.NAMES:
        types["domain"] = domains.settings_of(values["domain_name"])
    return types


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


class Faults(list[str]):
    """What is wrong, a sentence each."""

    def require(self, holds: object, message: str) -> None:
        """Note what does not hold."""
        if not holds:
            self.append(message)

    def at_least(self, low: float, **values: float) -> None:
        """Note the values that are below ``low``; a name's double underscores stand for dots."""
        for name, value in values.items():
            self.require(value >= low, f"{name.replace('__', '.')} = {value} is below {low}")


def contradictions(c: Config, num_devices: int) -> list[str]:
    """Return one sentence a fault, naming the values, the rule and the remedy."""
    faults = Faults()
    _check_algorithm(c, faults)
    _check_policy(c, faults)
    _check_mesh(c, num_devices, faults)
    _check_run(c, faults)
    _check_sampling(c, faults)
    return faults


def _check_algorithm(c: Config, faults: Faults) -> None:
    a = c.algorithm
    faults.at_least(1, algorithm__num_prompts=a.num_prompts, algorithm__num_epochs=a.num_epochs)
    faults.at_least(1, algorithm__buffer_size=a.buffer_size, algorithm__reference_every=a.reference_every)
    faults.at_least(2, algorithm__group_size=a.group_size)
    faults.at_least(1, algorithm__min_buffer_size=a.min_buffer_size)
    faults.at_least(0, algorithm__max_depth=a.max_depth, algorithm__advantage_eps=a.advantage_eps)
    faults.at_least(0, algorithm__score_temperature=a.score_temperature, algorithm__kl_coef=a.kl_coef)
    faults.at_least(0, algorithm__clip_low=a.clip_low, algorithm__clip_high=a.clip_high, seed=c.seed)
    faults.require(
        a.min_buffer_size <= a.buffer_size,
        f"algorithm.min_buffer_size = {a.min_buffer_size} is above algorithm.buffer_size = {a.buffer_size}, "
        "so nothing would ever be drawn from the buffer; lower the first",
    )
    for name in ("selection_prob", "divergence_prob", "reference_mix"):
        value = getattr(a, name)
        faults.require(0.0 <= value <= 1.0, f"algorithm.{name} = {value} is not in [0, 1]")
    faults.require(
        a.temperature > 0, f"algorithm.temperature = {a.temperature}: training must sample, so it must be above 0"
    )
    faults.require(
        a.self_iteration or not a.divergence_prob,
        "algorithm.divergence_prob > 0 needs algorithm.self_iteration: without it nothing is held to diverge from",
    )
    faults.require(a.rollout_lag in (0, 1), f"algorithm.rollout_lag = {a.rollout_lag} is neither 0 nor 1")
    faults.require(
        not a.rollout_lag or not a.recompute_logp,
        "algorithm.recompute_logp with algorithm.rollout_lag = 1: the learner has moved on since the batch was sampled, so the "
        "ratio can only be taken against the sampler's log-probs; set one of the two off",
    )
    faults.require(
        a.diversity_embedding == "grades" or not c.encoder.checkpoint,
        f"encoder.checkpoint = {c.encoder.checkpoint!r} would not be used with algorithm.diversity_embedding = "
        f'{a.diversity_embedding!r}; set that to "grades"',
    )


def _check_policy(c: Config, faults: Faults) -> None:
    a, p = c.algorithm, c.policy
    faults.at_least(1, policy__num_layers=p.num_layers, policy__num_kv_heads=p.num_kv_heads, policy__mlp_dim=p.mlp_dim)
    faults.at_least(1, policy__decode_stages=p.decode_stages)
    faults.at_least(0, policy__vocab_size=p.vocab_size, policy__lora__rank=p.lora.rank)
    faults.require(p.head_dim % 2 == 0, f"policy.head_dim = {p.head_dim} is odd, but rotary embeddings turn pairs")
    faults.require(
        p.num_kv_heads < 1 or p.num_heads % p.num_kv_heads == 0,
        f"policy.num_heads = {p.num_heads} is not a multiple of policy.num_kv_heads = {p.num_kv_heads}",
    )
    for name, value, choices in (
        ("policy.dtype", p.dtype, ("float32", "bfloat16")),
        ("policy.param_dtype", p.param_dtype, ("float32", "bfloat16")),
        ("policy.attention", p.attention, ATTENTION),
        ("policy.remat", p.remat, REMAT),
        ("run.export_dtype", c.run.export_dtype, ("float32", "bfloat16", "float16")),
        ("optimizer.kind", c.optimizer.kind, OPTIMIZERS),
        ("warm_start.optimizer.kind", c.warm_start.optimizer.kind, OPTIMIZERS),
        *((f"policy.lora.targets[{i}]", target, PROJECTIONS) for i, target in enumerate(p.lora.targets)),
    ):
        faults.require(value in choices, f"{name} = {value!r} is not one of {choices}")
    faults.require(
        len(p.rope_scaling) in (0, 4),
        f"policy.rope_scaling = {p.rope_scaling} is neither () nor (factor, low, high, original length)",
    )
    faults.require(
        p.attention != "cudnn" or p.dtype == "bfloat16",
        'policy.attention = "cudnn" has no kernel for policy.dtype = "float32"; take "bfloat16", or "xla"',
    )
    faults.require(
        not p.lora.rank or p.lora.targets,
        f"policy.lora.rank = {p.lora.rank} without policy.lora.targets would train nothing; name some of {PROJECTIONS}",
    )
    faults.require(
        not p.lora.rank or not a.kl_coef or a.reference_mix == 1.0,
        f"algorithm.reference_mix = {a.reference_mix} with policy.lora: a mixture of adapters is not the mixture of the "
        "weights that they stand for; set it to 1.0",
    )


def _check_mesh(c: Config, num_devices: int, faults: Faults) -> None:
    a, p, r, e, w, mesh = c.algorithm, c.policy, c.run, c.eval, c.warm_start, c.run.mesh
    faults.at_least(1, run__mesh__data=mesh.data, run__mesh__fsdp=mesh.fsdp, run__mesh__tensor=mesh.tensor)
    for name, value, axis in (
        ("policy.num_heads", p.num_heads, "tensor"),
        ("policy.num_kv_heads", p.num_kv_heads, "tensor"),
        ("policy.mlp_dim", p.mlp_dim, "tensor"),
        ("policy.embed_dim", p.embed_dim, "fsdp"),
    ):
        size = getattr(mesh, axis)
        faults.require(size < 1 or value % size == 0, f"{name} = {value} is not a multiple of run.mesh.{axis} = {size}")
    faults.require(
        mesh.num_devices <= num_devices,
        f"run.mesh takes {mesh.data} x {mesh.fsdp} x {mesh.tensor} = {mesh.num_devices} devices, but there are {num_devices}; "
        "data = 0 takes what is there",
    )
    shards = mesh.num_batch_shards
    for name, value, parts in (
        ("algorithm.num_prompts", a.num_prompts, r.num_microbatches),
        ("warm_start.num_states", w.num_states, 1),
        ("eval.batch_size", e.batch_size, 1),
    ):
        times = f" times run.num_microbatches = {parts}" if parts > 1 else ""
        faults.require(
            shards * parts < 1 or value % (shards * parts) == 0,
            f"{name} = {value} is not a multiple of run.mesh.data x fsdp = {shards}{times}; change it, or the mesh",
        )


def _check_run(c: Config, faults: Faults) -> None:
    a, r, w = c.algorithm, c.run, c.warm_start
    faults.at_least(1, run__steps_per_call=r.steps_per_call, run__keep_checkpoints=r.keep_checkpoints)
    faults.at_least(1, run__num_microbatches=r.num_microbatches)
    faults.at_least(0, run__token_chunk=r.token_chunk, run__sampler_slots=r.sampler_slots)
    faults.require(
        r.sampler_slots <= a.group_size,
        f"run.sampler_slots = {r.sampler_slots} is above algorithm.group_size = {a.group_size}; 0 stands for a slot each",
    )
    faults.at_least(1, warm_start__num_states=w.num_states, warm_start__group_size=w.group_size)
    for name, o in (("optimizer", c.optimizer), ("warm_start.optimizer", w.optimizer)):
        for field in ("learning_rate", "warmup_steps", "decay_steps", "weight_decay"):
            faults.at_least(0, **{f"{name}.{field}": getattr(o, field)})
        for moment in ("b1", "b2"):
            value = getattr(o, moment)
            faults.require(0.0 <= value < 1.0, f"{name}.{moment} = {value} is not in [0, 1)")
        faults.require(
            o.max_grad_norm > 0,
            f"{name}.max_grad_norm = {o.max_grad_norm} would clip every gradient to nothing; inf clips none",
        )
        faults.require(
            not o.decay_steps or o.warmup_steps < o.decay_steps,
            f"{name}.warmup_steps = {o.warmup_steps} is not below {name}.decay_steps = {o.decay_steps}, where the rate ends",
        )
    faults.at_least(0, run__num_iterations=r.num_iterations, warm_start__num_steps=w.num_steps)
    for name, value, divisor_name, divisor in (
        ("run.num_iterations", r.num_iterations, "run.steps_per_call", r.steps_per_call),
        ("run.checkpoint_every", r.checkpoint_every, "run.steps_per_call", r.steps_per_call),
        ("warm_start.num_steps", w.num_steps, "run.steps_per_call", r.steps_per_call),
    ):
        faults.require(
            divisor < 1 or value % divisor == 0, f"{name} = {value} is not a multiple of {divisor_name} = {divisor}"
        )
    faults.require(r.checkpoint_every > 0, f"run.checkpoint_every = {r.checkpoint_every} is below 1")


def _check_sampling(c: Config, faults: Faults) -> None:
    e = c.eval
    for name, cut in (("sampling", c.sampling), ("eval", e)):
        faults.at_least(0, **{f"{name}__top_k": cut.top_k})
        faults.require(0.0 < cut.top_p <= 1.0, f"{name}.top_p = {cut.top_p} is not in (0, 1]; 1.0 keeps all tokens")
        faults.require(0.0 <= cut.min_p <= 1.0, f"{name}.min_p = {cut.min_p} is not in [0, 1]; 0.0 keeps all tokens")
    faults.at_least(0, sampling__min_tokens=c.sampling.min_tokens, eval__min_tokens=e.min_tokens)
    faults.require(
        e.repetition_penalty > 0,
        f"eval.repetition_penalty = {e.repetition_penalty} is not above 0; 1.0 penalises nothing",
    )
    faults.at_least(1, eval__samples_per_task=e.samples_per_task, eval__batch_size=e.batch_size)
    faults.at_least(0, eval__restart_every=e.restart_every, eval__temperature=e.temperature)
    faults.at_least(0, eval__num_chains_saved=e.num_chains_saved)
    faults.require(e.steps and min(e.steps) >= 0, f"eval.steps = {e.steps} must list at least one k >= 0")
    for split in e.splits:
        faults.require(split in c.domain.splits, f"eval.splits: {split!r} is not one of {c.domain.splits}")


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
    """Create the workdir with its ``config.json``, or check that what it holds belongs to this experiment.

    A run that ended before it left a row or a checkpoint, as for want of its weights, holds nothing yet. From then on
    ``config.json`` keeps the versions and the group ``run`` that it began with, and "later" lists what has changed of them.

    Raises:
      ConfigError: if it cannot be written, or holds an experiment with other scientific fields.
    """
    path = pathlib.Path(workdir).expanduser().absolute()
    recorded = path / "config.json"
    ours = to_dict(config)
    content = {"config": ours, "versions": versions()}
    try:
        path.mkdir(parents=True, exist_ok=True)
        if holds_run(path):
            if not recorded.exists():
                raise ConfigError(f"{path} holds a run but no config.json; choose another --workdir")
            held = read_object(recorded)
            _require_same_science(ours, held["config"], path)
            content = _note_changes(content, held)
        if hosts.is_lead():
            write_json(recorded, content)
    except OSError as error:
        raise ConfigError(f"cannot write the workdir {path}: {error.strerror}; choose another --workdir") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f"{recorded} is damaged ({error!r}); restore it or choose another --workdir") from error
    return path


def holds_run(workdir: pathlib.Path) -> bool:
    """Return whether a run left anything in a workdir: a checkpoint, a row of metrics, an answer, or an evaluation."""
    rows = itertools.chain(workdir.glob("*.jsonl"), workdir.glob("answers/*.jsonl"))
    left = itertools.chain(workdir.glob("checkpoints/*"), workdir.glob("evaluation.json"))
    return any(left) or any(file.stat().st_size for file in rows)


def scientific(config: Config | dict) -> dict[str, typing.Any]:
    """Return the fields that determine the experiment, flat, by dotted name; those at their default are left out."""
    content = without_defaults(Config, config if isinstance(config, dict) else to_dict(config))
    free = tuple(f"{name}." for name in OPERATIONAL)
    return {key: value for key, value in _flatten(content).items() if not f"{key}.".startswith(free)}


def without_defaults(cls, content: Mapping) -> dict[str, typing.Any]:
    """Return a group without the fields that are at their default: a run of before a field existed has that default.

    So a new field with a default changes no hash and orphans no run; a default must never change.
    """
    types, defaults = field_types(cls, content), field_defaults(cls)
    kept = {}
    for name, value in content.items():
        kind = types.get(name)
        if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
            kept[name] = without_defaults(kind, value)
        elif name not in defaults or json.dumps(value) != json.dumps(defaults[name]):
            kept[name] = value
    return kept


def _require_same_science(ours: dict, theirs: dict, path: pathlib.Path) -> None:
    mine, held = scientific(ours), scientific(theirs)
    different = [
        f"{key}: {held.get(key, 'the default')!r} there, {mine.get(key, 'the default')!r} here"
        for key in sorted(mine.keys() | held.keys())
        if mine.get(key) != held.get(key)
    ]
    if different:
        rows = "\n".join(f"  - {row}" for row in different)
        raise ConfigError(f"{path} holds another experiment; choose another --workdir, or undo these changes:\n{rows}")


def _note_changes(ours: dict, held: dict) -> dict:
    """Return the content of ``config.json`` after a command that would have written ``ours`` over ``held``."""
    run = lambda c: (
        field_defaults(RunConfig) | c["config"]["run"]
    )  # one that began before a field existed had its default
    mine, theirs = (_flatten({"versions": c["versions"], "run": run(c)}) for c in (ours, held))
    changes = {name: value for name, value in mine.items() if value != theirs.get(name)}
    later = held.get("later", [])
    if changes and changes not in later:
        later = [*later, changes]
    kept = {"config": ours["config"] | {"run": held["config"]["run"]}, "versions": held["versions"]}
    return kept | ({"later": later} if later else {})


def read_object(path: pathlib.Path) -> dict:
    """Return the object in a JSON file of a workdir.

    Raises:
      ConfigError: if it is damaged.
    """
    remedy = "restore it or choose another --workdir"
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is damaged (it holds {content!r:.40}, not an object); {remedy}")
    return content


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
