"""A metric of your own: the sensitivity at a specificity of 90 %.

Run it instead of evaluate.py, with the same options: ``python -m examples.metric --experiment_id=1``. The metric then
appears in table, JSON, console and page, with its 95 % interval over patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
from sklearn.metrics import roc_curve

import evaluate
from common.evaluation.binned import sensitivity_at
from common.evaluation.interval_rules import RankingRule
from common.evaluation.metric_table import METRICS, Metric

SPECIFICITY = 0.9


def sensitivity(predictions: np.ndarray, targets: np.ndarray) -> float:
    """Return the highest sensitivity of a threshold with at least that specificity, of one label (N,)."""
    false_alarms, found, _ = roc_curve(targets, predictions, drop_intermediate=False)
    return float(found[false_alarms <= 1 - SPECIFICITY].max())


ROW = Metric(
    name="sensitivity_at_90",
    title="sensitivity at 90 %",
    digits=3,
    smaller_is_better=False,
    function=sensitivity,
    # The interval comes from bootstrap draws of whole patients. What a draw scores is counted from histograms.
    interval=RankingRule(partial(sensitivity_at, specificity=SPECIFICITY)),
)


def main(argv: Sequence[str] | None = None) -> pd.DataFrame:
    """Register the metric, then run evaluate.py."""
    METRICS[ROW.name] = ROW
    return evaluate.main(argv)


if __name__ == "__main__":
    main()
