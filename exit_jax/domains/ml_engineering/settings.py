"""Settings of ML engineering."""

import dataclasses
from collections.abc import Mapping

from exit_jax.domains.ml_engineering import embedded, mlebench_adapter, prompts
from exit_jax.sandbox import ISOLATIONS
from exit_jax.settings import setting

SOURCES: Mapping[str, Mapping[str, tuple[str, ...]]] = {  # source -> split -> names
    source: {split: tuple(one.name for one in listed if one.split == split) for split in ("train", "test")}
    for source, listed in (("embedded", embedded.TASKS), ("mlebench", mlebench_adapter.PAPER))
}
SPLITS = ("train", "test")
TRUNCATE = ("none", "front", "middle")
NOT_TAUGHT = (  # what demonstrations don't need
    "source",
    "data_dir",
    "cache_dir",
    "train",
    "test",
    "preview_chars",
    "isolation",
    "wall_secs",
    "memory_mb",
    "disk_mb",
    "threads",
    "num_workers",
)


@dataclasses.dataclass(frozen=True)
class MleConfig:
    """Which competitions there are, how they are put to the policy, and how its scripts are run."""

    source: str = setting("mlebench", "competitions: MLE-bench's, or embedded ones", choices=tuple(SOURCES))
    data_dir: str = setting("data/mlebench", 'folder of data and runs; "" for MLE-bench\'s own default')
    cache_dir: str = setting("data/mle_runs", 'the runs\' results, which a study may share; "" for data_dir/runs')
    train: tuple[str, ...] = setting((), "competitions to train on; () for the source's split, one for ExIt's Figure 1")
    test: tuple[str, ...] = setting((), "competitions to test on; () for the source's split")
    tokenizer: str = setting("", 'folder or hub id; "" for the fragments\'')
    brief: bool = setting(False, "requests and feedback in a few words, for a policy of fragments")
    system: str = setting("", 'message before each prompt; "" for none')
    # {context}, {request}, {solution} and {feedback} stand for pieces (ExIt App. B)
    base: str = setting(prompts.BASE, "the user's message for a first script")
    improve: str = setting(prompts.IMPROVE, "the user's message for a better one")
    diverge: str = setting(prompts.DIVERGE, "the user's message for a radically different one")
    improve_goal: str = setting(prompts.GOALS["improve"], "the context of a script that ran")
    debug_goal: str = setting(prompts.GOALS["debug"], "the context of one that failed")
    template_inputs: tuple[str, ...] = setting((), 'what else the chat template reads, as "enable_thinking=true"')
    preview_chars: int = setting(3000, "characters of a preview of the competition's files", within="[0, inf)")
    prompt_width: int = setting(6144, "tokens of the longest prompt")
    max_goal_tokens: int = setting(32, "tokens of a goal", within="[1, inf)")
    max_request_tokens: int = setting(2816, "tokens of a description; a longer one loses its end", within="[1, inf)")
    max_solution_tokens: int = setting(2560, "tokens of the previous script in a prompt", within="[1, inf)")
    max_feedback_tokens: int = setting(
        384, "tokens of a trace; a longer one loses its beginning, but not why the run failed", within="[1, inf)"
    )
    max_tokens: int = setting(4096, "tokens of a response", within="[1, inf)")
    truncate: str = setting("middle", "where a longer script is cut; none where none can be", choices=TRUNCATE)
    isolation: str = setting("auto", "sandbox level; none is for code that you trust", choices=ISOLATIONS)
    wall_secs: float = setting(
        300.0, "a run, by the clock and of processor time (ExIt App. A)", unit="s", within="(0, inf)"
    )
    memory_mb: int = setting(8192, "memory of a run", unit="MiB", within="[1, inf)")
    disk_mb: int = setting(1024, "disk space of a run", unit="MiB", within="[1, inf)")
    threads: int = setting(1, "threads of a run", within="[1, inf)")
    num_workers: int = setting(0, "runs at once; 0 for one a core", within="[0, inf)")
    demo_noise: float = setting(0.0, "share of a demonstration's fragments that are drawn at random", within="[0, 1]")
    compact_descriptions: bool = setting(
        False, "MLE-bench's short descriptions, which name neither competition nor site", younger=True
    )
    show_score: bool = setting(
        True,
        "tell the policy the test score of the script that it is to rewrite: an oracle in the chain, which no config asks for",
        younger=True,
    )

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that there are."""
        return SPLITS

    @property
    def has_demonstrations(self) -> bool:
        """Whether there is a teacher to learn from, which writes fragments alone."""
        return self.brief

    def names(self, split: str) -> tuple[str, ...]:
        """Return the competitions of a split."""
        return getattr(self, split) or SOURCES[self.source][split]

    def faults(self) -> list[str]:
        """Return a sentence for each contradiction."""
        wrong = self._faults_of_competitions() if self.source in SOURCES else []
        if self.truncate == "none" and self.max_solution_tokens < self.max_tokens:
            wrong.append(
                f"domain.max_solution_tokens = {self.max_solution_tokens} is below domain.max_tokens = {self.max_tokens}, so "
                'a script may not fit into the next prompt; raise it, or say by domain.truncate where to cut, "front" or '
                '"middle"'
            )
        if not self.tokenizer and not self.brief:
            wrong.append(
                'domain.tokenizer = "" writes fragments and reads a few words; set domain.brief, or name a checkpoint'
            )
        if self.brief and self.source != "embedded":
            wrong.append(f'domain.brief is for domain.source = "embedded", not {self.source!r}; unset it')
        return wrong

    def _faults_of_competitions(self) -> list[str]:
        known = {name for names in SOURCES[self.source].values() for name in names}
        wrong = [
            f"domain.{split}: {name!r} is not one of {tuple(sorted(known))}"
            for split in SPLITS
            for name in self.names(split)
            if name not in known
        ]
        wrong += [
            f"domain.{split} = {self.names(split)} names one twice"
            for split in SPLITS
            if len(set(self.names(split))) < len(self.names(split))
        ]
        both = sorted(set(self.names("train")) & set(self.names("test")))
        if both:
            wrong.append(f"{', '.join(both)} is both in domain.train and domain.test; what is tested must be held out")
        return wrong
