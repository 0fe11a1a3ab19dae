"""Predict a split with trained weights: python predict.py --net_weight_file=output/results/1/best.pt --split=test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.cli.arguments import parse_mode
from common.cli.choices import load
from common.cli.command import command
from common.cli.console import set_verbosity
from common.training.memory import PREDICTION_ADVICE, out_of_memory_advice
from rsna.prediction.options import PredictConfig


@command
def main(argv: Sequence[str] | None = None) -> Path:
    """Write ``submission.csv``, ``predictions_<split>.csv`` or a folder of studies; print the path and return it.

    With --audit the path is the audited submission, or the filled one.
    """
    config = parse_mode(PredictConfig, argv)
    set_verbosity(config.verbosity, config.reads)
    with out_of_memory_advice(PREDICTION_ADVICE):
        path = load(config.runs)(config)
    print(path)
    return path


if __name__ == "__main__":
    main()
