"""Train one experiment: python train.py --help lists every option."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from common.cli.arguments import parse_args
from common.cli.command import command
from common.cli.console import set_verbosity
from common.cli.listing import listing
from config import TrainConfig


@command
def main(argv: Sequence[str] | None = None) -> Path | None:
    """Train as the options say; print the experiment's folder as the last line on stdout and return it.

    With ``--list`` only print the choices.
    """
    started = time.perf_counter()
    arguments = list(sys.argv[1:] if argv is None else argv)
    config = parse_args(TrainConfig, arguments)
    if config.list is not None:
        print("\n".join(listing(config.list)))
        return None

    set_verbosity(config.verbosity, config.tr_resume or config.data_input_folder / "datasets" / config.data_dataset)

    # Slow imports: here, so that --help and a wrong flag answer at once.
    from rsna.judging.conclusion import conclude
    from rsna.training.train import train

    return train(config, arguments, conclude, started)


if __name__ == "__main__":
    main()
