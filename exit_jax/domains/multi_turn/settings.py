"""Settings of environments of several turns."""

import dataclasses
from typing import ClassVar

from exit_jax.domains.multi_turn.prompts import DIVERGE, IMPROVE
from exit_jax.domains.task.settings import RowsConfig
from exit_jax.settings import setting

OVERLONG_UNITS = ("response", "episode")


@dataclasses.dataclass(frozen=True)
class MultiTurnConfig(RowsConfig):
    """The environment, its tasks, how it is put to the policy, and the limits of an episode."""

    prompt_column: str = setting(
        "",
        'column that two rows must share to be duplicates or a leak between splits; "" for key_columns, or all columns',
    )
    environment: str = setting(
        "",
        "class or function that makes an environment, file.py:name or module:name; or openenv:<address>, textarena:<game>, "
        "verifiers:<taskset>",
    )
    environment_args: tuple[str, ...] = setting(
        (), 'its arguments, as "num_guesses=5"; JSON where they are such, else text'
    )
    num_train: int = setting(
        1024,
        "tasks of the environment's own to train on, where domain.tasks names none; num_test and num_validation are others",
        within="[1, inf)",
    )
    data_dir: str = setting(
        "data/multi_turn", "folder of the tasks' openings, and of lists of what was left out or crashed"
    )

    # prompts
    tokenizer: str = setting("", 'folder or hub id; "" for one of bytes')
    template_inputs: tuple[str, ...] = setting((), 'what else the chat template reads, as "date_string=26 Jul 2024"')
    system: str = setting("", 'message before the conversations that have no system message of their own; "" for none')
    # {request}, the last message of the opening, and {solution} stand for pieces, literal braces are doubled
    improve: str = setting(IMPROVE, "the message of a self-iteration")
    diverge: str = setting(DIVERGE, "the message of one with another approach")
    observation_role: str = setting(
        "user", "role in which the chat template is told what was observed", choices=("user", "tool")
    )
    prompt_width: int = setting(0, "tokens of the longest prompt; 0 for what the prompts take", within="[0, inf)")
    max_context_tokens: int = setting(
        0,
        "tokens of a history's context; tasks that begin with more are not trained on and count as failed; 0 for the longest "
        "opening and a transcript",
        within="[0, inf)",
    )
    max_request_tokens: int = setting(
        256,
        "tokens of an opening's last message where prompts quote it; a longer one loses its middle",
        within="[1, inf)",
    )
    max_solution_tokens: int = setting(
        0, "tokens of a response in a prompt, a longer one loses its middle; 0 for max_tokens", within="[0, inf)"
    )

    # episodes
    max_tokens: int = setting(512, "tokens of a response", within="[1, inf)")
    max_observation_tokens: int = setting(
        512, "tokens of an observation; a longer one loses its middle", within="[1, inf)"
    )
    max_turns: int = setting(10, "turns of an episode", within="[1, inf)")
    max_transcript_tokens: int = setting(4096, "tokens of an episode", within="[1, inf)")
    test_max_turns: int = setting(0, "turns of an episode in evaluation; 0 for max_turns", within="[0, inf)")
    test_max_transcript_tokens: int = setting(
        0, "tokens of an episode in evaluation; 0 for max_transcript_tokens", within="[0, inf)"
    )
    reward_range: tuple[float, ...] = setting(
        (0.0, 1.0), "what the worst and the best episode return, the sum of the rewards of its turns"
    )
    overlong_unit: str = setting(
        "response",
        "what mask_overlong and the buffer leave out: each response without an end, or all of an episode that was not done",
        choices=OVERLONG_UNITS,
    )

    # processes
    num_workers: int = setting(0, "processes that play episodes; 0 for one a core", within="[0, inf)")
    max_instances: int = setting(
        1024,
        "environments that are alive at a time in all processes, as a server has sessions; others are replayed",
        within="[1, inf)",
    )
    step_secs: float = setting(
        10.0, "processor time of one step; by the clock four times that", unit="s", within="(0, inf)"
    )
    reset_secs: float = setting(
        60.0, "the same of making an environment, and of one reset", unit="s", within="(0, inf)"
    )
    memory_mb: int = setting(
        4096, "memory that a process may take beyond what its imports do", unit="MiB", within="[1, inf)"
    )
    check_texts: tuple[str, ...] = setting(
        ("1", "yes", "a"),
        "responses, over and over, to the episode that is played twice at load to see whether it is the same",
    )

    plays_episodes: ClassVar = True
    has_demonstrations: ClassVar = False

    @property
    def num_children(self) -> int:
        """Histories that one rollout yields: one of each turn."""
        return self.max_turns

    def faults(self) -> list[str]:
        """Return a sentence for each contradiction."""
        wrong = self.faults_of_rows()
        if not self.environment:
            wrong.append('domain.environment = "" names none; give a class, as my_game.py:Game')
        for name in ("test_tasks", "validation_tasks", "weights", "split_column"):
            if getattr(self, name) and not self.tasks:
                wrong.append(
                    f"domain.{name} = {getattr(self, name)!r}, but domain.tasks = () leaves the tasks to the environment"
                )
        if wordless := [item for item in self.environment_args if not item.partition("=")[0].isidentifier()]:
            wrong.append(f"domain.environment_args = {self.environment_args}: {wordless[0]!r} is not name=value")
        if len(self.reward_range) != 2 or self.reward_range[0] == self.reward_range[-1]:
            wrong.append(
                f"domain.reward_range = {self.reward_range} is not two different numbers, the worst and the best return"
            )
        if not self.check_texts:
            wrong.append("domain.check_texts = () has no response to try the environment with; give one that it takes")
        for name in ("max_transcript_tokens", "test_max_transcript_tokens"):
            if 0 < getattr(self, name) < self.max_tokens:
                wrong.append(
                    f"domain.{name} = {getattr(self, name)} is below domain.max_tokens = {self.max_tokens}: no response would "
                    "fit; raise it"
                )
        return wrong
