"""Settings of multi-turn tool use."""

import dataclasses
from typing import ClassVar

from exit_jax.domains.tool_use.prompts import DIVERGE, IMPROVE
from exit_jax.settings import setting

WORLDS = ("bfcl", "tiny")
QUALITIES = ("first_request", "requests")
OVERLONG_UNITS = ("episode", "response")
NOT_TAUGHT = ("data_dir", "num_validation", "num_test", "num_workers", "call_secs")  # what demonstrations don't need


@dataclasses.dataclass(frozen=True)
class ToolsConfig:
    """The world, how it is put to the policy, and the limits of an episode."""

    world: str = setting("bfcl", "BFCL v3 multi-turn-base, or boxes, coins, doors and lights (tiny)", choices=WORLDS)
    data_dir: str = setting("data/bfcl", "folder of trained tokenizers and the log of what crashed")
    data_seed: int = setting(0, "seed that the tiny world is made with")
    train_split: str = setting("train", 'split that is trained on: BFCL\'s "tuning" is "train" without "validation"')
    num_train: int = setting(
        100, "training tasks of the tiny world; BFCL has 100, 25 of which are its validation split"
    )
    num_validation: int = setting(25, "validation tasks of the tiny world")
    num_test: int = setting(100, "test tasks of the tiny world; BFCL has 100")
    tokenizer: str = setting("", 'folder or hub id; "" for one trained on the tiny world')
    vocab_size: int = setting(512, "tokens of the trained one")
    # {request} and {solution} stand for pieces, literal braces are doubled (ExIt App. B)
    improve: str = setting(IMPROVE, "the message of a self-iteration")
    diverge: str = setting(DIVERGE, "the message of one with another approach")
    template_inputs: tuple[str, ...] = setting((), 'what else the chat template reads, as "date_string=26 Jul 2024"')
    observation_role: str = setting(
        "tool", "role in which the chat template is told what a call returned", choices=("tool", "user")
    )
    prompt_width: int = setting(8704, "tokens of the longest prompt")
    max_context_tokens: int = setting(
        7808,
        "tokens of a history's context; tasks with more are not trained on and count as failed",
        within="[1, inf)",
    )
    max_request_tokens: int = setting(256, "tokens of a request", within="[1, inf)")
    max_solution_tokens: int = setting(
        512, "tokens of a response in a prompt; a longer one loses its middle", within="[1, inf)"
    )
    max_tokens: int = setting(512, "tokens of a response", within="[1, inf)")
    max_observation_tokens: int = setting(
        512, "tokens of an observation; a longer one loses its middle", within="[1, inf)"
    )
    max_transcript_tokens: int = setting(4096, "tokens of an episode in training", within="[1, inf)")
    max_turns: int = setting(10, "turns of an episode in training (ExIt App. A)", within="[1, inf)")
    num_requests: int = setting(
        1, "requests of a task that are made in training (ExIt App. A); 0 for all", within="[0, inf)"
    )
    test_max_transcript_tokens: int = setting(16384, "tokens of an episode in evaluation", within="[1, inf)")
    test_max_turns: int = setting(60, "turns of an episode in evaluation (ExIt App. A)", within="[1, inf)")
    test_num_requests: int = setting(0, "requests of a task that are made in evaluation; 0 for all", within="[0, inf)")
    quality: str = setting(
        "first_request",
        "what an episode earns: success on the first request, or the share that was fulfilled",
        choices=QUALITIES,
    )
    num_workers: int = setting(0, "processes that play BFCL's episodes; 0 for one a core", within="[0, inf)")
    call_secs: float = setting(
        2.0, "processor time for one call; by the clock four times that", unit="s", within="(0, inf)"
    )
    demo_noise: float = setting(0.0, "share of a demonstration's turns that go wrong (tiny)", within="[0, 1]")
    stop_at_call: bool = setting(
        False, "the end of a call ends its response; if not, a response may go on, and two calls are none", younger=True
    )
    overlong_unit: str = setting(
        "episode",
        "what mask_overlong and the buffer leave out: all of an episode without a valid end, or each response",
        choices=OVERLONG_UNITS,
        younger=True,
    )

    plays_episodes: ClassVar = True

    @property
    def num_children(self) -> int:
        """Histories that one rollout yields: one of each turn."""
        return self.max_turns

    @property
    def has_demonstrations(self) -> bool:
        """Whether there is an expert to learn from, which BFCL has not."""
        return self.world == "tiny"

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that there are; BFCL's "validation" is a part of "train", unless "tuning" is trained on."""
        if self.world == "bfcl" and self.train_split == "train":
            return ("train", "test")
        return ("train", "validation", "test")

    def faults(self) -> list[str]:
        """Return a sentence for each contradiction."""
        wrong = []
        for name in ("max_transcript_tokens", "test_max_transcript_tokens"):
            if getattr(self, name) < self.max_tokens:
                wrong.append(
                    f"domain.{name} = {getattr(self, name)} is below domain.max_tokens = {self.max_tokens}: no response would "
                    "fit; raise it"
                )
        if self.train_split not in (("train", "tuning") if self.world == "bfcl" else ("train",)):
            wrong.append(f'domain.train_split = {self.train_split!r} is neither "train" nor, for "bfcl", "tuning"')
        if not self.tokenizer and self.world != "tiny":
            wrong.append('domain.tokenizer = "" is for domain.world = "tiny"; name a checkpoint')
        return wrong
