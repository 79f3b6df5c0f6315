"""Scores of reasoning-gym, by its own scorers in worker processes: hard limits of time and memory, scores cached.

Some scorers raise on what a model writes, and some may take for ever (9**9**9 in countdown, an integral for sympy). An answer
that its scorer raises on is wrong, and is counted. One whose worker hangs, dies or runs out of memory is *ungraded*: it earns
nothing and is logged, so that a resumed run repeats the verdict instead of the accident.
"""

import collections
import dataclasses
import hashlib
import json
import pathlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from exit_jax.domains.gym import entries
from exit_jax.domains.gym.entries import Entry
from exit_jax.domains.gym.settings import GymConfig
from exit_jax.domains.ungraded import UngradedLog
from exit_jax.domains.worker_process import WALL_FACTOR
from exit_jax.domains.workers import Job

CACHE_SIZE = 1 << 16
ROUNDING = 1e-6
EDGE_CHARS = 200  # length of the start of an ungraded answer, for its log


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What is said of one answer."""

    score: float  # in [0, 1]
    graded: bool = True  # False: the worker hung, died or ran out of memory
    raised: bool = False  # whether the scorer raised, or returned what is no score


EMPTY = Verdict(0.0)  # some scorers pay up to 0.05 for no answer
RAISED = Verdict(0.0, raised=True)
UNGRADED = Verdict(0.0, graded=False)


class Scorer:
    """Score answers to entries on worker processes, which start at the first call that needs them."""

    def __init__(self, config: GymConfig):
        """Read what an earlier run could not score, in the file ``ungraded.jsonl`` of the config's folder."""
        self._secs = config.timeout_secs
        self._pool = entries.workers(config.num_workers)
        self._lock = threading.Lock()
        self._cache: collections.OrderedDict[bytes, Verdict] = collections.OrderedDict()
        self._ungraded = UngradedLog(pathlib.Path(config.data_dir).expanduser().absolute() / "ungraded.jsonl")

    def score(self, pairs: Sequence[tuple[Entry, str]]) -> list[Verdict]:
        """Score (entry, answer) pairs; the order is kept. One thread at a time, the others wait.

        Raises:
          RuntimeError: workers cannot be started.
        """
        with self._lock:
            keys = [hashlib.sha256(json.dumps([entry.key, answer]).encode()).digest()[:16] for entry, answer in pairs]
            verdicts: dict[bytes, Verdict] = {}
            todo: dict[bytes, tuple[Entry, str]] = {}
            for key, (entry, answer) in zip(keys, pairs, strict=True):
                known = EMPTY if not answer.strip() else self._known(key)
                if known:
                    verdicts[key] = known
                else:
                    todo[key] = entry, answer
            for key, verdict, reason in self._score_new(todo):
                verdicts[key] = verdict
                if verdict.graded:
                    self._cache[key] = verdict
                    if len(self._cache) > CACHE_SIZE:
                        self._cache.popitem(last=False)
                else:
                    entry, answer = todo[key]
                    said = {"set": entry.set, "question": entry.question[:EDGE_CHARS]}
                    said |= {"num_chars": len(answer), "start": answer[:EDGE_CHARS]}
                    self._ungraded.add(key, reason=reason, **said)
            return [verdicts[key] for key in keys]

    def _known(self, key: bytes) -> Verdict | None:
        """Return the verdict of an earlier call, if it is still held."""
        if key in self._ungraded:
            return UNGRADED
        if key in self._cache:
            self._cache.move_to_end(key)
        return self._cache.get(key)

    def _score_new(self, todo: Mapping[bytes, tuple[Entry, str]]) -> Iterator[tuple[bytes, Verdict, str]]:
        """Yield (key, verdict, why it is ungraded) of pairs by key, as they come in."""
        keys = list(todo)
        limit = WALL_FACTOR * self._secs + entries.SET_SECS
        jobs = [
            Job(entry.request | {"secs": self._secs, "entry": entry.packed, "answer": answer}, limit)
            for entry, answer in todo.values()
        ]
        for place, reply in self._pool.run(jobs):
            error = reply.get("error")
            yield keys[place], UNGRADED if error else verdict_of(reply), str(error)


def verdict_of(reply: Mapping[str, Any]) -> Verdict:
    """Return the verdict that a worker's reply amounts to; a score outside of [0, 1] is as good as none.

    1.0000000000000002 is no full score: spell_backward adds up a word's letters, and comes to it if more of them follow.
    """
    score = reply.get("score")
    if score is None or not 0.0 <= score <= 1.0 + ROUNDING:
        return RAISED
    return Verdict(score if score <= 1.0 else 1.0 - ROUNDING)
