"""Evaluate an experiment's best weights on its validation fold: python evaluate.py --experiment_id=1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from common.arguments import parse_args
from common.errors import command
from config import EvaluateConfig

if TYPE_CHECKING:
    import pandas as pd


@command
def main(argv: Sequence[str] | None = None) -> pd.DataFrame:
    """Print the metrics beside the constant predictor's, write ``evaluation.csv`` and return it as a table.

    With test-time augmentation also ``evaluation_tta.csv``, which is then returned, and the difference.
    """
    config = parse_args(EvaluateConfig, argv)

    # Here, so that --help and a wrong flag answer at once.
    from common.experiment import experiment_folder
    from common.files import write_csv
    from common.statistics import format_table
    from rsna_experiment import (
        compare_views,
        compare_with_log,
        evaluation_table,
        load_network,
        load_views,
        predict_rows,
        split_rows,
    )

    folder = experiment_folder(config.output_dir, config.experiment_id)
    trained = load_network(folder / "best.pt", config.n_jobs, config.data_input_folder, weights=config.net_weights)
    views = load_views(trained, config)
    rows = split_rows(trained, "valid")
    frame = predict_rows(trained, rows)
    table = evaluation_table(trained, rows, frame)
    write_csv(folder / "evaluation.csv", table, index=True)
    print(format_table(table))
    print(compare_with_log(trained, table))
    print(folder / "evaluation.csv")
    if views is not None:
        augmented = predict_rows(trained, rows, views)
        table = evaluation_table(trained, rows, augmented)
        write_csv(folder / "evaluation_tta.csv", table, index=True)
        print(f"\n{format_table(table)}")
        print(compare_views(rows, frame, augmented))
        print(folder / "evaluation_tta.csv")
    return table


if __name__ == "__main__":
    main()
