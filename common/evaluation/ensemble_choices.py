"""The choices of ``--ens_method``, ``--ens_fit`` and ``--ens_calibrate``. A new choice is a function and a row.

Rows name functions by their paths, so that checking a command line imports neither numpy nor scipy.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from common.cli.choices import Row, table


@dataclass(frozen=True)
class MethodRow(Row):
    """A way to average predictions: ``path`` makes its link from the power, which only the power mean uses."""

    path: str = field(kw_only=True)
    has_power: bool = field(default=False, kw_only=True)


@dataclass(frozen=True)
class FunctionRow(Row):
    """A fit of the weights, or a map of one label's probabilities: the dotted path of the function."""

    path: str = field(kw_only=True)


METHODS: dict[str, MethodRow] = table(
    (
        MethodRow("mean", "mean of the probabilities", path="common.evaluation.ensembling.arithmetic"),
        MethodRow(
            "logit",
            "mean of their logits (clipped to 1e-7 from 0 and 1)",
            path="common.evaluation.ensembling.of_logits",
        ),
        MethodRow("power", "power mean by --ens_power", path="common.evaluation.ensembling.of_powers", has_power=True),
        MethodRow(
            "rank",
            "mean of the ranks within a label, scaled to (0, 1], which are not calibrated probabilities and score "
            "badly in log loss",
            path="common.evaluation.ensembling.of_ranks",
        ),
    )
)
FITS: dict[str, FunctionRow] = table(
    (
        FunctionRow("weights", "those with the lowest loss", path="common.evaluation.ensemble_fitting.fit_weights"),
        FunctionRow(
            "weights_per_label",
            "the same for each label alone, drawn towards those of all labels where a label is rare",
            path="common.evaluation.ensemble_fitting.fit_weights_per_label",
        ),
        FunctionRow(
            "greedy",
            "greedy selection with replacement",
            path="common.evaluation.ensemble_fitting.greedy_weights",
        ),
    )
)
MAPS: dict[str, FunctionRow] = table(
    (
        FunctionRow("temperature", "one factor of the logits", path="common.evaluation.calibration.temperature_map"),
        FunctionRow(
            "isotonic", "any rising curve, which needs many images", path="common.evaluation.calibration.isotonic_map"
        ),
    )
)
