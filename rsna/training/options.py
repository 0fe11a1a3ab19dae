"""The options of sweep.py and plan.py. Those of train.py are in config.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.cli.arguments import REQUIRED, option
from common.cli.groups import DataLocation, GeneralOptions, ResultsLocation
from common.cli.values import parse_hours
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
        None,
        "text file with one experiment on each line, as flags of train.py; # starts a comment. A line that begins with "
        "second_level.py or ensemble.py joins experiments above it. Where a line reads another's features "
        "(--seq_features), they are written first, and all lines run in turn",
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


@dataclass(frozen=True, kw_only=True)
class PlanConfig(ResultsLocation, DataLocation, GeneralOptions):
    """Plan experiments for the hours that there are, from a dataset's tables and this machine's measured speed.

    The plan is a list for sweep.py --lines, saved as <output_dir>/plan_<experiment_id>.txt. bash train.sh plan runs it.
    """

    hours: float = option(
        REQUIRED,
        "time for all of it, with planning, evaluation and prediction: hours (8) or with a unit (30m)",
        parse=parse_hours,
        metavar="HOURS",
    )
    gpus: str | None = option(
        None,
        "GPUs to plan for: names as in H100, 3090 or 2xT4, several separated by commas, whose speed is estimated, not "
        "measured; or the number of GPUs that are here. none: those that are here",
    )
    flags: str = option(
        "", "flags of train.py for every slice network, quoted as one: '--net_pretrained=0 --tr_batch_size=8'"
    )
    experiment_id: str | None = option(
        None,
        "name of the plan, and begin of its experiments' names; none: <data_dataset>_<hours>h, and the GPUs if given",
    )
