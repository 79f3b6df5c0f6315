"""Will it fit? Compile an iteration's programs for a TPU slice that is not there, and say what they take.

The programs are those that training runs, for the devices of a topology that libtpu describes. What stays in memory beside a
program's own arguments is handed to it as further arguments, so that the compiler itself decides whether all of it fits.
"""

import dataclasses
import importlib.util
import math
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from exit_jax import domains
from exit_jax.config.checks import contradictions
from exit_jax.config.schema import Config
from exit_jax.domains.domain import blank_grades
from exit_jax.errors import ConfigError
from exit_jax.fit import roofline
from exit_jax.fit.roofline import CHIPS, GIB, Chip, Phase
from exit_jax.parallel import mesh as meshes
from exit_jax.policy import decoder, sampler
from exit_jax.policy.shape import PROJECTIONS
from exit_jax.step.episodes import TurnPrograms
from exit_jax.step.programs import (
    Given,
    Program,
    decoder_config,
    make_program,
    num_lanes,
    shard_reading,
    split_params,
    transcript_room,
)
from exit_jax.workdir import identity
from exit_jax.workdir.markdown import table

# slices of each family that Cloud TPU offers, smallest first
SLICES = {
    "v5e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
    "v6e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
}
# what libtpu would otherwise ask the metadata server of a TPU VM, or complain about on a machine that is none
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}
LORA = {"policy.lora.rank": 16, "policy.lora.targets": PROJECTIONS, "algorithm.reference_mix": 1.0}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice of TPU chips, as the compiler knows it."""

    name: str
    chip: Chip
    devices: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler said of one program; bytes are those of one chip."""

    name: str
    parts: Mapping[str, int]  # of what is in memory before the program begins, and of the cache
    peak: float
    fits: bool
    message: str  # the compiler's own words where it does not fit
    compile_secs: float

    @property
    def rest(self) -> float:
        """Bytes of activations, gradients, temporaries and results: all that is not listed."""
        return self.peak - sum(self.parts.values())


@dataclasses.dataclass(frozen=True)
class Result:
    """A config on a topology."""

    config: Config
    topology: Topology
    programs: list[Compiled]
    phases: list[Phase]

    @property
    def fits(self) -> bool:
        """Whether every program compiled."""
        return all(program.fits for program in self.programs)


# The topology


def find_topology(name: str) -> Topology:
    """Return the slice ``name``, such as v5e:4x4.

    Raises:
      ConfigError: if there is no such slice, or libtpu is not installed.
    """
    family, _, shape = name.partition(":")
    sizes = re.fullmatch(r"\d+(x\d+)*", shape) and [int(size) for size in shape.split("x")]
    if family not in CHIPS or not sizes:
        known = "; ".join(f"{family}:{', '.join(shapes)}" for family, shapes in SLICES.items())
        raise ConfigError(f"--topology={name!r} is not a slice such as v5e:4x4; known are {known}")
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            f"--topology={name} needs TPU's compiler, libtpu, which runs without a TPU: pip install -e .[tpu]"
        )
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    # a host has 4 chips unless we say otherwise, which smaller slices do not have
    bounds = {"chips_per_host_bounds": (*sizes, 1, 1)[:3]} if math.prod(sizes) < 4 else {}
    try:
        devices = topologies.get_topology_desc(name, platform="tpu", **bounds).devices
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"--topology={name} is unknown to libtpu ({error}); take one of {', '.join(SLICES[family])}"
        ) from error
    return Topology(name, CHIPS[family], tuple(devices))


def settle(config: Config, topology: Topology) -> Config:
    """Return the config with what is decided by the machine it runs on: the kernel of attention, the vocabulary.

    Raises:
      ConfigError: if the mesh does not take the whole slice.
    """
    mesh, num_devices = config.run.mesh, len(topology.devices)
    if mesh.num_devices != num_devices:
        raise ConfigError(
            f"run.mesh takes {mesh.data} x {mesh.fsdp} x {mesh.tensor} = {mesh.num_devices} chips of the {num_devices} of "
            f"{topology.name}; data = 0 takes those that the other axes leave, if these divide {num_devices}"
        )
    policy = decoder_config(config)
    backend = "splash" if policy.attention == "auto" else policy.attention  # "auto" would ask for this machine's own
    return dataclasses.replace(config, policy=dataclasses.replace(policy, attention=backend))


# The programs


def bytes_per_chip(tree) -> int:
    """Return the bytes that one device holds of arrays, or of their shapes with shardings; a copy where there is none."""

    def size(leaf):
        sharding = getattr(leaf, "sharding", None)
        shape = sharding.shard_shape(leaf.shape) if sharding else leaf.shape
        return math.prod(shape) * leaf.dtype.itemsize

    return sum(map(size, jax.tree.leaves(tree)))


def _put(tree, sharding):
    """Add a sharding, or a tree of them, to shapes."""
    if isinstance(sharding, jax.sharding.Sharding):
        sharding = jax.tree.map(lambda _: sharding, tree)
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), tree, sharding
    )


def gathered(config: Config, mesh: jax.sharding.Mesh, params):
    """Return the shapes of the learner's parameters as it computes with them: cast, and gathered over fsdp."""
    shapes = jax.eval_shape(lambda params: decoder.cast(params, config.policy.dtype), params)
    return _put(shapes, meshes.shardings(mesh, decoder.logical_axes(shapes), shapes, meshes.SAMPLER))


def cache_bytes(config: Config, copy) -> tuple[int, int]:
    """Return a chip's bytes of the prompts' keys and values, and of the rollouts' own."""
    domain = domains.make(config.domain_name, config.domain)
    mesh, a = config.run.mesh, config.algorithm
    policy = dataclasses.replace(config.policy, attention="xla")  # shapes are the same, and no mesh is needed
    room = transcript_room(domain.environment) if domain.environment else max(domain.max_tokens - 1, 1)

    def start(params):
        prompt = jnp.zeros((a.num_prompts, domain.prompt_width), jnp.int32)
        rows = config.run.sampler_slots or a.group_size
        return sampler.start(policy, params, rows, room, prompt, jnp.ones(a.num_prompts, jnp.int32))

    reading = jax.eval_shape(start, copy)
    layers, split = reading.cache.layers, mesh.num_batch_shards * mesh.tensor
    size = lambda pick: sum(math.prod(x.shape) * x.dtype.itemsize for layer in layers for x in pick(layer)) // split
    return size(lambda layer: (layer.prompt_key, layer.prompt_value)), size(lambda layer: (layer.key, layer.value))


@dataclasses.dataclass(frozen=True)
class Plan:
    """The programs of an iteration, each with all that is in memory when it begins, and how large all of it is."""

    programs: Mapping[str, tuple[Any, tuple]]  # name -> (jitted function, shapes of its arguments)
    parts: Mapping[str, Mapping[str, int]]  # name -> what a chip holds
    sizes: roofline.Sizes


def plan(config: Config, program: Program) -> Plan:
    """Lay out the programs of ``train.StepPrograms.iterate``, or the one program of a domain that is graded on the device."""
    domain, mesh, steps = domains.make(config.domain_name, config.domain), program.mesh, program.steps
    state, rows = program.state, meshes.by_row(mesh)
    frozen = split_params(config, program.params)[1]
    tasks = _put(domain.tasks("train"), meshes.replicated(mesh))
    given = Given(tasks, frozen)

    copy, key, instances, rollouts = steps.shapes(given, state)
    copy = _put(copy, meshes.shardings(mesh, decoder.logical_axes(copy), copy, meshes.SAMPLER))
    prompt_cache, own_cache = cache_bytes(config, copy)
    sizes = roofline.Sizes(
        params=bytes_per_chip(program.params),
        trained=bytes_per_chip(state.params),
        optimizer=bytes_per_chip(state.opt_state),
        copy=bytes_per_chip(copy),
        gathered=bytes_per_chip(gathered(config, mesh, program.params)),
        gathered_trained=bytes_per_chip(gathered(config, mesh, state.params)),
        unread=0 if config.policy.tie_embeddings else bytes_per_chip(copy["embedding"]),
        prompt_cache=prompt_cache,
        own_cache=own_cache,
    )
    stays = {
        "parameters": sizes.params,
        "reference": bytes_per_chip(state.reference),
        "optimiser": sizes.optimizer,
    }

    def parts(*batch, copy=0, cache=0):
        return stays | {
            "sampler": copy,
            "cache": cache,
            "batch": bytes_per_chip((tasks, state.buffer, state.starts, batch)),
        }

    if not domain.on_host:
        whole = {"iteration": (program.train, (given, state))}
        return Plan(whole, {"iteration": parts(copy=sizes.copy, cache=prompt_cache + own_cache)}, sizes)

    key, instances, rollouts = _put(key, meshes.replicated(mesh)), _put(instances, rows), _put(rollouts, rows)
    blank = lambda tree: jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tree)
    grades = blank_grades(domain, blank(instances), blank(rollouts))
    grades = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), grades)

    def beside(function: Callable):
        """Let what a program does not use stay among its arguments: it is in memory all the same."""
        return jax.jit(function, keep_unused=True)

    cache = prompt_cache + own_cache
    if steps.turns:
        rollout = turn_plan(config, steps.turns, (given, state, instances), copy, key)
    else:
        sample = beside(lambda given, copy, _, *args: steps.rollout(given, copy, *args))
        rollout = {"rollout": (sample, (given, copy, state, key, instances))}
    programs = {
        "select": (beside(lambda given, state: steps.select(given, state, None)), (given, state)),
        "reshard": (
            beside(lambda given, state, _: steps.reshard(given, state.params)),
            (given, state, instances),
        ),
        **rollout,
        "learn": (steps.learn, (given, state, instances, rollouts, grades)),
    }
    if embed := steps.embed_solutions:
        read = beside(lambda given, state, *batch: embed(given, state.params, batch[-1].children, domain.max_tokens))
        programs["embed"] = (read, programs["learn"][1])
    held = {
        "select": parts(),
        "reshard": parts(instances, copy=sizes.copy),
        **{name: parts(instances, copy=sizes.copy, cache=cache) for name in rollout},
        **{name: parts(instances, rollouts, grades) for name in ("embed", "learn")},
    }
    return Plan(programs, held, sizes)


def turn_plan(config: Config, turns: TurnPrograms, held: tuple, copy, key) -> dict[str, tuple[Any, tuple]]:
    """Return the programs of a turn: read the prompts of a lane, sample responses, read observations; the last in place.

    Args:
      held: what is in memory all the while; while one lane is sampled, the cache of the other is, too.
    """
    domain, group = domains.make(config.domain_name, config.domain), config.algorithm.group_size
    environment, instances, lanes = domain.environment, held[-1], num_lanes(config)
    assert environment is not None
    count = config.algorithm.num_prompts // lanes
    lane = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype, sharding=leaf.sharding),
        (instances.prompt, instances.prompt_length),
    )
    mesh = instances.prompt.sharding.mesh
    where = jax.jit(lambda reading: shard_reading(mesh, reading)).lower(jax.eval_shape(turns.start, copy, *lane))
    reading = _put(where.out_info, where.compile().output_shardings)
    others = (reading,) * (lanes - 1)
    array = lambda kind, *more: jax.ShapeDtypeStruct((count, group, *more), kind)
    width = environment.max_observation + len(environment.generation_prompt)

    def in_place(function: Callable):
        return jax.jit(
            lambda copy, reading, _, *args: function(copy, reading, *args), donate_argnums=1, keep_unused=True
        )

    row = jax.ShapeDtypeStruct((), jnp.int32)
    read = jax.jit(lambda copy, _, *prompt: turns.start(copy, *prompt), keep_unused=True)
    beside = (held, others)
    return {
        "read": (read, (copy, beside, *lane)),
        "sample": (in_place(turns.generate), (copy, reading, beside, key, array(bool), row)),
        "observe": (
            in_place(turns.extend),
            (copy, reading, beside, array(jnp.int32, width), array(jnp.int32), array(bool)),
        ),
    }


_CODE = "The compiler lets it pass, but its code, which is in the same memory, does not fit beside it."


def compile_program(name: str, function, args: tuple, parts: Mapping[str, int], chip: Chip) -> Compiled:
    """Compile one program for the devices of its arguments' shardings."""
    started = time.monotonic()
    try:
        memory = function.lower(*args).compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        found = out_of_memory(str(error))
        if found is None:
            raise
        return Compiled(name, {**parts, "code": 0}, found[0], False, found[1], time.monotonic() - started)
    parts = {**parts, "code": memory.generated_code_size_in_bytes}
    peak = memory.peak_memory_in_bytes + memory.generated_code_size_in_bytes
    fits = peak <= chip.hbm_bytes  # the compiler answers for the first of the two only
    return Compiled(name, parts, peak, fits, "" if fits else _CODE, time.monotonic() - started)


def out_of_memory(message: str) -> tuple[float, str] | None:
    """Return the bytes that a program needs and the sentence that says so, or None if the message says something else."""
    number = r"([\d.]+)([KMGT]?)"
    for pattern in (
        rf"Ran out of memory in memory space hbm\W+Used {number} of [\d.]+[KMGT]? hbm[^\n]*",
        rf"Ran out of memory on HBM[^\n]*?\({number}\) exceeds available HBM \([^)]*\)",
    ):
        if found := re.search(pattern, message):
            unit = 1024.0 ** " KMGT".index(found[2] or " ")
            return float(found[1]) * unit, " ".join(found[0].split())
    return None


def compile_all(
    config: Config, topology: Topology, first: tuple[str, ...] = (), show: Callable[[str], None] = print
) -> Result:
    """Compile the programs of an iteration; with ``first``, those first, and no more than one that does not fit."""
    config = settle(config, topology)
    program = make_program(config, topology.devices)
    laid_out = plan(config, program)
    compiled: list[Compiled] = []
    for name in sorted(laid_out.programs, key=lambda name: name not in first):
        one = compile_program(name, *laid_out.programs[name], laid_out.parts[name], topology.chip)
        show(
            f"  {name}: {one.peak / GIB:.2f} GiB a chip, {'fits' if one.fits else 'does not fit'} "
            f"({one.compile_secs:.0f} s to compile)"
        )
        compiled.append(one)
        if first and not one.fits:
            break
    compiled.sort(key=lambda one: list(laid_out.programs).index(one.name))
    domain = domains.make(config.domain_name, config.domain)
    lanes = num_lanes(config) if domain.environment else 1
    widths = domain.prompt_width, domain.max_tokens
    found = roofline.phases(config, *widths, laid_out.sizes, topology.chip, lanes)
    return Result(config, topology, compiled, found)


# What would help


def override(config: Any, changes: Mapping[str, Any]) -> Any:
    """Return the config with fields by dotted name replaced."""
    for name, value in changes.items():
        head, _, rest = name.partition(".")
        value = override(getattr(config, head), {rest: value}) if rest else value
        config = dataclasses.replace(config, **{head: value})
    return config


def candidates(config: Config, topology: str, failed: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield changes that may help, the least costly first: (topology, fields by dotted name).

    What changes the experiment comes last, and what makes the learner smaller comes only if nothing else was too large.
    """
    mesh, run = config.run.mesh, config.run
    if set(failed) <= {"embed", "learn", "iteration"}:
        learner: dict[str, Any] = {}
        parts = _most_parts(config.algorithm.num_prompts, mesh.num_batch_shards, config.algorithm.num_prompts)
        if config.policy.remat != "layer":
            learner["policy.remat"] = "layer"
            yield topology, {"policy.remat": "layer"}
        if parts > run.num_microbatches:
            learner["run.num_microbatches"] = parts
            yield topology, {"run.num_microbatches": parts}
        if not 0 < run.token_chunk <= 128:
            learner["run.token_chunk"] = 128
            yield topology, {"run.token_chunk": 128}
        if len(learner) > 1:
            yield topology, learner
    family, _, shape = topology.partition(":")
    slices = SLICES[family]
    larger = slices[slices.index(shape) + 1 :][:2] if shape in slices else ()
    size = lambda shape: math.prod(int(each) for each in shape.split("x"))
    for bigger in (shape, *larger):
        chips = size(bigger)
        for tensor in (mesh.tensor, 2 * mesh.tensor, 4 * mesh.tensor):  # more of it splits the sampler's copy, too
            fsdp = chips // tensor
            while fsdp > 1 and (chips % fsdp or config.algorithm.num_prompts % fsdp):
                fsdp //= 2
            if not fsdp or chips % (fsdp * tensor):
                continue
            changed = {"run.mesh.data": chips // (fsdp * tensor), "run.mesh.fsdp": fsdp, "run.mesh.tensor": tensor}
            shards = chips // tensor
            parts = _most_parts(config.algorithm.num_prompts, shards, run.num_microbatches)
            if parts != run.num_microbatches:
                changed["run.num_microbatches"] = parts
            yield f"{family}:{bigger}", changed
    if not config.sampling.int8 and set(failed) - {"embed", "learn"}:
        yield topology, {"sampling.int8": True}
    if not config.policy.lora.rank:
        yield topology, dict(LORA)


def _most_parts(num_prompts: int, shards: int, at_most: int) -> int:
    """Return the largest number of microbatches up to ``at_most`` that rows on ``shards`` devices can be dealt into."""
    return max([parts for parts in range(1, at_most + 1) if num_prompts % (shards * parts) == 0], default=1)


def suggest(failed: Result, show: Callable[[str], None] = print) -> tuple[str, Result] | None:
    """Return the first of ``candidates`` that fits when compiled, as flags and its result; None if no one does.

    A change whose parameters, reference, optimiser state and cache alone take more than there is, is not compiled.
    """
    names = tuple(program.name for program in failed.programs if not program.fits)
    tried = {(failed.topology.name, failed.config)}
    for name, changes in candidates(failed.config, failed.topology.name, names):
        config = override(failed.config, changes)
        topology = find_topology(name)
        wrong = contradictions(config, len(topology.devices))
        if wrong or (name, config) in tried or config.run.mesh.num_devices != len(topology.devices):
            continue
        tried.add((name, config))
        text = command_line(name, changes)
        settled = settle(config, topology)
        held = plan(settled, make_program(settled, topology.devices)).parts
        least = max(sum(parts.values()) for parts in held.values())
        if least > topology.chip.hbm_bytes:
            show(f"not tried, since what can be counted takes {least / GIB:.1f} GiB a chip without activations: {text}")
            continue
        show(f"trying {text}")
        result = compile_all(config, topology, first=names, show=show)
        if result.fits:
            return text, result
    return None


def command_line(topology: str, changes: Mapping[str, Any]) -> str:
    """Return the flags that make the changes."""
    quote = lambda value: '"' + str(value) + '"' if isinstance(value, tuple) else str(value)
    return " ".join([f"--topology={topology}", *(f"--config.{name}={quote(value)}" for name, value in changes.items())])


# The report


def fit(config: Config, topology: Topology, workdir: pathlib.Path) -> tuple[str, bool]:
    """Compile for a topology, and if that does not fit for what might; write compile.json and compile.md.

    Returns:
      The text of compile.md, and whether the config fits as it is.
    """
    print(f"compiling {config.name} for {topology.name}, {len(topology.devices)} chips")
    result = compile_all(config, topology)
    better = None if result.fits else suggest(result)
    text = describe(result)
    if not result.fits:
        text += "\n" + (
            f"Compiled, and fits: `{better[0]}`\n\n{describe(better[1])}"
            if better
            else "None of the changes that were tried fits; a slice of more chips, or with more memory each, may.\n"
        )
    workdir.mkdir(parents=True, exist_ok=True)
    content = to_json(result)
    if not result.fits:
        content["suggestion"] = better and {"flags": better[0]} | to_json(better[1])
    identity.write_json(workdir / "compile.json", content)
    (workdir / "compile.md").write_text(text)
    return text, result.fits


def rates(result: Result) -> tuple[float, float]:
    """Return upper bounds on iterations an hour and on sampled tokens a second."""
    a = result.config.algorithm
    domain = domains.make(result.config.domain_name, result.config.domain)
    tokens = a.num_prompts * a.group_size * domain.max_tokens
    sampling = sum(phase.secs for phase in result.phases if phase.name in ("prefill", "decode"))
    return 3600 / sum(phase.secs for phase in result.phases), tokens / sampling


def to_json(result: Result) -> dict:
    """Return all figures in plain types: bytes a chip, FLOPs of all chips, seconds."""
    per_hour, per_sec = rates(result)
    return {
        "topology": result.topology.name,
        "chips": len(result.topology.devices),
        "chip": dataclasses.asdict(result.topology.chip),
        "fits": result.fits,
        "programs": [dataclasses.asdict(program) | {"rest": program.rest} for program in result.programs],
        "phases": [dataclasses.asdict(phase) for phase in result.phases],
        "max_iterations_per_hour": per_hour,
        "max_tokens_per_sec": per_sec,
        "config": identity.to_dict(result.config),
        "versions": identity.versions(),
    }


def describe(result: Result) -> str:
    """Return the report of one result in Markdown."""
    config, chip, topology = result.config, result.topology.chip, result.topology
    mesh, a = config.run.mesh, config.algorithm
    domain = domains.make(config.domain_name, config.domain)
    limit = f"{chip.hbm_bytes / GIB:.2f} GiB"
    names = list(result.programs[0].parts)
    head = ["program", f"peak of {limit}", *names, "rest", "compile s"]
    gib = lambda size: f"{size / GIB:.2f}"
    rows = [
        [
            program.name,
            gib(program.peak) if program.fits else f"**{gib(program.peak)}**",
            *(gib(program.parts[name]) for name in names),
            gib(program.rest),
            f"{program.compile_secs:.0f}",
        ]
        for program in result.programs
    ]
    lines = [
        f"## {config.name} on {topology.name}: {'fits' if result.fits else 'does not fit'}",
        "",
        f"{len(topology.devices)} chips as data {mesh.data} x fsdp {mesh.fsdp} x tensor {mesh.tensor}; {a.num_prompts} prompts "
        f"of {domain.prompt_width} tokens x {a.group_size} rollouts of {domain.max_tokens}; {config.run.num_microbatches} "
        f"microbatches, token chunks of {config.run.token_chunk}, remat {config.policy.remat}, LoRA rank "
        f"{config.policy.lora.rank}. GiB a chip:",
        "",
        table(head, rows),
        "",
        *(f"{program.name}: {program.message}\n" for program in result.programs if program.message),
    ]
    figure = lambda value: f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    phase_rows = [
        [
            phase.name,
            figure(phase.model_flops / 1e12),
            figure(phase.flops / 1e12),
            figure(phase.hbm_bytes / 1e9),
            figure(phase.ici_bytes / 1e9),
            figure(phase.secs),
            phase.bound,
        ]
        for phase in result.phases
    ]
    per_hour, per_sec = rates(result)
    phase_head = ["phase", "model TFLOPs", "computed", "HBM GB a chip", "ICI GB a chip", "seconds at least", "bound by"]
    lines += [
        table(phase_head, phase_rows),
        "",
        f"At most {figure(per_hour)} iterations an hour and {figure(per_sec)} sampled tokens a second, by peaks of "
        f"{chip.flops_per_sec / 1e12:.0f} TFLOP/s, {chip.hbm_bytes_per_sec / 1e9:.0f} GB/s (HBM) and "
        f"{chip.ici_bytes_per_sec / 1e9:.0f} GB/s (ICI) a chip, every prompt and response at full width. Uncalibrated: no TPU "
        "has run it; grading on the host comes on top.",
        "",
    ]
    return "\n".join(lines)
