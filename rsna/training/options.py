"""The options of sweep.py. Those of train.py stand in config.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.cli.arguments import option
from common.errors import UsageError
from config import ResultsLocation


@dataclass(frozen=True, kw_only=True)
class SweepOptions(ResultsLocation):
    """Data of experiments that name none."""

    data_dataset: str | None = option(None, "dataset of experiments that name none; none: train.py's own default")


@dataclass(frozen=True, kw_only=True)
class ListConfig(SweepOptions):
    """Experiments that are listed (--lines, --grid)."""

    chosen_by = ""
    runs = "rsna.training.sweep.run_experiments"

    lines: Path | None = option(None, "text file: an experiment on each line, flags of train.py; # begins a comment")
    grid: Path | None = option(
        None, "YAML file: every combination of {grid: {option: [values]}} with the options {base: {option: value}}"
    )
    flags: str = option(
        "", "flags of train.py for every experiment of --lines or --grid, quoted as one: '--seed=1 ...'"
    )
    parallel: int = option(0, "experiments at once; 0: one on each GPU, or one where there is none", minimum=0)
    evaluate: bool = option(
        True, "1: evaluate each experiment and predict the test images; 0: train only, as the trials of --space"
    )
    dry_run: bool = option(False, "1: say what would run, and run nothing")

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
        "YAML file: search {space: {option: [choices] or {low:, high:, log:, step:}}} with {base: {option: value}}, "
        "which has the options of every trial, by Optuna; any number of processes started with the same file share "
        "the search",
    )
    trials: int = option(20, "trials of --space that end it, all processes together", minimum=1)
    seed: int = option(0, "seed of the search", minimum=0, maximum=2**31 - 1)

    @property
    def reads(self) -> Path:
        """The file that names the space."""
        return self.space


@dataclass(frozen=True, kw_only=True)
class SweepConfig(SearchConfig, ListConfig):
    """Run several experiments in turn, or one on each GPU. A failed one stops no other."""

    modes = (SearchConfig, ListConfig)
