"""A domain of given widths and nothing else: what a setting costs can be compiled before its data is at hand."""

import dataclasses
from typing import ClassVar

import numpy as np

from exit_jax.algorithm.types import NO_ID, History
from exit_jax.domains.domain import Domain, DomainError, Environment


@dataclasses.dataclass(frozen=True)
class ShapesConfig:
    """The static shapes of a domain that is graded on the host."""

    splits: ClassVar = ("train", "validation", "test")
    vocab_size: int
    num_tasks: int  # M: base tasks of the training split
    history_width: int  # W: tokens of a packed history
    prompt_width: int  # P: tokens of the longest prompt
    max_tokens: int  # T: tokens of the longest response
    num_children: int  # U: histories that one rollout yields
    embedding_width: int  # E
    max_turns: int  # of an episode, whose transcript max_tokens then is; 0 for tasks of one turn
    turn_tokens: int  # of a response in an episode
    observation_tokens: int  # of what is said to it

    def __post_init__(self):
        of_turns = ("max_turns", "turn_tokens", "observation_tokens")
        lowest = {name: min(1, self.max_turns) if name in of_turns else 1 for name in vars(self)}
        wrong = [
            f"domain.{name} = {value} is below {lowest[name]}"
            for name, value in vars(self).items()
            if value < lowest[name]
        ]
        if wrong:
            raise ValueError("; ".join(wrong))


def make_domain(config: ShapesConfig) -> Domain:
    """Build a domain whose tasks are blank and which can be compiled for, but not trained on."""

    def tasks(split: str) -> History:
        del split
        blank = lambda value, *shape: np.full((config.num_tasks, *shape), value, np.int32)
        fields: dict = {
            "tokens": blank(0, config.history_width),
            "lengths": blank(0, 4),
            "id": blank(NO_ID),
            "task": np.arange(config.num_tasks, dtype=np.int32),
            "turn": blank(0),
            "step": blank(-1),
            "quality": blank(0).astype(np.float32),
            "born": blank(0),
            "parent": blank(NO_ID),
        }
        return History(**fields)

    def absent(*_):
        raise DomainError(
            'the domain "shapes" has widths only, for --mode compile; set domain_name to one that has tasks'
        )

    environment = None
    if config.max_turns:
        widths = config.max_turns, config.turn_tokens, config.observation_tokens, config.prompt_width, config.max_tokens
        environment = Environment(*widths, (0,) * 4, absent, absent, absent, absent, absent)
    piece = (0,) * min(64, config.prompt_width)  # a template's static text
    return Domain(
        name="shapes",
        splits=ShapesConfig.splits,
        test_splits=(),
        vocab_size=config.vocab_size,
        history_width=config.history_width,
        prompt_width=config.prompt_width,
        max_tokens=config.max_tokens,
        stop_tokens=(0,),
        stop_sequences=(),
        num_children=config.num_children,
        embedding_width=config.embedding_width,
        templates={
            "base": (piece, "context", "request"),
            "improve": (piece, "context", "request", "solution", "feedback"),
            "diverge": (piece, "context", "request", "solution", "feedback"),
        },
        tasks=tasks,
        difficulty=lambda _: {},
        about=absent,
        grade=absent,
        notes=(),
        on_host=True,
        complete=absent,
        demonstrations=absent,
        demonstrations_id="",
        describe=absent,
        answers=None,
        texts=None,
        environment=environment,
        test_environment=environment,
    )
