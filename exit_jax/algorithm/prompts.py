"""Prompts spliced from token pieces, so that nothing sampled is ever decoded and tokenised again.

A template is a tuple whose items are either static token ids or the name of a piece of the history:
``((IMPROVE_ID,), "solution", "feedback")`` renders to the improve token, the held solution and its feedback.
"""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from exit_jax.types import ALL_MODES, PIECES, Array, History

Template = Sequence[str | Sequence[int]]


def concatenate(segments: Sequence[tuple[Array, Array]], width: int) -> tuple[Array, Array]:
    """Join ragged rows: each segment is (tokens int32 [..., n], length int32 [...]); padding is dropped.

    For lengths 2 and 1, ``[[7, 8, 0]]`` and ``[[9, 0]]`` in a width of 4 give ``[[7, 8, 9, 0]]`` and length 3.

    Returns:
      tokens int32 [..., width], zero beyond the row's end, and the total length [...]. A total above ``width``
      means that the row's end was cut off.
    """
    shape = jnp.broadcast_shapes(*(length.shape for _, length in segments))
    position = jnp.broadcast_to(jnp.arange(width), (*shape, width))
    joined = jnp.zeros((*shape, width), jnp.int32)
    offset = jnp.zeros(shape, jnp.int32)
    for tokens, length in segments:
        tokens = jnp.broadcast_to(tokens, (*shape, tokens.shape[-1]))
        source = position - offset[..., None]
        inside = (source >= 0) & (source < length[..., None])
        if tokens.shape[-1] > 1:  # one is not gathered: XLA's CPU backend would compute it anew for each position
            tokens = jnp.take_along_axis(tokens, jnp.clip(source, 0, tokens.shape[-1] - 1), axis=-1)
        if tokens.shape[-1]:
            joined = jnp.where(inside, tokens, joined)
        offset = offset + length
    return joined, offset


def pack(pieces: Mapping[str, tuple[Array, Array]], width: int) -> tuple[Array, Array]:
    """Pack pieces, name -> (tokens [..., n], length [...]), into ``History.tokens`` and ``History.lengths``.

    What exceeds ``width`` is cut off from the end, and from the lengths too: lengths 2 and 3 in a width of 4 become 2 and 2.
    """
    shape = jnp.broadcast_shapes(*(length.shape for _, length in pieces.values()))
    empty = (jnp.zeros((*shape, 0), jnp.int32), jnp.zeros(shape, jnp.int32))
    segments = [pieces.get(name, empty) for name in PIECES]
    tokens, _ = concatenate(segments, width)
    lengths = jnp.stack([jnp.broadcast_to(length, shape) for _, length in segments], axis=-1)
    ends = jnp.minimum(jnp.cumsum(lengths, axis=-1), width)
    return tokens, jnp.diff(ends, axis=-1, prepend=0)


def piece(history: History, name: str, width: int | None = None) -> tuple[Array, Array]:
    """Return one piece of each history as (tokens int32 [..., width], length int32 [...]); width defaults to W."""
    index = PIECES.index(name)
    start = history.lengths[..., :index].sum(-1)
    length = history.lengths[..., index]
    width = width or history.tokens.shape[-1]
    position = jnp.broadcast_to(jnp.arange(width), (*start.shape, width))
    source = jnp.clip(start[..., None] + position, 0, history.tokens.shape[-1] - 1)
    tokens = jnp.take_along_axis(history.tokens, source, axis=-1)
    return jnp.where(position < length[..., None], tokens, 0), length


def piece_rows(history: History, name: str) -> list[np.ndarray]:
    """Return one piece of each of NumPy's histories [n], without padding."""
    stop = np.cumsum(history.lengths, axis=-1)[:, PIECES.index(name)]
    start = stop - history.lengths[:, PIECES.index(name)]
    return [row[a:b] for row, a, b in zip(np.asarray(history.tokens), start, stop, strict=True)]


def render(template: Template, history: History, width: int) -> tuple[Array, Array]:
    """Splice one template for every history: (tokens int32 [..., width], total length int32 [...])."""
    shape = history.step.shape
    segments = []
    for item in template:
        if isinstance(item, str):
            segments.append(piece(history, item))
        else:
            segments.append((jnp.asarray(np.asarray(item, np.int32)), jnp.full(shape, len(item), jnp.int32)))
    return concatenate(segments, width)


def render_by_mode(templates: Mapping[str, Template], history: History, mode: Array, width: int) -> tuple[Array, Array]:
    """Splice each history with the template of its mode: (tokens int32 [..., width], total length int32 [...])."""
    known = [index for index, name in enumerate(ALL_MODES) if name in templates]
    rendered = [render(templates[ALL_MODES[index]], history, width) for index in known]
    pick = [mode == index for index in known]
    tokens = jnp.select([chosen[..., None] for chosen in pick], [tokens for tokens, _ in rendered])
    return tokens, jnp.select(pick, [length for _, length in rendered])
