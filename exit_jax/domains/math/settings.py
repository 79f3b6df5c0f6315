"""Settings of competition math and arithmetic."""

import dataclasses

from exit_jax.domains.math.sources import SPLITS
from exit_jax.domains.text.prompts import DIVERGE, IMPROVE
from exit_jax.domains.text.settings import SPAN
from exit_jax.settings import setting

DATA = ("competition", "arithmetic")
SPLIT_BY = ("text", "computation")
TRUNCATE = ("none", "front", "middle")
# settings that demonstrations do not depend on
NOT_TAUGHT = ("data_dir", "files_dir", "num_validation", "num_test", "num_workers", "timeout_secs")


@dataclasses.dataclass(frozen=True)
class MathConfig:
    """Where problems come from, how they are put to the policy, and how its answers are graded."""

    data: str = setting("competition", "problems prepared by --mode data, or exercises made on the spot", choices=DATA)
    data_dir: str = setting("data/math", "folder of prepared problems, trained tokenizers and what could not be graded")
    files_dir: str = setting("", 'your own <source>.jsonl or .parquet for --mode data; "" for the hub\'s')
    data_seed: int = setting(0, "seed that the training problems are chosen with, or the exercises are made with")
    num_train: int = setting(1280, "training problems (ExIt Table 4)", within="[1, inf)")
    num_validation: int = setting(100, "validation problems", within="[1, inf)")
    num_test: int = setting(100, "test exercises of arithmetic; the competitions' are what they are", within="[1, inf)")
    tokenizer: str = setting("", 'folder or hub id; "" for one trained on arithmetic')
    vocab_size: int = setting(512, "tokens of the trained one")
    system: str = setting("", 'message before each prompt; "" for none')
    # the user's message in each mode; {request} and {solution} stand for pieces, literal braces are doubled (ExIt App. B)
    base: str = setting("{request}", "the user's message for a first response")
    improve: str = setting(IMPROVE, "the user's message for an improved one")
    diverge: str = setting(DIVERGE, "the user's message for one with another approach")
    template_inputs: tuple[str, ...] = setting((), 'what else the chat template reads, as "date_string=26 Jul 2024"')
    prompt_width: int = setting(1536, "tokens of the longest prompt", within="[1, inf)")
    max_request_tokens: int = setting(
        320,
        "tokens of a problem; longer ones are not trained on, and count as wrong in other splits",
        within="[1, inf)",
    )
    max_solution_tokens: int = setting(1024, "tokens of the previous response in a prompt", within="[1, inf)")
    max_tokens: int = setting(1024, "tokens of a response", within="[1, inf)")
    truncate: str = setting("none", "where a longer previous response is cut; none where none can be", choices=TRUNCATE)
    num_workers: int = setting(0, "processes that grade; 0 for one a core", within="[0, inf)")
    timeout_secs: float = setting(
        5.0, "processor time for one answer's grading; by the clock four times that", unit="s", within="(0, inf)"
    )
    demo_noise: float = setting(0.0, "share of a demonstration's lines that are wrong (arithmetic)", within="[0, 1]")
    critique: str = setting(
        "",
        "the user's message for a critique of a response, which improve shows as {feedback} (algorithm.protocol, the "
        'scaffold self_refine); "" for none',
        younger=True,
    )
    max_feedback_tokens: int = setting(0, "tokens of a critique in a prompt", within="[0, inf)", younger=True)
    split_by: str = setting("text", "what decides which split an exercise belongs to", choices=SPLIT_BY, younger=True)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that there are."""
        return SPLITS if self.data == "competition" else ("train", "validation", "test")

    def faults(self) -> list[str]:
        """Return a sentence for each contradiction."""
        wrong = []
        if self.truncate == "none" and self.max_solution_tokens < self.max_tokens:
            wrong.append(
                f"domain.max_solution_tokens = {self.max_solution_tokens} is below domain.max_tokens = {self.max_tokens}, so "
                'a response may not fit into the next prompt; raise it, or say by domain.truncate where to cut, "front" or '
                '"middle"'
            )
        if not self.tokenizer and self.data != "arithmetic":
            wrong.append('domain.tokenizer = "" is for domain.data = "arithmetic"; name a checkpoint')
        if max(self.num_train, self.num_validation, self.num_test) > SPAN:
            wrong.append(f"more than {SPAN} problems in a split")
        return wrong
