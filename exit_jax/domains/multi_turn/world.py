"""Plays the episodes of an environment on worker processes, each call of which may hang, crash or raise: it costs its episode.

What crashed is remembered in a log, so that a resumed run repeats what came of it instead of the accident; delete the log to
try it again. A server that went away stops the run, which goes on at the next start.
"""

import collections
import json
import logging
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from exit_jax.domains.domain import DomainError
from exit_jax.domains.multi_turn.episode import Episode, Turn
from exit_jax.domains.multi_turn.protocol import digest
from exit_jax.domains.multi_turn.settings import MultiTurnConfig
from exit_jax.domains.text import chat
from exit_jax.domains.ungraded import UngradedLog
from exit_jax.domains.worker_process import WALL_FACTOR
from exit_jax.domains.workers import Job, Pool
from exit_jax.errors import GradingError, UserError

log = logging.getLogger(__name__)
WORKER = pathlib.Path(__file__).with_name("worker.py")
FILE = "crashed.jsonl"
SPARE_SECS = 30.0  # beyond all limits of a job, which a worker keeps itself
NUM_WARNINGS = 5
MIN_ALL_FAILED = 8  # so many steps of which each one raises are no accident
MAX_LOGGED_CHARS = 500


class World:
    """An environment in its processes. One thread at a time, the others wait."""

    def __init__(self, config: MultiTurnConfig, identity: str):
        """Read what crashed in an earlier run; no process starts before there is something to do.

        Args:
          identity: what names the environment, its code and its arguments: another one crashes elsewhere.
        """
        self.config, self.identity = config, identity
        self.stats: collections.Counter[str] = collections.Counter()
        self._crashed = UngradedLog(pathlib.Path(config.data_dir).expanduser().absolute() / FILE)
        # the check at load, the calls that it makes, and what it came to
        self.reference: tuple[Mapping[str, Any], int, list[Any]] | None = None
        self._pool = self._make_pool(config.max_instances)

    def _make_pool(self, max_instances: int) -> Pool:
        """Return the processes for so many instances; one of them starts for each job that waits, up to their number."""
        c = self.config
        num_workers = min(c.num_workers or os.cpu_count() or 1, max_instances)
        spec = {
            "environment": c.environment,
            "arguments": chat.parse_inputs(c.environment_args),
            "step_secs": c.step_secs,
            "reset_secs": c.reset_secs,
            "memory_bytes": c.memory_mb << 20,
            "max_instances": max_instances // num_workers,
            "alone": max_instances == 1,
            "path": [os.path.abspath(folder) for folder in sys.path],
        }
        return Pool(WORKER, [json.dumps(spec)], num_workers, needs="what domain.environment imports")

    def go_alone(self) -> None:
        """Go on with one instance at a time in all, in one process."""
        self._pool.close()
        self._pool = self._make_pool(1)

    def close(self) -> None:
        """End the processes."""
        self._pool.close()

    def ask(self, jobs: Sequence[tuple[Mapping[str, Any], int, str]]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (place, reply) of jobs, (message, number of calls in it, state), as they come in.

        Raises:
          UserError: the environment is not to be had; the run goes on when it is started again.
          DomainError: it cannot be made.
        """
        c = self.config
        secs = lambda calls: WALL_FACTOR * (2 * c.reset_secs + (calls + 4) * c.step_secs) + SPARE_SECS
        try:
            found = [Job(message, secs(calls), state, again=calls if state else 0) for message, calls, state in jobs]
            for place, reply in self._pool.run(found):
                if "missing" in reply:
                    raise DomainError(reply["missing"])
                if "unavailable" in reply:
                    raise UserError(
                        f"domain.environment = {c.environment!r} is not available ({reply['unavailable']}); bring it back, or "
                        "lower domain.max_instances to the sessions that it has, and the same command goes on where it stopped"
                    )
                yield place, reply
        except RuntimeError as error:
            raise GradingError(f"domain.environment = {c.environment!r}: {error}") from error

    def ask_one(self, message: Mapping[str, Any], num_calls: int) -> dict[str, Any]:
        """Return the reply to a job at load.

        Raises:
          DomainError: it failed.
          UserError: as ``ask``.
        """
        try:
            ((_, reply),) = self.ask([(message, num_calls, "")])
        except GradingError as error:
            raise DomainError(str(error)) from error
        if why := why_failed(reply):
            c = self.config
            if "error" in reply:  # the process is gone, and with it which call it was
                called = "rows" if "rows" in message else "the constructor, reset or step"
                why = (
                    f"{why}, in {called}; domain.reset_secs = {c.reset_secs:g} and domain.step_secs = {c.step_secs:g} limit "
                    f"processor time ({WALL_FACTOR:g} times that by the clock), domain.memory_mb = {c.memory_mb} limits memory"
                )
            raise DomainError(f"domain.environment = {c.environment!r}: {why}")
        return reply

    def step_many(self, pairs: Sequence[tuple[Episode, str]], max_turns: int) -> list[Episode]:
        """Play one turn of each episode with the text of a response; the order is kept.

        Steps are dealt to the processes one by one, so that a slow one delays only its own; episodes with equal texts share no
        instance, but where several start from one state, a copy is made of it, if the environment can.

        Args:
          pairs: episodes that have not ended, and final answers.
          max_turns: of an episode.

        Raises:
          GradingError: not one of many steps came to anything, or processes cannot be started.
          UserError: as ``ask``.
        """
        keys = [episode.key for episode, _ in pairs]
        starts = collections.Counter(keys)
        names = [bytes.fromhex(digest([self.identity, key, text])) for key, (_, text) in zip(keys, pairs)]
        replies = {i: {"fault": "it crashed before"} for i, name in enumerate(names) if name in self._crashed}
        todo = [i for i in range(len(pairs)) if i not in replies]
        if max((len(episode.turns) for episode, _ in pairs), default=0) % 2:
            todo.reverse()  # where not all can be alive, those that still are come first
        jobs = [self._job(*pairs[i], keys[i], starts[keys[i]] > 1, max_turns) for i in todo]
        fresh = {todo[place]: reply for place, reply in self.ask(jobs)}
        self._require_some([fresh[i] for i in sorted(todo)])
        for i in sorted(todo):  # in the order of episodes, whatever came first
            self.stats["replayed"] += fresh[i].get("replayed", 0)
            if why := why_failed(fresh[i]):
                self._remember(names[i], *pairs[i], why)
        return [self._after(*pair, (replies | fresh)[i], max_turns) for i, pair in enumerate(pairs)]

    def _job(
        self, episode: Episode, text: str, key: str, shared: bool, max_turns: int
    ) -> tuple[dict[str, Any], int, str]:
        """Return the job of bringing about an episode's state and playing a turn there."""
        turns = [turn.plain for turn in episode.turns]
        message = {
            "text": text,
            "row": episode.task.row,
            "opening": episode.task.opening_id,
            "turns": turns,
            "key": key,
        }
        message |= {"shared": shared, "last": len(turns) + 1 >= max_turns}
        return message, len(turns) + 1, key

    def _after(self, episode: Episode, text: str, reply: Mapping[str, Any], max_turns: int) -> Episode:
        """Return an episode with one turn more, ended where the rules say so."""
        self.stats["steps"] += 1
        if "mismatch" in reply:
            self.stats["mismatches"] += 1
            log.warning("%s went another way when it was played again: %s", episode.task.place, reply["mismatch"])
            return Episode(episode.task, episode.turns, "mismatch")
        if why_failed(reply):
            self.stats["crashed"] += 1
            return Episode(episode.task, (*episode.turns, Turn(text, "", 0.0, False)), "crashed")
        turns = (*episode.turns, Turn(text, *reply["turn"]))
        how = "done" if turns[-1].done else "turns" if len(turns) >= max_turns else ""
        return Episode(episode.task, turns, how)

    def _require_some(self, replies: Sequence[Mapping[str, Any]]) -> None:
        """Raise GradingError if each of many steps has raised, and the episode of load no longer is what it was.

        Where it is, the responses are to blame, as those of a policy that does not write what the environment can read.
        """
        raised = [reply["fault"] for reply in replies if "fault" in reply]
        if len(raised) < len(replies) or len(replies) < MIN_ALL_FAILED or self.reference is None:
            return
        ((_, reply),) = self.ask([(*self.reference[:2], "")])
        if reply.get("played") != self.reference[2]:
            raise GradingError(
                f"domain.environment = {self.config.environment!r} failed in all of {len(raised)} steps: {raised[0]}"
            )

    def _remember(self, name: bytes, episode: Episode, text: str, why: str) -> None:
        """Tell of a crash, and enter it into the log."""
        self.stats["warnings"] += 1
        turn, place = len(episode.turns) + 1, episode.task.place
        if self.stats["warnings"] <= NUM_WARNINGS:
            log.warning("turn %d of %s crashed on %r: %s", turn, place, text[:60], why)
        if self.stats["warnings"] == NUM_WARNINGS:
            log.warning("further crashes are in %s only", self._crashed.path)
        said = {"environment": self.config.environment, "reason": why, "task": place, "turn": turn}
        self._crashed.add(name, **said, text=text[:MAX_LOGGED_CHARS])


def why_failed(reply: Mapping[str, Any]) -> str:
    """Return why a job came to nothing, "" if it did not."""
    return (
        reply.get("error") or reply.get("fault") or ("refused" in reply and f"it is refused: {reply['refused']}") or ""
    )
