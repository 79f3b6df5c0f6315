"""Texts in, vectors out: the encoder that a run names, on all devices of this process."""

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from exit_jax.embedding import encoder as encoders
from exit_jax.embedding.config import read, read_recipe
from exit_jax.embedding.load import load
from exit_jax.embedding.settings import SHORTEST, EncoderConfig
from exit_jax.parallel.mesh import MeshConfig, by_row, make_mesh, replicated
from exit_jax.policy.hf import tokenizer as tokenizers
from exit_jax.policy.hf.config import CheckpointError, resolve

# Characters of a text that are looked at, for each token that is kept: no word of BERT's is longer, and 10 MB of text would
# otherwise be tokenised to the end.
_CHARS_PER_TOKEN = 100


def width(checkpoint: str) -> int:
    """Return E, the width of the encoder's vectors, without its weights being read.

    Raises:
      CheckpointError: if the checkpoint cannot be found, or is not supported.
    """
    return read(_resolve(checkpoint)).embed_dim


def make_embed(config: EncoderConfig, mesh: Mesh, dtype: str = "float32") -> Callable[[Sequence[str]], np.ndarray]:
    """Return a function from n texts to their vectors, float32 [n, E], in the order of the texts.

    Any text has a vector: surrogates become "?", and an empty text is its special tokens. Texts that are the same to the
    encoder are computed once, so their vectors are equal to the bit and a group of equal responses has no diversity at all.

    Rows are split over those devices of ``mesh`` that this process has, each with a copy of the parameters: processes embed
    the texts of their own rows, as they grade them, without waiting for each other. A batch is as wide as the next power of
    two, so for max_tokens = 512 there are 6 programs at most.

    Raises:
      CheckpointError: if the checkpoint cannot be found or read, is not supported, or has fewer positions than
        config.max_tokens.
    """
    folder = _resolve(config.checkpoint)
    encoder = read(folder)
    recipe = read_recipe(folder, config.pooling)
    if config.max_tokens > encoder.max_tokens:
        raise CheckpointError(
            f"encoder.max_tokens = {config.max_tokens} is above {encoder.max_tokens}, the positions that "
            f"{config.checkpoint} has; lower it"
        )
    tokenizer = tokenizers.load(folder, encoder.vocab_size, special_tokens=True)
    devices = mesh.local_devices
    local = make_mesh(MeshConfig(len(devices), 1, 1), devices)
    params = jax.device_put(load(folder, encoder, dtype), replicated(local))
    num_rows = -(-config.batch_size // len(devices)) * len(devices)

    @functools.partial(jax.jit, out_shardings=by_row(local))
    def run(params, tokens, length):
        mask = jnp.arange(tokens.shape[1])[None] < length[:, None]
        hidden = encoders.apply(encoder, params, tokens, mask, dtype)
        return encoders.pool(hidden, mask, recipe.pooling, recipe.normalize)

    def embed(texts: Sequence[str]) -> np.ndarray:
        texts = [text.lower() for text in texts] if recipe.lower_case else texts
        rows = _tokenize(tokenizer, texts, config.max_tokens)
        distinct = sorted(set(rows), key=len)
        number = {row: i for i, row in enumerate(distinct)}
        vectors = []
        for start in range(0, len(distinct), num_rows):
            batch = _pad(distinct[start : start + num_rows], num_rows, config.max_tokens, max(encoder.pad_id, 0))
            vectors.append(run(params, *jax.device_put(batch, by_row(local))))
        whole = np.concatenate([np.zeros((0, encoder.embed_dim), np.float32), *jax.device_get(vectors)])
        return whole[[number[row] for row in rows]] if rows else whole

    return embed


def _resolve(checkpoint: str) -> pathlib.Path:
    if not checkpoint:  # a path's "" would be the working directory
        raise CheckpointError("encoder.checkpoint is empty; name an encoder's folder or hub id")
    return resolve(checkpoint)


def _tokenize(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> list[tuple[int, ...]]:
    """Return each text's ids with the special tokens around them, ``max_tokens`` at most."""
    if not len(texts):
        return []
    cut = [text[: _CHARS_PER_TOKEN * max_tokens].encode("utf-8", "replace").decode() for text in texts]
    encoded = tokenizer(cut, truncation=True, max_length=max_tokens, padding=False)
    return [tuple(row) for row in encoded["input_ids"]]


def _pad(rows: Sequence[tuple[int, ...]], num_rows: int, max_tokens: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens int32 [num_rows, a power of two or max_tokens], and lengths int32 [num_rows], 0 for blank rows."""
    longest = max(map(len, rows))
    columns = min(max(SHORTEST, 1 << (longest - 1).bit_length()), max_tokens)
    tokens, length = np.full((num_rows, columns), pad_id, np.int32), np.zeros(num_rows, np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)], length[i] = row, len(row)
    return tokens, length
