"""The sets of reasoning-gym: questions in text, answers between tags, the set's own scorer, on the host.

A history's request is the question, its solution the final answer of a response: all of it but for thoughts.
"""

import functools
import itertools
import re
import string
from collections.abc import Sequence

import numpy as np

from exit_jax.domains.domain import Domain, DomainError, settings_id
from exit_jax.domains.gym import checks, entries, sets
from exit_jax.domains.gym.entries import Entry
from exit_jax.domains.gym.scorer import Scorer
from exit_jax.domains.gym.settings import NOT_TAUGHT, GymConfig
from exit_jax.domains.text.pieces import Tokens
from exit_jax.domains.text.scored import Score, ScoredDomain
from exit_jax.types import BASE, DIVERGE, IMPROVE, History

START, END = "<answer>", "</answer>"
KINDS = (string.digits, string.ascii_lowercase, string.ascii_uppercase)  # a slip stays within one


class Gym(ScoredDomain):
    """The tasks of a config, their tokens and their scorer; each is made when first asked for."""

    config: GymConfig
    notes = ("ungraded", "no_answer", "scorer_raised")

    @functools.cached_property
    def scorer(self) -> Scorer:
        """The worker pool; it starts no process before there is something to score."""
        return Scorer(self.config)

    @functools.cached_property
    def entries(self) -> dict[str, dict[str, tuple[Entry, ...]]]:
        """The entries of each set, by split."""
        return {name: entries.load(self.config, name) for name in self.config.sets}

    @functools.cached_property
    def ends(self) -> dict[str, tuple[int, int]]:
        """How many characters all training questions of a set begin with, and end with."""
        found = {}
        for name, by_split in self.entries.items():
            questions = [entry.question for entry in by_split["train"]]
            first = common_words(questions)
            found[name] = first, common_words([question[first:][::-1] for question in questions])
        return found

    def rows(self, split: str) -> Sequence[Entry]:
        """Return all tasks of a split, those of the sets evenly mixed."""
        if split in self.entries:
            return self.entries[split]["test"]
        parts = [by_split[split] for by_split in self.entries.values()]
        places = [((i + 0.5) / len(part), number, i) for number, part in enumerate(parts) for i in range(len(part))]
        return [parts[number][i] for _, number, i in sorted(places)]

    def prompt(self, row: Entry) -> str:
        """Return the text of a task."""
        if not self.config.brief:
            return row.question
        first, last = self.ends[row.set]
        return f"{row.set}\n{row.question[first : len(row.question) - last].strip()}"

    @property
    def has_solutions(self) -> bool:  # type: ignore[override]
        """Whether one of the sets has gold answers."""
        return any(name not in sets.WITHOUT_GOLD for name in self.config.sets)

    has_answers = has_solutions  # type: ignore[assignment]

    def solution_of(self, row: Entry) -> str:
        """Return a response that gives the gold answer, "" where its set has none."""
        return self.written(row.gold) if row.gold else ""

    def answer_of(self, row: Entry) -> str:
        """Return the gold answer, "" where its set has none."""
        return row.gold

    def found_answer(self, text: str) -> str:
        """Return the answer that the final answer of a response gives, "" for none."""
        before, end, _ = text.rpartition(END)
        _, start, tagged = before.rpartition(START)
        if end and start:
            return tagged.strip()
        return text.strip() if self.config.answers == "any" else ""

    def written(self, answer: str) -> str:
        """Return a response that gives an answer."""
        return answer if self.config.answers == "any" else f"{START}{answer}{END}"

    def feedback_on(self, row: Entry, answer: str) -> str:
        """Return what can be said of an answer without the gold one."""
        return checks.check(row.set, row.metadata, answer) if self.config.feedback else ""

    def score(self, rows: Sequence[Entry], responses: Sequence[Tokens]) -> list[Score]:
        """Score responses by their sets' scorers."""
        answers = [self.found_answer(self.answer(response)) for response in responses]
        return [
            Score(
                quality=verdict.score,
                feedback=self.feedback_on(row, answer),
                graded=verdict.graded,
                notes={
                    "ungraded": float(not verdict.graded),
                    "no_answer": float(not answer),
                    "scorer_raised": float(verdict.raised),
                },
            )
            for row, answer, verdict in zip(rows, answers, self.scorer.score(list(zip(rows, answers))), strict=True)
        ]

    def answers(self, history: History) -> list[str]:
        """Return the answer of what histories [n] hold."""
        return [self.found_answer(text) for text in self.texts_of(history, "solution")]

    def levels(self, split: str) -> dict[str, np.ndarray]:
        """Return each task's level, where there are several."""
        if len(self.config.levels) < 2:
            return {}
        return {"level": np.array([entry.level for entry in self.kept(split)[0]])}

    def about(self, split: str) -> list[dict[str, str]]:
        """Return question, set and gold answer of each task."""
        return [{"request": e.question, "set": e.set, "gold": e.gold} for e in self.kept(split)[0]]

    @functools.cached_property
    def _taught(self) -> list[tuple[Entry, Tokens]]:
        """The training tasks whose gold answer fits into a response."""
        pairs = list(zip(*self.kept("train"), strict=True))
        with_gold = [(entry, ids) for entry, ids in pairs if entry.gold]
        room = self.config.max_tokens
        fit = [pair for pair in with_gold if len(self.demonstrate(self.written(pair[0].gold))) <= room]
        if not fit:
            raise DomainError(
                f"none of {len(with_gold)} gold answers to warm-start on fits into domain.max_tokens = {room}; raise it, or "
                "set warm_start.num_steps to 0"
            )
        return fit

    def demonstration(self, number: int, group_size: int) -> tuple[list[Tokens], int, list[str]]:
        """Return the pieces, mode and responses of one demonstration.

        They are gold answers; or, where a teacher slips, half of them are first answers with ``demo_noise`` of their letters
        and digits wrong, and the others improve on, or diverge from, an answer with twice as many.
        """
        entry, request = self._taught[number % len(self._taught)]
        noise, gold = self.config.demo_noise, entry.gold
        if not noise:
            return [(), request, (), ()], BASE, [self.written(gold)] * group_size
        rng = np.random.default_rng([self.config.data_seed, number])
        letters = entry.question + gold
        held = slip(gold, 2 * noise, letters, rng)
        mode = int(rng.choice((BASE, IMPROVE, DIVERGE), p=(0.5, 0.35, 0.15)))
        mend = lambda: "".join(old if rng.random() < noise else new for old, new in zip(held, gold, strict=True))
        made = [mend() if mode == IMPROVE else slip(gold, noise, letters, rng) for _ in range(group_size)]
        responses = [self.written(answer) for answer in made]
        if mode == BASE:
            return [(), request, (), ()], mode, responses
        sizes = self.max_piece_tokens
        solution = self.encode(self.written(held))[: sizes["solution"]]
        feedback = self.encode(self.feedback_on(entry, held))[: sizes.get("feedback", 0)]
        return [(), request, solution, feedback], mode, responses


def common_words(texts: Sequence[str]) -> int:
    """Return the length of what all texts begin with, up to the white space after a word.

    >>> common_words(["Sort: 3 1", "Sort: 30 2"]), common_words(["Sort: 3 1"])
    (6, 0)
    """
    first, last = min(texts), max(texts)  # what these two share, all of them do
    common = "".join(a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last)))
    if first == last:
        return 0
    return len(re.match(r"(.*\s)?", common, re.DOTALL)[0])  # type: ignore[index]


def slip(answer: str, share: float, letters: str, rng: np.random.Generator) -> str:
    """Return an answer in which a share of the letters and digits are others of their kind, among ``letters``."""
    found = list(answer)
    for place, letter in enumerate(found):
        kind = next((kind for kind in KINDS if letter in kind), "")
        others = [other for other in kind if other != letter and other in letters]
        if others and rng.random() < share:
            found[place] = others[rng.integers(len(others))]
    return "".join(found)


def make_domain(config: GymConfig) -> Domain:
    """Build the domain.

    Raises:
      DomainError: if reasoning-gym is not installed, a set cannot be made, or the prompts do not fit.
    """
    gym = Gym(config)
    return Domain(
        **gym.fields(),
        name="_".join(config.sets) if len(config.sets) < 3 else "gym",
        test_splits=config.splits[3:] or ("test",),
        difficulty=gym.levels,
        about=gym.about,
        answers=gym.answers,
        feedback=(lambda history: gym.texts_of(history, "feedback")) if config.max_feedback_tokens else None,
        demonstrations=gym.demonstrations if gym.has_answers else None,
        demonstrations_id=f"{settings_id(config, NOT_TAUGHT)} {entries.version()}" if gym.has_answers else "",
        files=lambda: {f"the tasks of {name}": entries.find(config, name) for name in config.sets},
    )
