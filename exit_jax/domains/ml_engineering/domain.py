"""ML engineering (ExIt §5): scripts that a model wrote, run in the sandbox on a competition's public data, on the host.

The pieces of a history:

    context   the goal line of improve mode: "improve", or "debug" if the held script failed, chosen when the history is made
    request   the competition's description and previews of its files
    solution  solution.py, the code extracted from the response; it ends with a newline
    feedback  how the run failed and the end of its trace, or what is wrong with the submission; with show_score, its score

Quality is the normalised score, 0 for a script that fails. A response without code holds nothing: it is paid 0, a chain of
an evaluation goes on from it, and the buffer does not take it. Tasks of all splits have numbers of their own:
split · SPAN + row.
"""

import dataclasses
import functools
import hashlib
import logging
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from exit_jax.domains import extras
from exit_jax.domains.domain import Domain, DomainError, settings_id
from exit_jax.domains.ml_engineering import embedded, fragments, mlebench_adapter, prompts, submissions, tokenizer
from exit_jax.domains.ml_engineering.competitions import Competition
from exit_jax.domains.ml_engineering.previews import preview
from exit_jax.domains.ml_engineering.responses import error_tail, extract_code
from exit_jax.domains.ml_engineering.settings import NOT_TAUGHT, SPLITS, MleConfig
from exit_jax.domains.text import chat
from exit_jax.domains.text.pieces import SingleTurnDomain, Tokens
from exit_jax.domains.text.settings import SPAN
from exit_jax.domains.text.tokenizer import load as load_tokenizer
from exit_jax.sandbox import Job, Limits, Result, Sandbox, SandboxError
from exit_jax.types import (
    BASE,
    DIVERGE,
    IMPROVE,
    PIECES,
    Grades,
    History,
    Instances,
    Rollouts,
)

log = logging.getLogger(__name__)

DEMONSTRATION_SEED = 5
CHARS_PER_TOKEN = 16  # ratio in a trace, at most: what is encoded to see whether it fits
TIMINGS = ("cached", "run_secs")
NOTES = ("crashed", "timeout", "no_code", "invalid_submission", "faults", "truncated", "trace_cut", *TIMINGS)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a response."""

    code: str  # "" for none
    quality: float
    failed: bool  # its run, or its submission
    feedback: str  # text for the next prompt
    notes: Mapping[str, float]  # those of NOTES that are not 0


class MlEngineering(SingleTurnDomain):
    """The competitions of a config, their tokens and their sandbox; each is made when first asked for."""

    def __init__(self, config: MleConfig):
        self.config = config
        self._encode = functools.lru_cache(maxsize=1 << 12)(super().encode)
        self._verdicts: dict[tuple[str, str], submissions.Verdict] = {}

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers."""
        return load_tokenizer(self.config.tokenizer) if self.config.tokenizer else tokenizer.make()

    @functools.cached_property
    def competitions(self) -> Mapping[str, Competition]:
        """All competitions of the config by name."""
        c = self.config
        wanted = [name for split in SPLITS for name in c.names(split)]
        folder = pathlib.Path(c.data_dir).expanduser().absolute()
        if c.source == "embedded":
            loaded = embedded.load(folder)
        else:
            declared = [one for one in mlebench_adapter.PAPER if one.name in wanted]
            loaded = mlebench_adapter.load(declared, folder if c.data_dir else None, c.compact_descriptions)
        return {one.name: one for one in loaded if one.name in wanted}

    def files(self) -> dict[str, pathlib.Path]:
        """Return the folders that scripts read and that submissions are scored by."""
        kinds = ("public", "private")
        return {f"the {k} data of {c.name}": getattr(c, k) for c in self.competitions.values() for k in kinds}

    @functools.cached_property
    def sandbox(self) -> Sandbox:
        """Where scripts run; it starts nothing before there is something to run."""
        c = self.config
        limits = Limits(
            wall_secs=c.wall_secs,
            cpu_secs=c.wall_secs * c.threads,
            memory_bytes=c.memory_mb << 20,
            disk_bytes=c.disk_mb << 20,
            threads=c.threads,
        )
        cache = pathlib.Path(c.cache_dir or pathlib.Path(c.data_dir) / "runs").expanduser().absolute()
        hidden = embedded.hidden() if c.source == "embedded" else ()
        try:
            return Sandbox(c.isolation, limits, c.num_workers, cache, hidden=hidden)
        except SandboxError as error:
            raise DomainError(f"domain.isolation: {error}") from error

    @property
    def max_piece_tokens(self) -> dict[str, int]:
        """The tokens that each piece may have."""
        c = self.config
        widths = (c.max_goal_tokens, c.max_request_tokens, c.max_solution_tokens, c.max_feedback_tokens)
        return dict(zip(PIECES, widths, strict=True))

    @functools.cached_property
    def goals(self) -> Mapping[bool, Tokens]:
        """The goal line by whether the run failed."""
        c = self.config
        goals = {failed: self.encode(text) for failed, text in ((False, c.improve_goal), (True, c.debug_goal))}
        longest = max(map(len, goals.values()))
        if longest > c.max_goal_tokens:
            raise DomainError(
                f"domain.max_goal_tokens = {c.max_goal_tokens} is too narrow for a goal of {longest} tokens; raise it, or "
                "shorten domain.improve_goal and domain.debug_goal"
            )
        return goals

    def encode(self, text: str) -> Tokens:
        """Return the tokens of a piece; fragments' are those of its statements, which saves most of a warm start's time."""
        if self.config.tokenizer:
            return self._encode(text)
        return tuple(token for part in fragments.statements(text) for token in self._encode(part))

    @functools.cached_property
    def requests(self) -> Mapping[str, Tokens]:
        """The request piece of each competition; a description that is too long loses its end.

        Raises:
          DomainError: if there is no room even for the previews.
        """
        return {name: self._request(competition) for name, competition in self.competitions.items()}

    def _request(self, competition: Competition) -> Tokens:
        c = self.config
        if c.brief:
            request = self.encode(describe_briefly(competition))
            rest, description = 0, ()
        else:
            previews = preview(competition, c.preview_chars)
            request = self.encode(prompts.request(competition.description, previews))
            description = self.encode(competition.description.strip())
            seams = 8  # tokens that seams may add
            rest = len(self.encode(prompts.request("", previews))) + len(self.encode(chat.GAP)) + seams
        if len(request) <= c.max_request_tokens:
            return request
        room = c.max_request_tokens - rest
        if room < 1 or not description:
            raise DomainError(
                f"domain.max_request_tokens = {c.max_request_tokens} has no room for {competition.name}: its previews alone "
                f"take {rest} tokens, with the description {len(request)}; raise it or lower domain.preview_chars"
            )
        log.warning("%s: its description is cut to %d of %d tokens", competition.name, room, len(description))
        return self.encode(prompts.request(self.decode(description[:room]) + chat.GAP, previews))[
            : c.max_request_tokens
        ]

    def competition_of(self, task: int) -> Competition:
        """Return the competition of a task's number."""
        return self.competitions[self.config.names(SPLITS[task // SPAN])[task % SPAN]]

    def tasks(self, split: str) -> History:
        """Return the base tasks of a split, one a competition, in NumPy.

        Raises:
          DomainError: also if a goal is too long, or there is no sandbox to run scripts in, so that no run begins in vain.
        """
        _ = self.goals, self.sandbox  # made, or refused, before a run begins
        requests = [self.requests[name] for name in self.config.names(split)]
        return self.pack(
            [((), request, (), ()) for request in requests],
            task=SPAN * SPLITS.index(split) + np.arange(len(requests)),
        )

    def grade(self, instances: Instances, rollouts: Rollouts) -> Grades:
        """Run the scripts of responses and grade their submissions. All in NumPy; nothing is raised for a bad response."""
        history, (batch, group) = instances.history, rollouts.finished.shape
        responses = [
            self.answer(rollouts.tokens[b, g][rollouts.mask[b, g]]) for b in range(batch) for g in range(group)
        ]
        names = [self.competition_of(int(number)).name for number in np.repeat(history.task, group)]
        outcomes = self.run(names, responses, np.repeat(np.arange(batch), group).tolist())
        shown = [self.cut_solution(self.encode(outcome.code)) for outcome in outcomes]
        pieces = [
            (self.goals[outcome.failed], self.requests[name], solution, self.cut_feedback(outcome.feedback))
            for name, outcome, (solution, _) in zip(names, outcomes, shown, strict=True)
        ]

        def per_rollout(values) -> Any:
            return np.array(list(values), np.float32).reshape(batch, group)

        quality = per_rollout(outcome.quality for outcome in outcomes)
        notes = {name: per_rollout(outcome.notes.get(name, 0.0) for outcome in outcomes) for name in NOTES}
        notes["truncated"] = per_rollout(was_cut for _, was_cut in shown)
        return self.make_grades(history, pieces, quality, notes["faults"] == 0, notes)

    def run(self, names: Sequence[str], responses: Sequence[str], owners: Sequence[int]) -> list[Outcome]:
        """Run the scripts in responses to competitions ``names``; responses of an owner take turns with others'."""
        codes = [extract_code(response) for response in responses]
        runs = [i for i, code in enumerate(codes) if code is not None]
        jobs = [Job(codes[i] or "", self.competitions[names[i]].public, (submissions.FILE,)) for i in runs]
        results = dict(zip(runs, self.sandbox.run(jobs, [owners[i] for i in runs]), strict=True)) if jobs else {}
        return [
            self._outcome(self.competitions[name], code, results[i]) if code is not None else self._no_code()
            for i, (name, code) in enumerate(zip(names, codes, strict=True))
        ]

    def _no_code(self) -> Outcome:
        feedback = fragments.NO_CODE if self.config.brief else prompts.NO_CODE
        return Outcome("", 0.0, True, feedback, {"no_code": 1.0})

    def _outcome(self, competition: Competition, code: str, result: Result) -> Outcome:
        """Return what became of a script; one that did not end well is not graded, whatever it wrote before."""
        notes = {"cached": float(result.cached), "run_secs": result.secs}
        if result.status != "ok":
            note = {"fault": "faults", "timeout": "timeout"}.get(result.status, "crashed")
            feedback, was_cut = self._failure(competition, result)
            return Outcome(code, 0.0, True, feedback, notes | {note: 1.0, "trace_cut": float(was_cut)})
        refused = result.faults.get(submissions.FILE, "")
        if refused.startswith("it "):  # a link, a device, or too large; else there is none
            verdict = submissions.Verdict(None, 0.0, False, f"{submissions.FILE} is not valid: {refused}.")
        else:
            verdict = self.score(competition, result.files.get(submissions.FILE))
        notes |= {} if verdict.valid else {"invalid_submission": 1.0}
        return Outcome(code, verdict.normalised, not verdict.valid, self._judgement(verdict), notes)

    def _judgement(self, verdict: submissions.Verdict) -> str:
        """Return the feedback for a script that ran; its score only if the config asks for it."""
        brief, show_score = self.config.brief, self.config.show_score
        if not verdict.valid:
            return fragments.INVALID if brief else verdict.feedback
        if brief:
            return fragments.score(verdict.normalised) if show_score else ""
        return verdict.feedback if show_score else prompts.RAN

    def score(self, competition: Competition, submission: bytes | None) -> submissions.Verdict:
        """Return the verdict on a submission; equal ones are scored once, for the largest takes seconds."""
        key = competition.name, "" if submission is None else hashlib.sha256(submission).hexdigest()
        if key not in self._verdicts:
            self._verdicts[key] = submissions.grade(competition, submission)
        return self._verdicts[key]

    def _failure(self, competition: Competition, result: Result) -> tuple[str, bool]:
        """Return the feedback for a run that did not end well, and whether its trace had to be cut to fit after the reason."""
        c = self.config
        if c.brief:
            return fragments.TIMEOUT if result.status == "timeout" else fragments.error(result.stderr), False
        paths = {"/data": "DATA_DIR", str(competition.public): "DATA_DIR", "/tmp/work": ".", "/tmp": "."}
        tail = lambda chars: error_tail(result.stderr, chars, paths)
        written = lambda trace: prompts.failed(f"It failed: {result.reason}", trace)
        trace, room = tail(CHARS_PER_TOKEN * c.max_feedback_tokens), c.max_feedback_tokens
        # shortened by its own rate, for a log of numbers has hardly more than one character a token, and prose four
        while trace and (width := len(self.encode(written(trace)))) > room:
            trace = tail(len(trace) * room // width)
        return written(trace), trace != tail(sys.maxsize)

    def cut_solution(self, tokens: Tokens) -> tuple[list[int], bool]:
        """Return what a prompt shows of a script, and whether some of it had to go."""
        return chat.shorten(self.tokenizer, tokens, self.config.max_solution_tokens, self.config.truncate)

    def cut_feedback(self, text: str) -> Tokens:
        """Return the tokens of a feedback; it begins with what matters."""
        return self.encode(text)[: self.config.max_feedback_tokens]

    def texts(self, tokens: np.ndarray, mask: np.ndarray) -> list[str]:
        """Return the scripts in responses tokens [..., T], "" for none: what an encoder sees of them (ExIt eq. 6)."""
        return [extract_code(answer) or "" for answer in super().texts(tokens, mask)]

    def describe(self, history: History) -> list[str]:
        """Return the scripts that histories [n] hold."""
        return self.texts_of(history, "solution")

    def feedback(self, history: History) -> list[str]:
        """Return what the runs of histories [n] came to."""
        return self.texts_of(history, "feedback")

    def about(self, split: str) -> list[dict[str, str]]:
        """Return what people may want to read of each task."""
        chosen = [self.competitions[name] for name in self.config.names(split)]
        return [
            {"name": one.name, "request": f"{one.name} ({one.metric})\n{one.description.strip()}"} for one in chosen
        ]

    def demonstration(self, number: int, group_size: int) -> tuple[list[Tokens], int, list[str]]:
        """Return the pieces, mode and responses of one of the teacher's demonstrations, for a made-up competition.

        Half are first scripts, the others improve on, debug or diverge from a faulty one.
        """
        noise, rng = self.config.demo_noise, np.random.default_rng([DEMONSTRATION_SEED, number])
        metric = str(rng.choice(list(fragments.WANTED)))
        request = self.encode(fragments.brief(metric, *map(str, rng.choice(fragments.AMOUNTS, 2))))
        mode = int(rng.choice((BASE, IMPROVE, DIVERGE), p=(0.5, 0.35, 0.15)))
        if mode == BASE:
            drawn = [fragments.draw(metric, noise, rng) for _ in range(group_size)]
            return [(), request, (), ()], mode, [fragments.respond(one) for one in drawn]
        held = fragments.draw(metric, noise, rng)
        symptom = fragments.symptom(metric, held, rng)
        ran = fragments.is_score(symptom)
        feedback = "" if ran and not self.config.show_score else symptom
        again = fragments.mend if mode == IMPROVE else fragments.diverge
        drawn = [again(metric, held, noise, rng) for _ in range(group_size)]
        goal = self.goals[not ran]
        solution, _ = self.cut_solution(self.encode(fragments.write(held)))
        return [goal, request, solution, self.cut_feedback(feedback)], mode, [fragments.respond(one) for one in drawn]


def describe_briefly(competition: Competition) -> str:
    """Return a competition in a few words: its metric, and how many columns and rows there are to learn from."""
    with (competition.public / "train.csv").open() as file:
        num_columns = file.readline().count(",") - 1
        num_rows = sum(1 for _ in file)
    amounts = fragments.amount(num_columns, 3, 12), fragments.amount(num_rows, 50, 150)
    return fragments.brief(competition.metric, *amounts)


def prepare(config: MleConfig) -> str:
    """Make the competitions, or check that they are there (``--mode data``); returns an account for people."""
    found = MlEngineering(config).competitions.values()
    return "\n".join(f"{one.name} ({one.split}): {len(one.ids)} rows to predict, by {one.metric}" for one in found)


def make_domain(config: MleConfig) -> Domain:
    """Build the ML-engineering domain.

    Raises:
      DomainError: if pandas or scikit-learn is not installed, the tokenizer or a competition cannot be had, or the prompts do
        not fit.
    """
    extras.require("ml_engineering", "mle", "pandas", "sklearn")
    mle = MlEngineering(config)
    return Domain(
        name="ml_engineering",
        splits=SPLITS,
        **mle.token_fields,
        history_width=sum(mle.max_piece_tokens.values()),
        prompt_width=mle.prompt_width,
        max_tokens=config.max_tokens,
        templates=mle.templates,
        tasks=mle.tasks,
        about=mle.about,
        grade=mle.grade,
        notes=NOTES,
        timings=TIMINGS,
        demonstrations=mle.demonstrations if config.has_demonstrations else None,
        demonstrations_id=settings_id(config, NOT_TAUGHT) + (tokenizer.identity() if config.brief else ""),
        describe=mle.describe,
        feedback=mle.feedback,
        texts=mle.texts,
        files=mle.files,
        decode=mle.decode,
    )
