"""A command of your own: it counts the images (or studies) of a dataset with each label.

python -m examples.command --data_dataset=phantom
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.cli.arguments import option, parse_args
from common.cli.command import command
from common.cli.console import set_verbosity
from common.cli.groups import ConsoleOptions, DataLocation


@dataclass(frozen=True, kw_only=True)
class CountConfig(DataLocation, ConsoleOptions):
    """Count the labels of a dataset."""

    by: str = option("image", "what is counted", choices=("image", "study"))


@command
def main(argv: Sequence[str] | None = None) -> dict[str, int]:
    """Print a line for each label; return the counts by label."""
    config = parse_args(CountConfig, argv)
    set_verbosity(config.verbosity)

    # Here, so that --help and a wrong flag answer at once.
    from rsna.judging.evaluation import labelled_rows
    from rsna_dataset import LABELS, dataset_folder

    rows = labelled_rows(dataset_folder(config.data_input_folder, config.data_dataset))
    if config.by == "study":
        rows = rows.groupby("study_id")[list(LABELS)].max()
    counts = {label: int(rows[label].sum()) for label in LABELS}
    for label, count in counts.items():
        print(f"{label:<17} {count:>7} of {len(rows)}")
    return counts


if __name__ == "__main__":
    main()
