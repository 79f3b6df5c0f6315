"""One fingerprint of what a run reads from outside: checkpoints, tokenizers, encoders, data and domains, by their content.

A folder's content may change under its name, and so may the ``main`` of a hub id; a run that goes on would silently be another.
Small files are read whole. Of large ones, the size, the header and samples of each tensor are: 70B parameters take a second or
two, and a fine-tuned checkpoint differs in all of its tensors.
"""

import contextlib
import hashlib
import json
import pathlib
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from exit_jax import domains
from exit_jax.config.schema import Config
from exit_jax.errors import ConfigError
from exit_jax.parallel import hosts
from exit_jax.policy.hf.config import resolve
from exit_jax.workdir.identity import digest, write_json

FILE = "inputs.json"
# commits of hub ids, to be named in the remedy; they are not compared, since a README may move them
COMMITS = "commits"
WHOLE = 1 << 26  # bytes of a file that is read whole
BLOCK, NUM_BLOCKS = 1 << 14, 4  # bytes of a sample, and samples of a tensor, or of a file that has none
# files of a folder of data whose content is looked at, evenly chosen, up to twice as many; of all of them, name and size are
MAX_FILES = 1000
TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.*", "merges.txt")
TOKENIZER += ("added_tokens.json", "special_tokens_map.json")
TEMPLATE = ("chat_template.jinja", "chat_template.json", "additional_chat_templates/*")
ENCODER = ("*.safetensors", "*.json", "*.txt", "*.model", "*/config.json")
PROVENANCE = ("_name_or_path", "_from_model_config", "transformers_version")  # keys of JSON that change nothing


def find(config: Config, of_run: bool = True) -> dict[str, Any]:
    """Return what the inputs are: name, as people know it -> hash; and the commits of hub ids.

    What is absent has no entry, such as weights that were deleted once all parameters are in the run's own checkpoints.

    Args:
      of_run: whether of a whole run; else of its warm start, which knows no encoder and no sampling.

    Raises:
      CheckpointError: if a checkpoint cannot be found.
    """
    checkpoint, encoder = config.checkpoint, config.encoder.checkpoint
    tokenizer = getattr(config.domain, "tokenizer", "")
    folders = {name: resolve(name) for name in (checkpoint, tokenizer, encoder) if name}
    found: dict[str, str] = {}
    if code := domains.source(config.domain_name):
        found[f"the code of the domain {domains.identity(config.domain_name)}"] = _hash_file(code)
    if checkpoint:
        base = ", the base of the adapters" if config.policy.lora.rank else ""
        weights = ("*.safetensors", "*.safetensors.index.json")
        found[f"the weights of {checkpoint}{base}"] = _hash_files(folders[checkpoint], weights)
        found[f"config.json of {checkpoint}"] = digest(_read_json(folders[checkpoint] / "config.json"))
    if tokenizer:
        found |= _tokenizer(folders[tokenizer], tokenizer)
    if checkpoint and of_run:
        sampling = _read_json(folders[checkpoint] / "generation_config.json")
        found[f"generation_config.json of {checkpoint}"] = digest(sampling)
    if encoder and of_run:
        found[f"the encoder {encoder}"] = _hash_files(folders[encoder], ENCODER)
    at_hub = {name: folder for name, folder in folders.items() if folder != pathlib.Path(name).expanduser()}
    commits = {name: folder.name for name, folder in at_hub.items()}
    return {name: value for name, value in found.items() if value} | ({COMMITS: commits} if commits else {})


def find_data(config: Config) -> dict[str, str]:
    """Return the same of what the domain reads besides its tasks; it is built for that, which needs a sound tokenizer."""
    domain = domains.make(config.domain_name, config.domain)
    found = {name: _hash_data(path) for name, path in domain.files().items()} if domain.files else {}
    return {name: value for name, value in found.items() if value}


def check(config: Config, folder: pathlib.Path, begun: bool, kept_apart: str, of_run: bool = True) -> None:
    """Check that the inputs are those of a folder's ``inputs.json``, which is made where it does not name them.

    Args:
      begun: whether the folder holds anything yet that was made from them.
      kept_apart: how another folder is chosen, for the remedy.
      of_run: as of ``find``.

    Raises:
      ConfigError: naming what has changed; on all processes, if it has for one.
    """
    file = folder / FILE
    held = _read(file) if begun else {}
    found = find(config, of_run)
    _require_same(folder, found, held, kept_apart)
    if of_run:
        found |= find_data(config)
        _require_same(folder, found, held, kept_apart)
    if hosts.is_lead() and not found.keys() <= held.keys():
        # another's warm start may be only to be read
        with contextlib.suppress(OSError) if begun else contextlib.nullcontext():
            folder.mkdir(parents=True, exist_ok=True)
            write_json(file, found | held)


def _require_same(folder: pathlib.Path, found: dict[str, Any], held: dict[str, Any], kept_apart: str) -> None:
    """Raise ConfigError on all processes if an input that ``held`` names is another one now."""
    changed = [name for name in found if name != COMMITS and held.get(name, found[name]) != found[name]]
    if hosts.agree(bool(changed)):
        commits = held.get(COMMITS, {})
        moved = [f"{name}@{commits[name]}" for name in commits if found.get(COMMITS, {}).get(name) != commits[name]]
        restore = f"name the commit that it began with, {', '.join(moved)}" if moved else "restore what was there"
        raise ConfigError(
            f"{folder} was begun with other inputs; changed since: {', '.join(changed) or 'what another process reads'}. "
            f"{restore[0].upper()}{restore[1:]}, or choose another {kept_apart}"
        )


def _read(file: pathlib.Path) -> dict[str, Any]:
    try:
        held = json.loads(file.read_text())
    except FileNotFoundError:  # a run of before this file existed
        return {}
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is damaged ({error}); delete it, and it is made anew from today's inputs") from error
    return held if isinstance(held, dict) else {}


def _tokenizer(folder: pathlib.Path, name: str) -> dict[str, str]:
    """Return the tokenizer, its template, and what its folder says of the tokens that end a response."""
    settings = _read_json(folder / "tokenizer_config.json")
    template = settings.pop("chat_template", None)
    ends = [_read_json(folder / file).get("eos_token_id") for file in ("generation_config.json", "config.json")]
    files = _hash_files(folder, TOKENIZER)
    return {
        f"the tokenizer {name}": digest([files, settings]) if files or settings else "",
        f"the chat template of {name}": digest([template, _hash_files(folder, TEMPLATE)]),
        f"the end tokens (eos_token_id) of {name}": digest(ends),
    }


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    """Return the object in a file but for its provenance; {} where there is none, or a damaged one, which others refuse."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return (
        {name: value for name, value in content.items() if name not in PROVENANCE} if isinstance(content, dict) else {}
    )


def _hash_files(folder: pathlib.Path, patterns: tuple[str, ...]) -> str:
    """Return a hash of the files of a checkpoint that match; "" for none."""
    files = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    hashes = {}
    for path in files:
        content = _read_json(path) if path.suffix == ".json" else {}
        hashes[str(path.relative_to(folder))] = content or _hash_file(path)
    return digest(hashes) if files else ""


def _hash_data(path: pathlib.Path) -> str:
    """Return a hash of a file or folder of data; "" if it is absent."""
    if path.is_file():
        return _hash_file(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    looked = files[:: max(len(files) // MAX_FILES, 1)]
    sizes = [[str(file.relative_to(path)), file.stat().st_size] for file in files]
    return digest([sizes, [_hash_file(file) for file in looked]]) if files else ""


def _hash_file(path: pathlib.Path) -> str:
    """Return a hash of a file: of all of it, or of its size and of samples."""
    size = path.stat().st_size
    content = hashlib.sha256(struct.pack("<Q", size))
    with path.open("rb") as file:
        for start, stop in [(0, size)] if size <= WHOLE else _samples(file, path, size):
            file.seek(start)
            while start < stop and (block := file.read(min(stop - start, 1 << 20))):
                content.update(block)
                start += len(block)
    return content.hexdigest()[:16]


def _samples(file: Any, path: pathlib.Path, size: int) -> Iterator[tuple[int, int]]:
    """Yield the spans of a large file that are looked at: a safetensors header and blocks of each tensor, or blocks."""
    spans = [(0, size)]
    if path.suffix == ".safetensors":
        length = min(int.from_bytes(file.read(8), "little"), size - 8)
        content = file.read(length)
        yield 0, 8 + length
        try:
            header: Mapping[str, Any] = json.loads(content)
            offsets = [value["data_offsets"] for name, value in header.items() if name != "__metadata__"]
            spans = sorted((8 + length + start, 8 + length + stop) for start, stop in offsets)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass  # damaged, as its loader will say
    for start, stop in spans:
        last = max(stop - BLOCK, start)
        for i in range(NUM_BLOCKS):
            at = start + (last - start) * i // (NUM_BLOCKS - 1)
            yield at, min(at + BLOCK, stop)
