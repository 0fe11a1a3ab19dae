"""Average predictions of several models: python ensemble.py 1 2 3 --ens_fit=weights; --help lists every option."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from common.cli.arguments import parse_args
from common.cli.command import command
from common.cli.console import set_verbosity
from rsna.judging.options import EnsembleConfig


@command
def main(argv: Sequence[str] | None = None) -> Path:
    """Write the ensemble, print its scores where labels are known, and its path as the last line; return that."""
    config = parse_args(EnsembleConfig, argv)
    set_verbosity(config.verbosity, ", ".join(config.members))

    # Here, so that --help and a wrong flag answer at once.
    from rsna.judging.conclusion import conclude
    from rsna.judging.ensemble import build_ensemble, describe_ensemble, write_ensemble
    from rsna.judging.members import read_members

    members = read_members(config)
    ensemble = build_ensemble(config, members)
    typed = sys.argv if argv is None else ["ensemble.py", *argv]
    path = write_ensemble(config, members, ensemble, typed, conclude)
    print(describe_ensemble(config, members, ensemble))
    print(path)
    return path


if __name__ == "__main__":
    main()
