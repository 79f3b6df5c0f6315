"""Rows of the sources of a config: read, cleaned, split, kept apart, weighted.

Which rows are held out is decided by a hash of ``split_seed`` and their content, never by their place: the order of rows,
files and sources does not matter, and a row that is added takes the place of one at most.
"""

import collections
import dataclasses
import hashlib
import itertools
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from exit_jax.domains.files import Undecodable
from exit_jax.domains.task import sources
from exit_jax.domains.task.left_out import entry
from exit_jax.domains.task.settings import RowsConfig
from exit_jax.domains.task.sources import Source, near
from exit_jax.domains.text.settings import SPAN
from exit_jax.errors import DomainError, UserError

_NO_JSON = (TypeError, ValueError, OverflowError, RecursionError)  # what json raises


@dataclasses.dataclass(frozen=True)
class Row:
    """A task."""

    prompt: str  # text of the last user message; without a prompt column what tells the row from others, as JSON
    messages: tuple[tuple[str, str], ...]  # (role, content) before it: system and few-shot turns
    columns: Mapping[str, Any]  # all other columns, JSON values
    source: str  # name of the source: what results are broken down by
    place: str  # "file.jsonl:17", for messages
    conversational: bool  # the prompt was a list of messages: rewards get completions as messages, as TRL's do


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of a config."""

    splits: Mapping[str, tuple[Row, ...]]  # "train", "test", and "validation" where there is one
    left_out: list[dict[str, str]]  # place, reason, start; of a duplicate or a leak the place of its "twin", too
    report: Mapping[str, int]  # rows left out, by reason
    files: Mapping[str, pathlib.Path]  # what was read

    def account(self) -> str:
        """Return how many rows there are and how many were left out, for people."""
        lines = []
        for split, rows in self.splits.items():
            counts = collections.Counter(row.source for row in rows)
            each = ", ".join(f"{name} {count:,}" for name, count in counts.items())
            lines.append(f"{split}: {len(rows):,} rows" + (f" ({each})" if len(counts) > 1 else ""))
        if self.left_out:
            reasons = "; ".join(f"{count:,} {reason}" for reason, count in self.report.items())
            lines.append(f"left out: {len(self.left_out):,} rows ({reasons})")
        return "\n".join(lines)


@dataclasses.dataclass(slots=True)
class _Item:
    """A row on its way to a split."""

    row: Row
    order: int  # among all rows that were read
    exact: (
        bytes  # digest of what makes it a duplicate: its messages and prompt, but for white space, and its key columns
    )
    task: bytes  # digest of what makes it a leak: its prompt, but for white space and case, and its key columns


# One row


def clean(place: str, value: Any, config: RowsConfig, source: str) -> Row | str:
    """Return the row that a value says, or why it is left out."""
    if not isinstance(value, Mapping):
        return value.reason if isinstance(value, Undecodable) else "not an object"
    try:
        columns = _as_json(dict(value))
    except _NO_JSON:
        return next(filter(None, (_fault_of(name, item) for name, item in value.items())), "no JSON object")
    if not config.prompt_column:  # the row itself is the task, told from others by its key columns, or all of them
        told = {name: columns.get(name) for name in config.key_columns} or columns
        return Row(json.dumps(told, sort_keys=True, ensure_ascii=False), (), columns, source, place, False)
    prompt = columns.pop(config.prompt_column, None)
    if prompt is None:
        return "no prompt"
    if isinstance(prompt, str):
        return Row(prompt, (), columns, source, place, False) if prompt.strip() else "empty prompt"
    messages = _messages(prompt)
    if isinstance(messages, str):
        return messages
    *before, (_, last) = messages
    return Row(last, tuple(before), columns, source, place, True)


def _messages(prompt: Any) -> list[tuple[str, str]] | str:
    """Return the (role, content) of a chat, or what is wrong with it."""
    if not isinstance(prompt, list):
        return "prompt: neither text nor messages"
    if not all(isinstance(m, dict) and isinstance(m.get("role"), str) and "content" in m for m in prompt):
        return "prompt: a message without role or content"
    if not all(isinstance(m["content"], str) for m in prompt):
        return "prompt: the content of a message is no text"
    turns = [m["role"] for m in prompt]
    turns = turns[1:] if turns[:1] == ["system"] else turns
    if not turns:
        return "empty prompt"
    if turns != [("user", "assistant")[i % 2] for i in range(len(turns))] or turns[-1] != "user":
        return "prompt: roles other than system at first, if at all, then user and assistant in turn, and user at last"
    return [(m["role"], m["content"]) for m in prompt] if prompt[-1]["content"].strip() else "empty prompt"


def _as_json(value: Any) -> Any:
    """Return a copy in JSON values.

    Raises:
      _NO_JSON: if there is none.
    """
    text = json.dumps(value, ensure_ascii=False, default=_plain)
    text.encode()  # half of a surrogate pair cannot be written
    return json.loads(text)


def _plain(value: Any) -> Any:
    """Return a JSON value for one that NumPy, pyarrow or TFDS gives."""
    if isinstance(value, bytes):
        return value.decode()
    for name in ("tolist", "isoformat", "as_integer_ratio"):  # arrays and their scalars; dates; decimals and fractions
        if hasattr(value, name):
            return float(value) if name == "as_integer_ratio" else getattr(value, name)()
    raise TypeError(f"{type(value).__name__} is no JSON value")


def _fault_of(name: Any, item: Any) -> str:
    """Return what keeps a column from being a JSON value, "" if nothing does."""
    try:
        _as_json(item)
    except UnicodeEncodeError:
        return f"column {name!r}: half of a surrogate pair, which is no text"
    except _NO_JSON:
        return f"column {name!r}: no JSON value"
    return ""


def _digests(row: Row, key_columns: Sequence[str]) -> tuple[bytes, bytes]:
    """Return what rows are compared by, see ``_Item``."""
    key = json.dumps([row.columns.get(name) for name in key_columns], sort_keys=True) if key_columns else ""
    told = [part for message in row.messages for part in message]
    prompt = " ".join(row.prompt.split())
    return _digest(*(" ".join(part.split()) for part in told), prompt, key), _digest(prompt.casefold(), key)


def _digest(*parts: str) -> bytes:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).digest()


def _start(value: Any, config: RowsConfig) -> str:
    """Return something to recognise a malformed row by."""
    prompt = value.get(config.prompt_column) if isinstance(value, Mapping) else None
    return str(value if prompt is None else prompt)


# All rows


class _Reader:
    """The rows of all sources, what becomes of them, and what is wrong with the config."""

    def __init__(self, config: RowsConfig):
        self.config = config
        self.faults: list[str] = []
        self.files: dict[str, pathlib.Path] = {}
        self.left_out: dict[int, dict[str, str]] = {}  # by order
        self.splits: dict[str, list[_Item]] = collections.defaultdict(list)
        self.names: list[str] = []  # of the sources read last, those of train
        self._order = 0

    def read(self, split: str, words: Sequence[str]) -> None:
        """Read the sources of a split."""
        found: list[Source] = []
        for word in words:
            try:
                found.append(sources.find(word, split))
            except UserError as error:
                self.faults.append(str(error))
        self.names = sources.name_all(found)
        for source, name in zip(found, self.names, strict=True):
            self.files |= source.files
            try:
                self._read_source(source, name, split)
            except UserError as error:
                self.faults.append(f"{sources.SETTINGS[split]} = {source.word!r}: {error}")

    def _read_source(self, source: Source, name: str, split: str) -> None:
        config, columns, said = self.config, {}, {}
        reasons: collections.Counter[str] = collections.Counter()
        before, by_column = self._order, config.split_column if split == "train" else ""
        for place, value in source.rows():
            self._order += 1
            if isinstance(value, Mapping):
                columns.update(dict.fromkeys(value))
            row, into = clean(place, value, config, name), split
            if by_column and isinstance(row, Row):
                label = row.columns.get(by_column)
                into = sources.split_meant(label) if isinstance(label, str) else ""
                if into and into not in sources.SETTINGS:
                    said.setdefault(label, place)
                row = row if into else "no split"
            if isinstance(row, str):
                reasons[row] += 1
                self.leave_out(self._order, place, row, _start(value, config))
            elif into in sources.SETTINGS:
                self.splits[into].append(_Item(row, self._order, *_digests(row, config.key_columns)))
        here = f"{sources.SETTINGS[split]} = {source.word!r}"
        wanted = {"prompt_column": config.prompt_column, "split_column": by_column}
        missing = [(key, column) for key, column in wanted.items() if column and column not in columns]
        missing += [("key_columns", column) for column in config.key_columns if column not in columns]
        for key, column in missing if columns else ():
            has = f"{', '.join(map(str, itertools.islice(columns, 20)))}{near(column, columns)}"
            self.faults.append(f"{here}: no row has the column domain.{key} = {column!r}; there are {has}")
        if said:
            label = next(iter(said))
            self.faults.append(
                f"{here}: the column domain.split_column = {by_column!r} says {label!r} at {said[label]}"
                + (f", and {len(said) - 1:,} other words" if len(said) > 1 else "")
                + f"; it should say one of {', '.join(sources.SETTINGS)}{near(label, sources.SETTINGS)}"
            )
        usable = self._order - before - reasons.total()
        if not usable and not (missing and columns):
            why = "; ".join(f"{count} times {reason}" for reason, count in reasons.items())
            self.faults.append(f"{here}: it has no usable row ({why or 'it is empty'}); mend it or leave it out")

    def leave_out(self, order: int, place: str, reason: str, start: str, twin: str = "") -> None:
        """Enter a row that is not used, and why."""
        self.left_out[order] = entry(place, reason, start, twin)

    def drop_duplicates(self) -> None:
        """Leave out the rows that repeat an earlier one of their split."""
        for split, items in self.splits.items():
            first: dict[bytes, _Item] = {}
            for item in items:
                if (twin := first.setdefault(item.exact, item)) is not item:
                    self.leave_out(item.order, item.row.place, "duplicate", item.row.prompt, twin.row.place)
            self.splits[split] = list(first.values())

    def drop_leaks(self, split: str, tested: Iterable[str]) -> None:
        """Leave out the rows of a split whose prompts are tested on."""
        for other in tested:
            held = {item.task: item for item in self.splits.get(other, ())}
            kept = []
            for item in self.splits.get(split, ()):
                if twin := held.get(item.task):
                    reason = f"in {split} and in {other}"
                    self.leave_out(item.order, item.row.place, reason, item.row.prompt, twin.row.place)
                else:
                    kept.append(item)
            if split in self.splits:
                self.splits[split] = kept

    def hold_out(self, split: str) -> None:
        """Move rows of train to a split that has none: those of the lowest rank."""
        count, train = getattr(self.config, f"num_{split}"), self.splits["train"]
        if self.splits.get(split) or not count:
            return
        if count >= len(train) and train:
            self.faults.append(
                f"domain.num_{split} = {count} leaves nothing to train on of the {len(train)} rows; lower it, or name "
                f"{sources.SETTINGS[split]}"
            )
            return
        ranked = self.ranked(train, split)
        held = {item.order for item in ranked[:count]}
        self.splits[split] = [item for item in train if item.order in held]
        self.splits["train"] = [item for item in train if item.order not in held]
        self.drop_leaks("train", [split])  # same task, but another case or other turns before it

    def ranked(self, items: Iterable[_Item], purpose: str) -> list[_Item]:
        """Return items in an order that depends on the seed, the purpose and the content of each."""
        salt = f"{self.config.split_seed} {purpose}".encode()
        return sorted(items, key=lambda i: (hashlib.blake2b(salt + i.task, digest_size=8).digest(), i.exact, i.order))

    def weigh(self) -> None:
        """Repeat or leave out rows of train, so that each source has its share, within one row, of as many as there are."""
        train, weights = self.splits["train"], self.config.weights
        by_source = {name: [item for item in train if item.row.source == name] for name in self.names}
        counts = shares(weights, len(train))
        self.splits["train"] = []
        for weight, count, (name, items) in zip(weights, counts, by_source.items(), strict=True):
            if not (items and count):
                self.faults.append(
                    f"domain.weights = {weights}: {weight} for {name} cannot be had, since {len(items)} of its rows are left "
                    f"to train on, and it would take {count} of {len(train)}; raise it, or leave the source out"
                )
                continue
            whole, part = divmod(count, len(items))
            more = {item.order for item in self.ranked(items, "weights")[:part]}
            self.splits["train"] += [item for item in items for _ in range(whole + (item.order in more))]


def shares(weights: Sequence[float], total: int) -> list[int]:
    """Return whole numbers in proportion to weights, each within 1 of its share, that sum to the total.

    >>> shares((1.0, 2.0, 4.0), 10)
    [1, 3, 6]
    """
    exact = [weight / sum(weights) * total for weight in weights]
    counts = [int(share) for share in exact]
    for i in sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])[: total - sum(counts)]:
        counts[i] += 1
    return counts


def load(config: RowsConfig) -> Rows:
    """Return the rows of a config; the same files and settings give the same rows in the same order.

    Raises:
      DomainError: listing all that is wrong with sources and splits.
    """
    reader = _Reader(config)
    reader.read("test", config.test_tasks)
    reader.read("validation", config.validation_tasks)
    reader.read("train", config.tasks)
    _raise(reader.faults)
    reader.drop_duplicates()
    reader.drop_leaks("validation", ["test"])
    reader.drop_leaks("train", ["test", "validation"])
    if config.split_column:
        _check_column(config, reader)
    else:
        reader.hold_out("test")
    reader.hold_out("validation")
    if config.weights and not reader.faults:
        reader.weigh()
    left_out = [reader.left_out[order] for order in sorted(reader.left_out)]
    report = dict(collections.Counter(each["reason"] for each in left_out))
    for split in ("train", "validation", "test") if not reader.faults else ():
        found, expected = len(reader.splits[split]), split != "validation" or config.validation_tasks
        if expected and not found:
            why = "; ".join(f"{count:,} {reason}" for reason, count in report.items())
            reader.faults.append(f"the split {split} has no row; left out: {why or 'none'}; give it others")
        if found > SPAN:
            reader.faults.append(f"the split {split} has {found:,} rows, above {SPAN:,}; leave some out")
    _raise(reader.faults)
    order = [split for split in ("train", "validation", "test") if reader.splits[split]]
    rows = {split: tuple(item.row for item in reader.splits[split]) for split in order}
    return Rows(rows, left_out, report, reader.files)


def _check_column(config: RowsConfig, reader: _Reader) -> None:
    """Note what ``split_column`` and the rest of the config say against each other."""
    here = f"the column domain.split_column = {config.split_column!r}"
    if not reader.splits["test"]:
        reader.faults.append(
            f"{here} says test in no row that is usable; name domain.test_tasks in its place, or set it to "
            '"" and domain.num_test'
        )
    if reader.splits["validation"] and config.num_validation:
        reader.faults.append(
            f"{here} says validation in {len(reader.splits['validation'])} rows, and domain.num_validation = "
            f"{config.num_validation} would hold out others; set it to 0"
        )


def _raise(faults: Sequence[str]) -> None:
    if faults:
        listed = "\n".join(f"  - {fault}" for fault in faults)
        raise DomainError(faults[0] if len(faults) == 1 else f"{len(faults)} faults of the tasks:\n{listed}")
