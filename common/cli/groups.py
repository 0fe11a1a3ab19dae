"""Groups of options that most commands have: console, processor cores, folders.

They don't stand in config.py, so that a command without training answers ``--help`` without the options of train.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.cli.arguments import option


@dataclass(frozen=True, kw_only=True)
class ConsoleOptions:
    """Console."""

    verbosity: int = option(
        1,
        "how much is printed. 0: warnings, errors and the path of the result. 1: progress too. 2: everything that "
        "the log file gets",
        minimum=0,
        maximum=2,
        changeable=True,
    )


@dataclass(frozen=True, kw_only=True)
class GeneralOptions(ConsoleOptions):
    """General."""

    n_jobs: int = option(0, "number of CPU cores to use; 0: all", minimum=0, maximum=4096, changeable=True)


@dataclass(frozen=True, kw_only=True)
class DataLocation:
    """Data location."""

    data_input_folder: Path = option(
        Path("./input"), "folder with the competition's files and the datasets (in datasets/)", changeable=True
    )
    data_dataset: str = option("rsna", "name of the dataset, a folder in <data_input_folder>/datasets")


@dataclass(frozen=True, kw_only=True)
class ResultsLocation(ConsoleOptions):
    """Results."""

    output_dir: Path = option(
        Path("./output/results"), "folder of all experiments; each gets a folder of its own in it", changeable=True
    )
