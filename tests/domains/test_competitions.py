import collections
import concurrent.futures
import contextlib
import csv
import dataclasses
import gzip
import io
import itertools
import json
import os
import pathlib
import random
import re
import threading
import time
import zlib

import numpy as np
import pytest

from exit_jax.domains.domain import DomainError
from exit_jax.domains.ml_engineering import competitions, embedded, metrics, previews, prompts, responses, tables
from exit_jax.domains.ml_engineering.submissions import MAX_FEEDBACK, check, grade
from exit_jax.sandbox import bwrap

METRIC = {
    "tumours": "auc",
    "cultivars": "macro_f1",
    "progression": "rmse",
    "numerals": "accuracy",
    "sepals": "log_loss",
    "torn_scans": "rmse",
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("competitions")


@pytest.fixture(scope="module")
def entered(data_dir):
    return {competition.name: competition for competition in embedded.load(data_dir)}


def make_folder(path, **changes):
    """Write a small sound competition, but for the changes: keys of competition.json, or files by path (None: leave out)."""
    fields = {
        "name": "coins",
        "split": "train",
        "metric": "auc",
        "direction": "higher",
        "worst": 0.5,
        "best": 1,
        "id_column": "id",
        "target_columns": ["heads"],
        "labels": [],
    }
    files = {
        "description.md": "Guess coins.",
        "public/train.csv": "id,x,heads\n1,3,0\n",
        "public/sample_submission.csv": "id,heads\n1,0.5\n2,0.5\n3,0.5\n",
        "private/answers.csv": "id,heads\n3,1\n2,0\n1,0\n",
    }
    files |= {name: text for name, text in changes.items() if "." in name}
    fields = {name: value for name, value in (fields | changes).items() if "." not in name and value is not None}
    files.setdefault("competition.json", json.dumps(fields))
    for name, text in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        if text is not None:
            (path / name).write_text(text)
    return path


# Metrics against arithmetic that owes scikit-learn nothing


def test_auc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, (40, 2)).astype(float)
    prediction = rng.integers(0, 5, (40, 2)).astype(float)  # with ties
    expected = []
    for t, p in zip(truth.T, prediction.T):
        pairs = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(p[t == 1], p[t == 0])]
        expected.append(np.mean(pairs))
    assert metrics.mean_column_auc(truth, prediction) == pytest.approx(np.mean(expected))
    assert abs(expected[0] - expected[1]) > 0.01  # so that the mean is not one of them


def test_log_loss():
    truth, prediction = np.array([[1.0], [0.0]]), np.array([[0.8], [0.4]])
    assert metrics.log_loss(truth, prediction) == pytest.approx(-(np.log(0.8) + np.log(0.6)) / 2)
    rng = np.random.default_rng(1)
    share = rng.dirichlet(np.ones(3), 20)
    label = rng.integers(0, 2, 20)  # the third class is never right
    expected = -np.log(share[np.arange(20), label]).mean()
    assert metrics.log_loss(np.eye(3)[label], share * 1.0005) == pytest.approx(expected)
    assert 30 < metrics.log_loss(np.array([[1.0]]), np.array([[0.0]])) < 40  # finite where certain and wrong


def test_rmse_and_rmsle():
    truth, prediction = np.array([[1.0, 0.0], [3.0, 0.0]]), np.array([[2.0, 3.0], [3.0, 3.0]])
    assert metrics.rmse(truth, prediction) == pytest.approx(
        (np.sqrt(0.5) + 3) / 2
    )  # not sqrt of the mean over all, 2.18
    assert metrics.rmsle(truth, prediction) == pytest.approx((np.sqrt(np.log(1.5) ** 2 / 2) + np.log(4)) / 2)


def test_accuracy_and_macro_f1():
    truth, prediction = np.array(list("aaab")), np.array(list("aabc"))
    assert metrics.accuracy(truth, prediction) == 0.5
    # a: TP 2, FN 1 -> 4/5; b: FP 1, FN 1 -> 0; c: FP 1 -> 0
    assert metrics.macro_f1(truth, prediction) == pytest.approx(0.8 / 3)


@pytest.mark.parametrize(
    ("score", "worst", "best", "expected"),
    [
        (0.3, 1.5, 0, 0.8),
        (2.0, 1.5, 0, 0),
        (0.75, 0.5, 1, 0.5),
        (0.4, 0.5, 1, 0),
        (7, 0, 1, 1),
        (None, 0, 1, 0),
        (float("nan"), 0, 1, 0),
    ],
)
def test_normalise(score, worst, best, expected):
    assert metrics.normalise(score, worst, best) == pytest.approx(expected)


# The folder layout


def test_a_sound_folder_loads(tmp_path):
    competition = competitions.load(make_folder(tmp_path))
    assert competition.ids == ("1", "2", "3")
    assert competition.truth.tolist() == [[0], [0], [1]]  # in the order of ids, not of the file
    assert grade(competition, b"heads,id\n.1,2\n.9,3\n.2,1\n").score == 1.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"split": "dev", "worst": "low", "best": True}, ["split = 'dev'", "worst = 'low'", "best = True"]),
        ({"labels": None, "colour": "red"}, ["'labels' is missing", "'colour' is none of"]),
        ({"metric": "f1", "target_columns": [1]}, ["metric = 'f1'", "target_columns = [1]"]),
        ({"competition.json": "{"}, ["competition.json cannot be read"]),
        ({"direction": "lower", "description.md": ""}, ["auc is better when higher", "description.md is empty"]),
        ({"worst": 1.0, "best": 0.5}, ["auc is better when higher"]),
        ({"worst": 1.0}, ["two different finite numbers"]),
        ({"metric": "accuracy"}, ["at least two"]),
        ({"target_columns": ["heads", "heads"]}, ["all names differ"]),
        (
            {"public/sample_submission.csv": None, "description.md": None},
            ["submission.csv is missing", "description.md"],
        ),
        ({"public/sample_submission.csv": "id,tails\n1,0\n"}, ["without ['heads']"]),
        ({"private/answers.csv": None}, ["answers.csv cannot be read"]),
        ({"private/answers.csv": "id,heads\n1,0\n2,1\n4,1\n"}, ["the ids of"]),
        ({"private/answers.csv": "id,heads\n1,1\n2,1\n3,1\n"}, ["by auc"]),
        (
            {
                "metric": "log_loss",
                "direction": "lower",
                "worst": 1,
                "best": 0,
                "target_columns": ["a", "b"],
                "public/sample_submission.csv": "id,a,b\n1,0,1\n",
                "private/answers.csv": "id,a,b\n1,1,1\n",
            },
            ["a single 1 in each row"],
        ),
        ({"private/answers.csv": "id,heads\n1,a\n2,1\n3,1\n"}, ["cannot be scored by auc"]),
    ],
)
@pytest.mark.filterwarnings("ignore:Only one class")
def test_all_faults_are_named(tmp_path, changes, words):
    with pytest.raises(DomainError) as error:
        competitions.load(make_folder(tmp_path, **changes))
    assert [word for word in words if word not in str(error.value)] == []


def test_links_are_refused(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "public" / "hint.csv").symlink_to(tmp_path / "private" / "answers.csv")
    with pytest.raises(DomainError, match="is a link"):
        competitions.load(tmp_path)
    with pytest.raises(DomainError, match="is a link"):
        competitions.tree_hash(tmp_path / "public")


def test_previews_are_bounded_and_the_same_everywhere(tmp_path, entered):
    make_folder(tmp_path)
    for number in range(30):
        path = tmp_path / "public" / "images" / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\x89PNG")
    (tmp_path / "public" / "long.json").write_text("[" + "1," * 50_000)
    competition = competitions.load(tmp_path)
    text = previews.preview(competition, 2000)
    assert "images/ (30 files: images/00.png, " in text
    assert "train.csv (17 B)" in text
    assert "id,x,heads\n1,3,0" in text
    assert "\x89" not in text
    for room in (0, 1, 10, 100, 500, 1500):
        for one in (competition, *entered.values()):
            shown = previews.preview(one, room)
            assert len(shown) <= room
            assert shown == previews.preview(one, room)


# Submissions


def rows_of(competition):
    return [list(row) for row in competition.sample_table.rows]


@pytest.mark.parametrize(
    ("name", "submission", "words"),
    [
        ("tumours", None, "wrote no submission.csv"),
        ("tumours", b"", "is empty"),
        ("tumours", b"\xff\xfe", "not UTF-8"),
        ("tumours", b"id,malignant\n", "has 0 rows; it must have 369"),
        ("tumours", b"id\n", "lacks 'malignant'"),
        ("tumours", b",id,malignant\n0,a,1\n", "index=False"),
        ("tumours", b"id,malignant,id\n", "occurs 2 times"),
        ("tumours", b"id,malignant\na,1,2\n", "line 2 has 3 cells"),
        ("tumours", b"id,malignant\n" + b"a,1\n" * 400, "more than the 369 rows"),
        ("tumours", b'id,malignant\n"a,1\n', "malformed CSV"),
        ("tumours", b"x" * 100_000, "bytes, more than"),
        ("tumours", ("malignant", "nan"), "'nan', which is not a finite number"),
        ("tumours", ("malignant", ""), "'', which is not a finite number"),
        ("tumours", ("malignant", "1_0"), "not a finite number"),
        ("tumours", ("malignant", "١"), "not a finite number"),
        ("tumours", ("malignant", "1e400"), "must lie between"),
        ("tumours", ("malignant", "9" * 5000), "not a finite number"),
        ("tumours", ("id", "nobody"), "'nobody' is none of the test set's"),
        ("sepals", ("north", "-0.1"), "must lie between 0 and 1"),
        ("sepals", ("north", "0.9"), "each row must sum to 1"),
        ("cultivars", ("cultivar", "D"), "'D' is not a label; the labels are A, B, C"),
        ("numerals", ("numeral", "3.5"), "'3.5' is not a label"),
    ],
)
def test_bad_submissions_are_feedback(entered, name, submission, words):
    competition = entered[name]
    if isinstance(submission, tuple):
        column, cell = submission
        rows = rows_of(competition)
        rows[5][competition.sample_table.columns.index(column)] = cell
        submission = tables.write(competition.sample_table.columns, rows)
    verdict = grade(competition, submission)
    assert words in verdict.feedback
    assert len(verdict.feedback) <= MAX_FEEDBACK
    assert (verdict.valid, verdict.score, verdict.normalised) == (False, None, 0.0)


def test_an_id_twice(entered):
    competition = entered["tumours"]
    rows = rows_of(competition)
    rows[1][0] = rows[0][0]
    feedback = grade(competition, tables.write(competition.sample_table.columns, rows)).feedback
    assert f"{rows[0][0]!r} occurs too often" in feedback
    assert f"{competition.ids[1]!r} is missing" in feedback


def test_rows_columns_and_spelling_are_free(entered):
    """Order of rows and columns, BOM, line ends, quotes, blanks and float labels change nothing."""
    competition = entered["numerals"]
    answers = dict(zip(competition.ids, competition.truth))
    lines = [f'{label}.0, "{name}"'.replace(', "', ',"') for name, label in sorted(answers.items())]
    verdict = grade(competition, ("\ufeffnumeral,id\r\n" + "\r\n\r\n".join(lines)).encode())
    assert (verdict.score, verdict.valid) == (1.0, True)
    wrong = grade(
        competition, tables.write(("id", "numeral"), [[n, str((int(v) + 1) % 10)] for n, v in answers.items()])
    )
    assert (wrong.score, wrong.valid, wrong.normalised) == (0.0, True, 0.0)


@pytest.mark.parametrize(
    ("labels", "cells"),
    [
        (("3", "3.0"), {"3": "3", "3.0": "3.0"}),
        (("3", "4"), {"3": "3", "3.0": "3", "4.0": "4"}),
        (("3.0", "4.0"), {"3": "3.0", "3.0": "3.0"}),
        (("-1", "1"), {"-1.0": "-1", "1.0": "1"}),
        (("3.0", "3"), {"3": "3", "3.0": "3.0"}),
        (("3", "3.0", "3.0.0"), {"3.0": "3.0", "3.0.0": "3.0.0"}),
        (("03", "3"), {"03": "03", "3": "3", "03.0": "03", "3.0": "3"}),
        (("a", "a.0"), {"a": "a", "a.0": "a.0"}),
        (("3", "3.5"), {"3.0": "3", "3.5": "3.5", "3.50": None, "4.0": None}),
    ],
)
def test_a_label_is_itself_before_it_is_another(entered, labels, cells):
    numerals = entered["numerals"]
    competition = dataclasses.replace(numerals, labels=labels)
    for cell, label in cells.items():
        rows = [[name, cell] for name in numerals.ids]
        if label is None:
            assert f"{cell!r} is not a label" in grade(competition, tables.write(("id", "numeral"), rows)).feedback
        else:
            assert set(check(competition, tables.write(("id", "numeral"), rows)).tolist()) == {label}


def test_someone_elses_grader_reads_what_was_checked(tmp_path):
    """In the sample's rows and columns, with its very ids, blanks and line ends within them too."""
    columns, ids = ("more", "b", "name", "a"), [" one ", "two\rtwo", 'th"r,ee', "two\ntwo", "None"]
    rows = [["kept ", "0", name, "0"] for name in ids]

    def quoted(columns, rows):  # a lone "\r" is left bare by csv otherwise
        file = io.StringIO(newline="")
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([columns, *rows])
        return file.getvalue().encode()

    made, got = competitions.load(make_folder(tmp_path / "made")), []
    (made.public / "sample_submission.csv").write_bytes(quoted(columns, rows))
    competition = dataclasses.replace(
        made,
        id_column="name",
        target_columns=("a", "b"),
        grader=lambda data: float(got.append(data) or 0.5),
    )
    given = [[f"{i}e-1", f"+{i}.", name.strip()] for i, name in enumerate(ids)][::-1]
    verdict = grade(competition, quoted(("a", "b", "name"), given))
    assert (verdict.valid, verdict.score) == (True, 0.5), verdict.feedback
    filled = list(csv.reader(io.StringIO(got[0].decode(), newline="")))
    assert filled == [list(columns), *(["kept ", f"{i}.0", name, repr(i / 10)] for i, name in enumerate(ids))]
    np.testing.assert_array_equal(check(competition, quoted(("a", "b", "name"), given))[:, 1], range(5))


def mutate(data, rng):
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(6)
        if kind == 0:
            data[at:at] = rng.choice(
                [b'"', b"\0", b"\n", b",", b"\r", b"nan", b"-inf", b"1e999", b"\xff", b"'", "é".encode()]
            )
        elif kind == 1:
            del data[at : at + rng.choice([1, 3, 50])]
        elif kind == 2:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 5 and b"0." in data:
            at = data.rindex(b"0.", 0, max(at, 60))
            data[at + 2 : at + 3] = b"%d" % rng.randrange(10)
        elif kind == 3:
            data = data[:at]
        else:
            data[at:at] = data[at : at + rng.randrange(40)]
    return bytes(data)


def test_2000_damaged_submissions_never_raise(entered):
    rng, valid = random.Random(0), 0
    columns = {name: competition.sample_table.columns for name, competition in entered.items()}
    for _ in range(2000):
        competition = entered[rng.choice(list(entered))]
        kind = rng.randrange(4)
        if kind == 0:
            data = rng.randbytes(rng.randrange(300))
        elif kind == 1:
            cells = ["", "id", "0.5", "-1", "nan", '"', "A", "1e9", *columns[competition.name], *competition.ids[:3]]
            data = "\n".join(",".join(rng.choices(cells, k=rng.randrange(5))) for _ in range(rng.randrange(9))).encode()
        else:
            data = mutate((competition.public / "sample_submission.csv").read_bytes(), rng)
        verdict = grade(competition, data)
        valid += verdict.valid
        assert len(verdict.feedback) <= MAX_FEEDBACK
        assert 0 <= verdict.normalised <= 1
        assert verdict.valid == (verdict.score is not None)
        assert np.isfinite(verdict.score or 0)
        verdict.feedback.encode()
    assert 20 < valid < 1000  # else it is not the checks that were tested


@pytest.mark.parametrize(
    "kind", ["columns", "header", "quotes", "quoted", "spread", "lines", "nul", "digits", "ragged"]
)
def test_hostile_sizes_take_no_time(entered, kind):
    competition = entered["numerals"]
    size = competition.max_submission_bytes
    hostile = {
        "columns": b"," * size,
        "header": b"id,numeral," + b",".join(b"%d" % i for i in range(size // 7)),
        "quotes": b'"' * size,
        "quoted": b'id,numeral\n"' + b"\n" * (size - 20),
        "spread": b'id,numeral\n"\n' + b'","\n' * (size // 4 - 10),
        "lines": b"id,numeral\n" + b"\n" * (size - 20),
        "nul": b"id,numeral\n" + b"\0" * (size - 20),
        "digits": b"id,numeral\na," + b"9" * (size - 20),
        "ragged": b"id,numeral\n" + b",\n" * (size // 2 - 10),
    }[kind]
    started = time.process_time()
    assert not grade(competition, hostile).valid
    assert not grade(competition, hostile * 100).valid
    assert time.process_time() - started < 2  # measured: at most 0.02


# The embedded competitions


def test_embedded_competitions_are_as_declared(entered):
    assert {name: competition.metric for name, competition in entered.items()} == METRIC
    assert [competition.split for competition in entered.values()] == ["train"] * 3 + ["test"] * 3
    for name, competition in entered.items():
        sample = (competition.public / "sample_submission.csv").read_bytes()
        assert grade(competition, sample).valid
        assert grade(competition, sample).normalised < 0.01, name
        train = tables.parse((competition.public / "train.csv").read_bytes(), 10_000, 100)
        test = tables.parse((competition.public / "test.csv").read_bytes(), 10_000, 100)
        assert not set(train.column("id")) & set(test.column("id"))
        assert tuple(test.column("id")) == competition.ids
        assert train.columns[:-1] == test.columns
        assert not {tuple(row[1:-1]) for row in train.rows} & {tuple(row[1:]) for row in test.rows} or name in (
            "sepals",
        )
        if competition.labels:  # every label can be learned
            assert set(train.column(train.columns[-1])) == set(competition.labels)


def test_true_answers_score_best(entered):
    for competition in entered.values():
        answers = (competition.private / "answers.csv").read_bytes()
        verdict = grade(competition, answers)
        assert verdict.valid
        assert verdict.normalised == 1.0


def test_a_plain_model_is_far_from_both_ends(entered):
    from sklearn.linear_model import LinearRegression

    for name, low, high in (("tumours", 0.3, 0.9), ("torn_scans", 0.3, 0.6)):  # 0.86 and 0.44
        competition = entered[name]
        train = tables.parse((competition.public / "train.csv").read_bytes(), 10_000, 100)
        test = tables.parse((competition.public / "test.csv").read_bytes(), 10_000, 100)
        x, z = (np.array([row[1 : len(test.columns)] for row in table.rows], float) for table in (train, test))
        target = train.columns[-1]
        predicted = LinearRegression().fit(x, np.array(train.column(target), float)).predict(z)
        rows = [[name, f"{value:.6f}"] for name, value in zip(competition.ids, predicted)]
        assert low < grade(competition, tables.write(("id", target), rows)).normalised < high


def test_answers_cannot_be_joined_by_value(entered):
    """No row of scikit-learn's own tables occurs among the features as it stands there."""
    from sklearn import datasets

    loaders = {
        "tumours": datasets.load_breast_cancer,
        "cultivars": datasets.load_wine,
        "numerals": datasets.load_digits,
        "sepals": datasets.load_iris,
    }
    for name, loader in loaders.items():
        competition = entered[name]
        test = tables.parse((competition.public / "test.csv").read_bytes(), 10_000, 100)
        rows = {tuple(sorted(map(float, row[1:]))) for row in test.rows}
        known = loader().data
        width = len(test.columns) - 1
        assert not rows & {tuple(sorted(map(float, row[:width]))) for row in known}


ROW = re.compile(r"^[ \t]*-?\d.*$", re.MULTILINE)
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?(?!\w)")


def table_in(path):
    """Return the numbers in a file of text, packed or not, by its lines of the commonest length, float64 [n, d]."""
    raw = path.read_bytes()
    with contextlib.suppress(OSError, EOFError, zlib.error):
        raw = gzip.decompress(raw)
    lines = ROW.findall(raw.decode("latin-1"))
    rows = [NUMBER.findall(line) for line in lines] if 100 < len(lines) < 5000 else [[]]
    ((width, count),) = collections.Counter(map(len, rows)).most_common(1)
    return np.array([row for row in rows if len(row) == width], float).reshape(count, width)


def scaled(column):
    """Return a column's values from 0 to 1, sorted, whatever their unit and the order of rows were; None where they are few."""
    values = np.sort(column)
    return (values - values[0]) / (values[-1] - values[0]) if len(set(values)) > 10 else None


@pytest.mark.slow
def test_a_program_sees_no_copy_of_the_data(entered):
    """Units go by scaling, mirrors and inversion by sorting a row: so no file that the sandbox shows may hold the same."""
    columns, scans = [], set()
    for competition in entered.values():
        names = ("train", "test")
        both = [tables.parse((competition.public / f"{name}.csv").read_bytes(), 10_000, 100) for name in names]
        width = len(both[1].columns)
        values = np.array([row[1:width] for table in both for row in table.rows], float)
        if competition.name in ("numerals", "torn_scans"):
            scans |= {(width - 1, *sorted(row)) for row in values}
        else:
            columns += [column for column in map(scaled, values.T) if column is not None]

    def holds(table):
        if len(table) not in map(len, columns):
            widths = [width for width in (64, 32) if width <= table.shape[1]]
            return any((width, *sorted(16 - row[:width])) in scans for row in table for width in widths)
        known = [column for column in map(scaled, table.T) if column is not None]
        return any(len(a) == len(b) and np.abs(a - b).max() < 1e-4 for a in known for b in columns)

    options = bwrap.mounts()
    shown = [options[at + 1] for at, word in enumerate(options) if word == "--ro-bind"]
    files = (pathlib.Path(folder, name) for root in shown for folder, _, names in os.walk(root) for name in names)
    kinds = (".csv", ".txt", ".arff", ".dat", ".data", ".tsv", ".gz")
    small = (path for path in files if path.suffix in kinds and path.is_file() and path.stat().st_size < 1 << 20)
    found = {path for path in small if holds(table_in(path))}
    known = {"breast_cancer.csv", "wine_data.csv", "iris.csv", "diabetes_data_raw.csv.gz", "digits.csv.gz"}
    assert known <= {path.name for path in found}, "or this test is blind"
    hidden = set(embedded.hidden())
    assert {path for path in found if not hidden & set(path.resolve().parents)} == set()


def test_all_that_is_drawn_depends_on_the_whole_table(tmp_path):
    """What depended on the code alone, such as an id on its row's number, a script could undo: the data are sorted by class."""
    (task,) = (task for task in embedded.TASKS if task.name == "cultivars")
    data = task.data()
    ids, tops, orders = [], [], []
    for name, target in (("whole", data.target), ("but for one label", ("B", *data.target[1:]))):
        changed = dataclasses.replace(data, target=target)
        (tmp_path / name).mkdir()
        embedded._write(dataclasses.replace(task, data=lambda changed=changed: changed), tmp_path / name)
        test = tables.parse((tmp_path / name / "public" / "test.csv").read_bytes(), 10_000, 100)
        values = np.array([row[1:] for row in test.rows], float)
        ids.append(set(test.column("id")))
        tops.append(set(values.max(0)))
        orders.append({tuple(np.argsort(column)[:5]) for column in values.T})
    for first, second in (ids, tops, orders):
        assert not first & second


def test_private_answers_are_apart(entered):
    for competition in entered.values():
        assert competition.private not in competition.public.parents
        assert competition.private.stat().st_mode & 0o077 == 0
        assert competition.public.stat().st_mode & 0o005 == 0o005
        assert sorted(path.name for path in competition.public.iterdir()) == [
            "sample_submission.csv",
            "test.csv",
            "train.csv",
        ]


def test_a_changed_folder_is_refused(tmp_path):
    (first, *_) = embedded.load(tmp_path)
    path = first.public / "test.csv"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DomainError, match="delete the folder"):
        embedded.load(tmp_path)


def test_other_data_of_scikit_learn_are_refused_and_leave_nothing(tmp_path, monkeypatch):
    task = embedded.TASKS[0]
    data = task.data()
    data.features[0, 0] += 1
    changed = dataclasses.replace(task, data=lambda: data)
    monkeypatch.setattr(embedded, "TASKS", (changed,))
    with pytest.raises(DomainError, match="its bundled data differ"):
        embedded.load(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_makers_may_race(tmp_path):
    barrier = threading.Barrier(4)

    def make(_):
        barrier.wait()
        return [competition.name for competition in embedded.load(tmp_path)]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(make, range(4))) == [list(METRIC)] * 4
    assert len(os.listdir(tmp_path)) == 6  # and no partial folder


# Responses

DOCSTRING = 'def f():\n    """\n    ```\n    f()\n    ```\n    """\n'


# what a fence may say, and mean Python or not
PYTHONS = (
    *("python3", "python3.11", "py3", "Python", "PY", "PYTHON3", "python 3.11", " python ", "ipython", "ipython3"),
    *(
        "{.python}",
        "{python}",
        "{ .python }",
        "{.python .numberLines}",
        "{python, echo=FALSE}",
        'python title="a b.py"',
    ),
    *("python:solution.py", "python,ignore", "python=", "python{1,3}", "solution.py", "src/solution.py", "py title=x"),
)
OTHERS = (
    "pycon",
    "python-repl",
    "pytb",
    "pyspark",
    "pytorch",
    "python_console",
    "cython",
    "{r}",
    "{.bash}",
    "text",
    "numpy",
)


@pytest.mark.parametrize(
    ("response", "code"),
    [
        ("no code", None),
        ("", None),
        ("```python\nx = 1\n```", "x = 1\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("a ```python\nx = 1\n```", None),  # the fence does not stand at the start of a line, and the last opens one
        ("```python\nx = 1", None),
        ("```python\n \n```", None),
        ("```python\nold\n```\nthen\n```py\nnew\n```\nbye", "new\n"),
        ("```python\nold\n```\n```python\ncut off", "old\n"),
        ("```python\nold\n```\n```bash\npip install x\n```", "old\n"),
        ("```bash\nls\n```", None),
        ("```python\nforgotten\n\n```python\nnew\n```", "new\n"),
        ("```markdown\n```python\ninner\n```\n```", "inner\n"),
        ("````python\na = '''\n```\n'''\n````", "a = '''\n```\n'''\n"),
        ("~~~python\na\n```\nb\n~~~", "a\n```\nb\n"),
        (f"```python\n{DOCSTRING}```", DOCSTRING),
        ("1. so:\n   ```python\n   if a:\n       b\n\n   c\n   ```", "if a:\n    b\n\nc\n"),
        ("\t```python\n\tx\n\t```", "x\n"),
        ("```Python  \r\nx\r\ny\r\n```\r\n", "x\ny\n"),
        ("<think>\n```python\ndraft\n```\n</think>\n```python\nfinal\n```", "final\n"),
        ("<think>\n```python\ndraft\n```\n</think>\nI cannot.", None),
        ("<think>\n```python\ndraft\n```\nBut", None),  # an unfinished thought has no answer
        ("```python\nx = 1\n```\nIt prints\n```\nOutput: 0.93\n```", "x = 1\n"),
        ("```\nOutput: 0.93\n```\nby\n```python\nx = 1\n```", "x = 1\n"),
        ("```python\nx = 1\n```\n~~~\nOutput: 0.93\n~~~", "x = 1\n"),
        ("```\nx = 1\n```\n```\ny = 1\n```", "y = 1\n"),
        ("```\nx = 1\n```\n```bash\nls\n```", "x = 1\n"),
        ("```\nls\n```\n```python\ncut off", None),  # there is a script, though not all of it
        ("```python\nx = 1\n```\n```text\ny = 1\n```\n```\nz\n```", "x = 1\n"),
        ("```python title=solution.py\nx\n```", "x\n"),
        *((f"```{said}\nx\n```", "x\n") for said in PYTHONS),
        *((f"```{said}\nx\n```", None) for said in OTHERS),
        ("```python\nx = '\x0b\u2028'\n```", "x = '\x0b\u2028'\n"),
    ],
)
def test_extract_code(response, code):
    assert responses.extract_code(response) == code


PIECES = (
    "```\n",
    "```python\n",
    "`",
    " ",
    "~",
    "``` ",
    "\n",
    "\t```\n",
    "</think>",
    '  File "',
    "0x",
    "\x1b[",
    "site-packages/",
)


@pytest.mark.parametrize("piece", PIECES)
def test_texts_of_any_size_take_linear_time(piece):
    for text in (piece * (2_000_000 // len(piece)), "```" + piece * (2_000_000 // len(piece)) + "`"):
        started = time.process_time()
        responses.extract_code(text)
        assert len(responses.error_tail(text, 500)) <= 500
        assert len(responses.error_tail(text.encode(), 500, {"/a": "b"})) <= 500
        assert time.process_time() - started < 5  # measured: at most 0.9


TRACE = """noise from /run/x
Traceback (most recent call last):
  File "/run/job-17/solution.py", line 3, in <module>
    pd.read_csv("/run/data/trian.csv")
  File "/opt/env/lib/python3.11/site-packages/pandas/io/common.py", line 9, in get_handle
    handle = open(handle)  # <Handle at 0x7f3a2b1c9d00>
FileNotFoundError: [Errno 2] No such file or directory: '/run/data/trian.csv'
"""


def test_error_tail():
    paths = {"/run/data": "DATA_DIR", "/run": "RUN"}
    whole = responses.error_tail("\x1b[31m" + TRACE + "\n\n", 1000, paths)
    assert 'File "solution.py", line 3' in whole
    assert 'File "pandas/io/common.py", line 9' in whole
    assert "'DATA_DIR/trian.csv'" in whole
    assert "at 0x...>" in whole
    assert whole.startswith("noise from RUN/x\n")
    assert responses.error_tail(TRACE.replace("17", "18").replace("2b1c", "3b1d"), 1000, paths) == whole
    part = responses.error_tail(TRACE.encode() + b"\xff\0", 200, paths)
    assert part.startswith("[...]\n    handle = open") or part.startswith('[...]\n  File "pandas')
    assert part.endswith("'DATA_DIR/trian.csv'\n?")
    assert responses.error_tail("x\nValueError: " + "y" * 500, 60) == ("ValueError: " + "y" * 500)[:60]
    assert responses.error_tail("", 10) == responses.error_tail("\n\n", 10) == ""
    for room in range(300):
        assert len(responses.error_tail(TRACE, room)) <= room


# Prompts


def test_prompts_hold_what_the_paper_lists():
    fields = {"context": "GOAL", "request": "TASK", "solution": "CODE\n", "feedback": "TRACE"}
    for mode in ("base", "improve", "diverge"):
        full = prompts.build(mode).format(**fields)
        assert "DATA_DIR" in full
        assert "submission.csv" in full
        assert "5 minutes" in full
        assert "# Task\nTASK\n" in full
        shown = prompts.EMPTY_SOLUTION if mode == "base" else "CODE\n"
        assert f"```python\n{shown}```" in full
        assert ("# Its last run\nTRACE\n" in full) == (mode != "base")
        assert ("# Goal\nGOAL\n" in full) == (mode == "improve")
        assert responses.extract_code(full) == shown  # and compiles, where it is ours
        assert ("# Goal\n" + prompts.GOALS["improve"] in full) == (mode == "base"), (
            "of an empty main, not a goal of its own"
        )
    compile(prompts.EMPTY_SOLUTION, "solution.py", "exec")
    assert set(prompts.GOALS) == {"improve", "debug", "diverge"}
    comments = [line for line in prompts.EMPTY_SOLUTION.splitlines() if line.strip().startswith("#")]
    assert "DATA_DIR" in comments[0]
    assert len({prompts.BASE, prompts.IMPROVE, prompts.DIVERGE}) == 3
    assert "90 seconds" in prompts.build("improve", "90 seconds")
    with pytest.raises(ValueError, match="mode = 'win'"):
        prompts.build("win")
    assert prompts.request("a\n", "b") == "a\n\n# Data files\nb"
    assert prompts.failed("It stopped with exit status 1", "E").endswith("\n```\nE\n```")


def test_predictions_come_in_the_order_of_ids(entered):
    competition = entered["sepals"]
    rows = [[name, "0.2", f"{0.8 - i / 1000:.3f}", f"{i / 1000:.3f}"] for i, name in enumerate(competition.ids)]
    random.Random(0).shuffle(rows)
    values = check(competition, tables.write(("id", "east", "north", "west"), rows))
    np.testing.assert_allclose(values[:, 2], np.arange(90) / 1000)
