"""Will it fit? Compile an iteration's programs for a TPU slice that is not there, and say what they take."""

import dataclasses
import pathlib

import jax
from ml_collections import ConfigDict

from exit_jax import domains
from exit_jax.config.parse import validate
from exit_jax.config.schema import Config
from exit_jax.fit.compile import Result, compile_all
from exit_jax.fit.roofline import GIB
from exit_jax.fit.search import suggest
from exit_jax.fit.topology import Topology, find_topology
from exit_jax.workdir import identity, remote
from exit_jax.workdir.markdown import table


def compile_for(content: ConfigDict, topology: str, workdir: str | None) -> int:
    """Compile a config for a topology on this machine's CPU; returns exit status 1 where it does not fit."""
    jax.config.update("jax_platforms", "cpu")
    found = find_topology(topology)
    config = validate(content, len(found.devices))
    folder = workdir or f"runs/{config.name}-{found.name.replace(':', '-')}"
    with remote.visited(folder) as path:
        text, fits = fit(config, found, path)
    print(f"\n{text}")
    return 0 if fits else 1


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
