"""What plain scripts score on the embedded competitions: is there room between a constant and a good model? And their time.

    python benchmarks/competitions.py [--data_dir /tmp/exit_jax_competitions] [--only tumours,sepals]

Each script runs as a policy's would: a process of its own, with DATA_DIR, in an empty working directory (but in no sandbox).
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from exit_jax.domains.ml_engineering import embedded
from exit_jax.domains.ml_engineering.competitions import SAMPLE, Competition
from exit_jax.domains.ml_engineering.submissions import FILE, Verdict, grade

# what all scripts share: data in, a fitted model's predictions out
FRAME = """import os

import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PowerTransformer, StandardScaler
from sklearn.svm import SVC, SVR

folder = os.environ["DATA_DIR"]
train, test = (pd.read_csv(os.path.join(folder, name + ".csv")) for name in ("train", "test"))
sample = pd.read_csv(os.path.join(folder, "sample_submission.csv"))
target, features = train.columns[-1], test.columns[1:]
X, y, Z = train[features].to_numpy(), train[target].to_numpy(), test[features].to_numpy()
{model}
model.fit(X, y)
columns = list(sample.columns[1:])
if len(columns) > 1:
    sample[columns] = model.predict_proba(Z)
elif KIND == "auc":
    sample[columns[0]] = model.predict_proba(Z)[:, 1]
else:
    sample[columns[0]] = model.predict(Z)
sample.to_csv("submission.csv", index=False)
"""
ONE_FEATURE = """varying = X.std(0) > 0
X, Z = X[:, varying], Z[:, varying]
best = np.argmax([np.ptp([c[y == v].mean() for v in np.unique(y)]) / c.std() if KIND != "rmse"
                  else abs(np.corrcoef(c, y)[0, 1]) for c in X.T])
X, Z = X[:, [best]], Z[:, [best]]
X, Z = (X - X.mean()) / X.std(), (Z - X.mean()) / X.std()
model = LinearRegression() if KIND == "rmse" else LogisticRegression()"""
UNSCALED = 'model = LinearRegression() if KIND == "rmse" else KNeighborsClassifier()'
LINEAR = """model = RidgeCV(np.logspace(-2, 3, 20)) if KIND == "rmse" else LogisticRegression(max_iter=500)
model = make_pipeline(StandardScaler(), model)"""
FOREST = """forest = RandomForestRegressor if KIND == "rmse" else RandomForestClassifier
model = forest(100, random_state=0)"""
# what did best by cross-validation on the training rows, of some ten models; the test rows had no say
TUNED = {
    "tumours": "model = make_pipeline(PowerTransformer(), LogisticRegression())",
    "cultivars": "model = make_pipeline(StandardScaler(), SVC(C=3))",
    "progression": "model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 3, 20)))",
    "numerals": "model = SVC(C=10, gamma=0.001)",
    "sepals": "model = make_pipeline(StandardScaler(), LogisticRegression(C=10))",
    "torn_scans": "model = SVR(gamma=0.003)",
}


def scripts(competition: Competition) -> dict[str, str]:
    """Return the scripts by name."""
    models = {
        "one feature": ONE_FEATURE,
        "unscaled": UNSCALED,
        "logistic / ridge": LINEAR,
        "forest": FOREST,
        "tuned": TUNED[competition.name],
    }
    kind = f"KIND = {competition.metric!r}\n"
    return {name: kind + FRAME.replace("{model}", model) for name, model in models.items()}


def play(script: str, competition: Competition) -> tuple[Verdict, float]:
    """Run a script and grade it; returns the verdict and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        (path / "solution.py").write_text(script)
        environment = os.environ | {
            "DATA_DIR": str(competition.public),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "solution.py"], cwd=path, env=environment, text=True, capture_output=True
        )
        secs = time.perf_counter() - started
        if done.returncode:
            raise RuntimeError(f"{competition.name}: {done.stderr}")
        return grade(competition, (path / FILE).read_bytes()), secs


def main() -> int:
    """Parse the flags, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data_dir", type=pathlib.Path, default=pathlib.Path(tempfile.gettempdir()) / "exit_jax_competitions"
    )
    parser.add_argument("--only", default="", help="names, separated by commas; all without it")
    flags = parser.parse_args()
    chosen = [c for c in embedded.load(flags.data_dir) if not flags.only or c.name in flags.only.split(",")]
    head = ["competition", "split", "metric", "0 to 1", "sample", *scripts(chosen[0]), "slowest, s"]
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|", flush=True)
    for competition in chosen:
        sample = grade(competition, (competition.public / SAMPLE).read_bytes())
        played = [play(script, competition) for script in scripts(competition).values()]
        cells = [
            f"{verdict.score:.3f}: {verdict.normalised:.2f}"
            for verdict in (sample, *(verdict for verdict, _ in played))
        ]
        about = [
            competition.name,
            competition.split,
            competition.metric,
            f"{competition.worst:g} to {competition.best:g}",
        ]
        print("| " + " | ".join([*about, *cells, f"{max(secs for _, secs in played):.1f}"]) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
