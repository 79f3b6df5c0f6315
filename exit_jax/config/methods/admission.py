"""Which groups are learnt from."""

from typing import Any

from exit_jax.config.methods.method import FAITHFUL, Method


def _admission(name: str, source: str, label: str, **settings: Any) -> Method:
    return Method("admission", name, source, label, {f"algorithm.{key}": to for key, to in settings.items()})


ADMISSION = {
    "drop": _admission("groups of equal rewards are dropped", "2503.14476", FAITHFUL, zero_variance="drop"),
    "refill": _admission(
        "DAPO's dynamic sampling",
        "2503.14476",
        "adapted: sampling goes on in iterations of num_prompts, which all count, and what was admitted waits in a pool",
        admission="spread",
        refill=True,
    ),
    "band": _admission("TraceRL's band of mean rewards", "2509.06949", "in kind: the band alone", admission="band"),
}
