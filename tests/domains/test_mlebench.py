"""The adapter against MLE-bench's real package: its own preparation and grading of made-up raw data of the paper's six."""

import csv
import dataclasses
import io
import json
import pickle
import zipfile

import numpy as np
import pytest

from exit_jax.domains.domain import DomainError
from exit_jax.domains.ml_engineering import mlebench_adapter as adapter
from exit_jax.domains.ml_engineering.submissions import grade

mlebench = pytest.importorskip("mlebench.registry", reason=f"MLE-bench's package is not on PyPI: {adapter.INSTALL}")
BY_NAME = {declared.name: declared for declared in adapter.PAPER}
INSULTS, SPOOKY, PIZZA, JIGSAW, NOMAD, CACTUS = BY_NAME


def table(columns, rows):
    file = io.StringIO(newline="")
    csv.writer(file).writerows([columns, *rows])
    return file.getvalue()


def zipped(path, **files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__", "/").replace("_DOT_", "."), text)


def write_raw(name, raw):
    """Write data of the form that Kaggle's download has, with 60 rows."""
    rng, number = np.random.default_rng(0), range(60)
    if name == INSULTS:
        remark = lambda kind, i: f'"{kind} {i}, said \\"so\\"\nNone' if i % 3 else f"{kind} {i}"
        rows = [[i % 2, "" if i % 4 else "2012061819Z", remark("train", i)] for i in number]
        (raw / "train.csv").write_text(table(["Insult", "Date", "Comment"], rows))
        rows = [[i % 2, "2012061819Z", remark("test", i), "PrivateTest"] for i in number]
        (raw / "test_with_solutions.csv").write_text(table(["Insult", "Date", "Comment", "Usage"], rows))
    elif name == SPOOKY:
        rows = [[f"id{i:05}", f"A text, {i}", ("EAP", "HPL", "MWS")[i % 3]] for i in number]
        zipped(raw / "train.zip", train_DOT_csv=table(["id", "text", "author"], rows))
    elif name == PIZZA:
        rows = [
            {"request_id": f"t3_{i}", "request_text": "pizza", "requester_received_pizza": i % 2 == 0} for i in number
        ]
        (raw / "train.json").write_text(json.dumps(rows))
        (raw / "test.json").write_text(json.dumps([{"request_id": "x", "request_text": "pizza"}] * 20))
    elif name == JIGSAW:
        columns = ["id", *BY_NAME[JIGSAW].target_columns]
        labels = [[f"{i:016x}", *([-1] * 6 if i % 5 == 0 else rng.permutation([0, 1, 0, 1, 0, 1]))] for i in number]
        train = [[f"{i + 1000:016x}", "text", *row[1:]] for i, row in enumerate(labels)]
        zipped(raw / "train.csv.zip", train_DOT_csv=table(["id", "comment_text", *columns[1:]], train))
        zipped(raw / "test.csv.zip", test_DOT_csv=table(["id", "comment_text"], [[row[0], "text"] for row in labels]))
        zipped(raw / "test_labels.csv.zip", test_labels_DOT_csv=table(columns, labels))
        zipped(
            raw / "sample_submission.csv.zip",
            sample_submission_DOT_csv=table(columns, [[row[0], *[0] * 6] for row in labels]),
        )
    elif name == NOMAD:
        columns = ["id", "spacegroup", *BY_NAME[NOMAD].target_columns]
        rows = [[i, 33, f"{rng.random():.4f}", f"{rng.random() * 5:.4f}"] for i in range(1, 61)]
        zipped(raw / "train.csv.zip", train_DOT_csv=table(columns, rows))
        zipped(raw / "test.csv.zip", test_DOT_csv=table(columns[:2], []))
        zipped(raw / "train.zip", **{f"train__{i}__geometry_DOT_xyz": "Al 0 0 0" for i in range(1, 61)})
        zipped(raw / "test.zip", test__1__geometry_DOT_xyz="Al 0 0 0")
    elif name == CACTUS:
        (raw / "train.csv").write_text(table(["id", "has_cactus"], [[f"{i}.jpg", i % 2] for i in number]))
        zipped(raw / "train.zip", **{f"train__{i}_DOT_jpg": "no image" for i in number})


@pytest.fixture(scope="module", params=list(BY_NAME))
def prepared(request, tmp_path_factory):
    """One of the six, prepared by MLE-bench's own function: the registry's entry, and the adapter's competition."""
    data_dir = tmp_path_factory.mktemp("data")
    entry = mlebench.registry.set_data_dir(data_dir).get_competition(request.param)
    for folder in (entry.raw_dir, entry.public_dir, entry.private_dir):
        folder.mkdir(parents=True)
    write_raw(request.param, entry.raw_dir)
    entry.prepare_fn(raw=entry.raw_dir, public=entry.public_dir, private=entry.private_dir)
    (competition,) = adapter.load([BY_NAME[request.param]], data_dir)
    return entry, competition


def answers(competition, entry):
    """The private answers as a submission: what the sample submission's columns hold of them."""
    with entry.answers.open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = competition.sample_table.columns
    return columns, [[row.get(name, "") for name in columns] for row in rows]


def test_perfect_submissions_score_best(prepared):
    entry, competition = prepared
    columns, rows = answers(competition, entry)
    rows = [[cell.replace("-1", "0") for cell in row] for row in rows] if competition.name == JIGSAW else rows
    verdict = grade(competition, table(columns, rows).encode())
    assert (verdict.valid, verdict.score, verdict.normalised) == (True, competition.best, 1.0), verdict


def test_sample_submissions_score_what_mlebench_says(prepared, tmp_path, monkeypatch):
    entry, competition = prepared
    monkeypatch.chdir(tmp_path)  # mlebench.data makes a folder "cache" there
    grading = pytest.importorskip("mlebench.grade")
    (tmp_path / "leaderboard.csv").write_text(
        "score\n" + "\n".join(map(str, np.linspace(competition.best, competition.worst, 9)))
    )
    entry = dataclasses.replace(
        entry, leaderboard=tmp_path / "leaderboard.csv"
    )  # the package's own is a pointer into LFS
    sample = (competition.public / competition.sample).read_bytes()
    (tmp_path / "submission.csv").write_bytes(sample)
    report = grading.grade_csv(tmp_path / "submission.csv", entry)
    verdict = grade(competition, sample)
    assert verdict.valid
    assert verdict.score == report.score
    assert report.is_lower_better == (not competition.higher_is_better)
    assert grade(pickle.loads(pickle.dumps(competition)), sample) == verdict  # graders may run in other processes


def informative(competition, entry):
    """Return a submission that is neither right nor constant, with ids that each have a row, in the sample's order."""
    rng = np.random.default_rng(1)
    columns, rows = answers(competition, entry)
    places = [columns.index(name) for name in competition.target_columns]
    for row in rows:
        truth = [max(float({"True": 1, "False": 0}.get(row[place], row[place])), 0.0) for place in places]
        values = 0.4 * np.array(truth) + 0.6 * rng.random(len(places)) * max(1.0, *truth)
        values /= values.sum() if competition.name == SPOOKY else 1.0
        for place, value in zip(places, values, strict=True):
            row[place] = repr(float(value))
    return list(columns), rows


def reordered(columns, rows, order):
    places = [columns.index(name) for name in order]
    return order, [[row[place] for place in places] for row in rows]


# what a script may well do to a submission, without a change in what it says
DEEDS = {
    "rows shuffled": lambda columns, rows: (columns, np.random.default_rng(2).permutation(rows).tolist()),
    "rows reversed": lambda columns, rows: (columns, rows[::-1]),
    "columns reversed": lambda columns, rows: reordered(columns, rows, columns[::-1]),
    "targets reversed": lambda columns, rows: reordered(columns, rows, [columns[0], *columns[:0:-1]]),
    "ids last": lambda columns, rows: reordered(columns, rows, [*columns[1:], columns[0]]),
    "columns sorted": lambda columns, rows: reordered(columns, rows[::-1], sorted(columns)),
    "blanks": lambda columns, rows: ([f" {name}" for name in columns], [[f"{cell} " for cell in row] for row in rows]),
    "nothing but what is due": None,
}


@pytest.mark.parametrize("deed", DEEDS)
def test_rows_and_columns_may_come_in_any_order(prepared, deed):
    """The oracle is MLE-bench's own function on a submission in the sample's order."""
    from mlebench.utils import load_answers, read_csv

    entry, competition = prepared
    columns, rows = informative(competition, entry)
    expected = entry.grader.grade_fn(read_csv(io.StringIO(table(columns, rows))), load_answers(entry.answers))
    assert 0.05 < competition.normalise(expected) < 0.999, "neither the best nor the worst"
    due = [competition.id_column, *competition.target_columns]
    done = DEEDS[deed] or (lambda columns, rows: reordered(columns, rows, due))
    verdict = grade(competition, ("\ufeff" + table(*done(columns, rows))).encode())
    assert verdict.valid, verdict.feedback
    assert verdict.score == round(expected, 5)


def test_compact_descriptions_say_what_is_due(prepared):
    entry, full = prepared
    data_dir = full.public.parents[2]
    (competition,) = adapter.load([BY_NAME[full.name]], data_dir, compact=True)
    assert full.description == entry.description
    assert len(competition.description) < 0.65 * len(full.description)
    assert "Metric" in competition.description or "AUC" in competition.description
    assert "kaggle" not in competition.description.lower()


def test_bad_submissions_are_feedback(prepared):
    _, competition = prepared
    columns, rows = competition.sample_table.columns, competition.sample_table.rows
    target = columns.index(competition.target_columns[0])
    spoilt = [[*rows[0][:target], "-7", *rows[0][target + 1 :]], *rows[1:]]
    refused = [table(columns, spoilt).encode()] * (competition.name != JIGSAW)  # whose AUC takes any number
    for submission in (None, b"", table(columns, rows[1:]).encode(), table(["a"], []).encode(), *refused):
        verdict = grade(competition, submission)
        assert not verdict.valid
        assert verdict.score is None
        assert verdict.normalised == 0
    for submission in refused:
        assert "MLE-bench's grader refuses it: " in grade(competition, submission).feedback


def test_competitions_that_are_not_prepared_are_all_named(tmp_path):
    with pytest.raises(DomainError) as error:
        adapter.load(data_dir=tmp_path)
    for name in BY_NAME:
        assert f"mlebench prepare -c {name} --data-dir {tmp_path}" in str(error.value)


def test_a_made_up_competition_in_the_registry(tmp_path, monkeypatch):
    folder = tmp_path / "competitions" / "made-up"
    folder.mkdir(parents=True)
    (folder / "description.md").write_text("Guess.")
    (tmp_path / "made_up_code.py").write_text(
        "def prepare(raw, public, private): pass\ndef grade(submission, answers):\n"
        "    return float((submission.y - answers.y).abs().mean())\n"
    )
    (folder / "config.yaml").write_text(
        f"id: made-up\nname: Made up\ncompetition_type: simple\ndescription: {folder}/description.md\n"
        "dataset: {answers: made-up/prepared/private/test.csv, sample_submission: made-up/prepared/public/sample.csv}\n"
        "grader: {name: mae, grade_fn: 'made_up_code:grade'}\npreparer: made_up_code:prepare\n"
    )
    for name, text in {"private/test.csv": "id,y\n1,0.5\n2,1\n", "public/sample.csv": "id,y\n1,0\n2,0\n"}.items():
        path = tmp_path / "data/made-up/prepared" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(mlebench.Registry, "get_competitions_dir", lambda registry: tmp_path / "competitions")
    declared = adapter.Declared("made-up", "train", "MAE", 1.0, 0.0, "id", ("y",))
    (competition,) = adapter.load([declared], tmp_path / "data")
    verdict = grade(competition, b"y,id\n0.25,1\n0.5,2\n")
    assert (verdict.score, verdict.normalised) == (0.375, 0.625)  # (.25 + .5) / 2, from 1 at worst
    with pytest.raises(DomainError, match="not-there is not in mlebench's registry"):
        adapter.load([dataclasses.replace(declared, name="not-there")], tmp_path / "data")
    with pytest.raises(DomainError, match=f"made-up: it has no {adapter.COMPACT}"):
        adapter.load([declared], tmp_path / "data", compact=True)
