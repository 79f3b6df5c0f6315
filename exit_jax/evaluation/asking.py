"""With which settings a policy answers prompts of a user's own: those of its checkpoint or run, and what the user changes."""

import dataclasses
import difflib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from exit_jax import domains, settings
from exit_jax.config.parse import default
from exit_jax.config.schema import Config
from exit_jax.config.start import start
from exit_jax.domains.task import prompts as asked
from exit_jax.domains.text.settings import TRUNCATE
from exit_jax.errors import ConfigError
from exit_jax.parallel import mesh as meshes
from exit_jax.policy import decoder
from exit_jax.policy.hf import generation
from exit_jax.policy.hf.config import read_limits, resolve
from exit_jax.policy.hf.load import load
from exit_jax.step.policy import decoder_config
from exit_jax.step.requirements import require_checkpoint_fits
from exit_jax.types import Params

SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "min_tokens",
    "suppress_tokens",
    "batch_size",
)
WORDS = (
    "template_inputs",
    "system",
    "base",
    "improve",
    "max_tokens",
    "max_solution_tokens",
    "max_feedback_tokens",
    "truncate",
)
WIDTHS = ("max_request_tokens", "max_context_tokens", "prompt_width")  # those of a run are for its own tasks
GROUPS = {  # what may be changed, by its group in the config
    "eval": ("from_checkpoint", *SAMPLING),
    "domain": (*WORDS, *WIDTHS),
    "policy": ("dtype", "attention"),
    "run.mesh": ("data", "fsdp", "tensor"),
}
BATCH_SIZE = 64  # prompts at once of a checkpoint that says nothing of it
FEEDBACK_TOKENS = 128


@dataclasses.dataclass(frozen=True)
class Source:
    """What a policy brings along."""

    fields: Mapping[str, Any]  # dotted field of the config -> value
    checkpoint: str = ""  # folder or hub id to load; "" for the policy of a run
    tokenizer: Any = None  # of a run, which may have made its own
    longest: int = 0  # tokens that its checkpoint was trained on; 0 for any


def source_of_checkpoint(name: str, from_checkpoint: bool) -> Source:
    """Return what a Hugging Face checkpoint brings along: its tokenizer and, unless told otherwise, how it is sampled from.

    Raises:
      CheckpointError: if it cannot be had, or its generation_config.json asks for more than the sampler computes.
    """
    folder = resolve(name)
    sampling = generation.read(folder) if from_checkpoint else {}
    fields = {f"eval.{field}": value for field, value in sampling.items()}
    fields |= {"domain.tokenizer": name, "eval.batch_size": BATCH_SIZE}
    return Source(fields, checkpoint=name, longest=min(read_limits(folder).values()))


def on_this_machine(content: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
    """Return a run's config with the mesh that is asked for, or else its own; one device where it had more than there are."""
    groups: Any = content
    mesh = groups.run.mesh
    asked_for = {name.removeprefix("run.mesh."): size for name, size in changes.items() if name.startswith("run.mesh.")}
    if not asked_for and math.prod(max(size, 1) for size in mesh.values()) > jax.device_count():
        asked_for = dict.fromkeys(mesh, 1)
    with mesh.ignore_type():  # validate tells what is of another type
        mesh.update(asked_for)
    return content


def source_of_run(config: Config) -> Source:
    """Return what a run brings along: its policy's shape, its words and tokenizer, and how its evaluation samples.

    Raises:
      ConfigError: if its prompts are no text, or its tasks take several turns.
    """
    domain = domains.make(config.domain_name, config.domain)
    if domain.tokenizer is None or domain.environment:
        raise ConfigError(
            f"the run's domain {config.domain_name} "
            + ("plays episodes of several turns" if domain.environment else "has tokens that are no text")
            + "; texts are answered by a policy of text with one response a prompt"
        )
    policy = settings.plain(config.policy) | {"vocab_size": decoder_config(config).vocab_size}
    groups = {"policy": policy, "eval": settings.plain(config.eval), "run.mesh": settings.plain(config.run.mesh)}
    fields = {f"{group}.{name}": value for group, values in groups.items() for name, value in values.items()}
    words = {name: getattr(config.domain, name) for name in WORDS if hasattr(config.domain, name)}
    if words.get("truncate") not in TRUNCATE:  # of math, where it says that nothing is ever cut
        words.pop("truncate", None)
    fields |= {f"domain.{name}": value for name, value in words.items()} | {"seed": config.seed}
    longest = min(read_limits(resolve(config.checkpoint)).values()) if config.checkpoint else 0
    return Source(fields, tokenizer=domain.tokenizer, longest=longest)


def dotted(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by their dotted names.

    Raises:
      ConfigError: if there is none of a name.
    """
    groups = {name: group for group, names in GROUPS.items() for name in names}
    unknown = [name for name in changes if name not in groups]
    if unknown:
        near = difflib.get_close_matches(unknown[0], groups, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{', '.join(unknown)}: no such setting{hint} There are {', '.join(groups)}")
    return {f"{groups[name]}.{name}": value for name, value in changes.items()}


def make_config(
    source: Source,
    prompts: Sequence[Any],
    k: int,
    seed: int,
    feedback: Callable[[Any, str], str] | None,
    changes: Mapping[str, Any],
) -> Config:
    """Return the config of an evaluation of k steps on prompts.

    Args:
      changes: what the user changes, by dotted name.

    Raises:
      UserError: listing what is wrong with the settings, or else with the prompts.
    """
    content = default(asked.NAME, checkpoint=source.checkpoint).to_dict()
    given = {**source.fields, **changes}
    given["domain.max_feedback_tokens"] = _feedback_room(given, feedback is not None)
    # the source has read generation_config.json, and what the user changes comes after it
    given |= {"eval.from_checkpoint": False, "eval.seed": seed, "eval.splits": (asked.SPLIT,)}
    given |= {"eval.steps": tuple(range(k + 1)), "eval.samples_per_task": 1}
    given |= {"eval.restart_every": 0, "eval.greedy": False, "eval.scaffolds": ()}
    if source.checkpoint:  # nothing is trained: its weights may be held as they are computed with
        given["policy.param_dtype"] = given.get("policy.dtype", content["policy"]["dtype"])
    for name, value in given.items():
        *groups, field = name.split(".")
        functools.reduce(dict.__getitem__, groups, content)[field] = value
    shards = _num_shards(content["run"]["mesh"])
    content["algorithm"]["num_prompts"] = content["warm_start"]["num_states"] = shards  # no batch of training is drawn
    if "eval.batch_size" not in changes:
        content["eval"]["batch_size"] = -(-min(content["eval"]["batch_size"], len(prompts)) // shards) * shards
    config = start(ConfigDict(content), trains=False)
    about = {"prompts": prompts, "feedback": feedback, "made_tokenizer": source.tokenizer, "longest": source.longest}
    config = dataclasses.replace(config, domain=asked.Asked(**vars(config.domain), **about))
    require_checkpoint_fits(config, domains.make(config.domain_name, config.domain))
    return config


def _feedback_room(given: Mapping[str, Any], has_feedback: bool) -> Any:
    """Return the tokens of feedback in a prompt: none where there is none to show, or no place for it."""
    improve, room = given.get("domain.improve", ""), given.get("domain.max_feedback_tokens", 0)
    shows = "{feedback}" in improve if isinstance(improve, str) and improve else has_feedback
    if has_feedback and not shows:
        raise ConfigError(
            f"improve = {improve!r:.80} does not show the feedback that is given; put {{feedback}} into it"
        )
    return (room or FEEDBACK_TOKENS) if shows else 0


def _num_shards(mesh: Mapping[str, Any]) -> int:
    """Return the parts that a batch is split into; 1 where the mesh is faulty, as will be told."""
    if not all(isinstance(size, int) and size >= 0 for size in mesh.values()):
        return 1
    fsdp, tensor = max(mesh["fsdp"], 1), max(mesh["tensor"], 1)
    return (mesh["data"] or max(jax.device_count() // (fsdp * tensor), 1)) * fsdp


def load_policy(config: Config) -> Params:
    """Return the parameters of ``config.checkpoint``, split over the mesh.

    Raises:
      CheckpointError: if they do not fit its config.json.
    """
    policy, mesh = decoder_config(config), meshes.make_mesh(config.run.mesh)
    shapes = jax.eval_shape(lambda: decoder.init(policy, jax.random.key(0)))
    where = meshes.shardings(mesh, decoder.logical_axes(shapes), shapes, meshes.LEARNER)
    return load(resolve(config.checkpoint), policy, where)
