"""Schedules: a coefficient of the algorithm as a function of the iterations done, as text in ``algorithm.schedules``.

"entropy_coef = cosine(0.1, 0.0, 600)"      from 0.1 to 0 over 600 iterations, and 0 from then on
"length_budget = stairs(256, 0.7, 150)"     times 0.7 after every 150 iterations (Train Long, Think Short, arXiv 2508.08940)
"""

import dataclasses
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exit_jax.algorithm.settings import ExItConfig


def constant(t: Any, value: float) -> Any:
    """The value."""
    return value + 0.0 * t


def linear(t: Any, first: float, last: float, over: float) -> Any:
    """From the first value to the last, evenly, over so many iterations."""
    return first + (last - first) * _share(t, over)


def cosine(t: Any, first: float, last: float, over: float) -> Any:
    """From the first value to the last along half a cosine over so many iterations (SPEAR's coefficients)."""
    import jax.numpy as jnp

    return last + (first - last) * 0.5 * (1.0 + jnp.cos(jnp.pi * _share(t, over)))


def exponential(t: Any, first: float, last: float, over: float) -> Any:
    """From the first value to the last by equal factors over so many iterations; both above 0."""
    return first * (last / first) ** _share(t, over)


def stairs(t: Any, first: float, factor: float, every: float) -> Any:
    """The first value, times the factor after every so many iterations."""
    return first * factor ** (t // every)


def _share(t: Any, over: float) -> Any:
    import jax.numpy as jnp

    return jnp.minimum(t / over, 1.0)


KINDS: dict[str, tuple[Callable[..., Any], int]] = {  # name -> function of (iterations done, numbers), how many numbers
    "constant": (constant, 1),
    "linear": (linear, 3),
    "cosine": (cosine, 3),
    "exponential": (exponential, 3),
    "stairs": (stairs, 3),
}
# fields that no shape and no other program depends on
FIELDS = (
    *("entropy_coef", "kl_coef", "clip_low", "clip_high"),
    *(
        "selection_prob",
        "divergence_prob",
        "score_temperature",
        "length_budget",
        "length_weight",
        "turn_limit",
        "replay_coef",
    ),
)
_FORM = re.compile(r"\s*(\w+)\s*=\s*(\w+)\s*\(([^()]*)\)\s*")


def parse(text: str) -> tuple[str, Callable[[Any], Any]]:
    """Return the field of "field = kind(numbers)" and its value as a function of the iterations done.

    Raises:
      ValueError: saying what is wrong.
    """
    form = _FORM.fullmatch(text)
    if not form:
        raise ValueError('it is not of the form "field = kind(number, ...)"')
    field, kind, inside = form.groups()
    if field not in FIELDS:
        raise ValueError(f"{field} has no schedule; those that may have one are {', '.join(FIELDS)}")
    if kind not in KINDS:
        raise ValueError(f"{kind} is none of {', '.join(KINDS)}")
    function, count = KINDS[kind]
    try:
        numbers = [float(item) for item in inside.split(",")]
    except ValueError as error:
        raise ValueError(f"({inside}) are not numbers") from error
    if len(numbers) != count:
        raise ValueError(f"{kind} takes {count} numbers, and {len(numbers)} are given")
    if count == 3 and numbers[2] <= 0:
        raise ValueError(f"{numbers[2]:g} iterations are none; the last number is above 0")
    if kind == "exponential" and min(numbers[:2]) <= 0:
        raise ValueError("exponential goes between numbers above 0")
    return field, lambda t: function(t, *numbers)


def faults(config: "ExItConfig") -> list[str]:
    """Return a sentence for each schedule that cannot be followed."""
    found, fields = [], []
    for text in config.schedules:
        try:
            fields.append(parse(text)[0])
            if fields[-1] == "kl_coef" and not config.kl_coef:
                raise ValueError("kl_coef needs algorithm.kl_coef above 0, which says that there is a reference policy")
        except ValueError as error:
            found.append(f"algorithm.schedules: {text!r}: {error}")
    return found + [
        f"algorithm.schedules: {name} has several" for name in sorted(set(fields)) if fields.count(name) > 1
    ]


def at(config: "ExItConfig", step: Any) -> "ExItConfig":
    """Return the settings after ``step`` iterations: those with a schedule are arrays float32 [], for use within jit."""
    values = dict(map(parse, config.schedules))
    return dataclasses.replace(config, **{field: value(step) for field, value in values.items()})


def is_off(value: Any) -> bool:
    """Return whether a coefficient is 0 for the whole run, so that what it weighs need not be computed."""
    return isinstance(value, int | float) and value == 0
