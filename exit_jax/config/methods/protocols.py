"""Two attempts a rollout, at the same number of responses: half as many prompts."""

from typing import Any

from exit_jax.config.methods.method import Fields, Method


def _protocol(name: str, source: str, label: str, pay: str, more: Any = None) -> Method:
    def fields(c: Any) -> Fields:
        own = {"algorithm.protocol": pay, "algorithm.num_prompts": c.algorithm.num_prompts // 2}
        return own | {"algorithm.diversity_bonus": False} | (more(c) if more else {})

    return Method("protocol", name, source, label, fields)


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
}
