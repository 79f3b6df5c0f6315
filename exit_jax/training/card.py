"""The model card of an export: what was trained, by which config and versions, and what K-step self-improvement came to."""

import pathlib
from typing import Any

from exit_jax.config import listing
from exit_jax.config.schema import OPERATIONAL, Config
from exit_jax.workdir import evaluation, identity
from exit_jax.workdir.markdown import table
from exit_jax.workdir.metrics import trained_iterations

TAGS = ("exit_jax", "exploratory-iteration", "self-improvement", "reinforcement-learning")
PAPER = "[Bootstrapping Task Spaces for Self-Improvement](https://arxiv.org/abs/2509.04575)"


def make(config: Config, workdir: pathlib.Path, readme: str, library: str = "transformers") -> str:
    """Return a README.md with the front matter that a hub reads.

    The licence is left to who publishes it.

    Args:
      workdir: of the run, with ``config.json`` and, if it was evaluated, ``evaluation.json``.
      readme: what is said of tokens and prompts, from its title on.
      library: "transformers", or "peft" for adapters.
    """
    return "\n".join(
        [_front_matter(config, library), readme.rstrip(), "", *_training(config, workdir), *_steps(workdir), ""]
    )


def _front_matter(config: Config, library: str) -> str:
    base, _, _ = config.checkpoint.partition("@")
    is_hub_id = base.count("/") == 1 and not pathlib.Path(base).expanduser().exists()
    lines = ["---", f"library_name: {library}", "pipeline_tag: text-generation"]
    lines += [f"base_model: {base}"] if is_hub_id else []
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in TAGS), "---", ""])


def _training(config: Config, workdir: pathlib.Path) -> list[str]:
    """Return what was trained: how long, by which settings and versions."""
    file = workdir / "config.json"
    held = identity.read_object(file).get("versions") if file.exists() else None
    versions = held if isinstance(held, dict) else identity.versions()
    known = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    rows = [row for row in listing.rows(identity.to_dict(config)) if _counts(row.name) and not _is_same(row)]
    settings = [f"{row.name} = {listing.shown(_without_folders(row.value))}" for row in rows]
    return [
        "## Training",
        "",
        f"{trained_iterations(workdir)} iterations of Exploratory Iteration ({PAPER}), variant {config.variant}, after "
        f"{config.warm_start.num_steps} steps of supervised warm start. Versions: {known}.",
        "",
        "The settings of the experiment that differ from the defaults of exit_jax:",
        "",
        "```",
        *settings,
        "```",
        "",
    ]


def _counts(name: str) -> bool:
    """Return whether a setting is one of the experiment, or of its evaluation."""
    return name.startswith("eval.") or not f"{name}.".startswith(tuple(f"{free}." for free in OPERATIONAL))


def _is_same(row: listing.Row) -> bool:
    """Return whether a setting has its default; a tuple is a list in ``config.json``."""
    plain = lambda value: list(value) if isinstance(value, tuple) else value
    return plain(row.value) == plain(row.default)


def _without_folders(value: Any) -> Any:
    """Return a value whose paths of this machine are names of files: where they were is no one's business."""
    if isinstance(value, list | tuple):
        return [_without_folders(item) for item in value]
    return pathlib.Path(value).name if isinstance(value, str) and value.startswith(("/", "~")) else value


def _steps(workdir: pathlib.Path) -> list[str]:
    """Return the table of accuracy by self-improvement step; [] of a run that was not evaluated."""
    file = workdir / evaluation.NAME
    splits = evaluation.read(file)["splits"] if file.exists() else {}
    rows, ks = [], sorted({k for figures in splits.values() for k in figures["k"]})
    for split, figures in splits.items():
        chain = evaluation.chain_of(figures)
        errors = chain.get("accuracy_se") or [None] * len(figures["k"])
        cells = {
            k: f"{accuracy:.3f}" + ("" if error is None else f" ± {error:.3f}")
            for k, accuracy, error in zip(figures["k"], chain["accuracy"], errors, strict=True)
        }
        rows.append([f"{split} ({figures['num_tasks']} tasks)", *(cells.get(k, "") for k in ks)])
    if not rows:
        return []
    about = (
        "Accuracy after k self-improvement steps on held-out tasks, ± its standard error; k = 0 is the first response:"
    )
    return ["## K-step self-improvement", "", about, "", table(["split", *(f"k = {k}" for k in ks)], rows), ""]
