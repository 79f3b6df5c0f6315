"""Problems on disk: gathered from their sources, cleaned, kept apart from the tests, written once, read by split.

All on the host, in plain Python; tensorflow-datasets holds the result (array_record, which needs no TensorFlow). It is
imported where it is used.

A prepared ``data_dir`` holds ``report.json``, written last, and the folder that it names, with the splits and
``skipped.jsonl``. Whatever else lies there is an unfinished preparation, which ``load`` never looks at.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

from exit_jax.domains.domain import DomainError
from exit_jax.domains.files import SUFFIXES
from exit_jax.domains.math.problems import Found, Problem, find_sources, hub_id
from exit_jax.domains.math.sources import SOURCES, SPLITS, TRAIN, VALIDATION
from exit_jax.domains.math.splits import Ledger, make_splits, skipped_line

RULES = 2  # version of the rules of problems.py and splits.py: a data_dir prepared under others is prepared anew
_DATASET = "math_problems"  # TFDS makes it from the builder's name
_REPORT, _SKIPPED, _SPLITS, _PARTIAL = "report.json", "skipped.jsonl", "splits-", "partial-"


def write_splits(folder: pathlib.Path, splits: Mapping[str, list[Problem]]) -> None:
    """Write the splits as one TFDS dataset, in array_record files."""
    import numpy as np
    import tensorflow_datasets as tfds

    class MathProblems(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Competition mathematics with gold answers."""

        VERSION = tfds.core.Version(f"{RULES}.0.0")
        url_infos = None  # about downloads; TFDS 4.9.10 would look for it with a package that it does not declare

        def _info(self):
            features: dict[str, Any] = {field.name: tfds.features.Text() for field in dataclasses.fields(Problem)}
            features["num_steps"] = tfds.features.Scalar(np.int32)
            features_dict = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features_dict, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(problems) for split, problems in splits.items()}

        def _generate_examples(self, problems):
            yield from enumerate(map(dataclasses.asdict, problems))

    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(None):  # it announces a download
        MathProblems(data_dir=folder, file_format="array_record").download_and_prepare()
    shutil.rmtree(folder / "downloads")  # empty


def _dataset(folder: pathlib.Path) -> pathlib.Path:
    return folder / _DATASET / f"{RULES}.0.0"


def load(data_dir: str | pathlib.Path, split: str) -> tuple[Problem, ...]:
    """Return the prepared problems of a split.

    Raises:
      DomainError: if nothing was prepared there, or not this split.
    """
    data_dir = pathlib.Path(data_dir).expanduser()
    remedy = "prepare it with --mode data"
    report = read_report(data_dir)
    if not report:
        raise DomainError(f"{data_dir} holds no prepared mathematics problems; {remedy}")
    if split not in report["splits"]:
        why = report["left_out"].get(split, f"it is not one of {SPLITS}")
        raise DomainError(f"{data_dir} has no split {split!r} ({why}); it has {tuple(report['splits'])}; {remedy}")
    import tensorflow_datasets as tfds

    folder = _dataset(data_dir / report["folder"])
    try:
        builder: Any = tfds.builder_from_directory(os.fspath(folder))
        decode: Any = lambda value: value.decode() if isinstance(value, bytes) else int(value)
        problems = tuple(
            Problem(**{name: decode(value) for name, value in row.items()}) for row in builder.as_data_source(split)
        )
    except (OSError, ValueError, RuntimeError, LookupError) as error:
        raise DomainError(f"{folder} is damaged ({error}); delete {data_dir / _REPORT} and {remedy}") from error
    if len(problems) != report["splits"][split]:
        raise DomainError(
            f"{folder} holds {len(problems)} problems of {split}, not {report['splits'][split]} as its report says; "
            f"delete {data_dir / _REPORT} and {remedy}"
        )
    return problems


def read_report(data_dir: pathlib.Path) -> dict[str, Any]:
    """Return what the last whole preparation recorded, {} if there is none under today's rules."""
    try:
        report = json.loads((data_dir / _REPORT).read_text())
    except (OSError, ValueError):
        return {}
    whole = isinstance(report, dict) and report.get("rules") == RULES
    return report if whole and _dataset(data_dir / report.get("folder", "")).is_dir() else {}


def append_skipped(data_dir: str | pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Add rows (source, index, reason, start) to the list of what was skipped; returns how many were new.

    For reasons that show later than the preparation, such as a problem that is too long for the prompt; ``index`` is then
    the place in its split. A folder that cannot be written to stays as it is.
    """
    data_dir = pathlib.Path(data_dir).expanduser()
    report = read_report(data_dir)
    if not report:
        return 0
    path = data_dir / report["folder"] / _SKIPPED
    try:
        known = set(path.read_text().splitlines())
        lines = [skipped_line(row["source"], row["index"], row["reason"], row["start"]) for row in rows]
        new = [line for line in dict.fromkeys(lines) if line not in known]
        with path.open("a") as file:
            file.writelines(f"{line}\n" for line in new)
    except OSError:
        return 0
    return len(new)


def prepare(
    data_dir: str | pathlib.Path, files_dir: str = "", seed: int = 0, num_train: int = 1280, num_validation: int = 100
) -> str:
    """Gather, clean and write all splits below ``data_dir``, unless they are there from the same files and settings.

    It is done whole or not at all: what was there before stays until the new splits are complete. One at a time a folder.

    Args:
      data_dir: where the splits go.
      files_dir: folder with files of the user's, ``<source>.jsonl``, ``.json`` or ``.parquet``; "" for none.
      seed: of what is drawn for train and validation.
      num_train: problems of train.
      num_validation: problems of validation.

    Returns:
      An account for people: what came from where, licences, counts, what was skipped and why.

    Raises:
      DomainError: if train can be had from no source, too few problems are left, or a file is not what it should be.
    """
    data_dir = pathlib.Path(data_dir).expanduser().absolute()
    files = pathlib.Path(files_dir).expanduser() if files_dir else None
    if files and not files.is_dir():
        raise DomainError(f"{files} is no folder; name the one that holds your files, or none")
    stray = sorted(path.name for path in files.iterdir() if path.suffix in SUFFIXES) if files else []
    stray = [name for name in stray if pathlib.Path(name).stem not in {source.name for source in SOURCES}]
    before = read_report(data_dir)
    found, missing = find_sources(files, before.get("hub_sums", {}))
    notes = [f"{name} in {files} bears no source's name, so it was not read" for name in stray]
    if not any(item.source.split == TRAIN for item in found):
        raise DomainError("no source of train can be had:\n" + "\n".join([*missing.values(), *notes]))

    settings = {"rules": RULES, "seed": seed, "num_train": num_train, "num_validation": num_validation}
    inputs = {item.source.name: [item.sums, item.origin] for item in found}
    fingerprint = hashlib.sha256(json.dumps([settings, inputs, repr(SOURCES)]).encode()).hexdigest()
    if before.get("fingerprint") == fingerprint:
        return "\n".join([before["account"], *missing.values(), *notes, "prepared before from the same: nothing to do"])
    sums = before.get("hub_sums", {}) | _hub_sums(found)
    folder = f"{_SPLITS}{fingerprint[:16]}"
    report = _build(data_dir, found, settings | {"fingerprint": fingerprint, "folder": folder, "hub_sums": sums})
    return "\n".join([report["account"], *missing.values(), *notes])


def _build(data_dir: pathlib.Path, found: list[Found], report: dict[str, Any]) -> dict[str, Any]:
    """Write splits, list and report in a folder of their own, then put them in place; returns the report, completed."""
    data_dir.mkdir(parents=True, exist_ok=True)
    for rest in data_dir.glob(f"{_PARTIAL}*"):  # rests of preparations that were killed
        shutil.rmtree(rest, ignore_errors=True)
    partial = pathlib.Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=data_dir))
    try:
        with (partial / _SKIPPED).open("w") as listing:
            ledger = Ledger(listing)
            limits = {TRAIN: report["num_train"], VALIDATION: report["num_validation"]}
            splits = make_splits(found, report["seed"], limits, ledger)
        write_splits(partial, splits)
        had = {item.source.split for item in found}
        empty, lacking = "its source holds no usable problem", "its source could not be had"
        report["splits"] = {split: len(problems) for split, problems in splits.items()}
        report["left_out"] = {split: empty if split in had else lacking for split in SPLITS if split not in splits}
        report["sources"] = {
            item.source.name: {
                "origin": item.origin,
                "license": item.source.license,
                "sha256": item.sums,
                "rows": ledger.rows[item.source.name],
                "filtered": ledger.filtered[item.source.name],
                "skipped": ledger.skipped[item.source.name],
            }
            for item in found
        }
        report["account"] = describe(report, data_dir)
        target = data_dir / report["folder"]
        shutil.rmtree(target, ignore_errors=True)  # one that no report names
        partial.chmod(0o755)  # mkdtemp's is for its owner alone
        partial.replace(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    draft = data_dir / f"{_REPORT}.tmp"
    draft.write_text(json.dumps(report, indent=2) + "\n")
    draft.replace(data_dir / _REPORT)
    for old in data_dir.glob(f"{_SPLITS}*"):
        if old != target:
            shutil.rmtree(old, ignore_errors=True)
    return report


def _hub_sums(found: Iterable[Found]) -> dict[str, str]:
    """Return the sums of the hub's files among those found."""
    return {
        hub_id(item.source, file): total
        for item in found
        if item.origin.startswith("hub ")
        for file, total in zip(item.source.files, item.sums, strict=True)
    }


def describe(report: Mapping[str, Any], data_dir: pathlib.Path) -> str:
    """Return a report as text for people."""
    lines = [f"mathematics problems in {data_dir}, drawn with seed {report['seed']}"]
    declared = {source.name: source for source in SOURCES}
    for name, entry in report["sources"].items():
        passed, expected = entry["rows"] - entry["filtered"], declared[name].count
        line = f"  {name} <- {entry['origin']} (licence: {entry['license']}): {entry['rows']} rows"
        line += f", {entry['filtered']} left out by its filter" if entry["filtered"] else ""
        line += f", {passed} where {expected} are expected" if expected not in (0, passed) else ""
        lines.append(line + "".join(f"; {count} {reason}" for reason, count in entry["skipped"].items()))
    lines.append("splits: " + ", ".join(f"{split} {count}" for split, count in report["splits"].items()))
    overlaps = collections.Counter()
    for entry in report["sources"].values():
        for reason, count in entry["skipped"].items():
            if reason.startswith("overlap"):
                overlaps[next(split for split in SPLITS if reason.endswith(f" {split}"))] += count
    by_split = ", ".join(f"{count} with {split}" for split, count in overlaps.items())
    lines.append(f"overlap: {overlaps.total()} problems removed from train and validation ({by_split or 'none'})")
    total = sum(sum(entry["skipped"].values()) for entry in report["sources"].values())
    lines.append(f"{total} rows skipped, listed in {data_dir / report['folder'] / _SKIPPED}")
    for split, why in report["left_out"].items():
        line = f"left out: {split}, since {why}"
        lines.append(line if split in (TRAIN, VALIDATION) else f"{line}; train was not compared with it")
    return "\n".join(lines)
