"""Where rows come from: files and folders, data sets of the Hugging Face hub and of TFDS, functions in Python.

A source is one word of ``domain.tasks``. Its part after "@" says which config and split of a folder or data set is meant, as
"org/name@main/train"; without it, a source of several splits stands for the one that its setting is about. The client of the
hub and tensorflow-datasets are imported where they are used.
"""

import contextlib
import dataclasses
import difflib
import fnmatch
import functools
import inspect
import itertools
import logging
import pathlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from exit_jax import plugins
from exit_jax.domains import files
from exit_jax.domains.text.settings import SPAN
from exit_jax.errors import DomainError

log = logging.getLogger(__name__)

SETTINGS = {"train": "domain.tasks", "validation": "domain.validation_tasks", "test": "domain.test_tasks"}
SUFFIXES = (*files.SUFFIXES, ".arrow")  # the last is what datasets' save_to_disk writes
# the names that the hub's own library takes for each split, in files and folders
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_NO_ROWS = ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_SHARD = re.compile(r"data/(.+)-\d{5}-of-\d{5}")  # as the hub's library writes them
_KEYWORDS = {split: re.compile(rf"(?:^|[-._ 0-9])(?:{'|'.join(n)})(?=[-._ 0-9]|$)") for split, n in SPLIT_NAMES.items()}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclasses.dataclass(frozen=True)
class Source:
    """Rows, by a word of the config."""

    word: str
    names: tuple[str, ...]  # what it may be called, the shortest first; the last one is the word
    rows: Callable[[], Iterator[tuple[str, Any]]]  # (place, row): mappings, or whatever else stands where one should be
    files: Mapping[str, pathlib.Path]  # what the rows are read from


def near(name: str, names: Iterable[Any]) -> str:
    """Return "; did you mean ...?" for a name that is none of ``names``, "" if none comes near."""
    found = difflib.get_close_matches(name, [other for other in names if isinstance(other, str)], n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def split_meant(name: str) -> str:
    """Return "train", "validation" or "test" for one of their usual names, else the name.

    >>> split_meant("Dev"), split_meant("train_sft")
    ('validation', 'train_sft')
    """
    return next((split for split, names in SPLIT_NAMES.items() if name.strip().lower() in names), name)


def find(word: str, split: str) -> Source:
    """Return the source that a word of the setting of a split means; it has not been read yet.

    Raises:
      DomainError: if there is none.
      PluginError: if the module of a function cannot be imported.
    """
    try:
        return _find(word, split)
    except (DomainError, OSError, RuntimeError) as error:  # the last of a path with an unknown user
        raise DomainError(f"{SETTINGS[split]} = {word!r}: {error}") from error


def _find(word: str, split: str) -> Source:
    if word.startswith("tfds:"):
        return _of_tfds(word, split)
    base, _, selection = word.partition("#")[0].partition("@")
    for name, selected in ((word, ""), (base, selection)):
        path = pathlib.Path(name).expanduser()
        if name and path.exists():
            return _of_folder(word, name, selected, split) if path.is_dir() else _of_file(word, path, selected)
    if "://" in word:
        raise DomainError("an address is no source; download it, and name the file")
    if ":" in word:
        return _of_function(word, split)
    path = pathlib.Path(base).expanduser()
    if _HUB_ID.fullmatch(base) and path.suffix not in SUFFIXES and not word.startswith(("/", ".", "~")):
        return _of_hub(word, base, selection, word.partition("#")[2], split)
    beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    raise DomainError(
        f"there is no file or folder {path.absolute()}{near(path.name, beside) or ';'} give a file "
        f"({', '.join(SUFFIXES)}), a folder of them, a hub id (org/name), tfds:name, file.py:function or module:function"
    )


# Files


def _of_file(word: str, path: pathlib.Path, selection: str) -> Source:
    """Return the source of one file."""
    if path.suffix not in SUFFIXES:
        raise DomainError(f"a file of rows ends in {', '.join(SUFFIXES)}, not in {path.suffix!r}; convert it")
    if selection:
        raise DomainError(f"{path} is a file, which has no {selection!r}; leave that out")
    return Source(word, _names(word, path.with_suffix("").parts), functools.partial(_read, {word: path}), {word: path})


def _of_folder(word: str, folder: str, selection: str, split: str) -> Source:
    """Return the source of the files in a folder that its selection means."""
    root = pathlib.Path(folder).expanduser()
    names = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    card = root / "README.md"
    chosen = choose(names, _configs(card) if card.is_file() else {}, selection, split, word)
    found = {f"{folder.rstrip('/')}/{name}": root / name for name in chosen}
    return Source(word, _names(word, root.parts), functools.partial(_read, found), found)


def _of_hub(word: str, repo: str, selection: str, revision: str, split: str) -> Source:
    """Return the source of a data set on the hub, as it is there, or in the hub's cache where it cannot be reached."""
    import huggingface_hub

    try:
        info = huggingface_hub.HfApi().dataset_info(repo, revision=revision or None)
        commit, names = info.sha or revision, [item.rfilename for item in info.siblings or ()]
    except Exception as error:  # those of its HTTP client have no other base
        try:
            cached = huggingface_hub.snapshot_download(
                repo, repo_type="dataset", revision=revision or None, local_files_only=True
            )
        except Exception:
            raise DomainError(
                f"there is no file or folder {repo} here, and the Hugging Face hub and its cache do not give the data set "
                f"({type(error).__name__}: {files.cause_of(error)}); mend the name, log in if it is a gated one, or run "
                f"`hf download --repo-type dataset {repo}` where there is a network, copy the cache, and set HF_HOME to it"
            ) from error
        root = pathlib.Path(cached)
        commit, names = root.name, [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    try:
        configs = _configs(files.download(repo, "README.md", commit)) if "README.md" in names else {}
        chosen = choose(names, configs, selection, split, word)
        found = {f"{repo}/{name}": files.download(repo, name, commit) for name in chosen}
    except LookupError as error:
        raise DomainError(f"a file of it cannot be had from the Hugging Face hub or its cache ({error})") from error
    return Source(word, _names(word, repo.split("/")), functools.partial(_read, found), found)


def _read(found: Mapping[str, pathlib.Path]) -> Iterator[tuple[str, Any]]:
    for name, path in found.items():
        for place, row in files.read_rows(path):
            yield f"{name}:{place}", row


def _configs(card: pathlib.Path) -> dict[str, Any]:
    """Return the configs that a data set's card declares: name -> split -> patterns of paths; the default one is "", too."""
    from huggingface_hub.repocard import metadata_load

    declared: Any = None
    with contextlib.suppress(Exception):  # a card that is no YAML declares nothing
        declared = (metadata_load(card) or {}).get("configs")
    found = {}
    for config in filter(lambda item: isinstance(item, Mapping), declared if isinstance(declared, list) else ()):
        patterns = config.get("data_files")
        listed = patterns if isinstance(patterns, list) else [patterns]
        if isinstance(patterns, Mapping):
            by_split = dict(patterns)
        elif all(isinstance(item, Mapping) for item in listed):
            by_split = {str(item.get("split", "train")): item.get("path") for item in listed}
        else:
            by_split = {"train": patterns} if patterns else {}
        name = str(config.get("config_name", "default"))
        if by_split := {s: paths if isinstance(paths, list) else [paths] for s, paths in by_split.items() if paths}:
            found[name] = by_split
            if config.get("default") or name == "default":
                found[""] = by_split
    return {"": next(iter(found.values()))} | found if len(found) == 1 else found


def choose(names: Iterable[str], configs: Mapping[str, Any], selection: str, split: str, word: str) -> list[str]:
    """Return which files of a folder or data set are meant, in order.

    Args:
      names: paths in it.
      configs: what its card declares, see ``_configs``.
      selection: "config/split", one of them, or "".
      split: that of the setting, for a selection that names none.
      word: for messages.

    Raises:
      DomainError: if there are none, or it does not say which of several.
    """
    paths = [pathlib.PurePosixPath(name) for name in sorted(names)]
    paths = [path for path in paths if path.suffix in SUFFIXES and path.name not in _NO_ROWS]
    paths = [path for path in paths if not any(part.startswith((".", "_")) for part in path.parts)]
    if not paths:
        raise DomainError(
            f"it holds no file of rows that ends in {', '.join(SUFFIXES)}; convert it, or for a data set of the hub try the "
            "hub's own conversion, as org/name@config/split#refs/convert/parquet"
        )
    config, slash, named = selection.partition("/")
    folders = {part for path in paths for part in path.parent.parts} - {n for ns in SPLIT_NAMES.values() for n in ns}
    if not slash and config not in (configs or folders):
        config, named = "", config
    if configs:
        if config not in configs:
            declared = sorted(filter(None, configs))
            remedy = near(config, declared) or f"; name one, as {word.partition('@')[0]}@{declared[0]}"
            raise DomainError(f"it has no config {config or 'by default'!r}, but {', '.join(declared)}{remedy}")
        groups = {s: [path for path in paths if _matches(path, patterns)] for s, patterns in configs[config].items()}
    else:
        if config and config not in folders:
            raise DomainError(f"it has no folder {config!r}{near(config, folders)}")
        groups = {}
        for path in paths:
            if not config or config in path.parent.parts:
                groups.setdefault(named if _bears(path, named) else _split_of(path), []).append(path)
    chosen = _pick({name: group for name, group in groups.items() if group}, named, split, word)
    return [path.as_posix() for path in chosen]


def _matches(path: pathlib.PurePosixPath, patterns: Collection[str]) -> bool:
    """Say whether a path matches a pattern, in which only "**" stands for folders."""
    text = path.as_posix()
    return any(
        fnmatch.fnmatchcase(text, pattern) and ("**" in pattern or pattern.count("/") == text.count("/"))
        for pattern in patterns
    )


def _bears(path: pathlib.PurePosixPath, split: str) -> bool:
    """Say whether a path bears a split's name as it stands, in a folder or as the file's."""
    shard = _SHARD.match(path.as_posix())
    return split in (*path.parent.parts, path.stem, shard[1] if shard else None)


def _split_of(path: pathlib.PurePosixPath) -> str:
    """Return the split that a path's name says, by the rules of the hub's library, or ""."""
    if shard := _SHARD.match(path.as_posix()):
        return split_meant(shard[1])
    for part in (*path.parent.parts, path.name):
        for split, keywords in _KEYWORDS.items():
            if keywords.search(part):
                return split
    return ""


def _pick(groups: Mapping[str, Any], named: str, split: str, word: str) -> Any:
    """Return the group of the split that is named, or else the only one, or that of the setting.

    Raises:
      DomainError: if there is none.
    """
    meant = {split_meant(name): name for name in groups}
    if named:
        key = named if named in groups else meant.get(split_meant(named))
    elif len(groups) == 1:
        key = next(iter(groups))
    else:
        key = meant.get(split, "" if split == "train" and "" in groups else None)
    if key is None:
        has = ", ".join(repr(name) for name in sorted(groups) if name) or "none"
        remedy = near(named, groups) or f"; name one, as {word.partition('@')[0]}@{next(filter(None, groups), 'train')}"
        raise DomainError(f"it has no split {named or split!r}, but {has}{remedy}")
    if key and "" in groups:
        log.warning("%s: files whose names say no split are left out, among them %s", word, groups[""][0])
    return groups[key]


def _names(word: str, parts: Sequence[str]) -> tuple[str, ...]:
    """Return what a source may be called: its last part, the last two and so on, with what is selected of it, its word."""
    plain = ["/".join(parts[start:]) for start in range(len(parts) - 1, -1, -1)]
    selection = word.partition("#")[0].partition("@")[2]
    return (*plain, *(f"{name}@{selection}" for name in plain[:1] if selection), word)


# Others


def _of_tfds(word: str, split: str) -> Source:
    """Return the source of a data set of TFDS, prepared if need be; a folder may hold a prepared one."""
    import tensorflow_datasets as tfds

    name, _, named = word.removeprefix("tfds:").partition("@")
    folder = pathlib.Path(name).expanduser()
    try:
        if folder.is_dir():
            builder: Any = tfds.builder_from_directory(str(folder))
        else:
            builder = tfds.builder(name, file_format="array_record")
            builder.download_and_prepare()
        groups = {key: key for key in builder.info.splits}
        chosen = _pick(groups, named, split, word)
        data = builder.as_data_source(chosen)
    except DomainError:
        raise
    except Exception as error:  # builders raise anything
        raise DomainError(
            f"TFDS cannot give it ({type(error).__name__}: {files.cause_of(error)}); mend the name, or prepare it as "
            "array_record"
        ) from error
    rows = lambda: ((f"tfds:{name}@{chosen}:{place}", row) for place, row in enumerate(data, 1))
    return Source(word, (builder.name, word), rows, {word: pathlib.Path(builder.data_dir)})


def _of_function(word: str, split: str) -> Source:
    """Return the source of a function of a user's own; a parameter ``split`` is told which one is asked for."""
    module, name = plugins.load(SETTINGS[split], word)
    function = getattr(module, name, None)
    if not callable(function):
        own = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise DomainError(
            f"{module.__file__} has no function {name!r}, but {', '.join(own) or 'none'}{near(name, own)}"
        )
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of a builtin
        parameters = ()
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in variadic and p.name != "split"]
    if needed:
        raise DomainError(f"it is called with nothing, or with split=, but needs {', '.join(needed)}; give defaults")
    given = {"split": split} if any(p.name == "split" for p in parameters) else {}

    def rows() -> Iterator[tuple[str, Any]]:
        try:
            made = function(**given)
            made = _pick(made, "", split, word) if isinstance(made, Mapping) else made
            if isinstance(made, (str, bytes)) or not isinstance(made, Iterable):
                raise DomainError(f"it returns {made!r:.60}; it should return or yield rows, mappings with a prompt")
            for place, row in enumerate(itertools.islice(made, SPAN + 1), 1):
                yield f"{word}:{place}", row
        except DomainError:
            raise
        except (Exception, SystemExit) as error:  # a user's function may raise anything
            raise DomainError(plugins.what_it_raised(error)) from error

    path = {word: pathlib.Path(module.__file__)} if module.__file__ else {}
    return Source(word, (name, word), rows, path)


def name_all(found: Sequence[Source]) -> list[str]:
    """Return the shortest names that tell sources apart."""
    others = [{name for other in found if other is not source for name in other.names} for source in found]
    return [
        next((name for name in source.names if name not in taken), source.word)
        for source, taken in zip(found, others, strict=True)
    ]
