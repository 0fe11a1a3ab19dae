"""Make a dataset from the competition's DICOM files: python preprocessing.py; --help lists every option."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.arguments import parse_args
from common.errors import command
from config import PreprocessingConfig


@command
def main(argv: Sequence[str] | None = None) -> Path:
    """Make or finish the dataset; print its folder as the last line and return it."""
    config = parse_args(PreprocessingConfig, argv)

    # Here, so that --help and a wrong flag answer at once.
    from rsna_preprocessing import preprocess

    folder = preprocess(config)
    print(folder)
    return folder


if __name__ == "__main__":
    main()
