"""Learn from out-of-fold predictions of neighbouring slices: python second_level.py cv1 cv2; --help lists all."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from common.cli.arguments import parse_args
from common.cli.command import command
from common.cli.console import set_verbosity
from rsna.judging.options import SecondLevelConfig


@command
def main(argv: Sequence[str] | None = None) -> Path:
    """Write the experiment, print its scores and, as the last line, its folder; return that."""
    config = parse_args(SecondLevelConfig, argv)
    set_verbosity(config.verbosity, ", ".join(config.members))

    # Here, so that --help and a wrong flag answer at once.
    from rsna.judging.conclusion import conclude
    from rsna.judging.second_level import second_level

    return second_level(config, sys.argv if argv is None else ["second_level.py", *argv], conclude)


if __name__ == "__main__":
    main()
