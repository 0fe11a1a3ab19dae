"""Evaluate an experiment or any predictions: python evaluate.py --experiment_id=1; --help lists every option."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from common.cli.arguments import parse_mode
from common.cli.choices import load
from common.cli.command import command
from common.cli.console import set_verbosity
from common.training.memory import PREDICTION_ADVICE, out_of_memory_advice
from rsna.judging.options import EvaluateConfig

if TYPE_CHECKING:
    import pandas as pd


@command
def main(argv: Sequence[str] | None = None) -> pd.DataFrame:
    """Print the metrics with their intervals, write ``evaluation…`` as CSV and JSON, and return the table by label."""
    config = parse_mode(EvaluateConfig, argv)
    set_verbosity(config.verbosity, config.reads)
    with out_of_memory_advice(PREDICTION_ADVICE):
        return load(config.runs)(config)


if __name__ == "__main__":
    main()
