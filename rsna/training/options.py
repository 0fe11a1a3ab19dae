"""The options of sweep.py. Those of train.py are in config.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.cli.arguments import option
from common.cli.groups import ResultsLocation
from common.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class SweepOptions(ResultsLocation):
    """Data of experiments that name none."""

    data_dataset: str | None = option(None, "dataset of experiments that name none; none: the default of train.py")


@dataclass(frozen=True, kw_only=True)
class ListConfig(SweepOptions):
    """Experiments that are listed (--lines, --grid)."""

    chosen_by = ""
    runs = "rsna.training.sweep.run_experiments"

    lines: Path | None = option(
        None, "text file with one experiment on each line, as flags of train.py; # starts a comment"
    )
    grid: Path | None = option(
        None,
        "YAML file {base: {option: value}, grid: {option: [values]}}: one experiment for every combination of the "
        "grid's values, each with the options of base",
    )
    flags: str = option(
        "", "flags of train.py for every experiment of --lines or --grid, quoted as one: '--seed=1 ...'"
    )
    parallel: int = option(
        0, "number of experiments at a time; 0: one on each GPU, or one if there is no GPU", minimum=0
    )
    evaluate: bool = option(
        True, "1: evaluate each experiment and predict the test images. 0: only train, like the trials of --space"
    )
    dry_run: bool = option(False, "1: print what would run, and run nothing")

    def __post_init__(self) -> None:
        if (self.lines is None) == (self.grid is None):
            raise UsageError("give one of --lines, --grid and --space")

    @property
    def reads(self) -> Path:
        """The file that names the experiments."""
        return self.lines or self.grid


@dataclass(frozen=True, kw_only=True)
class SearchConfig(SweepOptions):
    """Search (--space): trials are only trained, one after the other in each process, and depend on those before."""

    chosen_by = "space"
    runs = "rsna.training.sweep.run_search"

    space: Path | None = option(
        None,
        "YAML file {base: {option: value}, space: {option: [choices] or {low:, high:, log:, step:}}}: Optuna "
        "searches the space, and every trial has the options of base. Processes started with the same file share "
        "the search",
    )
    trials: int = option(20, "number of trials of --space, over all processes together", minimum=1)
    seed: int = option(0, "seed of the search", minimum=0, maximum=2**31 - 1)

    @property
    def reads(self) -> Path:
        """The file that names the space."""
        return self.space


@dataclass(frozen=True, kw_only=True)
class SweepConfig(SearchConfig, ListConfig):
    """Run several experiments in turn, or one on each GPU. A failed one stops no other."""

    modes = (SearchConfig, ListConfig)
