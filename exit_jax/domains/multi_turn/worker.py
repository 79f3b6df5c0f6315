"""What an environment process runs: live instances of the environment, by the texts that led to their states.

Started by its path (see domains/workers.py); it imports no JAX. Jobs are JSON lines on stdin, each answered by one line:

    {"rows": split, "count", "first"}           -> {"rows": [row, ...]}
    {"open": row}                               -> {"opening": [[role, content], ...]}
    {"check": row, "texts", "max_turns"}        -> {"played": [...], "concurrent", "differs": "" or what did}
    {"text", "row", "opening", "turns", "key", "shared", "last"}
                                                -> {"turn": [observation, reward, done], "key", "replayed"} or {"mismatch"}

or by {"fault": why}, {"refused": why}, {"unavailable": why} for what the environment raised. A job of the last kind names a
state by the *key* of what led to it. The instances held here are only a cache: a state that is missing is brought about by
``load`` of a copy, which is kept where several jobs are to start from the state (``shared``), or else by ``reset`` and the
recorded texts, and what is observed is compared.

Limits are a call's, and enforced by the kernel even if the trainer is gone and the interpreter is stuck in C: two timers, of
processor time and of the clock, whose signals end the process. Should an environment use the alarm itself, the trainer ends
the process by the clock. Memory is limited beyond what the imports take.
"""

import collections
import contextlib
import copy
import itertools
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from exit_jax.domains import worker_process
from exit_jax.domains.multi_turn import protocol
from exit_jax.domains.state_cache import StateCache
from exit_jax.domains.task.calls import what_it_raised
from exit_jax.plugins import PluginError

MAX_SAVED = 64  # copies of states in a process


class Player:
    """Plays episodes of one environment."""

    def __init__(self, spec: Mapping[str, Any]):
        self.make = protocol.factory(spec["environment"], spec["arguments"])
        self.step_secs, self.reset_secs, self.alone = spec["step_secs"], spec["reset_secs"], spec["alone"]
        self.live = StateCache(spec["max_instances"], self.close)
        self.saved: collections.OrderedDict[str, Any] = collections.OrderedDict()

    def do(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Return the reply to a job."""
        kinds = {"rows": self.rows, "open": self.open, "check": self.check}
        work = next((work for kind, work in kinds.items() if kind in job), self.step)
        try:
            return work(job)
        except protocol.Unavailable as error:
            return {"unavailable": str(error) or "it is not there"}
        except protocol.Refused as error:
            return {"refused": str(error)}
        except protocol.Fault as error:
            return {"fault": str(error)}
        except MemoryError:
            return {"error": "out of memory"}
        except BaseException as error:  # nobody sends signals here: it is the environment's own, too
            return {"fault": what_it_raised(error, "")}

    # Single calls

    def fresh(self) -> Any:
        """Return a new instance; another one leaves if there are too many."""
        self.live.keep(self.live.max_states - 1)
        with limited(self.reset_secs):
            return self.make()

    def reset(self, instance: Any, row: Mapping[str, Any]) -> list[list[str]]:
        """Begin an episode and return its opening messages."""
        with limited(self.reset_secs):
            return protocol.read_opening(instance.reset(copy.deepcopy(row)))

    def play(self, instance: Any, text: str) -> list[Any]:
        """Return the observation, the reward and whether it is done, after a text."""
        with limited(self.step_secs):
            return list(protocol.read_step(instance.step(text)))

    def close(self, instance: Any) -> None:
        """End an instance, whose faults no longer matter."""
        with contextlib.suppress(BaseException), limited(self.step_secs):
            getattr(instance, "close", lambda: None)()

    # Steps

    def step(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Play one turn of an episode."""
        key, instance, num_replayed = job["key"], self.live.take(job["key"]), 0
        if instance is None:
            instance, num_replayed = self.fresh(), 0 if key in self.saved else len(job["turns"])
            try:
                if wrong := self.rebuild(instance, job):
                    self.close(instance)
                    return {"mismatch": wrong}
            except BaseException:
                self.close(instance)
                raise
        try:
            if job["shared"] and key not in self.saved and hasattr(instance, "save"):
                with limited(self.step_secs):
                    self.saved[key] = instance.save()
                if len(self.saved) > MAX_SAVED:
                    self.saved.popitem(last=False)
            turn = self.play(instance, job["text"])
        except BaseException:
            self.close(instance)
            raise
        reply = {"turn": turn, "replayed": num_replayed}
        if turn[-1] or job["last"]:
            self.close(instance)
            return reply
        after = protocol.key_after(key, [job["text"], *turn])
        self.live.put(after, instance)
        return reply | {"key": after}

    def rebuild(self, instance: Any, job: Mapping[str, Any]) -> dict[str, Any] | None:
        """Bring a fresh instance to a state; returns where it went another way, if it did."""
        if job["key"] in self.saved:
            self.saved.move_to_end(job["key"])
            with limited(self.reset_secs):
                return instance.load(self.saved[job["key"]]) and None
        opening = self.reset(instance, job["row"])
        if protocol.digest(opening) != job["opening"]:
            return {"turn": 0, "recorded": "another opening", "replayed": opening[-1][1][:1000]}
        for number, (text, *recorded) in enumerate(job["turns"], 1):
            replayed = self.play(instance, text)
            if replayed != recorded:
                return {"turn": number, "recorded": recorded, "replayed": replayed}
        return None

    # At load

    def rows(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Return the environment's own tasks of a split."""
        first, count = job["first"], job["count"]
        instance = self.fresh()
        try:
            if not hasattr(instance, "rows"):
                return {"rows": [{"seed": first + i} for i in range(count)]}
            with limited(self.reset_secs):
                return {"rows": protocol.read_rows(instance.rows(job["rows"], count, first), count)}
        finally:
            self.close(instance)

    def open(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Return the opening of a task."""
        instance = self.fresh()
        try:
            return {"opening": self.reset(instance, job["open"])}
        finally:
            self.close(instance)

    def check(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Play one episode twice, in instances that are alive side by side, and once more in copies; say what differed."""
        row, texts, max_turns = job["check"], job["texts"], job["max_turns"]
        instance = self.fresh()
        protocol.require_methods(instance)
        with limited(self.reset_secs):  # a server may have to be asked
            concurrent = not self.alone and bool(getattr(instance, "concurrent", True))
        has_copies = hasattr(instance, "save")
        self.close(instance)
        played, again, why = [], [], ""
        for first in range(len(texts)):  # some texts may be none that it takes
            told = [*texts[first:], *texts[:first]]
            played, again = [], []
            one, other = self.episode(row, told, max_turns), self.episode(row, told, max_turns)
            for a, b in itertools.zip_longest(*((one, other) if concurrent else (list(one), list(other)))):
                played.append(a)
                again.append(b)
            if "raised" not in (played[1] or {}):
                break
            why = why or played[1]["why"]
        else:
            raise protocol.Fault(f"on each of domain.check_texts = {texts}, the first among them, {why}")
        found: dict[str, Any] = {"played": [*map(bare, filter(None, played))]}
        pairs = enumerate(zip(played, again))
        differs = next(
            (f"turn {turn}: {said(a)}, and then {said(b)}" for turn, (a, b) in pairs if bare(a) != bare(b)), ""
        )
        if has_copies and not differs:
            differs = self.check_copies(row, [part["turn"] for part in found["played"] if "turn" in part])
        return found | {"concurrent": concurrent, "differs": differs}

    def episode(self, row: Mapping[str, Any], texts: Sequence[str], max_turns: int) -> Iterator[dict[str, Any]]:
        """Yield what an episode with these texts, over and over, comes to: its opening, then turn by turn."""
        instance = self.fresh()
        try:
            yield {"opening": self.reset(instance, row)}
            for text in itertools.islice(itertools.cycle(texts), max_turns):
                try:
                    turn = self.play(instance, text)
                except (protocol.Unavailable, protocol.Refused, protocol.Fault, MemoryError):
                    raise
                except BaseException as error:
                    yield {"raised": type(error).__name__, "why": what_it_raised(error, "")}
                    return
                yield {"turn": [text, *turn]}
                if turn[-1]:
                    return
        finally:
            self.close(instance)

    def check_copies(self, row: Mapping[str, Any], turns: Sequence[list[Any]]) -> str:
        """Return how an episode differs when each turn is played from a copy of the state before it, "" if it does not."""
        instance = self.fresh()
        self.reset(instance, row)
        for number, (text, *recorded) in enumerate(turns, 1):
            with limited(self.step_secs):
                state = instance.save()
            self.play(instance, text)  # which must not change the copy
            for _ in range(2):
                self.close(instance)
                instance = self.fresh()
                with limited(self.reset_secs):
                    instance.load(state)
                if (again := self.play(instance, text)) != recorded:
                    was, now = said({"turn": [text, *recorded]}), said({"turn": [text, *again]})
                    return f"turn {number}: {was}, and from a copy {now}"
        self.close(instance)
        return ""


def bare(part: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a part of an episode without the words of an exception, which may name addresses."""
    return {name: value for name, value in (part or {}).items() if name != "why"}


def said(part: Mapping[str, Any] | None) -> str:
    """Return a part of an episode in words."""
    if part is None:
        return "no further turn"
    if "opening" in part:
        return f"it began with {part['opening'][-1][1]!r:.120}"
    if "raised" in part:
        return part["why"]
    text, observation, reward, done = part["turn"]
    return f"after {text!r} it said {observation!r:.120} (reward {reward:g}{', done' if done else ''})"


@contextlib.contextmanager
def limited(secs: float):
    """Allow so much processor time, and four times that by the clock."""
    worker_process.start_timers(secs)
    try:
        yield
    finally:
        worker_process.stop_timers()


def main(spec: dict[str, Any]) -> None:
    """Answer jobs until stdin ends."""
    requests, replies = os.fdopen(os.dup(0), "rb"), worker_process.begin()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    worker_process.use_one_thread()
    player, wrong = None, ""
    try:
        player = Player(spec)
    except PluginError as error:
        wrong = str(error)
    except BaseException as error:
        wrong = f"domain.environment = {spec['environment']!r}: {what_it_raised(error, '')}"
    worker_process.write_line(replies, {"ready": True})
    before = worker_process.resident_bytes()
    worker_process.limit_growth(spec["memory_bytes"])
    for line in requests:
        found = player.do(json.loads(line)) if player else {"missing": wrong}
        # a leak: the next process begins with little
        is_full = worker_process.resident_bytes() - before > spec["memory_bytes"] // 2
        worker_process.write_line(replies, found | {"retire": is_full})


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    sys.path[:] = given["path"]  # the trainer's
    main(given)
