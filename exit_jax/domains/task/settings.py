"""Settings of tasks of your own."""

import dataclasses

from exit_jax.domains.text.settings import TextConfig
from exit_jax.settings import setting


@dataclasses.dataclass(frozen=True)
class TaskConfig(TextConfig):
    """Where rows come from, and what scores a response."""

    # tasks
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

    def faults(self) -> list[str]:
        """Return a sentence for each contradiction."""
        return self._faults_of_tasks()

    def _faults_of_tasks(self) -> list[str]:
        wrong = []
        if not self.tasks:
            wrong.append('domain.tasks = () names no rows to train on; give a file, as "my_tasks.jsonl"')
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
