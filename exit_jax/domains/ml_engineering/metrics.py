"""What a competition is scored by: scikit-learn's metrics, with what a prediction must be and which way is better.

scikit-learn takes half a second to import and is imported where it is used.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

Values = Any  # float64 [n, c] of numbers, or str [n] of labels
LARGEST = 1e30  # size of a predicted number: its square and sums of it stay finite


@dataclasses.dataclass(frozen=True)
class Metric:
    """A score of predictions against the truth."""

    higher_is_better: bool
    predicts: str  # "number", "probability" (rows of several columns sum to 1) or "label"
    score: Callable[[Values, Values], float]  # (truth, prediction) of the same shape, as ``predicts`` says
    low: float = -LARGEST  # bounds of a predicted number
    high: float = LARGEST


def mean_column_auc(truth: Values, prediction: Values) -> float:
    """Return the area under the ROC curve in [0, 1], ties counted half; of several columns the mean. Truth is 0 or 1."""
    from sklearn.metrics import roc_auc_score

    return float(np.mean([roc_auc_score(t, p) for t, p in zip(truth.T, prediction.T)]))


def log_loss(truth: Values, prediction: Values) -> float:
    """Return the mean of -ln p(true class), in nats.

    One column holds the probability of class 1, several those of a class each (truth is one-hot). scikit-learn clips them to
    [2e-16, 1 - 2e-16], so that a certain error costs 36 nats.
    """
    from sklearn import metrics

    if truth.shape[1] == 1:
        return float(metrics.log_loss(truth[:, 0], prediction[:, 0], labels=[0, 1]))
    share = prediction / prediction.sum(1, keepdims=True)
    return float(metrics.log_loss(truth.argmax(1), share, labels=range(truth.shape[1])))


def rmse(truth: Values, prediction: Values) -> float:
    """Return the root of the mean squared error, in the target's unit; of several columns the mean of theirs."""
    from sklearn.metrics import root_mean_squared_error

    return float(root_mean_squared_error(truth, prediction))


def rmsle(truth: Values, prediction: Values) -> float:
    """Return the RMSE of ln(1 + value); of several columns the mean of theirs, as in nomad2018."""
    from sklearn.metrics import root_mean_squared_log_error

    return float(root_mean_squared_log_error(truth, prediction))


def accuracy(truth: Values, prediction: Values) -> float:
    """Return the share of right labels."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(truth, prediction))


def macro_f1(truth: Values, prediction: Values) -> float:
    """Return the unweighted mean over labels, true or predicted, of 2TP / (2TP + FP + FN)."""
    from sklearn.metrics import f1_score

    return float(f1_score(truth, prediction, average="macro"))


METRICS = {
    "auc": Metric(True, "number", mean_column_auc),
    "log_loss": Metric(False, "probability", log_loss, 0.0, 1.0),
    "rmse": Metric(False, "number", rmse),
    "rmsle": Metric(False, "number", rmsle, 0.0),
    "accuracy": Metric(True, "label", accuracy),
    "macro_f1": Metric(True, "label", macro_f1),
}

# metric of a competition that someone else's code scores
ANY_NUMBER = Metric(True, "number", lambda truth, prediction: math.nan)


def normalise(score: float | None, worst: float, best: float) -> float:
    """Return clip((score - worst) / (best - worst), 0, 1), whichever way is better (ExIt §5); 0 for no finite score.

    >>> normalise(0.375, worst=1.5, best=0.0)
    0.75
    """
    if score is None or not math.isfinite(score):
        return 0.0
    return min(max((score - worst) / (best - worst), 0.0), 1.0)
