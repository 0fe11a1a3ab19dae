"""Write the leaderboard of all experiments and an experiment's report: python report.py --experiment_id=1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.cli.arguments import parse_args
from common.cli.command import command
from common.cli.console import set_verbosity
from rsna.judging.options import ReportConfig


@command
def main(argv: Sequence[str] | None = None) -> Path:
    """Write ``report.html`` of each experiment that is named, and of its folds, then the leaderboard.

    Print their paths and return the last one.
    """
    config = parse_args(ReportConfig, argv)
    set_verbosity(config.verbosity, config.output_dir)

    # Here, so that --help and a wrong flag answer at once, and the leaderboard alone needs no torch.
    from common.errors import UsageError
    from common.experiments.folder import experiment_folder
    from common.reports.leaderboard import update_leaderboard
    from rsna_dataset import METRIC

    if not config.output_dir.is_dir():
        raise UsageError(f"--output_dir={config.output_dir}: no such folder; train an experiment first")
    for experiment_id in config.experiment_id:
        from rsna.judging.reports import rewrite_reports

        print(rewrite_reports(experiment_folder(config.output_dir, experiment_id)))
    path = update_leaderboard(config.output_dir, METRIC)
    print(path)
    return path


if __name__ == "__main__":
    main()
