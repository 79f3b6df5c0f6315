"""The paper's six competitions, prepared and graded by MLE-bench's own package (arXiv:2410.07095), read where it put them.

``mlebench`` is not on PyPI, and its data come from Kaggle by `mlebench prepare`, with the user's account. From the package
come the description, the public folder, the ids due and the grading function; none of it is copied. Scores are those of
`mlebench grade`, rounded to five decimals likewise, but ids are checked for every competition (it ignores nomad2018's).

Its grading functions differ in what they take for granted: nomad2018's compares row by row without looking at ids, jigsaw's
column by column without their names, spooky's wants the ids first. They are given submissions in the sample's rows and
columns (``Competition.fill_sample``), which all of them read right.

Its module ``mlebench.data`` makes a folder "cache" in the working directory when it is imported. It is not needed here.
"""

import dataclasses
import functools
import io
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from exit_jax.domains.domain import DomainError
from exit_jax.domains.ml_engineering.competitions import Competition, faults_of_public

COMMIT = "783b15af77404fbaffe7255b0c4a934b46153389"  # commit of 26 Feb 2026, which this was run against
REPOSITORY = "https://github.com/openai/mle-bench"
COMPACT = "description_obfuscated.md"  # 0.9 to 4.4 kB of the paper's six, where description.md has 3 to 12
INSTALL = (
    f'pip install --no-deps "mlebench @ git+{REPOSITORY}@{COMMIT}" && pip install appdirs py7zr pyyaml tqdm pandas'
)


@dataclasses.dataclass(frozen=True)
class Declared:
    """A competition of MLE-bench's, with what its package does not say."""

    name: str
    split: str
    metric: str  # metric in words
    worst: float
    best: float
    id_column: str
    target_columns: tuple[str, ...]


# Splits and ranges are the paper's (ExIt §5). Its table calls nomad2018's metric RMSE; MLE-bench computes what is said here.
PAPER = (
    Declared("detecting-insults-in-social-commentary", "train", "AUC", 0.0, 1.0, "Comment", ("Insult",)),
    Declared("spooky-author-identification", "train", "multi-class log-loss", 1.5, 0.0, "id", ("EAP", "HPL", "MWS")),
    Declared("random-acts-of-pizza", "train", "AUC", 0.0, 1.0, "request_id", ("requester_received_pizza",)),
    Declared(
        "jigsaw-toxic-comment-classification-challenge",
        "test",
        "mean AUC of the columns",
        0.0,
        1.0,
        "id",
        ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"),
    ),
    Declared(
        "nomad2018-predict-transparent-conductors",
        "test",
        "mean RMSLE of the columns",
        1.0,
        0.0,
        "id",
        ("formation_energy_ev_natom", "bandgap_energy_ev"),
    ),
    Declared("aerial-cactus-identification", "test", "AUC", 0.0, 1.0, "id", ("has_cactus",)),
)


def load(
    declared: Sequence[Declared] = PAPER, data_dir: pathlib.Path | None = None, compact: bool = False
) -> tuple[Competition, ...]:
    """Return competitions that `mlebench prepare` has prepared.

    Args:
      data_dir: what `mlebench prepare --data-dir` was given; None for MLE-bench's default, in the user's cache folder.
      compact: take the short descriptions, which the package has beside Kaggle's pages.

    Raises:
      DomainError: without the package, or naming all competitions that are not prepared or not as declared.
    """
    try:
        from mlebench.registry import registry  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DomainError(
            f"MLE-bench's competitions need its package mlebench, which cannot be imported ({error}). It is not on PyPI: "
            f"{INSTALL}"
        ) from error
    registry = registry.set_data_dir(data_dir.expanduser()) if data_dir else registry
    loaded, faults = [], []
    for one in declared:
        try:
            entry: Any = registry.get_competition(one.name)
        except (OSError, ImportError, LookupError, ValueError, AssertionError) as error:
            faults.append(
                f"{one.name} is not in mlebench's registry ({error}); install the version this was written for: {INSTALL}"
            )
            continue
        competition = _competition(one, entry)
        found = _faults(competition, entry)
        if compact:
            path = registry.get_competitions_dir() / one.name / COMPACT
            found += [] if path.is_file() else [f"it has no {COMPACT}; unset domain.compact_descriptions"]
            competition = (
                competition if found else dataclasses.replace(competition, description=path.read_text("utf-8"))
            )
        faults += [f"{one.name}: {fault}" for fault in found]
        loaded.append(competition)
    if faults:
        raise DomainError("competitions of MLE-bench cannot be entered: " + "; ".join(faults))
    return tuple(loaded)


def _competition(declared: Declared, entry: Any) -> Competition:
    """Return a competition of the registry's as one of ours."""
    return Competition(
        name=declared.name,
        split=declared.split,
        description=entry.description,
        metric=declared.metric,
        worst=declared.worst,
        best=declared.best,
        id_column=declared.id_column,
        target_columns=declared.target_columns,
        labels=(),
        public=entry.public_dir,
        private=entry.private_dir,
        sample=str(entry.sample_submission.relative_to(entry.public_dir)),
        grader=functools.partial(_grade, entry.answers, entry.grader.grade_fn),
    )


def _faults(competition: Competition, entry: Any) -> list[str]:
    """Return why a competition cannot be entered."""
    if not entry.answers.is_file() or not entry.sample_submission.is_file():
        data_dir = competition.public.parents[2]
        return [f"it is not prepared in {data_dir}; run `mlebench prepare -c {competition.name} --data-dir {data_dir}`"]
    return faults_of_public(competition)


def _grade(answers: pathlib.Path, function: Callable[[Any, Any], float], submission: bytes) -> float:
    """Return MLE-bench's score of a submission, as ``mlebench.grade.grade_csv`` computes it.

    Raises:
      ValueError: with the grader's own words, if it refuses.
    """
    from mlebench.utils import read_csv  # pyright: ignore[reportMissingImports]

    try:
        return round(float(function(read_csv(io.BytesIO(submission)), _answers(answers).copy())), 5)
    except Exception as error:  # graders assert, and raise errors of their own, of pandas and of scikit-learn
        words = (str(error).strip().splitlines() or [repr(error)])[0]
        raise ValueError(f"MLE-bench's grader refuses it: {words}") from error


@functools.lru_cache(maxsize=16)
def _answers(path: pathlib.Path) -> Any:
    """Return the private answers, which are read once."""
    from mlebench.utils import load_answers  # pyright: ignore[reportMissingImports]

    return load_answers(path)
