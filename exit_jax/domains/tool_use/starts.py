"""Other starts of the tiny world's tasks: gold calls as a hint, gold turns that are done already (R3), fewer requests (QWeb).

Gold responses are those of the tiny world's expert where it never errs. BFCL has right calls, but nobody who finds out what
they are: to make them at once would show what cannot be known, so there are no such starts of its tasks.
"""

import functools
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from exit_jax.algorithm import gold
from exit_jax.algorithm.gold import Gold, GoldTurns, make_gold, table
from exit_jax.algorithm.prompts import piece
from exit_jax.domains.text import chat, turns
from exit_jax.domains.text.prompts import HINT
from exit_jax.domains.text.settings import SPAN
from exit_jax.domains.tool_use.tiny import expert
from exit_jax.types import PIECES, Array, History, pytree

if TYPE_CHECKING:
    from exit_jax.domains.tool_use.domain import Tools


@pytree
class GoldTasks:
    """What is known of a split's tasks [M]."""

    solutions: Gold
    turns: GoldTurns
    num_requests: Array  # int32 [M]: requests that are made


class Starts:
    """The gold of tasks, and what is made of it."""

    def __init__(self, tools: "Tools"):
        self.tools, self.config = tools, tools.config

    def play(self, task: Any) -> tuple[list[str], list[tuple[list[int], tuple[int, ...]]]]:
        """Return the gold responses to a task, and what was there before each that fits: the context, the request in hand."""
        tools, limits = self.tools, self.tools.limits(test=False)
        episode, context, responses = tools.start(task), list(tools.head_of(task)), []
        stands = [(context, tools.request(episode))]
        while True:
            responses.append(expert.write(expert.right_actions(episode, task)[0], "plain"))
            spoken = tools.demonstrate(responses[-1])
            ((episode, answer),) = tools.step([(episode, spoken)], **limits)
            if answer.end is not None or episode.ended:
                break
            context = [*context, *tools.generation_prompt, *spoken, *answer.observation]
            stands.append((context, tools.request(episode)))
        room = self.config.max_context_tokens
        return responses, [stand for stand in stands if len(stand[0]) <= room]

    @functools.cached_property
    def frame(self) -> tuple[list[int], list[int]]:
        """The tokens around a hint, a further message, up to where a response is asked for."""
        message = {"role": "user", "content": HINT.strip() + "\n{feedback}"}
        whole = turns.more(self.tools.tokenizer, [message], self.tools.inputs)
        at = whole.index("feedback")
        before, after = (chat.splice(part, {}) for part in (whole[:at], whole[at + 1 :]))
        end = self.tools.generation_prompt
        assert tuple(after[len(after) - len(end) :]) == end, (
            "a message is followed by another prompt than the first one is"
        )
        return before, after[: len(after) - len(end)]

    def gold(self, split: str) -> GoldTasks:
        """Return the gold of a split's tasks, in NumPy."""
        c, tools = self.config, self.tools
        found, first = tools.tasks_of(split), SPAN * tools.splits.index(split)
        played = [self.play(task) for task in found]
        before, after = self.frame
        solutions = make_gold(
            first,
            [tools.encode("\n".join(responses)) for responses, _ in played],
            [()] * len(found),
            room=c.prompt_width,
            before_hint=before,
            before_answer=(),
            after=after,
        )
        most = max(len(stands) for _, stands in played)
        ends = np.zeros((len(found), max(most, 1)), np.int32)
        request_length = np.zeros_like(ends)
        request = np.zeros((*ends.shape, c.max_request_tokens), np.int32)
        for i, (_, stands) in enumerate(played):
            for k, (context, asked) in enumerate(stands):
                ends[i, k], request_length[i, k] = len(context), min(len(asked), c.max_request_tokens)
                request[i, k, : request_length[i, k]] = asked[: c.max_request_tokens]
        contexts = [stands[-1][0] if stands else () for _, stands in played]
        tokens = table(contexts, c.max_context_tokens)[0]
        asked = tools.asked(test=False)["num_requests"]
        number = np.array([min(asked or len(task.requests), len(task.requests)) for task in found], np.int32)
        done = GoldTurns(np.int32(first), tokens, ends, request, request_length)  # type: ignore[arg-type]
        return GoldTasks(solutions, done, number)  # type: ignore[arg-type]

    def fields(self) -> dict[str, Any]:
        """Return the fields of Domain that say how tasks can be started."""
        templates = {**self.tools.templates, "base": gold.show_starts(self.tools.templates["base"])[:-1]}
        show = functools.partial(gold.hint, templates["base"], self.tools.prompt_width)
        variants = {
            "hint": lambda given, *args: show(given.solutions, *args),
            "prefix": lambda given, *args: gold.turns(given.turns, *args),
            "fewer": fewer,
        }
        return {"gold": functools.cache(self.gold), "variants": variants, "start_templates": templates}


def fewer(given: GoldTasks, history: History, level: Array, key: Array) -> tuple[History, Array]:
    """Leave out the last requests of a task: of n those after ceil((1 - level) n), at most all but the first.

    The history has a token of no meaning in its solution, which no base prompt shows, for each of them; ``Tools.start_at``
    counts these. Children are of the whole task.
    """
    del key
    row, known = gold.find(given.turns.first, given.num_requests, history)
    number = given.num_requests[row]
    left_out = jnp.minimum(jnp.floor(level * number + 1e-3).astype(jnp.int32), number - 1)
    pieces = {name: piece(history, name) for name in PIECES}
    pieces["solution"] = (jnp.zeros((*left_out.shape, int(given.turns.ends.shape[1])), jnp.int32), left_out)
    return gold.replace_where(known & (history.turn == 0), left_out > 0, history, pieces)
