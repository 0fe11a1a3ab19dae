"""The options of evaluate.py, ensemble.py, second_level.py and report.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.cli.arguments import REQUIRED, option
from common.cli.choices import summaries
from common.cli.groups import ResultsLocation
from common.cli.values import format_numbers, parse_names, parse_weights
from common.errors import UsageError
from common.evaluation.ensemble_choices import FITS, MAPS, METHODS
from rsna.prediction.options import BatchOptions, InputFolderOptions, TrainedOptions, TTAOptions

DRAWS = 1000  # bootstrap draws of patients, for console, evaluation and report alike


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(ResultsLocation, InputFolderOptions):
    """Evaluation."""

    data_dataset: str | None = option(
        None,
        "dataset for external validation: all its labelled images are evaluated, except those of patients that the "
        "model was trained on. With --eval_file: the images that the file predicts. none: the validation fold of "
        "the training",
    )
    eval_compare: str | None = option(
        None,
        "experiment, or CSV of predictions, of the same images to compare with: paired differences, with intervals",
    )
    eval_truth: Path | None = option(
        None,
        "phantom_truth.csv of a phantom, for results by blood volume, by look-alikes and by file form; none: the "
        "one in <data_input_folder>/phantom, if the dataset was made from it",
    )
    eval_draws: int = option(DRAWS, "number of bootstrap draws, by patient", minimum=100, maximum=100_000)


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig(TTAOptions, BatchOptions, EvaluationOptions, TrainedOptions):
    """An experiment (--experiment_id)."""

    chosen_by = ""
    runs = "rsna.judging.evaluate.evaluate_experiment"

    experiment_id: str | None = option(None, "experiment to evaluate: its number or name")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.experiment_id is None:
            raise UsageError("give either --experiment_id or --eval_file")

    @property
    def reads(self) -> str:
        """What is read first."""
        return self.experiment_id


@dataclass(frozen=True, kw_only=True)
class FileConfig(EvaluationOptions):
    """Predictions in a file, of any origin (--eval_file)."""

    chosen_by = "eval_file"
    runs = "rsna.judging.evaluate.evaluate_file"

    eval_file: Path | None = option(
        None,
        "CSV of predictions to evaluate instead of an experiment, with the labels of --data_dataset. Its form is a "
        "submission's, or id and a column for each label",
    )

    def __post_init__(self) -> None:
        if self.data_dataset is None:
            raise UsageError("--eval_file needs --data_dataset, whose metadata.csv has the labels")

    @property
    def reads(self) -> Path:
        """What is read first."""
        return self.eval_file


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(FileConfig, ExperimentConfig):
    """Evaluate an experiment on its validation fold, or any predictions, beside the constant predictor.

    Every metric has a 95 % interval over patients. With --tta also with test-time augmentation, and what it changes.
    """

    modes = (FileConfig, ExperimentConfig)


@dataclass(frozen=True, kw_only=True)
class EnsembleConfig(ResultsLocation):
    """Average predictions of several models, aligned by ID; fit the weights and score them where labels are known."""

    members: tuple[str, ...] = option(
        REQUIRED,
        "experiments (number or name), or CSV files of the same rows. An experiment gives its predictions_oof.csv, or "
        "else predictions_valid.csv, and submission.csv if all members have one. A CSV file is a submission (ID,Label) "
        "or has id and a column for each label",
        positional=True,
    )
    experiment_id: str | None = option(
        None, "name of the ensemble, which is an experiment of its own, and its folder; none: the next free number"
    )
    weights: tuple[float, ...] | None = option(
        None,
        "one weight for each member, as in 1,2; scaled to a sum of 1. none: all the same",
        parse=parse_weights,
        form=format_numbers,
    )
    ens_method: str = option(
        "mean",
        summaries(METHODS),
        choices=tuple(METHODS),
    )
    ens_power: float | None = option(
        None,
        "exponent of --ens_method=power: 1 is the mean, a larger one moves towards the highest",
        minimum=0.01,
        maximum=100,
    )
    ens_fit: str = option(
        "none",
        f"fit the weights to the labels: {summaries(FITS)}. The score is computed on other patients than the fit (5 "
        "outer folds over patients). Members must be predictions of images that their models were not trained on",
        choices=("none", *FITS),
    )
    ens_calibrate: str = option(
        "none",
        "map the ensemble's probabilities of each label so that a 0.3 comes true three times in ten: "
        f"{summaries(MAPS)}. The map is fitted to the predictions that are submitted. For cross-validations these are "
        "the mean of their models, so that the fit needs the images that --pre_holdout kept out of all folds "
        "(predict.py --split=holdout). The score is computed on other patients than the fit. One member is enough",
        choices=("none", *MAPS),
    )
    ens_labels: Path | None = option(
        None,
        "labels to score with: a dataset's fold CSV or metadata.csv, or the competition's train CSV (which has no "
        "patients). none: the dataset's labels for experiments, none for files",
    )
    ens_draws: int = option(DRAWS, "number of bootstrap draws, by patient", minimum=100, maximum=100_000)
    ens_output: Path | None = option(
        None,
        "write the predictions to this file only, replacing an older one, and make no experiment. The file is a "
        "submission if all members are",
    )

    def __post_init__(self) -> None:
        if self.weights is not None and len(self.weights) != len(self.members):
            raise UsageError(
                f"--weights has {len(self.weights)} numbers for {len(self.members)} members; give one for each"
            )
        if self.weights is not None and self.ens_fit != "none":
            raise UsageError(f"--weights are given, so that --ens_fit={self.ens_fit} has nothing to fit")
        if self.ens_fit != "none" and self.ens_method == "rank":
            raise UsageError(f"--ens_fit={self.ens_fit} needs probabilities, and --ens_method=rank gives none")
        if (self.ens_method == "power") != (self.ens_power is not None):
            raise UsageError("--ens_method=power and --ens_power=3 (or another exponent) belong together")
        if self.ens_output is not None and self.experiment_id is not None:
            raise UsageError("give either --experiment_id or --ens_output, which makes no experiment")
        resolved = [Path(member).resolve() for member in self.members]
        for position, member in enumerate(self.members):
            if resolved[position] in resolved[:position]:
                raise UsageError(f"{member} is given twice; use --weights to let a member count more")
        if self.ens_output is not None and self.ens_output.resolve() in resolved:
            raise UsageError(f"--ens_output={self.ens_output} is one of the files to read; give another name")


@dataclass(frozen=True, kw_only=True)
class SecondLevelConfig(ResultsLocation):
    """Learn from out-of-fold predictions of a slice and its neighbours: gradient-boosted trees, one model a label."""

    members: tuple[str, ...] = option(
        REQUIRED, "finished cross-validations (train.py --data_fold=all) over the same folds", positional=True
    )
    experiment_id: str | None = option(
        None, "name of the result, which is an experiment of its own, and its folder; none: the next free number"
    )
    seed: int = option(0, "seed of the trees", minimum=0, maximum=2**31 - 1)
    level_neighbours: int = option(
        2, "number of neighbouring slices on each side whose predictions are used", minimum=0, maximum=100
    )
    level_trees: int = option(
        100,
        "largest number of trees for each label; cross-validation over the patients chooses how many, or none",
        minimum=1,
    )
    level_rate: float = option(0.05, "learning rate: weight of each tree", minimum=0.0001, maximum=1)
    level_leaves: int = option(15, "largest number of leaves in a tree", minimum=2)
    level_leaf_images: int = option(20, "smallest number of images in a leaf", minimum=1)
    level_l2: float = option(1.0, "L2 penalty on the values of leaves", minimum=0)
    level_draws: int = option(DRAWS, "number of bootstrap draws, by patient", minimum=100, maximum=100_000)

    def __post_init__(self) -> None:
        twice = [name for place, name in enumerate(self.members) if name in self.members[:place]]
        if twice:
            raise UsageError(f"{twice[0]} is given twice")


@dataclass(frozen=True, kw_only=True)
class ReportConfig(ResultsLocation):
    """Write the leaderboard of all experiments, and the report of those that are named."""

    experiment_id: tuple[str, ...] = option(
        (),
        "experiments whose report.html is written anew, as in 1,2; none: the leaderboard alone",
        parse=parse_names,
        form=",".join,
    )
