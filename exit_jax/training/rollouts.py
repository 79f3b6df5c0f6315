"""A sample of training rollouts for people to read: Parquet files in ``<workdir>/rollouts``, one an iteration."""

import logging
import os
import pathlib
from typing import Any

import jax
import numpy as np

from exit_jax.config.schema import Config
from exit_jax.domains.domain import Domain
from exit_jax.domains.text.surrogates import replace_surrogates
from exit_jax.types import MODES, History

log = logging.getLogger(__name__)
FOLDER = "rollouts"


class RolloutWriter:
    """Writes what ``algorithm.iteration.learn`` samples of its batches, every ``run.rollouts_every`` iterations."""

    def __init__(self, config: Config, domain: Domain, workdir: pathlib.Path):
        self._every, self._max_bytes = config.run.rollouts_every, config.run.rollouts_max_mb * 1_000_000
        self._domain, self._folder, self._failed = domain, workdir / FOLDER, False

    def write(self, last_step: int, sampled: dict[str, Any]) -> None:
        """Write those of the iterations up to ``last_step``, arrays [iterations, ...]; after a fault, told once, none are."""
        count = len(sampled["mode"])
        for i, step in enumerate(range(last_step - count + 1, last_step + 1)):
            if step % self._every or self._failed:
                continue
            try:
                self._store(
                    step, rows_of(self._domain, step, jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), sampled))
                )
            except Exception as error:  # a domain's own text, or the disk
                self._failed = True
                log.warning("no more training rollouts are kept in %s, the run goes on: %.300r", self._folder, error)

    def _store(self, step: int, rows: list[dict]) -> None:
        """Write one iteration's file through another name, and remove the oldest beyond the room for all."""
        import pyarrow
        import pyarrow.parquet

        self._folder.mkdir(exist_ok=True)
        file = self._folder / f"{step:08d}.parquet"
        partial = file.with_suffix(".tmp")
        table = pyarrow.Table.from_pylist(rows)
        pyarrow.parquet.write_table(
            table, partial, compression="zstd", write_statistics=False
        )  # those hold whole texts
        os.replace(partial, file)
        files = sorted(self._folder.glob("*.parquet"))
        sizes = [one.stat().st_size for one in files]
        while len(files) > 1 and sum(sizes) > self._max_bytes:
            files.pop(0).unlink()
            sizes.pop(0)


def rows_of(domain: Domain, step: int, sampled: dict[str, Any]) -> list[dict]:
    """Return a row for each rollout of the sampled groups of one iteration, arrays in NumPy.

    Of a domain whose tokens are no text, "prompt" is what its instances hold.
    """
    history, children = sampled["history"], sampled["children"]
    groups, size = sampled["quality"].shape
    flat = jax.tree.map(lambda leaf: leaf.reshape(groups * size, *leaf.shape[2:]), children)
    held, left = domain.describe(history), domain.describe(flat)
    feedback = domain.feedback(flat) if domain.feedback else [""] * len(left)
    rows = []
    for b in range(groups):
        prompt = read(domain, sampled["prompt"][b, : sampled["prompt_length"][b]], held[b])
        instance = about(history, b) | {
            "iteration": step,
            "group": b,
            "mode": MODES[sampled["mode"][b]],
            "learnability": float(sampled["learnability"][b]),
            "prompt": prompt,
            "held": held[b] if history.step[b] >= 0 else "",
        }
        for g in range(size):
            used = np.flatnonzero(sampled["mask"][b, g])
            tokens = sampled["tokens"][b, g, : used[-1] + 1 if used.size else 0]  # of episodes, observations too
            row = instance | {"rollout": g, "response": read(domain, tokens, left[b * size + g])}
            row |= {"feedback": feedback[b * size + g], "num_tokens": int(used.size)}
            row |= {name: float(sampled[name][b, g]) for name in ("quality", "reward", "advantage")}
            row |= {name: bool(sampled[name][b, g]) for name in ("valid", "finished")}
            # what UTF-8 cannot hold would cost the whole file
            rows.append(
                {key: replace_surrogates(value) if isinstance(value, str) else value for key, value in row.items()}
            )
    return rows


def about(history: History, b: int) -> dict[str, Any]:
    """Return what a history is and stems from; depth is the ordinal of the response to be made, 1 for the first to a task."""
    numbers = {name: int(getattr(history, name)[b]) for name in ("task", "turn", "id", "parent", "born")}
    return numbers | {"depth": int(history.step[b]) + 2, "held_quality": float(history.quality[b])}


def read(domain: Domain, tokens: np.ndarray, otherwise: str) -> str:
    """Return tokens as text, or else what the domain tells of the history."""
    return domain.decode(tokens) if domain.decode else otherwise
