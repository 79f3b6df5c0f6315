"""The one interface of a domain: token pieces in, grades out."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from exit_jax import settings
from exit_jax.algorithm.gold import Variant
from exit_jax.algorithm.prompts import Template
from exit_jax.errors import DomainError as DomainError
from exit_jax.policy.stops import StopText
from exit_jax.types import Array, Grades, History, Instances, Rollouts

# why an episode is over
ENDS = ("valid", "invalid", "overlong_response", "overlong_transcript", "out_of_turns", "lost")
VALID, INVALID, OVERLONG_RESPONSE, OVERLONG_TRANSCRIPT, OUT_OF_TURNS, LOST = range(6)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What an environment says to one response."""

    observation: Sequence[int]  # tokens after the response, up to where the next one is asked for
    end: int | None = None  # VALID or INVALID where no further response is due
    ended: bool = True  # whether the response has one of the endings that the environment knows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Environment:
    """Episodes of several turns, as pure data: an episode is whatever ``begin`` and ``step`` make of it."""

    max_turns: int  # responses of an episode
    max_tokens: int  # M: of a response
    max_observation: int  # S: tokens of the longest observation
    max_ask: int  # tokens of what asks for a better response, at most
    max_transcript: int  # T: tokens of all responses and observations of an episode
    generation_prompt: Sequence[int]  # tokens that ask for a response, after every observation
    # NumPy histories [b], G -> episodes [b · G] as they are before their histories' turns; None where one cannot be had
    begin: Callable[[History, int], list[Any]]
    # (episode, tokens of the response) of many episodes -> the same episodes after it, and what they say
    step: Callable[[Sequence[tuple[Any, np.ndarray]]], Sequence[tuple[Any, Answer]]]
    # (episode, tokens of a response to it) -> the tokens that ask for a better one; for K steps on every turn
    ask_again: Callable[[Any, np.ndarray], Sequence[int]]
    # (episode, None for one that is lost) -> "quality" in [0, 1], and what else is reported, always by the same names
    figures: Callable[[Any], Mapping[str, float]]
    show: Callable[[Any], str]  # (episode, None for one that is lost) -> text for people
    # True: which responses can be learnt from is told one by one, by ``Rollouts.ended``; False: episodes count as a whole
    by_response: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Domain:
    """A task family, as pure functions and static shapes."""

    name: str
    vocab_size: int
    history_width: int  # W: tokens of a packed history
    prompt_width: int  # P: tokens of the longest prompt
    max_tokens: int  # T: tokens of the longest response, or transcript
    stop_tokens: tuple[int, ...]
    templates: Mapping[str, Template]  # prompts by mode
    tasks: Callable[[str], History]  # split -> base tasks [M], whose numbers follow one another
    # (Instances, Rollouts); episodes, where it plays them, are the third argument, all in NumPy
    grade: Callable[..., Grades]
    # the same of critiques, whose children hold the response of before with the critique for feedback; all in NumPy
    critique: Callable[[Instances, Rollouts], Grades] | None = None
    describe: Callable[[History], list[str]]  # what each history [K] holds, as text for people

    splits: tuple[str, ...] = ("train", "test")
    test_splits: tuple[str, ...] = ("test",)  # splits whose unweighted mean is reported if several are evaluated
    stop_sequences: tuple[tuple[int, ...], ...] = ()
    stop_text: StopText | None = None  # a text that ends a response, as stop tokens do
    num_children: int = 1  # U: histories that one rollout yields
    embedding_width: int = 1  # E
    # False: grade is written in jnp and compiled with the rest; True: it is called with NumPy rows
    on_host: bool = True
    notes: tuple[str, ...] = ()  # names of Grades.notes
    timings: tuple[str, ...] = ()  # those notes that may differ where a response is graded again
    # split -> int or float [M] by name, what results are broken down by
    difficulty: Callable[[str], Mapping[str, np.ndarray]] = lambda split: {}
    easier_by: frozenset[str] = frozenset()  # those of which more is easier
    # split -> name of each task's category [M], by what they are categories of; results are broken down by them, too
    category: Callable[[str], Mapping[str, Sequence[str]]] = lambda split: {}
    # split -> what people may want to read of each task, as its gold answer; a "name" gives it figures of its own
    about: Callable[[str], Sequence[Mapping[str, str]]] | None = None
    # split -> bool [M]: tasks of a split to evaluate on that do not fit into a prompt, kept to be counted as wrong
    too_long: Callable[[str], np.ndarray] | None = None
    # histories [...] -> the policy's own sign that it is done, bool [...]; asks no oracle
    complete: Callable[[History], Array] | None = None
    # (key, step, K, G) -> histories [K], modes [K], tokens [K, G, T], mask [K, G, T] for the supervised warm start
    demonstrations: Callable[[Array, Array, int, int], tuple[History, Array, Array, Array]] | None = None
    demonstrations_id: str = ""  # names all that demonstrations depend on
    # split -> what variants look up: any pytree of NumPy arrays, which they are given as arrays of the device
    gold: Callable[[str], Any] | None = None
    # other starts of base tasks by name, "hint", "prefix", "answer" or "edit" among them; traced. Gold and histories are of
    # one split, level 0 is the identity, and what is not ok stays as it was (algorithm/gold.py)
    variants: Mapping[str, Variant] = dataclasses.field(default_factory=dict)
    # prompts by mode that show what variants add, for runs with variants; empty where ``templates`` do
    start_templates: Mapping[str, Template] = dataclasses.field(default_factory=dict)
    answers: Callable[[History], list[str]] | None = None  # the answer that each gives, "" for none; what a vote counts
    feedback: Callable[[History], list[str]] | None = None  # what each history [K] says of its solution, as a trace
    # responses (tokens, mask [..., T]) -> what an encoder sees of each: its final answer, or the script in it
    texts: Callable[[Any, Any], list[str]] | None = None
    decode: Callable[[Any], str] | None = None  # tokens of a history -> text
    environment: Environment | None = None  # tasks of several turns, in training
    test_environment: Environment | None = None  # the same in evaluation
    tokenizer: Any = None  # one of transformers, for the domains of text
    # by mode: what the policy is asked for, as text for people
    messages: Mapping[str, str] = dataclasses.field(default_factory=dict)
    template_inputs: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # what its chat template reads besides
    # () -> what is read from outside besides tasks and tokenizer: name, as people know it -> file or folder
    files: Callable[[], Mapping[str, pathlib.Path]] | None = None
    unused_ids: tuple[tuple[int, int], ...] = ()  # ranges [start, stop) of ids below vocab_size that are no token's
    tokens_are: str = ""  # what tokens are, for people, where they are no text

    def about_tasks(self, split: str) -> Sequence[Mapping[str, str]]:
        """Return what people may want to read of each task of a split [M], {} each for a domain that says nothing."""
        return self.about(split) if self.about else [{}] * self.tasks(split).task.shape[0]


def settings_id(config: Any, leave_out: Sequence[str] = ()) -> str:
    """Return a text that names a domain's settings, but for those left out and the younger ones at their default."""
    defaults = settings.younger_defaults(config)
    kept = {name: value for name, value in vars(config).items() if name not in leave_out}
    return repr({name: value for name, value in kept.items() if name not in defaults or value != defaults[name]})


def blank_grades(domain: Domain, instances: Instances, rollouts: Rollouts) -> Grades:
    """Return the grades of rollouts that could not be graded: invalid, of quality 0, without children. All in NumPy."""
    group, children = rollouts.finished.shape, domain.num_children
    zeros: Any = np.zeros

    def spread(leaf):
        leaf = np.asarray(leaf)[:, None, None]
        return np.broadcast_to(leaf, (*group, children, *leaf.shape[3:]))

    return Grades(
        quality=zeros(group, np.float32),
        valid=zeros(group, bool),
        embedding=zeros((*group, domain.embedding_width), np.float32),
        children=jax.tree.map(spread, instances.history),
        insertable=zeros((*group, children), bool),
        notes={name: zeros(group, np.float32) for name in domain.notes},
        lost=zeros(group[:1], bool) if domain.environment else None,
    )
