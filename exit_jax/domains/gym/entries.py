"""Entries of a set: made once by worker processes, from seeds that no two splits share, and kept in a file.

A set's file is named by its recipe (set, levels, seeds, counts, version of reasoning-gym) and holds the same bytes wherever it
is made: an entry depends on its seed and index alone, whichever process makes it. So a run resumes exactly, also without its
file; and the file is one of the run's inputs, which a resumed run compares.

A question that came before, in whatever split, is left out, the test tasks coming first: seeds that differ do not make tasks
that do, where a set has few of them.
"""

import collections
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from exit_jax.domains.domain import DomainError
from exit_jax.domains.gym.settings import GymConfig
from exit_jax.domains.text.settings import SPAN
from exit_jax.domains.worker_process import WALL_FACTOR
from exit_jax.domains.workers import Job, Pool

log = logging.getLogger(__name__)
RULES = 1  # version of the rules by which entries are made and kept
SPLITS = ("train", "validation", "test")
WORKER = pathlib.Path(__file__).with_name("worker.py")
MEMORY_BYTES = 3 << 30  # a worker's address space
SET_SECS = 120.0  # limit for making a set itself, which some read from megabytes of data
CHUNK = 16  # entries that a worker makes at a time
TRIES, MORE_TRIES = 4, 64  # indices that are tried for each entry wanted, and some more for a few
PACKAGE = "reasoning-gym"


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """A task of a set."""

    set: str
    level: int  # of the set's curriculum, -1 where the set is taken as it is
    seed: int
    size: int
    packed: Mapping[str, Any]  # question, answer and metadata, as the worker packs them

    @property
    def question(self) -> str:
        """What is asked."""
        return self.packed["question"]

    @property
    def gold(self) -> str:
        """The answer that comes with the question, "" where the set has none."""
        answer = self.packed["answer"]
        return answer if isinstance(answer, str) else ""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What else the set says of it."""
        return self.packed["metadata"]

    @property
    def request(self) -> dict[str, Any]:
        """The part of a request that names the set."""
        return {"set": self.set, "level": self.level, "seed": self.seed, "size": self.size}

    @functools.cached_property
    def key(self) -> str:
        """A hash of all that a score depends on."""
        return hashlib.sha256(json.dumps([self.request, self.packed]).encode()).hexdigest()


def version() -> str:
    """Return the version of reasoning-gym.

    Raises:
      DomainError: if it is not installed.
    """
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise DomainError(f'the domain gym needs {PACKAGE}: pip install "exit_jax[gym]"') from error


@functools.cache
def workers(num_workers: int) -> Pool:
    """Return the processes that make entries and score, 0 for one a core; they take seconds to start, and start when needed."""
    return Pool(WORKER, [str(MEMORY_BYTES)], num_workers or os.cpu_count() or 1, needs=PACKAGE)


def shares(config: GymConfig, count: int) -> list[int]:
    """Return how many of ``count`` tasks each set has: one, and of the others its share, by largest remainders."""
    weights = config.weights or (1.0,) * len(config.sets)
    spare = count - len(weights)
    exact = [spare * weight / sum(weights) for weight in weights]
    whole = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (whole[i] - exact[i], i))
    for i in by_remainder[: spare - sum(whole)]:
        whole[i] += 1
    return [1 + share for share in whole]


def recipe(config: GymConfig, name: str) -> dict[str, Any]:
    """Return all that the entries of a set depend on."""
    place = config.sets.index(name)
    counts = {split: shares(config, getattr(config, f"num_{split}"))[place] for split in SPLITS}
    return {
        "rules": RULES,
        PACKAGE: version(),
        "set": name,
        "levels": list(config.levels or (-1,)),
        "seeds": {split: (len(SPLITS) * config.data_seed + i) * SPAN for i, split in enumerate(SPLITS)},
        "counts": counts,
    }


def find(config: GymConfig, name: str) -> pathlib.Path:
    """Return the file with the entries of a set, which is made if it is not there."""
    recipe_of_set = recipe(config, name)
    digest = hashlib.sha256(json.dumps(recipe_of_set).encode()).hexdigest()[:16]
    folder = pathlib.Path(config.data_dir).expanduser().absolute()
    path = folder / f"{name}-{digest}.jsonl"
    if path.exists():
        return path
    log.info("making %d entries of %s", sum(recipe_of_set["counts"].values()), name)
    lines = make(config, recipe_of_set)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".partial", delete=False) as file:
        try:
            file.writelines(json.dumps(line) + "\n" for line in lines)
            os.chmod(file.name, 0o644)  # that of a temporary file is for its owner alone
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
    return path


def load(config: GymConfig, name: str) -> dict[str, tuple[Entry, ...]]:
    """Return the entries of a set by split.

    Raises:
      DomainError: if they cannot be made, or their file is damaged.
    """
    path, recipe_of_set = find(config, name), recipe(config, name)
    found: dict[str, list[Entry]] = {split: [] for split in SPLITS}
    try:
        first, *lines = map(json.loads, path.read_text().splitlines())
        for line in lines:
            split = line["split"]
            seed, size = recipe_of_set["seeds"][split], size_of(recipe_of_set["counts"][split])
            found[split].append(Entry(name, line["level"], seed, size, line["entry"]))
        whole = first["recipe"] == recipe_of_set
        whole &= {split: len(entries) for split, entries in found.items()} == recipe_of_set["counts"]
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise DomainError(f"{path} is damaged; delete it, and it is made again")
    return {split: tuple(entries) for split, entries in found.items()}


def size_of(count: int) -> int:
    """Return how many indices there are for ``count`` entries, which some sets depend on."""
    return TRIES * count + MORE_TRIES


def make(config: GymConfig, recipe_of_set: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the lines of a set's file: its recipe, then its entries.

    Raises:
      DomainError: if they cannot be made.
    """
    left_out: collections.Counter[str] = collections.Counter()
    seen: set[str] = set()
    lines: list[dict[str, Any]] = []
    for split in reversed(SPLITS):
        lines += draw(config, recipe_of_set, split, seen, left_out)
    for reason, count in left_out.items():
        log.warning("%s: %d entries were left out: %s", recipe_of_set["set"], count, reason)
    return [{"recipe": recipe_of_set, "left_out": dict(left_out)}, *lines]


def draw(
    config: GymConfig,
    recipe_of_set: Mapping[str, Any],
    split: str,
    seen: set[str],
    left_out: collections.Counter[str],
) -> list[dict[str, Any]]:
    """Return the lines of a split; ``seen`` are the questions so far, ``left_out`` counts what has none."""
    name, count, levels = recipe_of_set["set"], recipe_of_set["counts"][split], recipe_of_set["levels"]
    size = size_of(count)
    request = {"set": name, "seed": recipe_of_set["seeds"][split], "size": size}
    lines: list[dict[str, Any]] = []
    tried = 0
    while len(lines) < count and tried < size:
        indices = range(tried, min(tried + count - len(lines), size))
        tried = indices.stop
        made = _make_all(config, request, levels, indices)
        for index in indices:
            reply = made[index]
            if "raised" in reply:
                left_out[f"making one raises {reply['raised']}"] += 1
            elif (question := reply["entry"]["question"]) in seen:
                left_out["the same question is there already"] += 1
            else:
                seen.add(question)
                lines.append({"split": split, "index": index, "level": levels[index % len(levels)]} | reply)
    if len(lines) < count:
        at = f" at the levels {config.levels}" if config.levels else ""
        why = "; ".join(f"{times} times {reason}" for reason, times in left_out.most_common(3))
        raise DomainError(
            f"{name}{at} makes {len(lines)} of {count} tasks of {split} in {size} attempts ({why}); lower "
            f"domain.num_{split}, give the set less weight, or take other domain.levels"
        )
    return lines


def _make_all(
    config: GymConfig, request: dict[str, Any], levels: Sequence[int], indices: range
) -> dict[int, dict[str, Any]]:
    """Return what the workers make of indices, which take the levels in turn."""
    chunks = []
    for place, level in enumerate(levels):
        own = [index for index in indices if index % len(levels) == place]
        chunks += [(level, own[i : i + CHUNK]) for i in range(0, len(own), CHUNK)]
    jobs = [
        Job(
            request | {"level": level, "secs": config.make_secs, "make": own},
            WALL_FACTOR * config.make_secs * len(own) + SET_SECS,
        )
        for level, own in chunks
    ]
    made: dict[int, dict[str, Any]] = {}
    for place, reply in workers(config.num_workers).run(jobs):
        level, own = chunks[place]
        if error := reply.get("error"):
            at = f" at level {level}" if level >= 0 else ""
            raise DomainError(
                f"{request['set']}{at}: its tasks {own[0]} to {own[-1]} cannot be made ({error}), with "
                f"domain.make_secs = {config.make_secs:g} for each; raise that, take another level or leave the set out"
            )
        made |= zip(own, reply["entries"], strict=True)
    return made
