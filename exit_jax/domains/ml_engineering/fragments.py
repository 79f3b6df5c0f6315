"""A small language of real Python: top-level statements, of which a tiny policy composes scripts; each is one token.

A script takes one fragment of each slot in order, and may be wrong: a name that is not there, text where numbers are due, a
column that must not be a feature, a reversed score, a file that nobody reads. Models are written out in NumPy, since importing
pandas and scikit-learn would take ten times a script's 0.2 s. What is best differs from competition to competition.

The teacher of the warm start (``draw``, ``mend``) knows what each metric wants and nothing of any competition: it picks
models at random, and its demonstrations are for made-up briefs.
"""

from collections.abc import Mapping, Sequence

import numpy as np

FENCE, END_FENCE = "```python\n", "```\n"
READ = """def read(name):
    with open(os.path.join(os.environ["DATA_DIR"], name)) as file:
        return [line.strip().split(",") for line in file]
"""
WRITE = """with open("{file}", "w") as file:
    print(*due[0], sep=",", file=file)
    for row, values in zip({rows}, out):
        print({cells}, sep=",", file=file)
"""
MODELS = {
    "ridge": """def ridge(X, Y, Z, value):
    A, B = (np.hstack([part, np.ones((len(part), 1))]) for part in (X, Z))
    return B @ np.linalg.solve(A.T @ A + value * np.eye(A.shape[1]), A.T @ Y)
""",
    "logistic": """def logistic(X, Y, Z, value):
    A, B = (np.hstack([part, np.ones((len(part), 1))]) for part in (X, Z))
    W, softmax = np.zeros((A.shape[1], Y.shape[1])), lambda S: np.exp(S) / np.exp(S).sum(1, keepdims=True)
    for _ in range(300):
        W -= 0.3 * (A.T @ (softmax(A @ W) - Y) / len(A) + value / 100 * W)
    return softmax(B @ W)
""",
    "nearest": """def nearest(X, Y, Z, value):
    near = np.argsort(((Z[:, None] - X) ** 2).sum(2), axis=1)[:, :max(1, int(value))]
    return Y[near].mean(1)
""",
    "kernel": """def kernel(X, Y, Z, value):
    K, L = (np.exp(-((part[:, None] - X) ** 2).mean(2) / 4) for part in (X, Z))
    return Y.mean(0) + L @ np.linalg.solve(K + value * np.eye(len(X)), Y - Y.mean(0))
""",
    "mean": """def mean(X, Y, Z, value):
    return np.repeat(Y.mean(0, keepdims=True), len(Z), axis=0)
""",
}
VALUES = ("0.03", "0.3", "1", "3", "10", "30")
COLUMNS = "X, Z = (np.array([row[{columns}] for row in part], float) for part in (train, test))\n"
PROBABILITIES = "out = np.clip(P, {low}, None) / np.clip(P, {low}, None).sum(1, keepdims=True)\n"

CLASSES = """names = sorted({row[-1] for row in train})
Y = np.array([[row[-1] == name for name in names] for row in train], float)
"""

# slot -> fragment by name, in the order of a script; an empty fragment stands for none
SLOTS: Mapping[str, Mapping[str, str]] = {
    "os": {"os": "import os\n", "none": ""},
    "numpy": {"numpy": "import numpy as np\n", "none": ""},
    "read": {"read": READ},
    "files": {
        "files": '(_, *train), (_, *test), due = (read(name + ".csv") for name in ("train", "test", "sample_submission"))\n',
        "misspelt": '(_, *train), (_, *test), due = (read(name + ".csv") for name in ("train", "test", "sample"))\n',
    },
    "columns": {
        "all": COLUMNS.format(columns="1:len(test[0])"),
        "half": COLUMNS.format(columns="1:1 + len(test[0]) // 2"),
        "first": COLUMNS.format(columns="1:2"),
        "id": COLUMNS.format(columns=":len(test[0])"),
        "target": COLUMNS.format(columns="1:"),
        "text": "X, Z = (np.array([row[1:len(test[0])] for row in part]) for part in (train, test))\n",
    },
    "scale": {
        "none": "",
        "standard": "X, Z = [(part - X.mean(0)) / (X.std(0) + 1e-9) for part in (X, Z)]\n",
        "unsafe": "X, Z = [(part - X.mean(0)) / X.std(0) for part in (X, Z)]\n",  # NaN where a column is constant
        "apart": "X, Z = [(part - part.mean(0)) / (part.std(0) + 1e-9) for part in (X, Z)]\n",
        "range": "X, Z = [(part - X.min(0)) / (np.ptp(X, axis=0) + 1e-9) for part in (X, Z)]\n",
    },
    "expand": {
        "none": "",
        "squares": "X, Z = [np.hstack([part, part**2]) for part in (X, Z)]\n",
        "roots": "X, Z = [np.hstack([part, np.sign(part) * np.abs(part) ** 0.5]) for part in (X, Z)]\n",
    },
    "target": {
        "classes": CLASSES,
        "numbers": "Y = np.array([[row[-1]] for row in train], float)\n",
        "labels": "Y = np.array([[row[-1]] for row in train])\n",
    },
    "model": MODELS,
    "call": {
        f"{name} {value}": f"P = {name}(X, Y, Z, {value})\n"
        for name in MODELS
        for value in (VALUES if name != "mean" else VALUES[:1])
    },
    "out": {
        "last": "out = P[:, -1:]\n",
        "first": "out = P[:, :1]\n",  # the wrong one of classes 0 and 1
        "labels": "out = [[names[i]] for i in P.argmax(1)]\n",
        "indices": "out = P.argmax(1)[:, None]\n",
        "sharp": PROBABILITIES.format(low="1e-9"),
        "soft": PROBABILITIES.format(low="0.02"),
        "raw": "out = P\n",
    },
    "write": {
        "write": WRITE.format(file="submission.csv", rows="test", cells="row[0], *values"),
        "without ids": WRITE.format(file="submission.csv", rows="test", cells="*values"),
        "train rows": WRITE.format(file="submission.csv", rows="train", cells="row[0], *values"),
        "elsewhere": WRITE.format(file="predictions.csv", rows="test", cells="row[0], *values"),
    },
}
# what the teacher takes where it makes no mistake; all of a slot that is not listed
SOUND: Mapping[str, tuple[str, ...]] = {
    "os": ("os",),
    "numpy": ("numpy",),
    "files": ("files",),
    "columns": ("all", "half", "first"),
    "scale": ("none", "standard", "apart", "range"),
    "write": ("write",),
}
NUMBERS = {"target": ("numbers",), "out": ("last",)}
LABELS = {"target": ("classes",), "out": ("labels",)}
WANTED: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "auc": {"target": ("classes", "numbers"), "out": ("last",)},
    "log_loss": {"target": ("classes",), "out": ("sharp", "soft")},
    "rmse": NUMBERS,
    "rmsle": NUMBERS,
    "accuracy": LABELS,
    "macro_f1": LABELS,
}
CHANGED = (("columns",), ("scale",), ("expand",), ("model", "call"), ("call",))  # together, to improve what runs
AMOUNTS = ("few", "some", "many")
ERRORS = (
    *("NameError", "ValueError", "TypeError", "IndexError", "FileNotFoundError", "SyntaxError", "LinAlgError"),
    *("UFuncTypeError", "_UFuncNoLoopError", "_UFuncInputCastingError", "Error"),
)
NO_CODE, INVALID, TIMEOUT = "no code\n", "invalid\n", "timeout\n"
IMPROVE, DEBUG, DIVERGE = "improve\n", "debug\n", "diverge\n"

Choices = Mapping[str, str]  # slot -> name of a fragment


def write(choices: Choices) -> str:
    """Return the script of choices."""
    return "".join(SLOTS[slot][choices[slot]] for slot in SLOTS)


def respond(choices: Choices) -> str:
    """Return the response that holds a script."""
    return FENCE + write(choices) + END_FENCE


def vocabulary() -> list[str]:
    """Return the texts that are tokens of their own, none twice."""
    texts = [FENCE, END_FENCE, IMPROVE, DEBUG, DIVERGE, NO_CODE, INVALID, TIMEOUT]
    texts += [f"{name}\n" for name in ERRORS] + [score(step / 10) for step in range(11)]
    texts += [
        line for metric in WANTED for amount in AMOUNTS for line in brief(metric, amount, amount).splitlines(True)
    ]
    texts += [part for slot in SLOTS.values() for text in slot.values() for part in statements(text)]
    return list(dict.fromkeys(texts))


def statements(text: str) -> list[str]:
    """Return the lines of a text, each with the indented ones that follow it.

    >>> statements("def f():\\n    pass\\nx = 1\\n")
    ['def f():\\n    pass\\n', 'x = 1\\n']
    """
    parts: list[str] = []
    for line in text.splitlines(keepends=True):
        if parts and line.startswith(" "):
            parts[-1] += line
        else:
            parts.append(line)
    return parts


def brief(metric: str, columns: str, rows: str) -> str:
    """Return a competition in three lines."""
    return f"metric {metric}\ncolumns {columns}\nrows {rows}\n"


def amount(number: int, few: int, some: int) -> str:
    """Return a number as one of AMOUNTS, which end at ``few`` and ``some``."""
    return AMOUNTS[(number > few) + (number > some)]


def score(normalised: float) -> str:
    """Return the feedback for a score in [0, 1], rounded down to tenths."""
    return f"score {int(10 * normalised + 1e-6) / 10:.1f}\n"


def is_score(feedback: str) -> bool:
    """Return whether a feedback is that of a script that ran well."""
    return feedback.startswith("score")


def error(trace: str) -> str:
    """Return the feedback for the end of an error trace, which is the name of the error."""
    name = (trace.strip().splitlines() or [""])[-1].partition(":")[0].rpartition(".")[2]
    return f"{name if name in ERRORS else 'Error'}\n"


def draw(metric: str, noise: float, rng: np.random.Generator) -> dict[str, str]:
    """Return a script for a metric; each fragment is any of its slot with probability ``noise``, else one that is sound."""
    choices: dict[str, str] = {}
    for slot in SLOTS:
        choices[slot] = _pick(slot, metric, choices, noise, rng)
    return choices


def is_sound(slot: str, metric: str, choices: Choices) -> bool:
    """Return whether a slot's choice agrees with the metric and with the others."""
    return choices[slot] in _sound(slot, metric, choices)


def mend(metric: str, held: Choices, noise: float, rng: np.random.Generator) -> dict[str, str]:
    """Return a held script with its mistakes put right; of one without, one decision changed."""
    wrong = [slot for slot in SLOTS if not is_sound(slot, metric, held)]
    again = wrong or CHANGED[int(rng.integers(len(CHANGED)))]
    return _draw_again(metric, held, again, noise, rng)


def diverge(metric: str, held: Choices, noise: float, rng: np.random.Generator) -> dict[str, str]:
    """Return a script with another model, and other features."""
    again = [slot for slot in SLOTS if slot in ("columns", "scale", "expand", "model", "call")]
    again += [slot for slot in SLOTS if not is_sound(slot, metric, held)]
    other = _draw_again(metric, held, again, noise, rng)
    while other["model"] == held["model"]:
        other = _draw_again(metric, held, again, noise, rng)
    return other


def symptom(metric: str, choices: Choices, rng: np.random.Generator) -> str:
    """Return the feedback that a script's first mistake would lead to, about; a made-up score where there is none."""
    for slot in SLOTS:
        if not is_sound(slot, metric, choices):
            name = choices[slot]
            if slot in ("os", "numpy", "call"):
                return "NameError\n"
            if slot in ("columns", "files"):
                return {"misspelt": "FileNotFoundError\n", "text": "TypeError\n"}.get(name, "ValueError\n")
            if slot == "target" and name != "classes":
                return "_UFuncNoLoopError\n" if name == "labels" else "ValueError\n"
            if slot == "out" and name == "labels":
                return "NameError\n"
            if slot in ("out", "write"):
                return score(0.0) if slot == "out" and name == "first" and metric == "auc" else INVALID
    return score(rng.random())


def _sound(slot: str, metric: str, choices: Choices) -> Sequence[str]:
    """Return the names in a slot that agree with the metric and with what is chosen before."""
    if slot == "call":
        return [name for name in SLOTS[slot] if name.startswith(choices["model"] + " ")]
    return WANTED[metric].get(slot) or SOUND.get(slot) or list(SLOTS[slot])


def _pick(slot: str, metric: str, choices: Choices, noise: float, rng: np.random.Generator) -> str:
    names = list(SLOTS[slot]) if rng.random() < noise else _sound(slot, metric, choices)
    return names[int(rng.integers(len(names)))]


def _draw_again(
    metric: str, held: Choices, slots: Sequence[str], noise: float, rng: np.random.Generator
) -> dict[str, str]:
    """Return the choices with some slots drawn again, and the call that belongs to the model."""
    choices = dict(held)
    for slot in SLOTS:
        if slot in slots or (slot == "call" and not is_sound(slot, metric, choices)):
            choices[slot] = _pick(slot, metric, choices, noise, rng)
    return choices
