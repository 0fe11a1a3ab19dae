"""Write a phantom: synthetic head CT with bleeding, in the files and formats of the RSNA 2019 competition.

The phantom stands in for data that may not be passed on. It is drawn from formulas and a seed, holds no patient, and
says nothing about how well a model would do on real images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.cli.arguments import parse_args
from common.cli.command import command
from common.cli.console import set_verbosity
from rsna.phantom.options import PhantomConfig


@command
def main(argv: Sequence[str] | None = None) -> Path:
    """Write the phantom that the command line asks for; return its folder."""
    config = parse_args(PhantomConfig, argv)
    set_verbosity(config.verbosity)
    from rsna.phantom.write import write_phantom  # here, so that --help and a wrong flag answer at once

    return write_phantom(config)


if __name__ == "__main__":
    main()
