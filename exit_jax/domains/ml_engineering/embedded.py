"""Six small competitions from the real data sets that scikit-learn bundles, made on disk at first use; no download.

Three to train on, three other tasks to test on: a probability, a label and a number each. They are made from nothing but the
bundled files, sha256 and rounding, so that every machine makes the same bytes; the sum of each folder is recorded here and
checked whenever it is loaded. A folder is made beside its place and renamed into it, so that processes may race.

What keeps a script from looking the answers up in a copy of the data: rows and measurements are shuffled, columns lose their
names and get other units, scans are mirrored and inverted, all drawn from the whole table (``_draws``). That defeats a join of
raw values and nothing else: the unit of a column goes when it is scaled from 0 to 1. So the sandbox must hide all copies
(``hidden``). Nothing hides what a language model remembers of these classic data sets. The private answers lie outside the
public folder, which alone is mounted.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from exit_jax.domains.domain import DomainError
from exit_jax.domains.ml_engineering import competitions, tables
from exit_jax.domains.ml_engineering.competitions import SAMPLE, Competition
from exit_jax.domains.ml_engineering.metrics import METRICS

# below a folder of packages; the tests have iris
COPIES = ("sklearn/datasets/data", "sklearn/datasets/tests", "scipy/io/arff/tests", "scipy/spatial/tests")
SEED = "exit_jax 2"  # seed of orders, ids and units, besides the data; with another one every sum below changes


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set before its rows are shuffled and split."""

    columns: tuple[str, ...]
    features: Any  # float64 [n, d]
    target: tuple[str, ...]  # [n], as it stands in the files
    scaled: bool  # do columns get units of their own?


@dataclasses.dataclass(frozen=True)
class Task:
    """How one competition is made."""

    name: str
    split: str
    metric: str
    worst: float  # what a constant scores, about
    best: float
    target: str  # column of train.csv
    num_train: int
    num_test: int
    sample: str  # what the sample submission predicts throughout; of several columns, for each
    sha256: str  # sum of the folder
    data: Callable[[], Data]
    text: str  # the description


def _tumours() -> Data:
    from sklearn.datasets import load_breast_cancer

    bunch: Any = load_breast_cancer()
    # the columns of size and of the worst cells stay out: with them a logistic regression reaches .99
    means = ("mean texture", "mean smoothness", "mean symmetry", "mean fractal dimension")
    errors = ("texture", "smoothness", "symmetry", "fractal dimension", "compactness", "concavity")
    names = [*means, *(f"{name} error" for name in errors)]
    columns = [list(bunch.feature_names).index(name) for name in names]
    target = tuple(str(1 - int(value)) for value in bunch.target)  # scikit-learn has 0 for malignant
    return Data(_numbered(len(names)), bunch.data[:, columns], target, True)


def _cultivars() -> Data:
    from sklearn.datasets import load_wine

    bunch: Any = load_wine()
    # flavanoids, proline, colour and dilution stay out: with them a logistic regression reaches .95 to .98
    names = (
        "alcohol",
        "malic_acid",
        "ash",
        "alcalinity_of_ash",
        "magnesium",
        "nonflavanoid_phenols",
        "proanthocyanins",
        "hue",
    )
    columns = [list(bunch.feature_names).index(name) for name in names]
    target = tuple("ABC"[value] for value in bunch.target)
    return Data(_numbered(len(names)), bunch.data[:, columns], target, True)


def _progression() -> Data:
    from sklearn.datasets import load_diabetes

    bunch: Any = load_diabetes(scaled=False)
    return Data(_numbered(bunch.data.shape[1]), bunch.data, tuple(str(int(value)) for value in bunch.target), True)


def _scans() -> tuple[Any, Any]:
    """Return images float64 [1797, 8, 8], mirrored, with ink at 0 and paper at 16, and their numerals."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    return 16.0 - bunch.images[:, :, ::-1], bunch.target


def _numerals() -> Data:
    images, target = _scans()
    half = len(images) // 2  # the other half is for the torn ones, so that no scan is in both
    names = tuple(f"r{row}c{column}" for row in range(8) for column in range(8))
    return Data(names, images[:half].reshape(half, 64), tuple(str(value) for value in target[:half]), False)


def _torn() -> Data:
    images, _ = _scans()
    half = len(images) // 2
    names = tuple(f"r{row}c{column}" for row in range(4) for column in range(8))
    ink = (16.0 - images[half:, 4:]).mean((1, 2))
    return Data(names, images[half:, :4].reshape(-1, 32), tuple(f"{value:.5f}" for value in ink), False)


def _sepals() -> Data:
    from sklearn.datasets import load_iris

    bunch: Any = load_iris()
    target = tuple(("east", "north", "west")[value] for value in bunch.target)
    return Data(_numbered(2), bunch.data[:, :2], target, True)  # with the petals a log-loss of .19 is easy


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"x{number:02d}" for number in range(1, count + 1))


TASKS = (
    Task(
        name="tumours",
        split="train",
        metric="auc",
        worst=0.5,
        best=1.0,
        target="malignant",
        num_train=200,
        num_test=369,
        sample="0.5",
        sha256="30d4df55fa52b02c5b12244cfb7e36f8ec187576b1fe7f315b33ef552ff4a36d",
        data=_tumours,
        text="Cells of a breast tumour were drawn by a needle and photographed. Predict whether the tumour is malignant (1) or "
        "benign (0) from ten measurements of the cells' nuclei, such as texture and symmetry and how much they vary.",
    ),
    Task(
        name="cultivars",
        split="train",
        metric="macro_f1",
        worst=0.2,
        best=1.0,
        target="cultivar",
        num_train=30,
        num_test=148,
        sample="A",
        sha256="59f9dbb609565d57ac67b58020b168e115dc951ffffbe5a8de5800e3e1fad99b",
        data=_cultivars,
        text="Wines of one region were made from three cultivars of grapes: A, B and C. Tell which from eight chemical "
        "measurements.",
    ),
    Task(
        name="progression",
        split="train",
        metric="rmse",
        worst=75.0,
        best=50.0,
        target="progression",
        num_train=242,
        num_test=200,
        sample="150",
        sha256="251663f8fa9e28b1b752e532edb6e107780df18c9ab5344f29514bfe0ae84991",
        data=_progression,
        text="Predict how far diabetes has progressed a year on, a number from about 25 to 350, from ten measurements of a "
        "patient, such as age, body mass index, blood pressure and blood serum. One of them is the sex, coded as a number.",
    ),
    Task(
        name="numerals",
        split="test",
        metric="accuracy",
        worst=0.1,
        best=1.0,
        target="numeral",
        num_train=100,
        num_test=600,
        sample="0",
        sha256="8604df5956adea7457d8f590588b1f60b8751953652aaf9490e957595c917886",
        data=_numerals,
        text="Read handwritten numerals, 0 to 9, from scans of 8 x 8 pixels. The column r2c5 is the pixel in row 2 and "
        "column 5, counted from 0 at the top left; 0 is ink, 16 is paper. The scans are mirrored.",
    ),
    Task(
        name="sepals",
        split="test",
        metric="log_loss",
        worst=1.1,
        best=0.2,
        target="species",
        num_train=60,
        num_test=90,
        sample="0.3333",
        sha256="a8eda829d1ed031d958eaac5a6da14b6d9f5b1e6c9acdef32fd485e4ca58a368",
        data=_sepals,
        text="Give the probability that a flower belongs to each of three species of iris, here called east, north and west, "
        "from two measurements of its sepal.",
    ),
    Task(
        name="torn_scans",
        split="test",
        metric="rmse",
        worst=1.05,
        best=0.55,
        target="ink",
        num_train=400,
        num_test=400,
        sample="5",
        sha256="f13c8c20a379fabb58ef173135da8b9f54df7223e151126417a22f5e68c77980",
        data=_torn,
        text="Scans of handwritten numerals, 8 x 8 pixels, were torn in two. Predict from the upper half how much ink the "
        "lower half holds: the mean over its 32 pixels, where 16 is a black pixel. The column r2c5 is the pixel in row 2 and "
        "column 5, counted from 0 at the top left; here 0 is ink and 16 is paper. The scans are mirrored.",
    ),
)
_MEASURED = {
    "auc": "the area under the ROC curve of the column {target}, any number, larger where 1 is likelier. Higher is better.",
    "macro_f1": "the F1 score, averaged over the labels without weights. Higher is better.",
    "rmse": "the root of the mean squared error. Lower is better.",
    "accuracy": "the share of right labels. Higher is better.",
    "log_loss": "the log-loss, in nats. The probabilities in a row must sum to 1. Lower is better.",
}


def load(data_dir: pathlib.Path) -> tuple[Competition, ...]:
    """Return the embedded competitions below ``data_dir``, made if they are not there.

    Raises:
      DomainError: if a folder is not what it should be, or scikit-learn's data are not those recorded here.
    """
    return tuple(_load(task, data_dir) for task in TASKS)


def hidden() -> tuple[pathlib.Path, ...]:
    """Return the folders that hold copies of these data sets, for a sandbox to mount something empty over.

    They are those of every folder of packages that a program may find: a virtual environment's base interpreter and the system
    may have a scikit-learn of their own. Importing scikit-learn and SciPy still works without them, only loaders fail.
    """
    prefixes = (sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix, "/usr")
    packages = {path for prefix in prefixes for path in pathlib.Path(prefix).glob("lib*/python*/*-packages")}
    packages |= {path for path in map(pathlib.Path, sys.path) if path.name in ("site-packages", "dist-packages")}
    found = {(path / copy).resolve() for path in packages for copy in COPIES if (path / copy).is_dir()}
    return tuple(sorted(found))


def _load(task: Task, data_dir: pathlib.Path) -> Competition:
    """Return one competition, made if it is not there."""
    folder = data_dir.expanduser().absolute() / f"{task.name}-{task.sha256[:8]}"  # other rules, other folder
    if not folder.is_dir():
        _create(task, folder)
    found = competitions.tree_hash(folder)
    if found != task.sha256:
        raise DomainError(
            f"{folder} has the sum {found}, recorded is {task.sha256}: its files were changed; delete the "
            "folder, so that it is made anew"
        )
    return competitions.load(folder)


def _create(task: Task, folder: pathlib.Path) -> None:
    """Make a competition's folder at once or not at all; another process may be first."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = pathlib.Path(tempfile.mkdtemp(prefix=f"partial-{task.name}-", dir=folder.parent))
    try:
        _write(task, partial)
        found = competitions.tree_hash(partial)
        if found != task.sha256:
            import sklearn

            raise DomainError(
                f"the competition {task.name} made from scikit-learn {sklearn.__version__} has the sum {found}, recorded is "
                f"{task.sha256}: its bundled data differ, and so would results; install scikit-learn 1.5 to 1.9"
            )
        os.rename(partial, folder)
    except OSError:
        if not folder.is_dir():  # otherwise the other process has made it, and it is checked next
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(task: Task, folder: pathlib.Path) -> None:
    """Write all files of a competition."""
    data = task.data()
    draw = _draws(task.name, data)
    rows = range(len(data.target))
    order = sorted(rows, key=lambda row: draw("row", row))  # a shuffle that no library's random generator can change
    train, test = order[: task.num_train], order[task.num_train : task.num_train + task.num_test]
    features = _cells(data, draw)
    ids = [draw("id", row).hex()[:10] for row in rows]
    labels = _labels(task, data)
    one_hot = task.metric == "log_loss" and len(labels) > 1
    targets = tuple(labels) if one_hot else (task.target,)
    answer = lambda row: [str(int(data.target[row] == label)) for label in labels] if one_hot else [data.target[row]]

    for name in ("public", "private"):
        (folder / name).mkdir()
    fields = {
        "name": task.name,
        "split": task.split,
        "metric": task.metric,
        "direction": "higher" if METRICS[task.metric].higher_is_better else "lower",
        "worst": task.worst,
        "best": task.best,
        "id_column": "id",
        "target_columns": list(targets),
        "labels": labels if METRICS[task.metric].predicts == "label" else [],
    }
    files = {
        "competition.json": json.dumps(fields, indent=1).encode() + b"\n",
        "description.md": _description(task, targets).encode(),
        "public/train.csv": tables.write(
            ("id", *data.columns, task.target), [[ids[row], *features[row], data.target[row]] for row in train]
        ),
        "public/test.csv": tables.write(("id", *data.columns), [[ids[row], *features[row]] for row in test]),
        f"public/{SAMPLE}": tables.write(("id", *targets), [[ids[row], *[task.sample] * len(targets)] for row in test]),
        "private/answers.csv": tables.write(("id", *targets), [[ids[row], *answer(row)] for row in test]),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    for path in (folder, folder / "public", *(folder / "public").iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)  # a sandbox may run as another user
    (folder / "private").chmod(0o700)


def _description(task: Task, targets: Sequence[str]) -> str:
    """Return description.md."""
    measured = _MEASURED[task.metric].format(target=task.target)
    names = ",".join(("id", *targets))
    return (
        f"{task.text}\n\ntrain.csv has {task.num_train} rows with the column {task.target}, test.csv {task.num_test} rows "
        f"without it.\n\nSubmissions have the columns {names} and a row for each id of test.csv. They are scored by "
        f"{measured}\n"
    )


def _labels(task: Task, data: Data) -> list[str]:
    """Return the classes in order, [] for numbers."""
    return [] if task.metric in ("auc", "rmse") else sorted(set(data.target))


def _cells(data: Data, draw: Callable[[str, int], bytes]) -> list[list[str]]:
    """Return the features as text of 6 digits; in a unit of its own, a column ranges over 0.01 to 500."""
    values = np.array(data.features, np.float64)
    if not data.scaled:
        return [[f"{value:.6g}" for value in row] for row in values]
    order = sorted(range(values.shape[1]), key=lambda column: draw("column", column))
    for column in order:
        unit, low, high = draw("unit", column), values[:, column].min(), values[:, column].max()
        stretch = (1.0 + unit[0] / 64.0) * 10.0 ** (unit[1] % 5 - 2)
        values[:, column] = stretch * ((values[:, column] - low) / (high - low) + unit[2] / 64.0)
    return [[f"{value:.6g}" for value in row] for row in values[:, order]]


def _draws(name: str, data: Data) -> Callable[[str, int], bytes]:
    """Return a function from what is drawn, and a row or column's number, to random bytes.

    They depend on the whole table, in its order and with its target. The code alone is public, and these data sets are sorted
    by class: were ids hashes of row numbers, a script could try all numbers and read the classes off. Nor may a row's hash
    depend on that row alone, for its label is one of few.
    """
    cells = [[*(f"{value:.6g}" for value in row), label] for row, label in zip(data.features, data.target, strict=True)]
    table = hashlib.sha256(json.dumps(cells).encode()).hexdigest()
    return lambda what, number: hashlib.sha256(f"{SEED}\0{name}\0{table}\0{what}\0{number}".encode()).digest()
