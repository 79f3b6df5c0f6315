"""A lower bound on the seconds of an iteration: what must be computed and moved, over what a chip can do at its peak.

Each phase takes at least the longest of three: FLOPs over peak FLOP/s, bytes from and to its own memory (HBM) over that
memory's bandwidth, bytes from other chips over that of the links (ICI). Overlap is taken to be perfect, activations to cost
no traffic, every chip to be busy, and selection, buffer and grading to take no time, so a real iteration takes longer.
"""

import dataclasses
import math

from exit_jax.config.schema import Config
from exit_jax.policy import costs

GIB = 2.0**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published peaks of one chip, and the memory that the compiler lets a program have of it."""

    flops_per_sec: float  # bfloat16
    hbm_bytes_per_sec: float
    ici_bytes_per_sec: float  # all links together, one direction
    hbm_bytes: float


# cloud.google.com/tpu/docs; the last figure is what libtpu 0.0.42 says when a program does not fit
CHIPS = {
    "v5e": Chip(197e12, 819e9, 200e9, 15.75 * GIB),
    "v5p": Chip(459e12, 2765e9, 600e9, 95.74 * GIB),
    "v6e": Chip(918e12, 1640e9, 400e9, 31.25 * GIB),
}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Bytes that one chip holds."""

    params: int  # the learner's, trained or frozen
    trained: int
    optimizer: int
    copy: int  # the sampler's parameters
    gathered: int  # the learner's parameters once they are gathered over fsdp and cast to compute
    gathered_trained: int  # the trained part of these
    unread: int  # part of the copy that a step of decoding does not read: an embedding table that is not the head, too
    prompt_cache: int
    own_cache: int


@dataclasses.dataclass(frozen=True)
class Phase:
    """What one phase of an iteration needs, and how long that takes at least."""

    name: str
    model_flops: float  # all chips together
    flops: float  # operations, with those that the backward pass repeats
    hbm_bytes: float  # a chip
    ici_bytes: float  # a chip, received
    secs: float
    bound: str  # which of the three takes longest


def all_gather(size: float, parts: int) -> float:
    """Return bytes that a chip receives until it holds all ``parts`` of ``size`` bytes; a reduce-scatter takes as many."""
    return size * (parts - 1) / parts


def all_reduce(size: float, parts: int) -> float:
    """Return bytes that a chip receives until ``parts`` chips hold the sum of their ``size`` bytes."""
    return 2 * all_gather(size, parts)


def make_phase(
    chip: Chip, chips: int, name: str, model_flops: float, hbm: float, ici: float, extra: float = 0
) -> Phase:
    """Put the three times of a phase together; ``extra`` FLOPs are computed, but not counted as the model's."""
    flops = model_flops + extra
    times = {
        "FLOPs": flops / chips / chip.flops_per_sec,
        "HBM": hbm / chip.hbm_bytes_per_sec,
        "ICI": ici / chip.ici_bytes_per_sec,
    }
    bound = max(times, key=lambda each: times[each])
    return Phase(name, model_flops, flops, hbm, ici, times[bound], bound)


def phases(config: Config, prompt_width: int, max_tokens: int, sizes: Sizes, chip: Chip, lanes: int = 1) -> list[Phase]:
    """Return the phases of one iteration, in the order in which they run, with all prompts and responses at full width.

    Traffic that is counted, in HBM: at each step of decoding the sampler's copy, the prompts' cache, and the own slots of the
    step's stage (all of them where slots are refilled), used or not; parameters once in a forward and twice in a backward pass
    of each microbatch; optimiser state, parameters and gradients once read and once written. Between chips: parameters
    gathered over fsdp for each pass and gradients scattered back, gradients summed over data, two sums of activations a
    layer over tensor in each direction. Each of ``lanes`` that are sampled one after the other reads the copy anew.
    """
    a, run, p = config.algorithm, config.run, config.policy
    mesh, chips = run.mesh, run.mesh.num_devices
    shape = (p, a.num_prompts, a.group_size, prompt_width, max_tokens)
    rows, item = a.num_prompts * a.group_size, {"float32": 4, "bfloat16": 2}[p.dtype]
    prompt_tokens = a.num_prompts * prompt_width / mesh.num_batch_shards  # a chip
    own_tokens = rows * max_tokens / mesh.num_batch_shards

    def activations(tokens):  # summed over tensor after attention and MLP of each layer
        return 2 * p.num_layers * all_reduce(tokens * p.embed_dim * item, mesh.tensor)

    gathered = all_gather(sizes.gathered, mesh.fsdp)
    passes = run.num_microbatches
    forward = costs.forward_flops(*shape)
    within = activations(prompt_tokens + own_tokens)
    slots = run.sampler_slots or a.group_size
    stages = p.decode_stages if slots == a.group_size else 1
    own_cache = sizes.own_cache * (stages + 1) / (2 * stages)  # the mean of 1/n, 2/n ... n/n
    in_turns = math.ceil(a.group_size / slots)  # responses that share a slot
    read = lanes * (sizes.copy - sizes.unread) + sizes.prompt_cache

    def phase(name, model_flops, hbm, ici, extra=0.0):
        return make_phase(chip, chips, name, model_flops, hbm, ici, extra)

    found = [
        phase("reshard", 0, sizes.params + sizes.copy, all_gather(sizes.copy, mesh.fsdp)),
        phase(
            "prefill",
            costs.prefill_flops(p, a.num_prompts, prompt_width),
            read,
            activations(prompt_tokens),
        ),
        phase(
            "decode",
            costs.decode_flops(p, rows, prompt_width, max_tokens),
            in_turns * (max_tokens - 1) * (read + own_cache),
            activations(own_tokens),
        ),
    ]
    scoring = ["reference"] * bool(a.kl_coef) + ["old log-probs"] * a.recompute_logp
    found += [phase(name, forward, passes * sizes.gathered, passes * gathered + within) for name in scoring]
    scattered = all_gather(sizes.gathered_trained, mesh.fsdp)
    found.append(
        phase(
            "learn",
            a.num_epochs * (forward + costs.backward_flops(*shape)),
            a.num_epochs * (3 * passes * sizes.gathered + 2 * (2 * sizes.trained + sizes.optimizer)),
            a.num_epochs * (passes * (2 * gathered + scattered) + all_reduce(sizes.trained, mesh.data) + 2 * within),
            a.num_epochs * costs.recomputed_flops(p, run.token_chunk, *shape[1:]),
        )
    )
    return found
