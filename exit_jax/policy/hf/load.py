"""Read safetensors into the decoder's parameters, each shard from the file straight to the devices that hold it."""

import collections
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from safetensors import SafetensorError, safe_open

from exit_jax.policy import decoder
from exit_jax.policy.hf.config import CheckpointError, list_faults, read_json
from exit_jax.policy.hf.names import ADAPTERS, Path, by_layer, flatten, is_transposed, num_stacked, tensor_name, tensors
from exit_jax.policy.shape import DecoderConfig
from exit_jax.types import Params

_DTYPES = ("F32", "BF16", "F16")
# Rows of a matrix that are copied at once. Transposing 8k x 4k bfloat16 takes 0.25 s in one go and 0.07 s by 32 rows, since
# the cache lines written then stay in the cache until they are whole; and the copy read from the file is small.
_ROWS = 32
Spans = tuple[tuple[int, int], ...]  # (start, stop) of each dimension


class Stored(NamedTuple):
    """Where a tensor lies and what its header says."""

    file: pathlib.Path
    shape: tuple[int, ...]
    dtype: str


def load(folder: str | pathlib.Path, config: DecoderConfig, shardings: Any) -> Params:
    """Return the checkpoint's parameters, as config.param_dtype says, laid out as ``shardings``.

    A process reads only what its devices hold. On top of the arrays themselves, host memory holds one device's shard of
    one stacked parameter at a time.

    Args:
      folder: with model.safetensors, or model.safetensors.index.json and its files.
      config: its shape fields as ``hf.config.read`` gives them. Adapters are not in a checkpoint: with LoRA, the result
        lacks lora_a and lora_b.
      shardings: pytree of jax.sharding.Sharding like the parameters (adapters' entries are not used).

    Raises:
      CheckpointError: before anything is allocated, with all missing, extra and misshapen tensors listed.
    """
    stored = inspect(folder)
    shapes = flatten(jax.eval_shape(lambda: decoder.init(config, jax.random.key(0))))
    shapes = {path: leaf for path, leaf in shapes.items() if path[-1] not in ADAPTERS}
    check_tensors(folder, config, stored, shapes)
    flat = flatten(shardings)
    return unflatten_dict({path: _place(config, stored, path, leaf, flat[path]) for path, leaf in shapes.items()})


def inspect(folder: str | pathlib.Path) -> dict[str, Stored]:
    """Return what the headers of a checkpoint's files say, by tensor name.

    Raises:
      CheckpointError: if there are no weights, or a file is absent or damaged.
    """
    folder = pathlib.Path(folder)
    stored, faults = {}, []
    for file in _files(folder):
        try:
            with safe_open(file, "np") as content:
                for name in content.keys():
                    tensor = content.get_slice(name)
                    stored[name] = Stored(file, tuple(tensor.get_shape()), tensor.get_dtype())
        except (SafetensorError, OSError) as error:
            faults.append(f"{file.name} ({file.stat().st_size} bytes): {error}")
    if faults:
        raise CheckpointError(list_faults(f"{folder} has damaged files; download them again:", faults))
    return stored


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return the safetensors files of a checkpoint, as its index says if it has one."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder; name a checkpoint's folder or a hub id")
    index = folder / "model.safetensors.index.json"
    if index.exists():
        named = read_json(index).get("weight_map")
        if not isinstance(named, dict) or not named:
            raise CheckpointError(f"{index} has no weight_map; download it again")
        files = [folder / name for name in sorted(set(named.values()))]
        absent = [file.name for file in files if not file.is_file()]
        if absent:
            raise CheckpointError(list_faults(f"{index} names files that are absent; download them:", absent))
        return files
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    rest = sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".pth", ".gguf"))
    remedy = "name a folder that holds them"
    if any(name.endswith(".safetensors") for name in rest):
        remedy = "several files need their model.safetensors.index.json; adapters must be merged into their base first"
    elif rest:
        remedy = (
            "only safetensors are read: load it once with transformers.AutoModelForCausalLM.from_pretrained and write it "
            "with save_pretrained"
        )
    raise CheckpointError(
        f"{folder} holds no weights (neither model.safetensors nor model.safetensors.index.json; it has "
        f"{', '.join(rest) or 'no file of weights'}); {remedy}"
    )


def check_tensors(
    folder: str | pathlib.Path,
    config: DecoderConfig,
    stored: dict[str, Stored],
    shapes: dict[Path, jax.ShapeDtypeStruct],
) -> None:
    """Raise a CheckpointError that lists all missing, extra and misshapen tensors, unless there are none."""
    wanted: dict[str, tuple[int, ...]] = {}
    for path, leaf in shapes.items():
        shape = leaf.shape[num_stacked(path) :]
        for _, name in tensors(config, path, leaf.shape):
            wanted[name] = shape[::-1] if is_transposed(path) else shape
    extra = [name for name in stored if name not in wanted and not _is_harmless(name, stored)]
    faults = [f"missing: {row}" for row in by_layer([name for name in wanted if name not in stored])]
    faults += [f"not of this architecture: {row}" for row in by_layer(extra)]
    misshapen = collections.defaultdict(list)
    for name in wanted.keys() & stored.keys():
        if stored[name].shape != wanted[name]:
            misshapen[stored[name].shape, wanted[name]].append(name)
        if stored[name].dtype not in _DTYPES:
            misshapen[stored[name].dtype, f"one of {', '.join(_DTYPES)} (quantised weights are not read)"].append(name)
    for (got, want), names in misshapen.items():
        faults += [f"{row} is {got}, and must be {want}" for row in by_layer(sorted(names))]
    if faults:
        raise CheckpointError(list_faults(f"{folder}: its tensors do not fit its config.json:", faults))


def _is_harmless(name: str, stored: dict[str, Stored]) -> bool:
    """Whether a tensor that is not wanted may be there: rotary tables, and the copy of a tied embedding."""
    if name.endswith("rotary_emb.inv_freq"):  # written by old versions; computed from the config
        return True
    embedding = stored.get("model.embed_tokens.weight")
    return name == "lm_head.weight" and embedding is not None and _is_equal(name, stored[name], embedding)


def _is_equal(name: str, one: Stored, embedding: Stored) -> bool:
    if (one.shape, one.dtype) != (embedding.shape, embedding.dtype):
        return False
    with safe_open(one.file, "np") as file, safe_open(embedding.file, "np") as other:
        left, right = file.get_slice(name), other.get_slice("model.embed_tokens.weight")
        rows = [slice(row, min(row + 4096, one.shape[0])) for row in range(0, one.shape[0], 4096)]
        return all(np.array_equal(left[row], right[row]) for row in rows)


def _place(
    config: DecoderConfig,
    stored: dict[str, Stored],
    path: Path,
    leaf: jax.ShapeDtypeStruct,
    sharding: jax.sharding.Sharding,
) -> jax.Array:
    """Return one parameter; each distinct shard is read once, put on its devices and let go before the next."""
    holders: dict[Spans, list[Any]] = collections.defaultdict(list)
    for device, index in sharding.addressable_devices_indices_map(leaf.shape).items():
        spans = tuple(part.indices(size)[:2] for part, size in zip(index or (), leaf.shape))
        holders[spans].append(device)
    arrays = []
    for spans, devices in holders.items():
        shard = _read_shard(config, stored, path, spans, leaf.dtype)
        arrays += jax.block_until_ready([jax.device_put(shard, device) for device in devices])
        del shard
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, arrays)


def _read_shard(config: DecoderConfig, stored: dict[str, Stored], path: Path, spans: Spans, dtype: Any) -> np.ndarray:
    """Read the part of a parameter within ``spans``, [in, out] and stacked, in ``dtype``."""
    shard = np.empty([stop - start for start, stop in spans], dtype)
    outer, inner = spans[: num_stacked(path)], spans[num_stacked(path) :]
    for place in np.ndindex(shard.shape[: len(outer)]):
        name = tensor_name(config, path, tuple(start + i for i, (start, _) in zip(place, outer)))
        if is_transposed(path):
            _read_tensor(stored[name].file, name, inner[::-1], shard[place].T)
        else:
            _read_tensor(stored[name].file, name, inner, shard[place])
    return shard


def _read_tensor(file: pathlib.Path, name: str, spans: Spans, out: np.ndarray) -> None:
    """Read a tensor's part within ``spans`` into ``out``. The file is opened anew, so that no mapped pages are left."""
    (start, stop), *rest = spans
    columns = [slice(*span) for span in rest]
    with safe_open(file, "np") as content:
        tensor = content.get_slice(name)
        for row in range(start, stop, _ROWS):
            end = min(row + _ROWS, stop)
            out[row - start : end - start] = tensor[(slice(row, end), *columns)]
