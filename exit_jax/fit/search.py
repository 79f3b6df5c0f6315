"""What may help a config that does not fit, tried by compiling it."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from exit_jax.config.checks import contradictions
from exit_jax.config.schema import Config
from exit_jax.fit.compile import Result, compile_all
from exit_jax.fit.plan import plan
from exit_jax.fit.roofline import GIB
from exit_jax.fit.topology import SLICES, find_topology, settle
from exit_jax.policy.shape import PROJECTIONS
from exit_jax.step.program import make_program

LORA = {"policy.lora.rank": 16, "policy.lora.targets": PROJECTIONS, "algorithm.reference_mix": 1.0}


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
