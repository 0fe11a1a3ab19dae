"""Export a trained network for other programs: python export.py --net_weight_file=output/results/1/best.pt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.cli.arguments import parse_args
from common.cli.command import command
from common.cli.console import set_verbosity
from common.training.memory import out_of_memory_advice
from rsna.prediction.options import ExportConfig


@command
def main(argv: Sequence[str] | None = None) -> Path:
    """Export the network, print how far the file's results are from torch's, print its path and return it."""
    config = parse_args(ExportConfig, argv)
    set_verbosity(config.verbosity, config.net_weight_file)

    # Slow imports: here, so that --help and a wrong flag answer at once.
    from rsna.prediction.export import export_network

    with out_of_memory_advice("let less run beside this; CUDA_VISIBLE_DEVICES= computes on the CPU"):
        path = export_network(config)
    print(path)
    return path


if __name__ == "__main__":
    main()
