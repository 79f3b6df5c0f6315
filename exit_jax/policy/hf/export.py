"""Write the decoder's parameters as a checkpoint that transformers loads, or its adapters as a folder that PEFT loads.

A file is written tensor by tensor, so that the host holds one tensor at a time; a folder appears whole or not at all.
"""

import contextlib
import functools
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from exit_jax.algorithm.types import Params
from exit_jax.policy.hf import config as hf_config
from exit_jax.policy.hf.config import FAMILIES, CheckpointError, list_faults, read_json
from exit_jax.policy.hf.names import ADAPTERS, Path, flatten, is_stacked, is_transposed, projection_name, tensor_name
from exit_jax.policy.shape import DecoderConfig

_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_COPIED = ("generation_config.json", "*token*.json", "*token*.model", "vocab.*", "merges.txt", "*.jinja")
_COPIED += ("chat_template.json", "special_tokens_map.json", "LICENSE*", "NOTICE*")
_MAX_POSITIONS = 131072  # no part of DecoderConfig; transformers only warns beyond it


class _Tensor(NamedTuple):
    """A tensor to be written: a parameter, or one layer of it, under its name in the checkpoint."""

    name: str
    path: Path
    layer: int
    shape: tuple[int, ...]


def export(
    params: Params,
    config: DecoderConfig,
    folder: str | pathlib.Path,
    source: str | pathlib.Path | None,
    dtype: str,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Write config, generation config, tokenizer and sharded safetensors, which AutoModelForCausalLM loads.

    On several hosts every process must call it; the first one writes.

    Args:
      params: of the whole model, adapters merged.
      config: of the decoder.
      folder: must not exist yet, or be empty.
      source: folder of the checkpoint that the policy began from, whose config.json (but for its dtype), generation
        config and tokenizer are kept; without one, a config.json is made from ``config``.
      dtype: float32, bfloat16 or float16, of the stored tensors.
      max_shard_bytes: of the tensors in one file; a larger tensor has a file of its own.

    Raises:
      CheckpointError: on every process, if it could not be written; ``folder`` then does not exist.
    """
    flat = flatten(params)
    if any(path[-1] in ADAPTERS for path in flat):
        raise CheckpointError(
            "the parameters hold adapters; merge them into their kernels first, or export the adapters"
        )
    files = _cut(_list_tensors(flat), max_shard_bytes, _item_size(dtype))

    def write_rest(temporary: pathlib.Path) -> None:
        _write_json(temporary / "config.json", _make_config(config, source, dtype))
        for pattern in _COPIED if source is not None else ():
            for path in pathlib.Path(source or "").glob(pattern):
                if not path.name.endswith(".safetensors.index.json"):
                    shutil.copyfile(path, temporary / path.name)
        if len(files) > 1:
            sizes = [np.prod(tensor.shape, dtype=np.int64) for tensors in files.values() for tensor in tensors]
            index = {tensor.name: name for name, tensors in files.items() for tensor in tensors}
            size = {"total_parameters": int(sum(sizes)), "total_size": int(sum(sizes)) * _item_size(dtype)}
            _write_json(temporary / "model.safetensors.index.json", {"metadata": size, "weight_map": index})

    _write_folder(pathlib.Path(folder), flat, files, dtype, write_rest)


def export_adapter(
    params: Params, config: DecoderConfig, folder: str | pathlib.Path, base_name: str | None, dtype: str = "float32"
) -> None:
    """Write the adapters as PEFT does: adapter_config.json and adapter_model.safetensors.

    Args:
      params: the parameters, or their adapters alone.
      config: of the decoder, whose ``lora`` says rank, alpha and targets.
      folder: must not exist yet, or be empty.
      base_name: the hub id, ``owner/model[@revision]``, or folder that PEFT shall look for the base model in.
      dtype: of the stored tensors.

    Raises:
      CheckpointError: if there are no adapters, or they could not be written.
    """
    flat = {path: leaf for path, leaf in flatten(params).items() if path[-1] in ADAPTERS}
    if not flat:
        raise CheckpointError(
            "the parameters hold no adapters; train with config.policy's LoRA rank above 0, or use export"
        )
    tensors = [item._replace(name=f"base_model.model.{item.name}") for item in _list_tensors(flat)]
    alpha = config.lora.alpha
    local = pathlib.Path(base_name or "").expanduser()
    name, _, revision = (
        (str(local.absolute()), "", "") if base_name and local.is_dir() else (base_name or "").partition("@")
    )
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": name or None,
        "revision": revision or None,
        "r": config.lora.rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(projection_name(target) for target in config.lora.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "inference_mode": True,
    }

    def write_rest(temporary: pathlib.Path) -> None:
        _write_json(temporary / "adapter_config.json", content)

    _write_folder(pathlib.Path(folder), flat, {"adapter_model.safetensors": tensors}, dtype, write_rest)


def _item_size(dtype: str) -> int:
    if dtype not in _DTYPES:
        raise CheckpointError(f"dtype {dtype!r} is not one of {', '.join(_DTYPES)}")
    return jnp.dtype(dtype).itemsize


def _list_tensors(flat: dict[Path, jax.Array]) -> list[_Tensor]:
    """Return the tensors of a checkpoint: what is not stacked, then layer by layer."""
    tensors = []
    for path, leaf in flat.items():
        for layer in range(leaf.shape[0] if is_stacked(path) else 1):
            shape = leaf.shape[1:] if is_stacked(path) else leaf.shape
            shape = shape[::-1] if is_transposed(path) else shape
            tensors.append(_Tensor(tensor_name(path, layer), path, layer, shape))
    return sorted(tensors, key=lambda tensor: (is_stacked(tensor.path), tensor.layer))


def _cut(tensors: list[_Tensor], max_bytes: int, item_size: int) -> dict[str, list[_Tensor]]:
    """Return {file name: its tensors}, in order, each file of at most ``max_bytes`` unless one tensor is larger."""
    files: list[list[_Tensor]] = [[]]
    held = 0
    for tensor in tensors:
        size = int(np.prod(tensor.shape, dtype=np.int64)) * item_size
        if files[-1] and held + size > max_bytes:
            files.append([])
            held = 0
        files[-1].append(tensor)
        held += size
    if len(files) == 1:
        return {"model.safetensors": files[0]}
    return {f"model-{i:05}-of-{len(files):05}.safetensors": file for i, file in enumerate(files, 1)}


def _make_config(config: DecoderConfig, source: str | pathlib.Path | None, dtype: str) -> dict[str, Any]:
    """Return config.json: the source's own with another dtype, or one made for a policy that began from nothing."""
    if source is None:
        return _config_from_nothing(config, dtype)
    content = read_json(pathlib.Path(source) / "config.json")
    differ = [
        f"{name} is {value} in {source}, {getattr(config, name)} in the policy"
        for name, value in hf_config.read(source).items()
        if value != getattr(config, name)
    ]
    if differ:
        raise CheckpointError(list_faults("the source is not what the policy began from; name the right one:", differ))
    return content | {"torch_dtype" if "torch_dtype" in content else "dtype": dtype}


def _config_from_nothing(c: DecoderConfig, dtype: str) -> dict[str, Any]:
    """Return a config.json in the spelling of transformers 4, which 5 reads as well."""
    families = {(family["qkv_bias"], family["qk_norm"]): name for name, family in reversed(FAMILIES.items())}
    name = families.get((c.qkv_bias, c.qk_norm))
    if name is None:
        raise CheckpointError("no family of checkpoints has both qkv_bias and qk_norm; switch one off")
    content = {
        "architectures": [name],
        "model_type": FAMILIES[name]["model_type"],
        "vocab_size": c.vocab_size,
        "hidden_size": c.embed_dim,
        "intermediate_size": c.mlp_dim,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": _MAX_POSITIONS,
        "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,
        "rope_scaling": None,
        "tie_word_embeddings": c.tie_embeddings,
        "bos_token_id": None,
        "eos_token_id": None,
        "torch_dtype": dtype,
    }
    if c.rope_scaling:
        factor, low, high, original = c.rope_scaling
        scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high}
        content["rope_scaling"] = scaling | {"original_max_position_embeddings": int(original)}
    return content


def _write_json(path: pathlib.Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_folder(
    folder: pathlib.Path,
    flat: dict[Path, jax.Array],
    files: dict[str, list[_Tensor]],
    dtype: str,
    write_rest: Callable[[pathlib.Path], None],
) -> None:
    """Write the tensors, and what ``write_rest(temporary folder)`` adds, on the first process; raise on all if it fails."""
    _item_size(dtype)
    arrays = (_fetch(flat[tensor.path], tensor, dtype) for tensors in files.values() for tensor in tensors)
    error = None
    if jax.process_index() == 0:
        try:
            with _appears_whole(folder) as temporary:
                write_rest(temporary)
                for name, tensors in files.items():
                    _write_file(temporary / name, tensors, arrays, dtype)
        except (OSError, CheckpointError) as fault:
            error = fault
    failed = error is not None
    if jax.process_count() > 1:
        for _ in arrays:  # gathering takes all processes, a first one that failed among them
            pass
        failed = bool(multihost_utils.broadcast_one_to_all(np.asarray(failed)))
    if isinstance(error, CheckpointError):
        raise error
    if failed:
        raise CheckpointError(f"cannot write {folder}: {error or 'the first process says why'}") from error


@contextlib.contextmanager
def _appears_whole(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a temporary folder beside ``folder``, which becomes ``folder`` if all went well and is removed otherwise."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and is not empty; remove it or name another folder")
    temporary = folder.absolute().with_name(f".{folder.absolute().name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@functools.partial(jax.jit, static_argnames=("stacked", "transposed", "dtype"))
def _take(leaf: jax.Array, layer: jax.Array, stacked: bool, transposed: bool, dtype: str) -> jax.Array:
    array = jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False) if stacked else leaf
    return (array.T if transposed else array).astype(dtype)


def _fetch(leaf: jax.Array, tensor: _Tensor, dtype: str) -> np.ndarray:
    """Return a tensor on the host, as it is stored."""
    path = tensor.path
    array = _take(leaf, np.int32(tensor.layer), is_stacked(path), is_transposed(path), dtype)
    if not array.is_fully_addressable:
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.ascontiguousarray(array)


def _write_file(path: pathlib.Path, tensors: list[_Tensor], arrays: Iterator[np.ndarray], dtype: str) -> None:
    """Write one safetensors file: the header's length (uint64), the header (JSON, padded to 8 bytes), then the arrays.

    By hand, since safetensors.numpy.save_file wants all of the file's arrays in memory and copies them once more.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for tensor in tensors:
        end = start + int(np.prod(tensor.shape, dtype=np.int64)) * _item_size(dtype)
        header[tensor.name] = {"dtype": _DTYPES[dtype], "shape": tensor.shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _ in tensors:
            file.write(next(arrays).view(np.uint8).data)
