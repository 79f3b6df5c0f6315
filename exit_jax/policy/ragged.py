"""Products of rows with the kernels of different experts, as one ragged product that a batch of rows can be mapped over."""

import jax
import jax.numpy as jnp

from exit_jax.types import Array


def _product(rows: Array, kernel: Array, expert: Array) -> Array:
    count = jnp.bincount(expert, length=kernel.shape[0])
    return jax.lax.ragged_dot(rows, kernel, count, preferred_element_type=jnp.float32)


@jax.custom_batching.custom_vmap
def _mapped(rows: Array, kernel: Array, expert: Array) -> Array:
    return _product(rows, kernel, expert)


@_mapped.def_vmap
def _map(size: int, batched: list[bool], rows: Array, kernel: Array, expert: Array) -> tuple[Array, bool]:
    """Take the rows of a batch together, since jax has no batch of ragged products."""
    if batched != [True, False, True]:
        raise NotImplementedError(f"only rows can be mapped over, not {batched} of rows, kernels and experts")
    order = jnp.argsort(expert.reshape(-1), stable=True)
    out = _mapped(rows.reshape(-1, rows.shape[-1])[order], kernel, expert.reshape(-1)[order])
    return out[jnp.argsort(order)].reshape(size, -1, out.shape[-1]), True


@jax.custom_vjp
def ragged_product(rows: Array, kernel: Array, expert: Array) -> Array:
    """Return each row times the kernel of its expert.

    Args:
      rows: [N, n], those of one expert after the other.
      kernel: [E, n, m].
      expert: int32 [N], ascending.

    Returns:
      float32 [N, m].
    """
    return _mapped(rows, kernel, expert)


def _forward(rows: Array, kernel: Array, expert: Array):
    return _product(rows, kernel, expert), (rows, kernel, expert)


def _backward(kept, gradient: Array):
    rows, kernel, expert = kept
    _, back = jax.vjp(lambda rows, kernel: _product(rows, kernel, expert), rows, kernel)
    return *back(gradient), None


ragged_product.defvjp(_forward, _backward)  # a function with a rule for batches alone has no gradient
