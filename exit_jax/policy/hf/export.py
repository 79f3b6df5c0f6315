"""Write the decoder's parameters as a checkpoint that transformers loads, or its adapters as a folder that PEFT loads.

A file is written tensor by tensor, so that the host holds one tensor at a time; a folder appears whole or not at all.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from exit_jax.policy.decoder import merge
from exit_jax.policy.hf import config as hf_config
from exit_jax.policy.hf import generation, rope
from exit_jax.policy.hf.config import CheckpointError, list_faults, read_json
from exit_jax.policy.hf.families import FAMILIES, FAMILY_DEFAULTS
from exit_jax.policy.hf.names import ADAPTERS, Path, flatten, is_transposed, num_stacked, projection_name
from exit_jax.policy.hf.names import tensors as tensors_of
from exit_jax.policy.shape import DecoderConfig
from exit_jax.types import Params

log = logging.getLogger(__name__)

_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_COPIED = ("LICENSE*", "NOTICE*")
# fields of generation_config.json that config.json repeats
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_MAX_POSITIONS = 131072  # no part of DecoderConfig; transformers only warns beyond it


class _Tensor(NamedTuple):
    """A tensor to be written: a parameter, or one layer of it, under its name in the checkpoint."""

    name: str
    path: Path
    index: tuple[int, ...]  # of the layer
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Words:
    """What the tokens of a policy are and how they are sampled, to go with its weights."""

    tokenizer: Any  # a tokenizer of transformers; None where tokens are no text
    generation: Mapping[str, Any]  # content of generation_config.json
    readme: str

    def write(self, folder: pathlib.Path) -> None:
        """Write tokenizer, generation_config.json and README.md, and warn if AutoTokenizer would not make the same tokens."""
        _write_json(folder / generation.FILE, dict(self.generation))
        readme = self.readme
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
            if not _loads_as(folder, self.tokenizer, readme):
                readme += f"\n{_NOT_AUTO}\n"
                log.warning("%s: %s", folder, _NOT_AUTO)
        (folder / "README.md").write_text(readme, encoding="utf-8")


_NOT_AUTO = (
    "AutoTokenizer takes another class for this model's architecture, which splits words otherwise: load the tokenizer by "
    "`transformers.PreTrainedTokenizerFast.from_pretrained(folder)`, which takes tokenizer.json as it is."
)


def _loads_as(folder: pathlib.Path, tokenizer: Any, text: str) -> bool:
    """Return whether AutoTokenizer, which looks at config.json, too, finds a tokenizer that is equal on a mixed text."""
    from transformers import AutoTokenizer  # a second of import

    text += " Mia has 1250 shells, 3.75 apples\n\n  x = {'a': 10}  # it's 20%\n\\frac{12}{345} \\times 7é\t\"ok\""
    found = AutoTokenizer.from_pretrained(str(folder))
    ids = [each.encode(text, add_special_tokens=False) for each in (found, tokenizer)]
    return ids[0] == ids[1] and found.get_vocab() == tokenizer.get_vocab()


def export(
    params: Params,
    config: DecoderConfig,
    folder: str | pathlib.Path,
    source: str | pathlib.Path | None,
    dtype: str,
    max_shard_bytes: int = 5 * 10**9,
    words: Words | None = None,
) -> None:
    """Write config, sharded safetensors, and ``words``, which AutoModelForCausalLM and AutoTokenizer load.

    On several hosts every process must call it; the first one writes. Adapters are merged into their kernels in float32,
    tensor by tensor.

    Args:
      params: of the whole model.
      config: of the decoder.
      folder: must not exist yet, or be empty.
      source: folder of the checkpoint that the policy began from, whose config.json (but for dtype and token ids) and
        licence are kept; without one, a config.json is made from ``config``.
      dtype: float32, bfloat16 or float16, of the stored tensors.
      max_shard_bytes: of the tensors in one file; a larger tensor has a file of its own.
      words: None for weights alone.

    Raises:
      CheckpointError: on every process, if it could not be written; ``folder`` then does not exist.
    """
    flat = flatten(params)
    tensors = _list_tensors(config, {path: leaf for path, leaf in flat.items() if path[-1] not in ADAPTERS})
    files = _cut(tensors, max_shard_bytes, _item_size(dtype))
    ids = {name: words.generation.get(name) for name in _TOKEN_IDS} if words else {}

    def write_rest(temporary: pathlib.Path) -> None:
        _write_json(temporary / "config.json", _make_config(config, source, dtype) | ids)
        for pattern in _COPIED if source is not None else ():
            for path in pathlib.Path(source or "").glob(pattern):
                shutil.copyfile(path, temporary / path.name)
        if words:
            words.write(temporary)
        if len(files) > 1:
            sizes = [np.prod(tensor.shape, dtype=np.int64) for tensors in files.values() for tensor in tensors]
            index = {tensor.name: name for name, tensors in files.items() for tensor in tensors}
            size = {"total_parameters": int(sum(sizes)), "total_size": int(sum(sizes)) * _item_size(dtype)}
            _write_json(temporary / "model.safetensors.index.json", {"metadata": size, "weight_map": index})

    _write_folder(pathlib.Path(folder), flat, files, dtype, config.lora.scale, write_rest)


def export_adapter(
    params: Params,
    config: DecoderConfig,
    folder: str | pathlib.Path,
    base_name: str | None,
    dtype: str = "float32",
    words: Words | None = None,
) -> None:
    """Write the adapters as PEFT does, adapter_config.json and adapter_model.safetensors, and ``words``.

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
    tensors = [item._replace(name=f"base_model.model.{item.name}") for item in _list_tensors(config, flat)]
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
        if words:
            words.write(temporary)

    _write_folder(pathlib.Path(folder), flat, {"adapter_model.safetensors": tensors}, dtype, 0.0, write_rest)


def _item_size(dtype: str) -> int:
    if dtype not in _DTYPES:
        raise CheckpointError(f"dtype {dtype!r} is not one of {', '.join(_DTYPES)}")
    return jnp.dtype(dtype).itemsize


def _list_tensors(config: DecoderConfig, flat: dict[Path, jax.Array]) -> list[_Tensor]:
    """Return the tensors of a checkpoint: what is not stacked, then layer by layer."""
    tensors = []
    for path, leaf in flat.items():
        shape = leaf.shape[num_stacked(path) :]
        shape = shape[::-1] if is_transposed(path) else shape
        tensors += [_Tensor(name, path, index, shape) for index, name in tensors_of(config, path, leaf.shape)]
    return sorted(tensors, key=lambda tensor: tensor.index[:1])


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


def _family_of(c: DecoderConfig) -> str:
    """Return the architecture that a policy of fresh parameters is an instance of.

    Raises:
      CheckpointError: if there is none.
    """
    windows = {0: "", 1: "all", 2: "some"}[bool(any(c.layer_windows)) + (len(set(c.layer_windows)) > 1)]
    for name, family in FAMILIES.items():
        free = {*family.numbers, *family.flags, *family.sizes, "rope_local_theta" if family.local_theta else ""}
        free |= {"no_rope_layers"} if family.rope_interval else set()
        wanted = {field: value for field, value in (FAMILY_DEFAULTS | family.fields).items() if field not in free}
        same = all(getattr(c, field) == value for field, value in wanted.items())
        same &= bool(c.num_experts) == ("num_experts" in family.sizes)
        if same and windows in ("", family.windows, family.windows and "all"):
            return name
    unusual = [field for field, value in FAMILY_DEFAULTS.items() if getattr(c, field) != value]
    unusual += [f"layer_windows = {c.layer_windows}"] * bool(windows)
    raise CheckpointError(
        f"no family of checkpoints has {'both ' if len(unusual) == 2 else ''}{' and '.join(unusual)}; change what is at fault"
    )


def _config_from_nothing(c: DecoderConfig, dtype: str) -> dict[str, Any]:
    """Return a config.json in the spelling of transformers 4, which 5 reads as well."""
    name = _family_of(c)
    content = {
        "architectures": [name],
        "model_type": FAMILIES[name].model_type,
        "vocab_size": c.vocab_size,
        "hidden_size": c.embed_dim,
        "intermediate_size": c.mlp_dim,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_dim,
        "hidden_act": c.activation,
        "max_position_embeddings": _MAX_POSITIONS,
        "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,
        "rope_scaling": rope.write(c.rope_scaling) or None,
        "tie_word_embeddings": c.tie_embeddings,
        "bos_token_id": None,
        "eos_token_id": None,
        "torch_dtype": dtype,
    }
    family = FAMILIES[name]
    if any(c.layer_windows):
        content["sliding_window"] = max(c.layer_windows)
        content |= {"use_sliding_window": True} if family.window_switch else {}
    if family.windows == "some" and (any(c.layer_windows) or family.pattern):
        windows = c.layer_windows or (0,) * c.num_layers
        content["layer_types"] = ["sliding_attention" if window else "full_attention" for window in windows]
    if family.local_theta:
        content["rope_local_base_freq"] = c.rope_local_theta or c.rope_theta
    content |= {theirs: getattr(c, ours) or None for ours, (theirs, _) in family.numbers.items()}
    content |= {name: c.activation for name in ("hidden_activation",) if name in family.only}
    content |= {theirs: getattr(c, ours) for ours, (theirs, _) in family.flags.items()}
    content |= {theirs: getattr(c, ours) for ours, theirs in family.sizes.items()}
    if family.rope_interval:
        content["pad_token_id"] = None  # transformers' own is beyond small vocabularies
        content["no_rope_layers"] = [int(layer not in c.no_rope_layers) for layer in range(c.num_layers)]
    if "query_scalar" in family.numbers:
        content["query_pre_attn_scalar"] = int(c.query_scalar) or c.head_dim
    return content


def _write_json(path: pathlib.Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_folder(
    folder: pathlib.Path,
    flat: dict[Path, jax.Array],
    files: dict[str, list[_Tensor]],
    dtype: str,
    lora_scale: float,
    write_rest: Callable[[pathlib.Path], None],
) -> None:
    """Write the tensors, adapters merged by ``lora_scale``, and what ``write_rest(temporary folder)`` adds.

    The first process writes; if it fails, it is raised on all.
    """
    _item_size(dtype)
    arrays = (_fetch(flat, tensor, dtype, lora_scale) for tensors in files.values() for tensor in tensors)
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
    shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@functools.partial(jax.jit, static_argnames=("transposed", "dtype", "lora_scale"))
def _take(leaf, adapters, index, transposed: bool, dtype: str, lora_scale: float) -> jax.Array:
    pick = lambda x: functools.reduce(lambda x, i: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), index, x)
    array = pick(leaf)
    if adapters:
        lora_a, lora_b = map(pick, adapters)
        array = merge(array, lora_a, lora_b, lora_scale)
    return (array.T if transposed else array).astype(dtype)


def _fetch(flat: dict[Path, jax.Array], tensor: _Tensor, dtype: str, lora_scale: float) -> np.ndarray:
    """Return a tensor on the host, as it is stored."""
    path = tensor.path
    beside = [(*path[:-1], name) for name in ADAPTERS] if path[-1] == "kernel" else []
    adapters = tuple(flat[name] for name in beside if name in flat)
    how = is_transposed(path), dtype, lora_scale
    array = _take(flat[path], adapters, tuple(map(np.int32, tensor.index)), *how)
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
