"""Six small competitions from the real data sets that scikit-learn bundles, made on disk at first use; no download.

Three to train on, three other tasks to test on: a probability, a label and a number each. They are made from nothing but the
bundled files, sha256 and rounding, so that every machine makes the same bytes; the sum of each folder is recorded here and
checked whenever it is loaded. A folder is made beside its place and renamed into it, so that processes may race.

What keeps a script from looking the answers up in its own scikit-learn: rows and measurements are shuffled, ids mean nothing,
columns lose their names and get other units, scans are mirrored and inverted. That defeats a join by value, not a script that
undoes it: the order of values survives any unit. So the sandbox must also hide the bundled files (``hidden``). Nothing hides
what a language model remembers of these classic data sets. The private answers lie outside the public folder, which alone is
mounted.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from exit_jax.domains.domain import DomainError
from exit_jax.domains.ml_engineering import competitions, tables
from exit_jax.domains.ml_engineering.competitions import SAMPLE, Competition
from exit_jax.domains.ml_engineering.metrics import METRICS

SEED = "exit_jax 1"  # of orders, ids and units; with another one every sum below changes


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
    sha256: str  # of the folder
    data: Callable[[], Data]
    text: str  # of the description


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
        sha256="c150cb4bc9134863ccd89c40b30a0fad65576ea7c662ada0323655d9a035109f",
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
        sha256="12e2c8328f462e46eb73ad4f26ae654fb57dbf2152c88493f5bfb37527ade6b3",
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
        sha256="db70b1b85a20ab0e89f9f6691e11805a02169e6e82101d30b353537a17d32090",
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
        sha256="c4822befe1042ddac262ab342c9f6a5ae5f70bdbd7fd6539e730c3ee95c48858",
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
        sha256="4657dec6f448facf689e78509cf6f42d7c20fd47a4aaca6a2c7ad8d1a2a889fe",
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
        sha256="d7135b4b602b4f35222e6919a9fdcf2211f6e533358489c9e021975aefc4c81f",
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
    """Return the folders with scikit-learn's bundled data, for a sandbox to mount something empty over.

    They belong to the scikit-learn that this process imports: a sandbox with another one must hide that one's. Its tests have
    iris, too. ``import sklearn.datasets`` still works without them, only the loaders fail.
    """
    import sklearn.datasets

    root = pathlib.Path(sklearn.datasets.__file__).parent
    return tuple(path for path in (root / "data", root / "tests") if path.is_dir())


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
    order = _keyed_order(task.name, len(data.target))
    train, test = order[: task.num_train], order[task.num_train : task.num_train + task.num_test]
    features = _cells(task.name, data)
    ids = [_digest(task.name, "id", str(row)).hex()[:10] for row in range(len(data.target))]
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


def _cells(name: str, data: Data) -> list[list[str]]:
    """Return the features as text of 6 digits; in a unit of its own, a column ranges over 0.01 to 500."""
    values = np.array(data.features, np.float64)
    if not data.scaled:
        return [[f"{value:.6g}" for value in row] for row in values]
    order = sorted(range(values.shape[1]), key=lambda column: _digest(name, "column", str(column)))
    for column in order:
        draw, low, high = _digest(name, "unit", str(column)), values[:, column].min(), values[:, column].max()
        stretch = (1.0 + draw[0] / 64.0) * 10.0 ** (draw[1] % 5 - 2)
        values[:, column] = stretch * ((values[:, column] - low) / (high - low) + draw[2] / 64.0)
    return [[f"{value:.6g}" for value in row] for row in values[:, order]]


def _keyed_order(name: str, count: int) -> list[int]:
    """Return a shuffle of row numbers that no library's random generator can change."""
    return sorted(range(count), key=lambda row: _digest(name, "row", str(row)))


def _digest(*words: str) -> bytes:
    return hashlib.sha256("\0".join((SEED, *words)).encode()).digest()
