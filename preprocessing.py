"""Make a dataset from the competition's DICOM files: python preprocessing.py; --help lists every option."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.cli.arguments import parse_args
from common.cli.command import command
from common.cli.console import set_verbosity
from rsna.prepare.options import PreprocessingConfig


@command
def main(argv: Sequence[str] | None = None) -> Path:
    """Make or finish the dataset, or only look at it or its source; print its folder as the last line and return it."""
    config = parse_args(PreprocessingConfig, argv)
    set_verbosity(config.verbosity, config.pre_source or config.data_input_folder)

    # Here, so that --help and a wrong flag answer at once.
    from rsna.prepare.checks import audit_dataset, find_dataset, leaves_dataset_alone, verify_dataset
    from rsna.prepare.dataset import preprocess
    from rsna_dataset import dataset_folder

    if config.check:
        from rsna.prepare.survey import survey

        survey(config)
        return dataset_folder(config.data_input_folder, config.data_dataset)

    def audit(folder: Path) -> None:
        if config.pre_audit:
            audit_dataset(folder, config.data_dataset)

    if leaves_dataset_alone(config):
        folder = find_dataset(config)
        if config.pre_verify:
            verify_dataset(folder, config.data_dataset, config.n_jobs)
        audit(folder)
    else:
        folder = preprocess(config, audit)
    print(folder)
    return folder


if __name__ == "__main__":
    main()
