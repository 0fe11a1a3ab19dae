"""The metrics of an evaluation, a row each; tables, JSON, console, reports and leaderboard read these rows.

A new metric is one more row. Here the mean distance between a probability and the truth::

    def distances(predictions, targets):
        return np.abs(predictions - targets)

    METRICS["distance"] = Metric("distance", "distance", 4, True, distances, MeanRule("share"))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from common.cli.choices import table
from common.evaluation import binned
from common.evaluation.calibration import calibration_error
from common.evaluation.interval_rules import CalibrationRule, IntervalRule, MeanRule, RankingRule
from common.evaluation.metrics import STUDY, WEIGHTED, binary_log_losses
from common.evaluation.resampling import Array
from common.evaluation.texts import interval_text


@dataclass(frozen=True)
class Metric:
    """A metric of one label's probabilities.

    ``name``: its column in CSV and JSON. ``title``: what people read. ``digits``: decimals on a page.
    ``function``: (predictions, targets) → one label's value; for a :class:`MeanRule` each element's part of the mean.
    ``interval``: the rule for its interval, see ``interval_rules.py``. The row ``weighted`` of every table is the
    labels' weighted mean.
    """

    name: str
    title: str
    digits: int
    smaller_is_better: bool
    function: Callable[[npt.ArrayLike, npt.ArrayLike], Array | float]
    interval: IntervalRule

    @property
    def direction(self) -> str:
        """Which values are better, in words."""
        return "lower is better" if self.smaller_is_better else "higher is better"

    @property
    def best(self) -> str:
        """What the best value of several is called: the lowest, or the highest."""
        return "lowest" if self.smaller_is_better else "highest"

    @property
    def worst(self) -> str:
        """What the worst value of several is called."""
        return "highest" if self.smaller_is_better else "lowest"

    def is_better(self, value: float, other: float) -> bool:
        """Whether ``value`` is better than ``other``; equal values are not."""
        return value < other if self.smaller_is_better else value > other

    def rank(self, value: float) -> float:
        """Return a sort key: the better ``value`` is, the smaller."""
        return value if self.smaller_is_better else -value


def squared_errors(predictions: npt.ArrayLike, targets: npt.ArrayLike) -> Array:
    """Return (p − y)² of every element; the mean is the Brier score (1950)."""
    return (np.asarray(predictions, np.float64) - np.asarray(targets, np.float64)) ** 2


def auroc(predictions: npt.ArrayLike, targets: npt.ArrayLike) -> float:
    """Return the area under the ROC curve of one label (N,), which needs both classes."""
    from sklearn.metrics import roc_auc_score  # here: sweep.py needs none of its second

    return float(roc_auc_score(targets, predictions))


def average_precision(predictions: npt.ArrayLike, targets: npt.ArrayLike) -> float:
    """Return scikit-learn's average precision of one label (N,), which needs a positive."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(targets, predictions))


METRICS: dict[str, Metric] = table(
    (
        Metric("log_loss", "log loss", 4, True, binary_log_losses, MeanRule("log")),
        Metric("brier", "Brier", 4, True, squared_errors, MeanRule("share")),
        Metric("auroc", "AUROC", 3, False, auroc, RankingRule(binned.auroc, binned.auroc_slopes, jackknife=True)),
        Metric(
            "average_precision",
            "average precision",
            3,
            False,
            average_precision,
            RankingRule(binned.average_precision, binned.average_precision_slopes),
        ),
        Metric("calibration_error", "calibration error", 3, True, calibration_error, CalibrationRule()),
    )
)


def key_of_labels(key: str) -> str:
    """Return what the keys of single labels begin with: ``study_log_loss/`` for ``study_weighted_log_loss``."""
    return f"{STUDY * key.startswith(STUDY)}{metric_of(key).name}/"


def metric_of(key: str) -> Metric:
    """Return the row of a validation metric's key: ``weighted_log_loss`` and ``log_loss/any`` mean the log loss.

    That of studies, ``study_weighted_log_loss``, means it too. A key without a row counts as a loss.
    """
    name = key.removeprefix(STUDY).removeprefix(f"{WEIGHTED}_").partition("/")[0]
    return METRICS.get(name) or replace(METRICS["log_loss"], name=name, title=name.replace("_", " "))


def key_title(key: str) -> str:
    """Return a validation metric's key as people say it: ``weighted log loss``, ``log loss of any, by study``."""
    of_study, label = key.startswith(STUDY), key.partition("/")[2]
    prefix = f"{WEIGHTED} " * key.removeprefix(STUDY).startswith(f"{WEIGHTED}_")
    said = f"{prefix}{metric_of(key).title}" + f" of {label}" * bool(label)
    return said + "," * bool(of_study and label) + " by study" * of_study


def metric_texts(row: Mapping[str, Any], digits: int | None = None) -> dict[str, str]:
    """Return ``value [low, high]`` of every metric of a table's row, by title; ``digits`` None: the metrics' own."""
    return {
        metric.title: interval_text(
            row[name], row[f"{name}_low"], row[f"{name}_high"], metric.digits if digits is None else digits
        )
        for name, metric in METRICS.items()
    }
