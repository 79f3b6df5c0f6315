"""What is said of a policy whose logits are not finite: which weights are at fault, not that it scores nothing."""

import contextlib
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from exit_jax.config.schema import Config
from exit_jax.errors import ConfigError
from exit_jax.types import Array, Params


class NonFiniteError(Exception):
    """Logits of a policy are NaN or infinite."""


def require_finite(logp: Array, mask: Array) -> None:
    """Raise NonFiniteError if a log-prob of a sampled token, where ``mask`` is True, is not finite: then its logits are not."""
    if not np.isfinite(np.asarray(logp)[np.asarray(mask)]).all():
        raise NonFiniteError


@contextlib.contextmanager
def explain(config: Config, find_params: Callable[[], Params], workdir: pathlib.Path | None):
    """Turn a NonFiniteError into the ConfigError that names the policy and the weights that are at fault.

    Args:
      find_params: returns the policy's parameters; called only then.
      workdir: whose checkpoint the policy is of; None for the policy before any training here.
    """
    try:
        yield
    except NonFiniteError:
        began = f"config.checkpoint = {config.checkpoint!r}" if config.checkpoint else "a fresh policy"
        policy = began if workdir is None else f"the policy of {workdir}, which began from {began},"
        if names := non_finite(find_params()):
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            cause = f"{', '.join(names[:3])}{more} hold NaN or infinity; "
            cause += "download it again, or name another" if workdir is None else "go on from an older checkpoint"
        else:
            cause = "its parameters are finite, so what it computes from them is beyond its dtype or temperature; "
            cause += f'policy.dtype is {config.policy.dtype!r}, and "float32" holds the most'
        raise ConfigError(f"{policy} gives logits that are not finite: {cause}") from None


def non_finite(params: Params) -> list[str]:
    """Return the names of the parameters that hold NaN or infinity."""
    finite = jax.device_get(jax.jit(lambda tree: jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), tree))(params))
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, is_finite in jax.tree.leaves_with_path(finite)
        if not is_finite
    ]
