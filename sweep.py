"""Run several experiments: python sweep.py --lines=FILE, or --grid or --space=FILE.yaml; --help lists every option."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.cli.arguments import parse_args
from common.cli.command import command
from common.cli.console import set_verbosity
from rsna.training.options import SweepConfig


@command
def main(argv: Sequence[str] | None = None) -> Path:
    """Run what the file names and print a summary; return the path of the leaderboard or of the search's page."""
    config = parse_args(SweepConfig, argv)
    set_verbosity(config.verbosity, config.lines or config.grid or config.space)

    # Here, so that --help and a wrong flag answer at once.
    from rsna.training.sweep import run_experiments, run_search

    if config.space is not None:
        return run_search(config)
    return run_experiments(config)


if __name__ == "__main__":
    main()
