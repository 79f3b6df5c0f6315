"""Read safetensors into an encoder's parameters; all in host memory, since encoders are small."""

import collections
import pathlib
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from safetensors import safe_open

from exit_jax.embedding.encoder import Encoder, tensors
from exit_jax.policy.hf.config import CheckpointError, list_faults
from exit_jax.policy.hf.load import Stored, inspect
from exit_jax.policy.hf.names import by_layer
from exit_jax.types import Params

_DTYPES = ("F32", "BF16", "F16")
_PREFIX = re.compile(r"^(bert|roberta|model)\.")  # prefix of an encoder that was saved with a head
# Tensors that need not be read: heads of other tasks, and tables of 0, 1, 2, .. that old versions wrote.
_HARMLESS = re.compile(r"(pooler|cls|lm_head|head|decoder|classifier)\.|embeddings\.(position|token_type)_ids$")


def load(folder: str | pathlib.Path, encoder: Encoder, dtype: str) -> Params:
    """Return the checkpoint's parameters as NumPy arrays of ``dtype``, norms as float32; see ``encoder.tensors``.

    Raises:
      CheckpointError: with all missing, extra and misshapen tensors listed.
    """
    folder = pathlib.Path(folder)
    if folder.is_dir() and not any(folder.glob("*.safetensors")) and any(folder.glob("*.bin")):
        raise CheckpointError(
            f"{folder} has its weights in {min(path.name for path in folder.glob('*.bin'))} only; convert it: load it once "
            "with transformers.AutoModel.from_pretrained and write it with save_pretrained, which makes model.safetensors"
        )
    stored = {_rename(name): (name, tensor) for name, tensor in inspect(folder).items()}
    wanted = {name: _per_layer(encoder, name) for name in tensors(encoder)}
    _check(folder, encoder, stored, wanted)
    params = {}
    for name, names in wanted.items():
        kept = jnp.float32 if "norm" in name.lower() else jnp.dtype(dtype)
        arrays = [_read(*stored[each]) if each else np.ones(encoder.embed_dim, np.float32) for each in names]
        array = np.stack(arrays) if "*" in name else arrays[0]
        path = ("layers", *name.split("*.")[1].split(".")) if "*" in name else tuple(name.split("."))
        params[path] = array.astype(kept)
    return unflatten_dict(params)


def _rename(name: str) -> str:
    """Return the name without a head's prefix, and with norms spelled as they have been since 2019."""
    name = _PREFIX.sub("", name)
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _per_layer(encoder: Encoder, name: str) -> list[str]:
    """Return the names for each layer; "" for the norm that ModernBERT's first layer does not have."""
    if "*" not in name:
        return [name]
    names = [name.replace("*", str(layer)) for layer in range(encoder.num_layers)]
    return ["", *names[1:]] if ".attn_norm." in name else names


def _check(
    folder: pathlib.Path,
    encoder: Encoder,
    stored: dict[str, tuple[str, Stored]],
    wanted: dict[str, list[str]],
) -> None:
    """Raise a CheckpointError that lists all tensors that do not fit, unless there are none."""
    shapes = {each: shape for name, shape in tensors(encoder).items() for each in wanted[name] if each}
    extra = [name for name in stored if name not in shapes and not _HARMLESS.match(name)]
    faults = [f"missing: {row}" for row in by_layer([name for name in shapes if name not in stored])]
    faults += [f"not of this architecture: {row}" for row in by_layer(extra)]
    wrong: dict[str, list[str]] = collections.defaultdict(list)
    for name in shapes.keys() & stored.keys():
        tensor = stored[name][1]
        if tensor.shape != shapes[name]:
            wrong[f"{tensor.shape}, and must be {shapes[name]}"].append(name)
        if tensor.dtype not in _DTYPES:
            wrong[f"{tensor.dtype}, and must be one of {', '.join(_DTYPES)}"].append(name)
    for what, names in wrong.items():
        faults += [f"{row} is {what}" for row in by_layer(sorted(names))]
    if faults:
        raise CheckpointError(list_faults(f"{folder}: its tensors do not fit its config.json:", faults))


def _read(name: str, tensor: Stored) -> Any:
    with safe_open(tensor.file, "np") as content:
        return content.get_tensor(name)
