"""Prompts without rewards, put to the policy as tasks of your own are: what ``exit_jax.run.improve`` answers.

Prompts and what is said of their answers are no settings that a config file could hold; ``Asked`` carries them.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from exit_jax.domains.domain import Domain, DomainError
from exit_jax.domains.task import rows
from exit_jax.domains.task.domain import Task
from exit_jax.domains.task.rows import Row, Rows
from exit_jax.domains.task.settings import TaskConfig
from exit_jax.domains.text.pieces import Tokens
from exit_jax.domains.text.scored import Score
from exit_jax.domains.text.settings import TextConfig
from exit_jax.plugins import what_it_raised
from exit_jax.settings import setting

NAME = f"{__name__}:make_domain"
SPLIT = "prompts"
STEP = 64  # widths are rounded up to multiples of it, so that prompts of about the same length share compiled programs
MAX_TOLD = 5  # faults of prompts that are listed


@dataclasses.dataclass(frozen=True)
class PromptsConfig(TextConfig):
    """How prompts are put to the policy."""

    splits = (SPLIT,)
    max_request_tokens: int = setting(
        0, "tokens of a prompt's last message; 0 for what the prompts take", within="[0, inf)"
    )
    max_context_tokens: int = setting(
        0, "tokens of a conversation before its last message; 0 for what the prompts take", within="[0, inf)"
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Asked(PromptsConfig):
    """The prompts, with their settings; one is another than any other, whatever it holds."""

    prompts: Sequence[Any] = ()  # texts, or chats as lists of messages
    feedback: Callable[[Any, str], str] | None = (
        None  # (prompt as given, final answer) -> what the next prompt says of it
    )
    made_tokenizer: Any = None  # the tokenizer itself, of a domain that makes its own; None for that of ``tokenizer``
    longest: int = 0  # tokens of prompt and response that the checkpoint was trained on; 0 for any

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


class Prompts(Task):
    """Prompts, in as many tokens as they take."""

    config: Asked  # type: ignore[assignment]
    notes = ()  # type: ignore[assignment]
    has_solutions = has_answers = False  # type: ignore[assignment]

    def __init__(self, config: Asked):
        """Read the prompts and choose their widths.

        Raises:
          DomainError: naming the places of prompts that are none, or do not fit.
        """
        super().__init__(config)  # type: ignore[arg-type]
        sizes = [(len(self.context(row)), len(self.encode(row.prompt.strip()))) for row in self.rows(SPLIT)]
        self._require_room(sizes)
        fields = ("max_context_tokens", "max_request_tokens")
        taken = [getattr(config, name) or max(lengths) for name, lengths in zip(fields, zip(*sizes))]
        rounded = [getattr(config, name) or -(-size // STEP) * STEP for name, size in zip(fields, taken)]
        if self._room() and self._width(*rounded) > self._room():
            rounded = taken
        self.config = dataclasses.replace(config, **dict(zip(fields, rounded)))

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers."""
        return super().tokenizer if self.config.made_tokenizer is None else self.config.made_tokenizer

    @functools.cached_property
    def table(self) -> Rows:
        """The prompts as rows of one split."""
        places = {f"prompts[{i}]": prompt for i, prompt in enumerate(self.config.prompts)}
        found = [rows.clean(place, {"prompt": prompt}, TaskConfig(), "") for place, prompt in places.items()]
        wrong = [f"{place}: {why}" for place, why in zip(places, found) if isinstance(why, str)]
        _raise("cannot be asked", wrong)
        return Rows({SPLIT: tuple(row for row in found if isinstance(row, Row))}, [], {}, {})

    @property
    def max_context_tokens(self) -> int:  # type: ignore[override]
        """Tokens of the longest context."""
        return self.config.max_context_tokens

    def _width(self, context: int, request: int) -> int:
        """Return the tokens of the longest prompt of any mode, with a context and a request of these sizes."""
        sizes = self.max_piece_tokens | {"context": context, "request": request}
        width = lambda item: sizes[item] if isinstance(item, str) else len(item)
        return max(sum(map(width, template)) for template in self._cut.values())

    def _room(self) -> int:
        """Return the tokens that a prompt may have, 0 for any number."""
        c = self.config
        limits = [c.prompt_width, c.longest and max(c.longest - c.max_tokens, 1)]
        return min(filter(None, limits), default=0)

    def _require_room(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Raise unless each prompt fits, its context and its last message [M] being of these sizes."""
        c, wrong = self.config, []
        for place, (context, request) in enumerate(sizes):
            limits = [
                ("its last message", request, c.max_request_tokens, "max_request_tokens"),
                ("what precedes its last message", context, c.max_context_tokens, "max_context_tokens"),
                (
                    "its longest prompt, with an answer to improve",
                    self._width(context, request),
                    self._room(),
                    f"prompt_width, or the checkpoint's {c.longest} without max_tokens = {c.max_tokens}",
                ),
            ]
            told = [
                f"{what} takes {size} tokens of {most} ({name})" for what, size, most, name in limits if 0 < most < size
            ]
            wrong += [f"prompts[{place}]: {why}" for why in told]
        _raise("do not fit; shorten them, or change the widths that are named", wrong)

    def try_rewards(self, split: str) -> None:
        """Do nothing: there are none."""

    def score(self, found: Sequence[Row], responses: Sequence[Tokens]) -> list[Score]:
        """Return what is said of responses; they earn nothing."""
        scores, seen = [], set()
        for row, response in zip(found, responses, strict=True):
            # a batch that is not full repeats rows, for which nobody should be asked
            wanted = self.config.feedback is not None and row.place not in seen
            scores.append(Score(0.0, feedback=self._said(row, self.answer(response).strip()) if wanted else ""))
            seen.add(row.place)
        return scores

    def _said(self, row: Row, answer: str) -> str:
        """Return what the user's function says of an answer."""
        assert self.config.feedback is not None
        chat = [{"role": role, "content": content} for role, content in (*row.messages, ("user", row.prompt))]
        try:
            said = self.config.feedback(chat if row.conversational else row.prompt, answer)
        except Exception as error:  # a user's function may raise anything
            raise DomainError(f"feedback on {row.place}: {what_it_raised(error)}") from error
        if not isinstance(said, str):
            raise DomainError(f"feedback on {row.place} is {said!r:.60}, a {type(said).__name__}; it should be a text")
        return said


def _raise(what: str, wrong: Sequence[str]) -> None:
    if wrong:
        more = [f"and {len(wrong) - MAX_TOLD} more"] if len(wrong) > MAX_TOLD else []
        listed = "\n".join(f"  - {fault}" for fault in [*wrong[:MAX_TOLD], *more])
        raise DomainError(f"{len(wrong)} prompt(s) {what}:\n{listed}")


def make_domain(config: PromptsConfig) -> Domain:
    """Build the domain of prompts, which are those of ``Asked``.

    Raises:
      UserError: if the tokenizer cannot be had, or a prompt is none or does not fit.
    """
    assert isinstance(config, Asked)
    prompts = Prompts(config)
    return Domain(**prompts.fields(), name="prompts")
