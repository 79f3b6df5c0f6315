"""Scores of completions by a user's own reward functions, which may hang, crash, leak or fail: each costs its items.

The functions run in processes with limits (worker.py has them), or in this one (``reward_runs = "inline"``); calls.py says how
they are called. Several make a weighted mean; a function that returns None is left out of it. What fails is ungraded,
not zero: it earns nothing and enters no buffer. Results are held for equal items. An item whose process hung or died is
remembered in the log, so that a resumed run repeats the verdict instead of the accident; delete the log to try it again.

What accidents cost. A crash, or a lack of memory, costs a fork: 10 to 40 ms, whatever was imported. A hang costs its whole
limit, T = ``reward_secs`` of processor time if it computes, or else 4 T by the clock on a worker that uses no processor. Of 100
calls that take c seconds each, of which one computes for ever, a worker loses T of 100 c: under 10% takes T < 10 c. For cheap
functions no limit is that short, and need not be: in an iteration it is the workers' sum that counts, T / workers for each
hang. With 500 completions, 1% hanging, T = 5 s and 16 workers that is 1.6 s, or 5 s if one hangs last; set T to some 10 times
what the slowest call takes. Hangs that wait (for a server, for a lock) cost no more than a process each: ask for more workers
than cores. A batched function whose process died is given one item at a time from then on, for a hang among 16 would cost
its limit twice and the others a second try; the size doubles with each call of ``score`` without an accident.
benchmarks/rewards.py measures it.
"""

import collections
import concurrent.futures
import hashlib
import json
import logging
import os
import pathlib
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from exit_jax.domains.task import calls
from exit_jax.domains.task.settings import TaskConfig
from exit_jax.domains.text.scored import Score
from exit_jax.domains.ungraded import UngradedLog
from exit_jax.domains.worker_process import WALL_FACTOR
from exit_jax.domains.workers import Job, Pool
from exit_jax.errors import DomainError, GradingError
from exit_jax.plugins import PluginError

log = logging.getLogger(__name__)
WORKER = pathlib.Path(__file__).with_name("worker.py")
# beyond all limits of a job, which a worker keeps itself; nobody knows how often a function runs code
SPARE_SECS, DAY_SECS = 300.0, 86400.0
MAX_BATCH = 16  # items of a call of a batched function
IN_FLIGHT_JOBS = 4  # items of a job for each call in flight
MAX_JOB = 8  # items of a job that calls one by one
CACHE_SIZE = 1 << 18
EDGE_CHARS = 200  # length of each end of a completion in the log
NUM_WARNINGS = 5
MIN_ALL_FAILED = 8  # so many items without a single reward are no accident


class Rewards:
    """The reward functions of a config. One thread at a time, the others wait."""

    def __init__(self, config: TaskConfig, log: pathlib.Path | None, columns: Collection[str] | None = None):
        """Import the functions in a process of their own and check their signatures, all at once.

        Args:
          log: JSON lines, appended to, of items that could not be scored.
          columns: those that every row has; None checks no names of parameters against them.

        Raises:
          PluginError: functions that cannot be imported or called; each with its reason.
          DomainError: the sandbox cannot be had.
        """
        self.config, self._lock = config, threading.Lock()
        self._columns = None if columns is None else sorted(columns)
        found = self._check()
        self._functions = found["functions"]
        self._can_fork = found["num_threads"] == 1
        sources = {name: pathlib.Path(one["file"]) for name, one in zip(config.reward, self._functions) if one["file"]}
        self.files: Mapping[str, pathlib.Path] = {f"reward {name}": path for name, path in sources.items()}
        digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in sources.items()}
        self._ids = [[name, digests.get(name, "")] for name in config.reward]  # an edited function is another one
        self._each = _names_of_notes(config.reward)
        self.notes: tuple[str, ...] = ("reward_faults", "ungraded", *self._each, *config.figures)
        self._known: collections.OrderedDict[bytes, calls.Outcome] = collections.OrderedDict()
        self._died = UngradedLog(log)
        self._sizes = [MAX_BATCH] * len(config.reward)
        self._num_warnings = 0
        self._pool: Pool | None = None
        self._inline: Inline | None = None

    def score(
        self, rows: Sequence[Any], completions: Sequence[str], completion_ids: Sequence[Sequence[int]] | None = None
    ) -> list[Score]:
        """Score completions, each to its row (``rows.Row``); the order is kept, and nothing is raised for an item.

        Args:
          completion_ids: the completions' tokens, for functions that have a parameter of this name.

        Raises:
          GradingError: not one of many items could be scored, or workers cannot be started.
        """
        with self._lock:
            ids = [None] * len(rows) if completion_ids is None else [list(map(int, one)) for one in completion_ids]
            items = [_item(*one) for one in zip(rows, completions, ids, strict=True)]
            outcomes = self._outcomes(items, rows)
            return [self._score(list(one)) for one in zip(*outcomes)]

    def try_out(self, rows: Sequence[Any], completions: Sequence[str], completion_ids: Sequence[Sequence[int]]) -> None:
        """Call each function on a few completions, so that one which never works is told before anything is compiled.

        Raises:
          DomainError: naming each function that has failed on all of them, and how it did on the first.
          GradingError: workers cannot be started.
        """
        with self._lock:
            items = [
                _item(row, text, [*map(int, ids)])
                for row, text, ids in zip(rows, completions, completion_ids, strict=True)
            ]
            wrong = []
            for number, name in enumerate(self.config.reward):
                outcomes: dict[int, calls.Outcome] = {}
                for _, places, found in self._run(self._jobs(number, [*range(len(items))], items), items):
                    outcomes |= zip(places, found, strict=True)
                for outcome in outcomes.values():
                    self._judge(outcome, number)
                if outcomes and all("fault" in outcome for outcome in outcomes.values()):
                    wrong.append(
                        f"the reward {name} fails on all of {len(items)} completions that it was tried on, on "
                        f"{completions[0]!r:.60} since {outcomes[0]['fault']}; mend it"
                    )
            if wrong:
                raise DomainError("\n".join(wrong))

    def close(self) -> None:
        """End the workers. A call of ``score`` in another thread fails."""
        if self._pool:
            self._pool.close()

    # What is asked of functions

    def _outcomes(self, items: list[dict[str, Any]], rows: Sequence[Any]) -> list[list[calls.Outcome]]:
        """Return the outcome of each item for each function."""
        keys, todo = [], []  # for each function: keys of items; key -> the first item that has it, if it is not known
        for number, function in enumerate(self._functions):
            digest = lambda item, takes_ids=function["takes_ids"], one=self._ids[number]: _digest(item, one, takes_ids)
            keys.append([digest(item) for item in items])
            first: dict[bytes, int] = {}
            for at, key in enumerate(keys[-1]):
                if key not in self._known and key not in self._died:
                    first.setdefault(key, at)
            todo.append(first)
        fresh: dict[bytes, calls.Outcome] = {}
        jobs = [job for number, first in enumerate(todo) for job in self._jobs(number, list(first.values()), items)]
        for number, places, found in self._run(jobs, items):
            fresh |= {keys[number][at]: outcome for at, outcome in zip(places, found, strict=True)}
        for number, first in enumerate(todo):  # in the order of items, whatever came first
            for key, at in first.items():
                self._judge(fresh[key], number)
                self._keep(key, fresh[key], number, rows[at], items[at])
        self._require_some(todo, fresh)
        died = {"fault": "it hung or died in an earlier call", "kind": "died"}
        find = lambda key: fresh.get(key) or self._known.get(key) or died
        outcomes = [[find(key) for key in of_function] for of_function in keys]
        while len(self._known) > CACHE_SIZE:
            self._known.popitem(last=False)
        return outcomes

    def _jobs(self, number: int, places: list[int], items: list[dict]) -> list[tuple[int, list[int]]]:
        """Return which items go to a function together."""
        function, count, workers = self._functions[number], len(places), self.num_workers
        if function["is_async"] and not function["is_batched"]:
            size = min(IN_FLIGHT_JOBS * self._in_flight, -(-count // workers))
        else:
            most = self._sizes[number] if function["is_batched"] else MAX_JOB
            most = min(most, self._in_flight) if function["is_async"] else most  # it may ask for all its items at once
            size = max(min(most, count // (4 * workers)), 1)
        kinds: dict[Any, list[int]] = {}  # those of one kind have the same columns, and are all chats or none is
        for at in places:
            kinds.setdefault((items[at]["is_chat"], tuple(sorted(items[at]["columns"]))), []).append(at)
        return [(number, kind[at : at + size]) for kind in kinds.values() for at in range(0, len(kind), size)]

    def _run(
        self, jobs: list[tuple[int, list[int]]], items: list[dict]
    ) -> Iterator[tuple[int, list[int], list[calls.Outcome]]]:
        """Yield (function, places, outcomes) of jobs as they come in."""
        if not jobs:
            return
        if self.config.reward_runs == "inline":
            self._inline = self._inline or Inline(self.config, self._columns)
            for number, places in jobs:
                yield number, places, self._inline.run(number, [items[at] for at in places])
            return
        died = set()
        self._pool = self._pool or self._make_pool(self.num_workers, checked=True)
        sent = [self._job(number, [items[at] for at in places]) for number, places in jobs]
        try:
            for index, reply in self._pool.run(sent):
                number, places = jobs[index]
                if reply.get("num_deaths"):
                    died.add(number)
                lost = {"fault": f"its worker: {reply.get('error')}", "kind": "raised"}
                yield number, places, reply.get("outcomes") or [lost] * len(places)
        except RuntimeError as error:
            raise GradingError(f"rewards: {error}") from error
        for number in {number for number, _ in jobs}:
            self._sizes[number] = 1 if number in died else min(2 * self._sizes[number], MAX_BATCH)

    def _job(self, number: int, items: list[dict]) -> Job:
        """Return the job of calling a function on items."""
        c, function = self.config, self._functions[number]
        message = {"function": number, "is_async": function["is_async"]}
        message["in_order"] = not (function["is_batched"] or function["is_async"])
        message["items"] = items if function["takes_ids"] else [item | {"ids": None} for item in items]
        secs = (
            2 * (len(items) + 1) * (c.retries + 1) * (WALL_FACTOR * c.reward_secs + calls.MAX_PAUSE_SECS) + SPARE_SECS
        )
        return Job(message, DAY_SECS if c.reward_runs == "sandbox" else secs)

    # Processes

    @property
    def num_workers(self) -> int:
        """Processes at work at the same time; each has at least one call of an async function in flight."""
        wanted = self.config.reward_workers or os.cpu_count() or 1
        return min(wanted, self.config.max_in_flight) if any(one["is_async"] for one in self._functions) else wanted

    @property
    def _in_flight(self) -> int:
        """Calls of async functions under way in one worker."""
        return self.config.max_in_flight // self.num_workers

    def _make_pool(self, num_workers: int, checked: bool) -> Pool:
        """Return worker processes on the functions."""
        c, size = self.config, self.config.reward_memory_mb << 20
        sandbox = {"isolation": c.isolation, "secs": c.run_secs, "memory_bytes": c.run_memory_mb << 20}
        uses_sandbox = c.reward_runs == "sandbox"
        spec = {
            "names": c.reward,
            "columns": self._columns,
            "checked": checked,
            "preload": checked and self._can_fork,
            "cpu_secs": c.reward_secs,
            "wall_secs": WALL_FACTOR * c.reward_secs,
            "memory_bytes": size + (sandbox["memory_bytes"] if uses_sandbox else 0),  # which programs inherit
            "max_in_flight": self._in_flight if checked else 1,
            "retries": c.retries,
            "sandbox": sandbox if uses_sandbox else None,
            "path": [os.path.abspath(folder) for folder in sys.path],
        }
        return Pool(WORKER, [json.dumps(spec)], num_workers, needs="what the module of domain.reward imports")

    def _check(self) -> dict[str, Any]:
        """Return what a process says of the functions."""
        pool = self._make_pool(1, checked=False)
        try:
            (_, found), *_ = pool.run([Job({"check": True}, SPARE_SECS)])
        except RuntimeError as error:
            raise DomainError(f"domain.reward: no process can be started ({error})") from error
        finally:
            pool.close()
        if "error" in found:
            raise DomainError(f"domain.reward = {self.config.reward}: {found['error']}")
        if faults := [one["fault"] for one in found["functions"] if "fault" in one]:
            raise PluginError("\n".join(faults))
        return found

    # What is made of outcomes

    def _bounds(self, number: int) -> tuple[float, float]:
        """Return the worst and the best reward of a function."""
        bounds = self.config.reward_range
        first = 2 * number if len(bounds) > 2 else 0
        return bounds[first], bounds[first + 1]

    def _judge(self, outcome: calls.Outcome, number: int) -> None:
        """Put the place of a value between worst and best into an outcome, or its fault."""
        value, (worst, best) = outcome.get("value"), self._bounds(number)
        if value is None:
            return
        if min(worst, best) <= value <= max(worst, best):
            outcome["quality"] = (value - worst) / (best - worst)
            return
        outcome["fault"] = f"it returned {value:g}, which is not in domain.reward_range = ({worst:g}, {best:g})"
        outcome["kind"] = "value"

    def _keep(self, key: bytes, outcome: calls.Outcome, number: int, row: Any, item: dict) -> None:
        """Remember an outcome, and tell of a fault."""
        fault = outcome.get("fault")
        if outcome.get("kind") not in ("died", "raised"):  # a server may be back at the next call
            self._known[key] = outcome
        if fault is None:
            return
        name, completion, place = self.config.reward[number], item["completion"], str(getattr(row, "place", ""))
        self._num_warnings += 1
        if self._num_warnings <= NUM_WARNINGS:
            log.warning("no reward by %s for %r of %s: %s", name, completion[:60], place or "a row", fault)
        if self._num_warnings == NUM_WARNINGS and self._died.path:
            log.warning("further completions without a reward are in %s only", self._died.path)
        said = {"function": name, "kind": outcome["kind"], "reason": fault, "place": place}
        said |= {"prompt": item["prompt"][:EDGE_CHARS], "num_chars": len(completion)}
        said |= {"start": completion[:EDGE_CHARS], "end": completion[-EDGE_CHARS:]}
        if outcome["kind"] == "died":
            self._died.add(key, **said)
        else:  # a resumed run tries it again
            self._died.write(**said)

    def _require_some(self, todo: list[dict[bytes, int]], fresh: Mapping[bytes, calls.Outcome]) -> None:
        """Raise GradingError if a function has failed on all of many items; accidents are the completions' own doing."""
        for name, first in zip(self.config.reward, todo):
            new = [fresh[key] for key in first]
            if len(new) >= MIN_ALL_FAILED and all(one.get("kind", "died") != "died" for one in new):
                why = f"{new[0]['fault']}, of the first"
                raise GradingError(f"the reward {name} failed on all of {len(new)} completions: {why}")

    def _score(self, outcomes: list[calls.Outcome]) -> Score:
        """Return the score of an item from its outcome for each function."""
        c, weights = self.config, self.config.reward_weights or (1.0,) * len(outcomes)
        applied = [(weight, one["quality"]) for weight, one in zip(weights, outcomes) if "quality" in one]
        is_fault, total = any("fault" in one for one in outcomes), sum(weight for weight, _ in applied)
        graded = total > 0.0 and not is_fault
        figures: dict[str, float] = {}
        for one in outcomes:
            figures |= one.get("figures", {})
        values = [one.get("value") if "fault" not in one else None for one in outcomes]
        notes = {"reward_faults": float(is_fault), "ungraded": float(not graded)}
        notes |= {name: value or 0.0 for name, value in zip(self._each, values)}
        answers = [one["answer"] for one in outcomes if one.get("answer")]
        return Score(
            quality=min(max(sum(weight * quality for weight, quality in applied) / total, 0.0), 1.0) if graded else 0.0,
            feedback="\n".join(one["feedback"] for one in outcomes if one.get("feedback")),
            graded=graded,
            notes=notes | {name: figures.get(name, 0.0) for name in c.figures},
            answer=answers[0] if answers else "",
        )


class Inline:
    """Calls reward functions in this process, without limits."""

    def __init__(self, config: TaskConfig, columns: Sequence[str] | None):
        self._functions = [calls.load(name, columns, False) for name in config.reward]
        self._caller = calls.Caller(config.retries, WALL_FACTOR * config.reward_secs, config.max_in_flight)
        # async functions: a notebook's own thread has a loop that runs already
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "rewards")

    def run(self, number: int, items: list[dict]) -> list[calls.Outcome]:
        """Return the outcomes of items."""
        found: dict[int, calls.Outcome] = {}
        function, items = (
            self._functions[number],
            json.loads(json.dumps(items)),
        )  # a row's columns are not the function's
        call: Callable = self._caller.call
        if function.is_async:
            self._thread.submit(call, function, items, found.__setitem__).result()
        else:
            call(function, items, found.__setitem__)
        return [found[at] for at in range(len(items))]


def _item(row: Any, completion: str, ids: list[int] | None) -> dict[str, Any]:
    """Return what calls.py knows of a row and a completion."""
    given = {"prompt": row.prompt, "messages": list(row.messages), "columns": dict(row.columns)}
    return given | {"completion": completion, "ids": ids, "is_chat": row.conversational}


def _digest(item: dict[str, Any], function: list[str], takes_ids: bool) -> bytes:
    """Return the key of an item's outcome."""
    seen = item if takes_ids else item | {"ids": None}
    return hashlib.sha256(json.dumps([function, seen], sort_keys=True).encode()).digest()[:16]


def _names_of_notes(names: Sequence[str]) -> list[str]:
    """Return the notes that report the mean of each of several functions."""
    if len(names) < 2:
        return []
    short = [f"reward_{name.rpartition(':')[2]}" for name in names]
    return [one if short.count(one) == 1 else f"{one}_{number + 1}" for number, one in enumerate(short)]
