"""The tasks of a run: a hash that tells them from others of the same name."""

import hashlib

import jax
import numpy as np

from exit_jax import domains
from exit_jax.config.schema import Config
from exit_jax.errors import ConfigError
from exit_jax.workdir.identity import digest


def tasks_digest(config: Config, split: str) -> str:
    """Return a hash of a split's tasks, with what their answers are held against; the same config may name other data later.

    Tasks that are too long for a prompt, which no policy sees whole, are no part of it.

    Raises:
      ConfigError: if a task asks nothing.
    """
    domain = domains.make(config.domain_name, config.domain)
    tasks, about = jax.device_get(domain.tasks(split)), domain.about_tasks(split)
    blank = int((tasks.lengths[:, 1] == 0).sum())
    if blank:
        raise ConfigError(
            f"{blank} of {tasks.lengths.shape[0]} tasks of {split} have a request of 0 tokens: the domain's tokenizer makes "
            "none of their text, or they have none; take the checkpoint's own tokenizer, or mend the data"
        )
    seen = np.ones(len(about), bool) if domain.too_long is None else ~domain.too_long(split)
    arrays = [
        hashlib.sha256(array[seen].astype("<i4").tobytes()).hexdigest() for array in (tasks.tokens, tasks.lengths)
    ]
    return digest([arrays, [dict(row) for row, kept in zip(about, seen, strict=True) if kept]])
