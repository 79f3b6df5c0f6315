"""Settings of tasks of your own."""

import dataclasses

from exit_jax.domains.text.settings import TextConfig
from exit_jax.sandbox import ISOLATIONS
from exit_jax.settings import setting

REWARD_RUNS = ("workers", "inline", "sandbox")


@dataclasses.dataclass(frozen=True)
class RowsConfig:
    """Where rows come from, and which are held out."""

    tasks: tuple[str, ...] = setting(
        (),
        "sources to train on: a .jsonl, .json, .parquet or .arrow file, a folder of them or a hub id, each "
        "with @config/split or #revision if need be; tfds:name@split; file.py:function or module:function",
    )
    test_tasks: tuple[str, ...] = setting((), "sources to test on")
    validation_tasks: tuple[str, ...] = setting((), "sources to validate on")
    weights: tuple[float, ...] = setting(
        (),
        "shares of the sources in training, one for each of tasks; () for as many rows as there are",
        within="(0, inf)",
    )
    prompt_column: str = setting("prompt", "column with the prompt: a text, or messages with role and content")
    key_columns: tuple[str, ...] = setting(
        (), "columns besides the prompt that two rows must share to be duplicates or a leak between splits"
    )
    split_column: str = setting("", 'column of tasks that says train, validation or test; "" for none')
    num_test: int = setting(
        100,
        "rows of tasks held out to test on, where neither test_tasks nor split_column says which",
        within="[0, inf)",
    )
    num_validation: int = setting(0, "the same to validate on", within="[0, inf)")
    split_seed: int = setting(0, "seed that they are drawn with, and the rows that weights repeat or leave out")

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that there may be; only its rows tell whether a column says "validation"."""
        validated = self.validation_tasks or self.num_validation or self.split_column
        return ("train", "validation", "test") if validated else ("train", "test")

    def faults_of_rows(self) -> list[str]:
        """Return a sentence for each contradiction between sources and splits."""
        wrong = []
        if self.weights and len(self.weights) != len(self.tasks):
            wrong.append(
                f"domain.weights = {self.weights} has {len(self.weights)} for the {len(self.tasks)} sources of domain.tasks = "
                f"{self.tasks}; give one for each, or none"
            )
        for name in ("tasks", "test_tasks", "validation_tasks"):
            words = getattr(self, name)
            for word in sorted({word for word in words if words.count(word) > 1}):
                wrong.append(
                    f"domain.{name} names {word!r} {words.count(word)} times; name it once, and set domain.weights"
                )
        if self.split_column and (self.test_tasks or self.validation_tasks):
            wrong.append(
                f"domain.split_column = {self.split_column!r} says which rows are tested on, and so do domain.test_tasks and "
                "domain.validation_tasks; set one of the two"
            )
        if not (self.test_tasks or self.split_column or self.num_test):
            wrong.append(
                "domain.num_test = 0 leaves no rows to test on; raise it, name domain.test_tasks, or set domain.split_column"
            )
        if self.validation_tasks and self.num_validation:
            wrong.append(
                f"domain.num_validation = {self.num_validation} rows of domain.tasks are held out where no "
                "domain.validation_tasks are named; set one of the two"
            )
        return wrong


@dataclasses.dataclass(frozen=True)
class TaskConfig(RowsConfig, TextConfig):
    """Where rows come from, and what scores a response."""

    # prompts and demonstrations
    data_dir: str = setting(
        "data/task", "folder for lists of rows that were left out and completions that were not scored"
    )
    max_context_tokens: int = setting(
        0, "tokens of a conversation before its last message; 0 for what the rows take", within="[0, inf)"
    )
    gold_column: str = setting("", 'column with a response to learn from in a warm start; "" for none')
    answer_column: str = setting("", 'column with the final answer, for starts that show it; "" for none', younger=True)
    difficulty_column: str = setting(
        "", 'column with a number that results are broken down by, as a level; "" for none', younger=True
    )
    votes: bool = setting(False, "whether rewards tell a completion's answer, which votes count")

    # rewards
    reward: tuple[str, ...] = setting((), "functions that score a completion, each module:name or file.py:name")
    reward_weights: tuple[float, ...] = setting((), "their weights in the mean; () for equal ones", within="[0, inf)")
    reward_range: tuple[float, ...] = setting(
        (0.0, 1.0), "what the worst and the best completion earn: two numbers for all functions, or two for each"
    )
    figures: tuple[str, ...] = setting((), "figures that functions return in a dictionary and that are reported")
    reward_runs: str = setting(
        "workers",
        "where: in processes with limits, inline in the trainer's own, or in processes with a sandbox for a completion's code",
        choices=REWARD_RUNS,
    )
    reward_workers: int = setting(0, "processes that score; 0 for one a core", within="[0, inf)")
    reward_secs: float = setting(
        5.0, "processor time of one call of a function; by the clock four times that", unit="s", within="(0, inf)"
    )
    reward_memory_mb: int = setting(
        2048, "memory that a process may take beyond what its imports do", unit="MiB", within="[1, inf)"
    )
    max_in_flight: int = setting(32, "calls of async functions under way at a time, in all", within="[1, inf)")
    retries: int = setting(2, "further tries of a call that raised", within="[0, inf)")
    isolation: str = setting("auto", "sandbox level; none is for code that you trust", choices=ISOLATIONS)
    run_secs: float = setting(
        10.0, "a run of code in the sandbox, by the clock and of processor time", unit="s", within="(0, inf)"
    )
    run_memory_mb: int = setting(1024, "memory of a run", unit="MiB", within="[1, inf)")

    def faults(self) -> list[str]:
        """Return a sentence for each contradiction."""
        named = [] if self.tasks else ['domain.tasks = () names no rows to train on; give a file, as "my_tasks.jsonl"']
        return named + self.faults_of_rows() + self._faults_of_rewards()

    def _faults_of_rewards(self) -> list[str]:
        wrong, number = [], len(self.reward)
        if not number:
            wrong.append("domain.reward = () scores nothing; name a function, as my_reward.py:score")
        if len(set(self.reward)) < number:
            wrong.append(f"domain.reward = {self.reward} names one twice; give it more weight instead")
        if self.reward_weights and len(self.reward_weights) != number:
            wrong.append(
                f"domain.reward_weights = {self.reward_weights} has {len(self.reward_weights)} weights for the {number} "
                "functions of domain.reward; give one each, or () for equal ones"
            )
        elif self.reward_weights and not any(self.reward_weights):
            wrong.append(f"domain.reward_weights = {self.reward_weights} are all 0; one must be above")
        bounds = self.reward_range
        if len(bounds) not in (2, 2 * number):
            wrong.append(
                f"domain.reward_range = {bounds} has {len(bounds)} numbers; give the worst and the best reward, two for all "
                "functions or two for each"
            )
        elif any(worst == best for worst, best in zip(bounds[::2], bounds[1::2])):
            wrong.append(f"domain.reward_range = {bounds} has a worst reward that equals the best")
        return wrong
