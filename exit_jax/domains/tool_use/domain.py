"""Multi-turn tool use (ExIt §5): episodes as tokens, played in BFCL's world or in a tiny one, graded on the host.

A history holds the conversation up to a turn as *context*, from the system's message to what was last said to the policy, in
the tokens that were sampled and observed; the *request* in hand, as text; and a response to that turn as *solution*. The
self-iteration prompt is a further message after the context. It stays in the transcript of the rollout that it begins, and
out of the histories that this yields (ExIt App. A).

A context can be taken apart again, since a response ends at its first stop token, or with ``stop_at_call`` where its first call
ends: that is how an environment is brought to where a history starts, by making the recorded calls again and comparing what is
observed.
"""

import functools
import itertools
import json
import logging
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from exit_jax.algorithm.prompts import piece_rows
from exit_jax.domains.domain import INVALID, VALID, Answer, Domain, Environment, settings_id
from exit_jax.domains.text import chat
from exit_jax.domains.text.pieces import Tokens, pack
from exit_jax.domains.text.settings import SPAN
from exit_jax.domains.tool_use.conversations import Conversations
from exit_jax.domains.tool_use.demonstrations import Demonstrations
from exit_jax.domains.tool_use.episode import Episode
from exit_jax.domains.tool_use.parser import MARKERS, has_ending
from exit_jax.domains.tool_use.settings import NOT_TAUGHT, ToolsConfig
from exit_jax.types import Grades, History, Instances, Rollouts

log = logging.getLogger(__name__)

FIGURES = ("first_request", "requests_fulfilled", "share_fulfilled", "invalid_calls", "crashed", "turns")
OFFICIAL = "official"  # BFCL's own verdict, which the tiny world has not


class Tools(Conversations):
    """Episodes of the tasks, and the histories that they are cut into."""

    # Episodes

    def environment(self, test: bool) -> Environment:
        """Return the environment of training or evaluation."""
        c = self.config
        max_turns = c.test_max_turns if test else c.max_turns
        num_requests = (c.test_num_requests if test else c.num_requests) or None
        ask = self.again["improve"]
        static = len(chat.splice(ask, {"request": (), "solution": ()}))
        return Environment(
            max_turns=max_turns,
            max_tokens=c.max_tokens,
            max_observation=c.max_observation_tokens,
            max_ask=static + c.max_request_tokens + c.max_solution_tokens,
            max_transcript=c.test_max_transcript_tokens if test else c.max_transcript_tokens,
            generation_prompt=self.generation_prompt,
            begin=functools.partial(self.begin, max_turns=max_turns, num_requests=num_requests),
            step=functools.partial(self.step, max_turns=max_turns, num_requests=num_requests),
            ask_again=lambda episode, response: chat.splice(
                ask, {"request": self.request(episode), "solution": self.solution(response)}
            ),
            figures=functools.partial(self.figures, num_requests=num_requests),
            show=self.show,
            by_response=c.overlong_unit == "response",
        )

    def step(self, pairs: Sequence[tuple[Episode, Tokens]], max_turns: int, num_requests: int | None):
        """Play a turn of each episode with a response's tokens."""
        texts = [(episode, self._text(response)) for episode, response in pairs]
        results = self.world.step_many(texts, max_turns, num_requests)
        return [
            (result.episode, self._answer(result.episode, response, has_ending(text)))
            for result, (_, response), (_, text) in zip(results, pairs, texts, strict=True)
        ]

    def _text(self, response: Tokens) -> str:
        """Return what a response says; the token in which its call ends may hold a bit more, which does not count."""
        text = self.answer(response)
        start, tag, _ = text.partition(MARKERS.call_end)
        return start + tag if self.config.stop_at_call else text

    def _answer(self, episode: Episode, response: Tokens, ended: bool) -> Answer:
        """Return what is said to the last response of an episode; the limit of turns is the caller's."""
        if episode.how in ("finished", "error"):
            return Answer((), VALID, ended)
        if episode.how in ("crashed", "mismatch"):
            return Answer((), INVALID, ended)
        turn = episode.turns[-1]
        stopped = not self.config.stop_at_call or (len(response) > 0 and int(response[-1]) in self.stop_tokens)
        return Answer(self.observation(turn.kind, turn.observation, stopped), None, ended)

    def begin(self, history: History, group_size: int, max_turns: int, num_requests: int | None) -> list[Any]:
        """Return the episodes that histories [b] start from, each ``group_size`` times; None where one goes another way.

        The recorded responses are played again, those of all histories side by side. A task that is too long has no episode.
        """
        tasks, unseen = [self.task_of(number) for number in history.task], [*map(self.is_too_long, history.task)]
        found: list[Episode | None] = [None if cut else Episode(task.id) for task, cut in zip(tasks, unseen)]
        context = [tokens.tolist() for tokens in piece_rows(history, "context")]
        place = [len(self.head(task.id)) for task in tasks]
        for turn in range(int(history.turn.max(initial=0))):
            going = [b for b, episode in enumerate(found) if episode and turn < history.turn[b]]
            responses = [self._next_response(context[b], place[b]) for b in going]
            pairs: Any = [(found[b], response) for b, response in zip(going, responses)]
            for b, response, (episode, answer) in zip(going, responses, self.step(pairs, max_turns, num_requests)):
                start = place[b] + len(self.generation_prompt) + len(response)
                place[b] = start + len(answer.observation)
                same = context[b][start : place[b]] == list(answer.observation)
                found[b] = episode if same and not episode.ended else None
        for b, episode in enumerate(found):
            if episode and place[b] != len(context[b]):
                found[b] = None
        num_lost = found.count(None) - sum(unseen)
        if num_lost:
            log.warning("%d of %d histories went another way when their calls were made again", num_lost, len(found))
        return [episode for episode in found for _ in range(group_size)]

    def _next_response(self, context: list[int], place: int) -> list[int]:
        """Return the recorded response after ``place``: all up to what ended it."""
        rest = context[place + len(self.generation_prompt) :]
        end = self.end_of(rest)
        return rest if end is None else rest[: end + 1]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of what is reported of an episode."""
        return FIGURES if self.config.world == "tiny" else (*FIGURES, OFFICIAL)

    def figures(self, episode: Episode | None, num_requests: int | None) -> dict[str, float]:
        """Return what an episode came to; all 0 of None, which could not be begun."""
        if episode is None:
            return {"quality": 0.0} | dict.fromkeys(self.names, 0.0)
        task = self.world.tasks[episode.task_id]
        asked = len(task.requests) if num_requests is None else min(num_requests, len(task.requests))
        first = float(bool(episode.verdicts) and episode.verdicts[0].success)
        share = episode.num_fulfilled / asked
        quality = first if self.config.quality == "first_request" else share
        values = {
            "first_request": first,
            "requests_fulfilled": episode.num_fulfilled,
            "share_fulfilled": share,
            OFFICIAL: sum(bool(verdict.official) for verdict in episode.verdicts) / asked,
            "invalid_calls": episode.num_invalid,
            "crashed": episode.how in ("crashed", "mismatch"),
            "turns": len(episode.turns),
        }
        return {"quality": quality} | {name: float(values[name]) for name in self.names}

    def show(self, episode: Episode | None) -> str:
        """Return an episode as text for people."""
        return "" if episode is None else self.world.describe(episode)

    # Histories

    @property
    def width(self) -> int:
        """Tokens of a packed history."""
        return self.config.max_context_tokens + self.config.max_request_tokens + self.config.max_solution_tokens

    def tasks(self, split: str) -> History:
        """Return the base tasks of a split, in NumPy."""
        c, found = self.config, self.tasks_of(split)
        context = [self.head(task.id)[: c.max_context_tokens] for task in found]
        request = [self.encode(task.requests[0])[: c.max_request_tokens] for task in found]
        rows = [(*held, (), ()) for held in zip(context, request, strict=True)]
        return pack(rows, self.width, task=SPAN * c.splits.index(split) + np.arange(len(rows)))

    def grade(self, instances: Instances, rollouts: Rollouts, episodes: list[Any]) -> Grades:
        """Grade episodes, and cut them into histories, one for each of their turns. All in NumPy."""
        shape = rollouts.finished.shape
        figures = [self.figures(episode, self.config.num_requests or None) for episode in episodes]

        def per_rollout(name: str) -> Any:
            return np.array([row[name] for row in figures], np.float32).reshape(shape)

        quality = per_rollout("quality")
        lost: Any = np.array([episode is None for episode in episodes]).reshape(shape)
        insertable: Any = np.zeros((*shape, self.config.max_turns), bool)
        rows: list[tuple[Tokens, ...]] = [((), (), (), ())] * insertable.size
        contexts = [tokens.tolist() for tokens in piece_rows(instances.history, "context")]
        fields: Any = {name: np.zeros(insertable.shape, np.int32) for name in ("task", "turn", "step")}
        fields["quality"] = np.zeros(insertable.shape, np.float32)
        too_long: Any = np.zeros(shape, np.float32)
        for (b, g), episode in zip(np.ndindex(shape), episodes, strict=True):
            usable = rollouts.finished[b, g] if rollouts.ended is None else rollouts.ended[b, g].any()
            if episode is None or not usable:
                continue
            for u, (context, response, ended) in enumerate(self._turns(contexts[b], rollouts, b, g)):
                turn = int(instances.history.turn[b]) + u
                step = int(instances.history.step[b]) + 1 if u == 0 else 0
                solution = self.solution(response)
                if len(context) > self.config.max_context_tokens:
                    too_long[b, g] = 1.0
                    break
                insertable[b, g, u] = ended and bool(solution)
                place = np.ravel_multi_index((b, g, u), insertable.shape)
                rows[place] = (context, self.request(episode.before(turn)), solution, ())
                held = {"task": instances.history.task[b], "turn": turn, "step": step, "quality": quality[b, g]}
                for name, value in held.items():
                    fields[name][b, g, u] = value
        notes = {name: per_rollout(name) for name in self.names} | {"context_too_long": too_long}
        packed = pack(rows, self.width, **{name: array.reshape(-1) for name, array in fields.items()})
        return Grades(
            quality=quality,
            valid=~lost,
            embedding=quality[..., None] * 0.0,
            children=jax.tree.map(lambda leaf: leaf.reshape(*insertable.shape, *leaf.shape[1:]), packed),
            insertable=insertable,
            notes=notes,
            lost=lost[:, 0],
        )

    def _turns(self, context: list[int], rollouts: Rollouts, b: int, g: int):
        """Yield each turn of a transcript after ``context``: the context before it, the response, whether that is whole."""
        tokens, mask = rollouts.tokens[b, g].tolist(), rollouts.mask[b, g]
        ended = mask if rollouts.ended is None else rollouts.ended[b, g]
        length = int(np.flatnonzero(mask)[-1]) + 1
        changes = np.flatnonzero(mask[1:length] != mask[: length - 1]) + 1
        edges = [0, *changes.tolist(), length]
        runs = [tokens[start:stop] for start, stop in itertools.pairwise(edges)]
        for start, response, rest in itertools.zip_longest(edges[:-1:2], runs[::2], runs[1::2], fillvalue=()):
            yield context, response, bool(ended[start])
            observation = rest[: len(rest) - len(self.generation_prompt)]
            context = [*context, *self.generation_prompt, *response, *observation]

    def describe(self, history: History) -> list[str]:
        """Return what histories [n] hold, as text."""
        return [self.decode(tokens) for tokens in piece_rows(history, "solution")]

    def difficulty(self, split: str) -> dict[str, np.ndarray]:
        """Return what results are broken down by: the number of requests, and for each API whether the task has it."""
        found = self.tasks_of(split)
        apis = sorted({api for name in self.config.splits for task in self.tasks_of(name) for api in task.apis})
        levels = {"requests": np.array([len(task.requests) for task in found])}
        return levels | {api: np.array([int(api in task.apis) for task in found]) for api in apis}

    def about(self, split: str) -> list[dict[str, str]]:
        """Return the requests of each task, and the calls that fulfil them."""
        gold = lambda calls: " ".join(f"{call.name}({json.dumps(dict(call.arguments))})" for call in calls)
        return [
            {"request": "\n".join(task.requests), "gold": "\n".join(map(gold, task.truth))}
            for task in self.tasks_of(split)
        ]


def make_domain(config: ToolsConfig) -> Domain:
    """Build the tool-use domain.

    Raises:
      DomainError: if BFCL or the tokenizer cannot be had, or the prompts do not fit.
    """
    tools = Tools(config)
    return Domain(
        name=config.world,
        splits=config.splits,
        **tools.token_fields,
        history_width=tools.width,
        prompt_width=config.prompt_width,
        max_tokens=config.max_transcript_tokens,
        num_children=config.max_turns,
        templates=tools.templates,
        tasks=tools.tasks,
        difficulty=tools.difficulty,
        about=tools.about,
        grade=tools.grade,
        notes=(*tools.names, "context_too_long"),
        demonstrations=Demonstrations(tools) if config.has_demonstrations else None,
        demonstrations_id=settings_id(config, NOT_TAUGHT),
        describe=tools.describe,
        texts=tools.texts,
        decode=tools.decode,
        environment=tools.environment(test=False),
        test_environment=tools.environment(test=True),
        stop_text=tools.stop_text,
        too_long=tools.too_long,
    )
