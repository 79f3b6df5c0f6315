"""What evaluation, study and report all ask of the figures of an evaluation."""

from collections.abc import Sequence

import numpy as np


def to_lists(values: np.ndarray) -> list:
    """Return values [...] as nested lists with null for NaN, which JSON does not know."""
    listed = values.astype(object)
    listed[~np.isfinite(values)] = None
    return listed.tolist()


def is_scored(quality: Sequence[float], accuracy: Sequence[float]) -> bool:
    """Return whether answers are scored, not only right or wrong: mean qualities at each k then differ from the accuracy."""
    return any(abs(score - right) > 1e-5 for score, right in zip(quality, accuracy))
