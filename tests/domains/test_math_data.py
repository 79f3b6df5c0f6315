"""Test the preparation of mathematics problems on small files of every source, defects included."""

import ast
import collections
import dataclasses
import itertools
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys

import huggingface_hub.constants
import pyarrow
import pyarrow.parquet
import pytest

from exit_jax.domains.domain import DomainError
from exit_jax.domains.math import data, problems, sources, splits
from exit_jax.domains.math.problems import Problem
from exit_jax.domains.math.sources import SOURCES, SPLITS, TEST_SPLITS

BY_NAME = {source.name: source for source in SOURCES}
VOCABULARY = ["".join(letters) for letters in itertools.product("bdfg", "aeiou", "klmn", "aeiou")]  # 400 words
KEPT = {  # fields that a source's filter wants
    "numina": {
        "problem_is_valid": "Yes",
        "solution_is_valid": "Yes",
        "synthetic": False,
        "question_type": "math-word-problem",
    },
    "amc12_2022": {"url": "https://artofproblemsolving.com/wiki/index.php/2022_AMC_12A_Problems/Problem_1"},
    "amc12_2023": {"url": "https://artofproblemsolving.com/wiki/index.php/2023_AMC_12B_Problems/Problem_9"},
    "olympiadbench": {
        "question_type": "Open-ended",
        "modality": "Text-only",
        "subject": "Math",
        "language": "English",
        "context": None,
    },
}


def make_row(name, problem, answer: str | None = "7", solution="One step.\nThen another.", **fields):
    """Return a row as the hub has it."""
    source = BY_NAME[name]
    row: dict[str, object] = {source.problem: problem, source.solution: solution}
    row[source.answer or source.solution] = answer if source.answer else f"{solution} So \\boxed{{{answer}}}."
    if name == "olympiadbench":
        row |= {"final_answer": [answer], "solution": [solution]}
    if name.startswith("amc"):
        row |= {"answer": 7.0}
    return row | KEPT.get(name, {}) | fields


def prose(rng, num_words=20):
    return " ".join(rng.choices(VOCABULARY, k=num_words))


def make_rows(count=12, seed=0):
    """Return sound rows of every source."""
    rng = random.Random(seed)
    return {name: [make_row(name, prose(rng), str(rng.randrange(99))) for _ in range(count)] for name in BY_NAME}


def write(folder, rows_by_name, suffix=".jsonl"):
    """Write rows (or, as JSONL, raw bytes) as the user's files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in rows_by_name.items():
        path = folder / f"{name}{suffix}"
        if suffix == ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        elif suffix == ".json":
            path.write_text(json.dumps(rows))
        else:
            path.write_bytes(b"".join((r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in rows))
    return str(folder)


def load_all(data_dir):
    return {split: data.load(data_dir, split) for split in data.read_report(data_dir)["splits"]}


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Cut off the hub and return its cache, which is empty."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return cache


# One row


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("math500", make_row("math500", " two\0 ", "4"), Problem("two", "4", "One step.\nThen another.", 2, "math500")),
        ("math500", {"problem": "p", "answer": 4.0}, Problem("p", "4", "", 0, "math500")),
        ("math500", {"problem": "p", "answer": 0.5}, Problem("p", "0.5", "", 0, "math500")),
        ("math500", {"problem": "p", "answer": -3, "solution": None}, Problem("p", "-3", "", 0, "math500")),
        ("minerva", {"question": "q", "answer": "4"}, Problem("q", "4", "", 0, "minerva")),
        ("minerva", {"problem": "plain", "answer": "4"}, Problem("plain", "4", "", 0, "minerva")),
        (
            "olympiadbench",
            make_row("olympiadbench", "q", context="Given.", final_answer=["1", "2"]),
            Problem("Given.\n\nq", "1, 2", "One step.\nThen another.", 2, "olympiadbench"),
        ),
        ("math_train", make_row("math_train", "p", r"\frac{1}{2}"), r"\frac{1}{2}"),
        ("math_train", {"problem": "p", "solution": r"\boxed{1}", "answer": "2"}, "2"),
        ("math_train", {"problem": "p", "solution": "no box"}, "empty answer"),
        ("math500", ["a"], "malformed: not a JSON object"),
        ("math500", "{broken", "malformed: not a JSON object"),
        ("math500", {"answer": "4"}, "malformed: the problem is missing or not text"),
        ("math500", {"problem": {"a": 1}, "answer": "4"}, "malformed: the problem is missing or not text"),
        ("math500", {"problem": "\ud800", "answer": "4"}, "malformed: the problem is missing or not text"),
        ("math500", {"problem": "p"}, "malformed: the answer is missing or not text"),
        ("math500", {"problem": "p", "answer": True}, "malformed: the answer is missing or not text"),
        ("math500", {"problem": "p", "answer": float("nan")}, "malformed: the answer is missing or not text"),
        ("math500", {"problem": "p", "answer": ["1", ["2"]]}, "malformed: the answer is missing or not text"),
        ("math500", {"problem": "p", "answer": "4", "solution": {}}, "malformed: the solution is not text"),
        ("math500", {"problem": " \n", "answer": "4"}, "empty problem"),
        ("math500", {"problem": "p", "answer": " \0"}, "empty answer"),
        ("olympiadbench", make_row("olympiadbench", "q", final_answer=[]), "empty answer"),
        ("numina", make_row("numina", "p", synthetic=True), None),
        ("numina", make_row("numina", "p", question_type="MCQ"), None),
        ("numina", make_row("numina", "p", problem_is_valid="Incomplete"), None),
        ("numina", make_row("numina", "p", "proof"), None),
        ("numina", make_row("numina", "p", "proof of 3"), "proof of 3"),
        ("amc12_2022", make_row("amc12_2023", "p"), None),
        ("amc12_2022", {"problem": "p", "answer": 142.0}, "142"),
    ],
)
def test_clean(name, row, expected):
    result = problems.clean(row, BY_NAME[name])
    if isinstance(expected, str) and isinstance(result, Problem):
        assert result.answer == expected
    else:
        assert result == expected


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"\boxed{1} or \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{\left\{1,2\right\}}", r"\left\{1,2\right\}"),
        (r"thus $\boxed 9$.", "9"),
        (r"\boxed{never closed", ""),
        ("none", ""),
        ("\\boxed{" * 100_000, ""),
    ],
)
def test_boxed(solution, answer):
    assert problems.boxed(solution) == answer


@pytest.mark.parametrize(
    ("solution", "steps"),
    [
        ("", 0),
        ("One.", 1),
        ("We get 3.5 apples. So 7 in all!\n\nDone", 3),
        ("We add. Then\n\\begin{align*}\nx &= 1 \\\\\n  &= 2\n\\end{align*}", 4),
        ("\\[\n\\]\n...", 0),
    ],
)
def test_count_steps(solution, steps):
    assert problems.count_steps(solution) == steps


# The whole


@pytest.fixture(scope="module")
def defects(tmp_path_factory):
    """Prepare files with every defect; returns (data_dir, account, what should be skipped)."""
    rng = random.Random(1)
    rows: dict[str, list] = make_rows(12)
    base = rows["deepscaler"][0]["problem"]
    of = lambda name, index: rows[name][index][BY_NAME[name].problem]
    thirteen, twelve = of("minerva", 3).split()[2:15], of("minerva", 4).split()[2:14]
    long = " ".join(rng.choices(VOCABULARY, k=200_000))
    bad = {
        b"{not json": "malformed: not a JSON object",
        b"[1, 2]": "malformed: not a JSON object",
        b'{"problem": "\xff", "answer": "1"}': "malformed: not a JSON object",
        b"[" * 200_000: "malformed: not a JSON object",
        b'{"answer": ' + b"9" * 5000 + b"}": "malformed: not a JSON object",
        b'{"problem": "\\ud800", "answer": "1"}': "malformed: the problem is missing or not text",
    }
    added = [
        *bad.items(),
        (make_row("deepscaler", prose(rng), ""), "empty answer"),
        (make_row("deepscaler", prose(rng), None), "malformed: the answer is missing or not text"),
        (make_row("deepscaler", base.upper().replace(" ", "  ")), "duplicate"),
        (make_row("deepscaler", "¿Qué es ∑ 数学 \U0001d54f? " + prose(rng), "∅", "ß. 数学"), ""),
        (make_row("deepscaler", long), ""),
        (make_row("deepscaler", "«" + of("math500", 2).upper() + "»?"), "overlap: the words of a problem of math500"),
        (
            make_row("deepscaler", f"alpha {' '.join(thirteen)} omega"),
            "overlap: 13 words in a row of a problem of minerva",
        ),
        (make_row("deepscaler", f"alpha {' '.join(twelve)} omega"), ""),
    ]
    rows["minerva"].append(make_row("minerva", "How many?"))  # so short a text counts alone
    added += [
        (make_row("deepscaler", "How many"), "overlap: the words of a problem of minerva"),
        (make_row("deepscaler", "How many, pray?"), ""),
    ]
    validation = rows["math_train"]  # all are drawn but the one that a test has too
    added.append((make_row("deepscaler", of("math_train", 1)), "overlap: the words of a problem of validation"))
    validation.append(make_row("math_train", of("aime_2024", 0)))
    skipped = [("deepscaler", 12 + index, reason) for index, (_, reason) in enumerate(added) if reason] + [
        ("math_train", 12, "overlap: the words of a problem of aime_2024")
    ]
    rows["deepscaler"] += [row for row, _ in added]
    rows["deepscaler"].insert(3, b"   ")  # a blank line is no row
    rows["numina"] += [make_row("numina", prose(rng), "proof"), make_row("numina", base)]
    skipped.append(("numina", 13, "duplicate"))
    folder = tmp_path_factory.mktemp("defects")
    account = data.prepare(folder / "data", write(folder / "files", rows), num_train=28, num_validation=12)
    return folder / "data", account, skipped


def test_skipped_rows_are_listed_with_their_reasons(defects):
    data_dir, account, expected = defects
    folder = data_dir / data.read_report(data_dir)["folder"]
    listed = [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]
    assert sorted((row["source"], row["index"], row["reason"]) for row in listed) == sorted(expected)
    assert all(0 < len(row["start"]) <= 200 for row in listed)
    assert f"{len(expected)} rows skipped" in account


def test_counts_and_account(defects):
    data_dir, account, _ = defects
    report = json.loads((data_dir / "report.json").read_text())
    assert report["splits"] == {
        "train": 28, "validation": 12, **dict.fromkeys(TEST_SPLITS, 12), "minerva": 13
    }  # fmt: skip
    assert report["left_out"] == {}
    assert report["seed"] == 0
    assert report["sources"]["numina"]["filtered"] == 1
    assert report["sources"]["deepscaler"]["rows"] == 29
    assert report["sources"]["deepscaler"]["skipped"]["empty answer"] == 1
    assert "overlap: 5 problems removed" in account
    for part in ("2 with minerva", "1 with math500", "1 with aime_2024", "1 with validation"):
        assert part in account
    for source in SOURCES:
        assert f"{source.name} <- " in account
        assert source.license in account
    assert "12 where 30 are expected" in account  # of AIME
    assert str(data_dir / report["folder"] / "skipped.jsonl") in account


def test_load_gives_back_what_was_written(defects):
    data_dir, _, _ = defects
    clean = make_rows(12)["math500"]
    assert data.load(data_dir, "math500") == tuple(problems.clean(row, BY_NAME["math500"]) for row in clean)
    train = data.load(data_dir, "train")
    exotic = next(problem for problem in train if "数学" in problem.problem)
    assert exotic.problem.startswith("¿Qué es ∑ 数学 \U0001d54f? ")
    assert dataclasses.astuple(exotic)[1:] == ("∅", "ß. 数学", 2, "deepscaler")
    assert max(len(problem.problem) for problem in train) > 900_000
    assert {problem.source for problem in train} == {"deepscaler", "numina"}
    assert all(type(problem.num_steps) is int for problem in train)


def test_train_shares_nothing_with_tests_by_brute_force(defects):
    data_dir, _, _ = defects
    splits = load_all(data_dir)
    held = [problem.problem for split in SPLITS if split != "train" for problem in splits[split]]
    tests = [problem.problem for split in TEST_SPLITS for problem in splits[split]]
    ordinary = [problem.problem for problem in splits["train"] if len(problem.problem) < 1000]
    assert not any(overlaps(one, other) for one in ordinary for other in held)
    assert not any(overlaps(problem.problem, other) for problem in splits["validation"] for other in tests)


def overlaps(one, other):
    """Say by the definition whether one problem repeats the other: without regular expressions, sets or indices."""

    def split(text):
        row, kind = [], ""
        for char in text.casefold():
            before, kind = kind, "letter" if char.isalpha() else "digit" if char.isdigit() else ""
            if kind and kind == before:
                row[-1] += char
            elif kind:
                row.append(char)
        return row

    one, other = split(one), split(other)
    n = min(len(other), 13)
    if n < 5:
        return bool(one) and one == other
    return any(one[i : i + n] == other[j : j + n] for i in range(len(one) - n + 1) for j in range(len(other) - n + 1))


@pytest.mark.parametrize(
    ("test", "train", "why"),
    [
        ("How many divisors has $196$?", "Problem 7. How many divisors has 196?", "the words of a problem of math500"),
        (
            "How many divisors has $196$?",
            "How many divisors has 196? Give an integer.",
            "the words of a problem of math500",
        ),
        ("How many divisors has $196$?", "How many divisors has 197? Give an integer.", ""),
        ("How many divisors has $196$?", "How many divisors", ""),
        ("Compute $5 + 7$.", "Problem 7. Compute 5 + 7.", ""),  # three words, as in "Compute 5 + 7 * 3"
        ("Compute $5 + 7$.", "compute 5+7", "the words of a problem of math500"),
        ("$+$", "?", ""),  # no words at all
    ],
)
def test_a_short_test_problem_is_found_within_others(test, train, why):
    overlap = splits.Overlap()
    overlap.add([Problem(test, "14", "", 0, "")], "math500")
    assert overlap.find(train) == (f"overlap: {why}" if why else "")


def test_overlap_against_brute_force():
    rng = random.Random(2)
    joints = [" ", "  ", "-", "_", ", ", "$", "\n"]

    def text(length):
        return "".join(rng.choice(("a", "B", "7", "x2", "é")) + rng.choice(joints) for _ in range(length))

    hits = 0
    for _ in range(60):
        tests = [text(rng.randrange(3, 30)) for _ in range(4)]
        start = tests[0][rng.randrange(8) :]
        trains = [text(20), start, text(3) + start[: rng.randrange(60)] + text(2), tests[1].upper(), text(2)]
        overlap = splits.Overlap()
        overlap.add([Problem(test, "", "", 0, "") for test in tests], "math500")
        for train in trains:
            expected = any(overlaps(train, test) for test in tests)
            assert bool(overlap.find(train)) == expected
            hits += expected
    assert 60 < hits < 280  # both outcomes are common


def test_result_does_not_depend_on_the_type_of_file(tmp_path):
    rows = make_rows(12)
    rows["math_train"].append(make_row("math_train", rows["minerva"][0]["question"]))
    rows["numina"].append(make_row("numina", prose(random.Random(3)), question_type=None))
    rows["deepscaler"].append(make_row("deepscaler", "", ""))
    results, listings = [], []
    for suffix in problems.SUFFIXES:
        data_dir = tmp_path / f"data{suffix}"
        data.prepare(data_dir, write(tmp_path / suffix, rows, suffix), num_train=10, num_validation=5)
        results.append(load_all(data_dir))
        listings.append((data_dir / data.read_report(data_dir)["folder"] / "skipped.jsonl").read_bytes())
    assert results[0] == results[1] == results[2]
    assert listings[0] == listings[1] == listings[2]
    assert len(results[0]["train"]) == 10


def test_draw_depends_on_the_seed_and_not_on_the_order(offline, tmp_path):
    def train(name, rows, seed):
        data.prepare(tmp_path / name, write(tmp_path / f"files-{name}", rows), seed, num_train=6, num_validation=0)
        return data.load(tmp_path / name, "train")

    rows = {"deepscaler": make_rows(40)["deepscaler"]}
    first = train("a", rows, 0)
    assert train("b", {"deepscaler": rows["deepscaler"][::-1]}, 0) == first
    assert train("b", rows, 1) != first
    assert len({problem.problem for problem in first}) == 6


def test_every_candidate_is_as_likely_to_be_drawn():
    candidates = [Problem(f"{word} ?", "1", "", 0, "deepscaler") for word in VOCABULARY[:20]]
    times = collections.Counter()
    for seed in range(300):
        ranked = [(hash_rank(seed, problem.problem), 0, problem) for problem in candidates]
        times.update(p.problem for p in splits.draw(ranked, 5, splits.Overlap(), splits.Ledger(None)))  # pyright: ignore
    assert sum(times.values()) == 1500
    assert min(times.values()) > 45  # 75 expected, standard deviation 7.5
    assert max(times.values()) < 105


def hash_rank(seed, text):
    return random.Random(f"{seed} {text}").getrandbits(64)


def test_repeating_is_cheap_until_something_changes(offline, tmp_path, monkeypatch):
    rows = {"deepscaler": make_rows(12)["deepscaler"]}
    files, writes = write(tmp_path / "files", rows), []
    whole = data.write_splits
    monkeypatch.setattr(data, "write_splits", lambda *args: (writes.append(1), whole(*args))[1])
    settings = {"num_train": 5, "num_validation": 0}
    data.prepare(tmp_path / "data", files, **settings)
    assert "nothing to do" in data.prepare(tmp_path / "data", files, **settings)
    assert len(writes) == 1
    first = data.load(tmp_path / "data", "train")
    data.prepare(tmp_path / "data", files, seed=1, **settings)
    assert data.load(tmp_path / "data", "train") != first
    rows["deepscaler"].append(make_row("deepscaler", "new"))
    data.prepare(tmp_path / "data", write(tmp_path / "files", rows), seed=1, **settings)
    assert len(writes) == 3
    assert data.read_report(tmp_path / "data")["sources"]["deepscaler"]["rows"] == 13
    assert sorted(path.name[:7] for path in (tmp_path / "data").iterdir()) == ["report.", "splits-"]


# Sources that cannot be had


def test_without_any_source_both_remedies_are_named(offline, tmp_path):
    with pytest.raises(DomainError) as raised:
        data.prepare(tmp_path / "data")
    text = str(raised.value)
    for source in SOURCES:
        assert f"{source.name} (for {source.split})" in text
        assert f"give {source.name}.jsonl, .json or .parquet" in text
        assert f"hf download --repo-type dataset {source.repo} " in text
    assert not (tmp_path / "data").exists()


def test_splits_without_a_source_are_left_out_and_named(offline, tmp_path):
    rows = make_rows(8)
    rows = {name: rows[name] for name in ("deepscaler", "math500")} | {"minerva": []}
    files = write(tmp_path / "files", rows | {"math-500": []})
    account = data.prepare(tmp_path / "data", files, num_train=5, num_validation=5)
    assert load_all(tmp_path / "data").keys() == {"train", "math500"}
    assert "left out: aime_2025, since its source could not be had; train was not compared with it" in account
    assert "left out: minerva, since its source holds no usable problem" in account
    assert "left out: validation, since its source could not be had" in account
    assert "numina (for train): cannot get" in account
    assert "math-500.jsonl in " in account
    with pytest.raises(DomainError, match=r"no split 'aime_2025' \(its source could not be had\)"):
        data.load(tmp_path / "data", "aime_2025")
    with pytest.raises(DomainError, match="it is not one of"):
        data.load(tmp_path / "data", "test")


def test_hub_files_come_from_its_cache_and_are_checked(offline, tmp_path, monkeypatch):
    source = BY_NAME["aime_2025"]
    files = write(tmp_path / "files", {"deepscaler": make_rows(8)["deepscaler"]})
    folder = offline / f"datasets--{source.repo.replace('/', '--')}" / "snapshots" / source.revision
    write(folder, {"test": make_rows(3)["aime_2025"]})
    with pytest.raises(DomainError, match=r"test.jsonl is not the .* that is declared: sha256 "):
        data.prepare(tmp_path / "data", files, num_train=5)
    open_sums = tuple(dataclasses.replace(item, sha256=("",) * len(item.files)) for item in SOURCES)
    monkeypatch.setattr(data, "SOURCES", open_sums)
    monkeypatch.setattr(problems, "SOURCES", open_sums)
    account = data.prepare(tmp_path / "data", files, num_train=5)
    assert f"hub {source.repo}@{source.revision[:8]}" in account
    assert len(data.load(tmp_path / "data", "aime_2025")) == 3
    sums = data.read_report(tmp_path / "data")["hub_sums"]
    assert list(sums) == [f"{source.repo}@{source.revision}/test.jsonl"]
    write(folder, {"test": make_rows(4)["aime_2025"]})
    with pytest.raises(DomainError, match="that was used before"):
        data.prepare(tmp_path / "data", files, num_train=5)
    assert len(data.load(tmp_path / "data", "aime_2025")) == 3


def test_both_years_of_amc_come_from_one_file(offline, tmp_path):
    rows = make_rows(6)
    both = rows["amc12_2022"] + rows["amc12_2023"][:4]
    files = write(tmp_path / "files", {"deepscaler": rows["deepscaler"], "amc12_2022": both, "amc12_2023": both})
    data.prepare(tmp_path / "data", files, num_train=5)
    splits = load_all(tmp_path / "data")
    assert (len(splits["amc12_2022"]), len(splits["amc12_2023"])) == (6, 4)
    assert splits["amc12_2022"][0].answer == "7"


# Faults of files


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("deepscaler.parquet", b"PAR1 cut off"),
        ("deepscaler.json", b'[{"problem": '),
        ("deepscaler.json", b"[" * 200_000),
    ],
)
def test_damaged_files_are_named(offline, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DomainError, match=f"{name} is damaged .*get it again"):
        data.prepare(tmp_path / "data", str(tmp_path), num_train=1)
    with pytest.raises(DomainError, match="--mode data"):
        data.load(tmp_path / "data", "train")


def test_a_json_file_of_one_object_is_told(offline, tmp_path):
    (tmp_path / "deepscaler.json").write_text('{"data": []}')
    with pytest.raises(DomainError, match=r"deepscaler.json holds one dict; put its rows into a list, or one a line"):
        data.prepare(tmp_path / "data", str(tmp_path), num_train=1)


@pytest.mark.parametrize("suffix", problems.SUFFIXES)
def test_too_few_problems_and_empty_files(offline, tmp_path, suffix):
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"unrelated": [1, 2]}), tmp_path / "deepscaler.parquet")
    else:
        (tmp_path / f"deepscaler{suffix}").touch()
    write(tmp_path, {"math_train": make_rows(3)["math_train"]})
    with pytest.raises(DomainError, match=r"validation: 3 usable problems of 4 .* train: 0 .*lower num_train"):
        data.prepare(tmp_path / "data", str(tmp_path), num_train=1, num_validation=4)


def test_ambiguous_and_missing_folders(tmp_path):
    write(tmp_path, {"deepscaler": []})
    write(tmp_path, {"deepscaler": []}, ".json")
    with pytest.raises(DomainError, match=r"deepscaler.jsonl and deepscaler.json, which are the same source"):
        data.prepare(tmp_path / "data", str(tmp_path))
    with pytest.raises(DomainError, match="is no folder"):
        data.prepare(tmp_path / "data", str(tmp_path / "nowhere"))


# Interruptions


@pytest.mark.parametrize("stage", ["make_splits", "write_splits", "describe"])
def test_interrupted_preparation_leaves_what_was_there(offline, tmp_path, monkeypatch, stage):
    files = write(tmp_path / "files", {"deepscaler": make_rows(8)["deepscaler"]})
    whole = getattr(data, stage)

    def stop(*args):
        whole(*args)
        raise KeyboardInterrupt

    def interrupt(num_train):
        with monkeypatch.context() as patch:
            patch.setattr(data, stage, stop)
            with pytest.raises(KeyboardInterrupt):
                data.prepare(tmp_path / "data", files, num_train=num_train)

    interrupt(5)
    assert list((tmp_path / "data").iterdir()) == []
    data.prepare(tmp_path / "data", files, num_train=5)
    before = data.load(tmp_path / "data", "train")
    interrupt(6)
    assert data.load(tmp_path / "data", "train") == before


def test_killed_before_the_report(offline, tmp_path):
    files = write(tmp_path / "files", {"deepscaler": make_rows(8)["deepscaler"]})
    script = f"""
import os, pathlib
from exit_jax.domains.math import data
replace = pathlib.Path.replace
pathlib.Path.replace = lambda self, to: replace(self, to) if to.name != "report.json" else os.kill(os.getpid(), 9)
data.prepare({str(tmp_path / "data")!r}, {files!r}, num_train=5)
"""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(offline)}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, timeout=120)
    assert run.returncode == -signal.SIGKILL, run.stderr.decode()
    assert list((tmp_path / "data").glob("splits-*"))  # whole, but named by no report
    (tmp_path / "data" / "partial-old").mkdir()
    with pytest.raises(DomainError, match="no prepared mathematics problems; prepare it with --mode data"):
        data.load(tmp_path / "data", "train")
    data.prepare(tmp_path / "data", files, num_train=5)
    assert len(data.load(tmp_path / "data", "train")) == 5
    assert sorted(path.name[:7] for path in (tmp_path / "data").iterdir()) == ["report.", "splits-"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"rules": 1}', '{"rules": 1, "folder": "gone"}', "\0"])
def test_report_that_is_none(tmp_path, content):
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(DomainError, match="no prepared"):
        data.load(tmp_path, "train")


def test_lost_records_are_noticed(offline, tmp_path):
    files = write(tmp_path / "files", {"deepscaler": make_rows(8)["deepscaler"]})
    data.prepare(tmp_path / "data", files, num_train=5)
    for path in (tmp_path / "data").rglob("*.array_record*"):
        path.unlink()
    with pytest.raises(DomainError, match=r"is damaged .*delete .*report.json and prepare it with --mode data"):
        data.load(tmp_path / "data", "train")


def test_append_skipped(offline, tmp_path):
    row = {"source": "deepscaler", "index": 4, "reason": "longer than the prompt", "start": "é" * 1000}
    assert data.append_skipped(tmp_path / "data", [row]) == 0
    files = write(tmp_path / "files", {"deepscaler": make_rows(8)["deepscaler"]})
    data.prepare(tmp_path / "data", files, num_train=5)
    assert data.append_skipped(tmp_path / "data", [row, row]) == 1
    assert data.append_skipped(tmp_path / "data", [row, row | {"index": 5}]) == 1
    listed = next((tmp_path / "data").glob("splits-*/skipped.jsonl")).read_text().splitlines()
    assert [json.loads(line)["index"] for line in listed] == [4, 5]
    assert json.loads(listed[0])["start"] == "é" * 200


# Declarations


def test_sources_are_declared_whole():
    assert len(BY_NAME) == len(SOURCES)
    assert set(SPLITS) == {source.split for source in SOURCES}
    expected = ("math500", "amc12_2022", "amc12_2023", "aime_2024", "aime_2025", "minerva", "olympiadbench_text")
    assert TEST_SPLITS == expected
    for source in SOURCES:
        assert len(source.sha256) == len(source.files)
        assert all(re.fullmatch(r"([0-9a-f]{64})?", total) for total in source.sha256)
        assert re.fullmatch(r"[0-9a-f]{40}", source.revision)
        assert source.license
        for _, pattern in source.keep:
            re.compile(pattern)


@pytest.mark.parametrize("module", [data, sources])
def test_data_needs_neither_jax_nor_tensorflow(module):
    tree = ast.parse(pathlib.Path(module.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {getattr(node, "module", None) or alias.name for node in imports for alias in node.names}
    assert not {name for name in names if name.split(".")[0] in ("jax", "flax", "tensorflow", "torch", "datasets")}
