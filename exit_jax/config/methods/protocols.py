"""Two attempts a rollout, and a critique between them, at the same number of responses: a half or a third of the prompts."""

from typing import Any

from exit_jax.config.methods.method import Fields, Method
from exit_jax.domains.text.prompts import CRITIQUE, IMPROVE_BY_FEEDBACK


def _protocol(name: str, source: str, label: str, pay: str, more: Any = None, responses: int = 2) -> Method:
    def fields(c: Any) -> Fields:
        own = {"algorithm.protocol": pay, "algorithm.num_prompts": max(c.algorithm.num_prompts // responses, 1)}
        return own | {"algorithm.diversity_bonus": False} | (more(c) if more else {})

    return Method("protocol", name, source, label, fields)


def _critiques(c: Any) -> Fields:
    """Ask for critiques where the config does not yet, of 128 tokens at most, and show them to who improves."""
    d = c.domain
    room = d.max_feedback_tokens or 128
    shows = "{feedback}" in d.improve or not d.improve
    return {
        "domain.critique": d.critique or CRITIQUE,
        "domain.max_feedback_tokens": room,
        "domain.improve": d.improve if shows else IMPROVE_BY_FEEDBACK,
        # wide enough for the longer prompts, where the config says a width
        "domain.prompt_width": d.prompt_width and d.prompt_width + room + 64,
        "eval.scaffolds": tuple(dict.fromkeys((*c.eval.scaffolds, "self_refine"))),
    }


PROTOCOLS = {
    "score": _protocol(
        "SCoRe",
        "2409.12917",
        "adapted: GRPO over pairs in place of REINFORCE; the KL term of the first stage holds both attempts, not the first "
        "alone",
        "score",
        lambda c: {
            "algorithm.protocol_stage": c.run.num_iterations // 2,
            "algorithm.kl_coef": 0.1,
            "algorithm.reference_every": max(c.run.num_iterations, 1) + 1,  # the policy before RL throughout
            "algorithm.schedules": (f"kl_coef = linear(0.1, 0.01, {max(c.run.num_iterations // 2, 1)})",),
        },
    ),
    "srpo": _protocol(
        "SRPO's rewards of reflection",
        "2506.01713",
        "adapted: its table alone, without rewards for format and length; an improve prompt in place of a written "
        "reflection",
        "srpo",
    ),
    "rise": _protocol(
        "RISE",
        "2407.18219",
        "adapted: Markov, as the second attempt sees the newest answer alone; two attempts, learnt from at once",
        "own",
        lambda c: {"algorithm.objective": "rwr", "algorithm.reward_temperature": 0.4, "algorithm.kl_coef": 0.0},
    ),
    "critique": _protocol(
        "critique, then refine",
        "SELF 2310.00533, Self-Refine 2303.17651, ThinkTuning 2508.07616",
        "in kind: the policy criticises its own first attempt and mends it, as in all three; here critiques are learnt by RL, "
        "each paid what the attempt after it gained, where SELF fine-tunes on filtered ones and ThinkTuning has a teacher",
        "critique",
        _critiques,
        responses=3,
    ),
}
