"""Plan experiments for the hours that there are: python plan.py --hours=8; --help lists every option."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from common.cli.arguments import parse_args
from common.cli.command import command
from common.cli.console import set_verbosity
from rsna.training.options import PlanConfig


@command
def main(argv: Sequence[str] | None = None) -> Path:
    """Print the plan and, as the last line, its file; return that."""
    started = time.perf_counter()
    config = parse_args(PlanConfig, argv)
    set_verbosity(config.verbosity, config.data_input_folder / "datasets" / config.data_dataset)

    from rsna.training.planning import make_plan  # here, so that --help and a wrong flag answer at once

    path = make_plan(config, started)
    print(path)
    return path


if __name__ == "__main__":
    main()
