"""A domain of given widths and nothing else: what a setting costs can be compiled before its data is at hand."""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from exit_jax.domains.domain import Domain, DomainError, Environment
from exit_jax.settings import setting
from exit_jax.types import History, make_history


@dataclasses.dataclass(frozen=True)
class ShapesConfig:
    """The static shapes of a domain that is graded on the host."""

    splits: ClassVar = ("train", "validation", "test")
    vocab_size: int = setting(0, "tokens", within="[1, inf)")
    num_tasks: int = setting(1, "base tasks of the training split, M", within="[1, inf)")
    history_width: int = setting(0, "tokens of a packed history, W; must be given", within="[1, inf)")
    prompt_width: int = setting(0, "tokens of the longest prompt, P; must be given", within="[1, inf)")
    max_tokens: int = setting(0, "tokens of the longest response, T; must be given", within="[1, inf)")
    num_children: int = setting(1, "histories that one rollout yields, U", within="[1, inf)")
    embedding_width: int = setting(768, "width of a response's embedding, E", within="[1, inf)")
    max_turns: int = setting(
        0, "turns of an episode, whose transcript max_tokens then is; 0 for tasks of one turn", within="[0, inf)"
    )
    turn_tokens: int = setting(0, "tokens of a response in an episode", within="[0, inf)")
    observation_tokens: int = setting(0, "tokens of what is said to it", within="[0, inf)")

    @property
    def plays_episodes(self) -> bool:
        """Whether tasks have several turns."""
        return self.max_turns > 0

    def faults(self) -> list[str]:
        """Return a sentence for each contradiction."""
        return [
            f"domain.{name} = {getattr(self, name)} is below 1, but domain.max_turns is not 0"
            for name in ("turn_tokens", "observation_tokens")
            if self.max_turns and getattr(self, name) < 1
        ]


def make_domain(config: ShapesConfig) -> Domain:
    """Build a domain whose tasks are blank and which can be compiled for, but not trained on."""

    def tasks(split: str) -> History:
        del split
        tokens: Any = np.zeros((config.num_tasks, config.history_width), np.int32)
        return make_history(tokens, np.zeros((config.num_tasks, 4), np.int32), np.arange(config.num_tasks))

    def absent(*_):
        raise DomainError(
            'the domain "shapes" has widths only, for --mode compile; set domain_name to one that has tasks'
        )

    environment = None
    if config.max_turns:
        environment = Environment(
            max_turns=config.max_turns,
            max_tokens=config.turn_tokens,
            max_observation=config.observation_tokens,
            max_ask=config.prompt_width,
            max_transcript=config.max_tokens,
            generation_prompt=(0,) * 4,
            begin=absent,
            step=absent,
            ask_again=absent,
            figures=absent,
            show=absent,
        )
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
        num_children=config.num_children,
        embedding_width=config.embedding_width,
        templates={
            "base": (piece, "context", "request"),
            "improve": (piece, "context", "request", "solution", "feedback"),
            "diverge": (piece, "context", "request", "solution", "feedback"),
        },
        tasks=tasks,
        grade=absent,
        demonstrations=absent,
        describe=absent,
        environment=environment,
        test_environment=environment,
    )
