"""Run several experiments: python sweep.py --lines=FILE, or --grid or --space=FILE.yaml; --help lists every option."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.cli.arguments import parse_mode
from common.cli.choices import load
from common.cli.command import command
from common.cli.console import set_verbosity
from rsna.training.options import SweepConfig


@command
def main(argv: Sequence[str] | None = None) -> Path:
    """Run what the file names and print a summary; return the path of the leaderboard or of the search's page."""
    config = parse_mode(SweepConfig, argv)
    set_verbosity(config.verbosity, config.reads)
    return load(config.runs)(config)


if __name__ == "__main__":
    main()
