"""Evaluate an experiment or any predictions: python evaluate.py --experiment_id=1; --help lists every option."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from common.arguments import parse_args
from common.console import set_verbosity
from common.errors import UsageError, command
from common.memory import PREDICTION_ADVICE, out_of_memory_advice
from config import EvaluateConfig, TrainConfig

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from rsna_evaluation import Evaluation
    from rsna_prediction import TrainedNetwork


@command
def main(argv: Sequence[str] | None = None) -> pd.DataFrame:
    """Print the metrics with their intervals, write ``evaluation…`` as CSV and JSON, and return the table by label."""
    config = parse_args(EvaluateConfig, argv)
    set_verbosity(config.verbosity)
    with out_of_memory_advice(PREDICTION_ADVICE):
        return evaluate_experiment(config) if config.eval_file is None else evaluate_file(config)


def evaluate_experiment(config: EvaluateConfig) -> pd.DataFrame:
    """Predict by the experiment's best weights and evaluate that; with --tta the views' table is returned."""
    # Here, so that --help and a wrong flag answer at once.
    from common.experiment import experiment_folder
    from rsna_crossvalidation import is_cross_validation
    from rsna_evaluation import PREDICTION_FILES, compare_views
    from rsna_prediction import (
        CALIBRATION_FILE,
        compare_with_log,
        dataset_folder_of,
        load_asked,
        load_views,
        predict_rows,
        predict_with_studies,
        split_rows,
        write_calibration,
    )

    folder = experiment_folder(config.output_dir, config.experiment_id)
    if not (folder / "best.pt").is_file() and (folder / PREDICTION_FILES[0]).is_file():
        if config.data_dataset is not None and is_cross_validation(folder):
            return evaluate_folds(config, folder)
        return evaluate_file(written_predictions(config, folder), "evaluation")
    weight_file = folder / "best.pt"
    if not weight_file.is_file() and is_cross_validation(folder):
        raise UsageError(f"{folder}: the cross-validation is not finished; go on with: train.py --tr_resume={folder}")
    trained = load_asked(config, weight_file)
    views = load_views(trained, config)
    external = config.data_dataset is not None
    rows = external_rows({weight_file: trained}, config) if external else split_rows(trained, "valid")
    theirs = compared_with(config, rows.index)
    name = f"evaluation_{config.data_dataset}" if external else "evaluation"
    frame, judged = predict_with_studies(trained, rows)
    place = (rows, trained.prevalences, dataset_folder_of(trained), folder)
    if not external:
        write_calibration(trained, frame, judged, rows, folder / CALIBRATION_FILE)  # a sweep takes the table for all
    evaluation = report(config, frame, *place, name, theirs, judged)
    if not external:
        print(compare_with_log(trained, evaluation.table))
    if views is None:
        return evaluation.table
    augmented = predict_rows(trained, rows, views)
    print()
    evaluation = report(config, augmented, *place, f"{name}_tta", theirs)
    print(compare_views(rows, frame, augmented, config.eval_draws))
    return evaluation.table


def evaluate_folds(config: EvaluateConfig, folder: Path) -> pd.DataFrame:
    """Evaluate the mean of a cross-validation's models on --data_dataset; return the table by label."""
    from rsna_crossvalidation import finished_folds
    from rsna_fold_models import load_fold_models, mean_by_folds
    from rsna_prediction import dataset_folder_of

    if config.tta is not None:
        raise UsageError("--tta needs one model's experiment; predict.py --tta takes a cross-validation's folder")
    models = load_fold_models(config, folder, sequences=True, seq_features=config.seq_features)
    files = {fold: folder / facts["weights"] for fold, facts in finished_folds(folder).items()}
    rows = external_rows({files[fold]: model for fold, model in models.items()}, config)
    theirs = compared_with(config, rows.index)
    frame, judged, prevalences = mean_by_folds(config, models, rows)
    dataset = dataset_folder_of(next(iter(models.values())))
    print(f"mean of the models of {len(models)} folds")
    name = f"evaluation_{config.data_dataset}"
    return report(config, frame, rows, prevalences, dataset, folder, name, theirs, judged).table


def external_rows(networks: Mapping[Path, TrainedNetwork], config: EvaluateConfig) -> pd.DataFrame:
    """Return the labelled images of --data_dataset without those of patients that a network was trained on.

    ``networks``: by weight file. UsageError where no images are left.
    """
    import numpy as np

    from common.checkpoint import load_checkpoint
    from rsna_data import learnt_from, training_rows
    from rsna_evaluation import labelled_rows
    from rsna_prediction import dataset_folder_of

    folder = dataset_folder_of(next(iter(networks.values())))
    rows = labelled_rows(folder)
    again = np.zeros(len(rows), dtype=bool)
    for weight_file, trained in networks.items():
        seen = training_rows(load_checkpoint(weight_file), trained.config.data_input_folder)
        if seen is None:
            print(f"{weight_file}: the images of its training are not here, so that its patients can't be left out")
        else:
            again |= learnt_from(rows, seen)
    if again.all():
        raise UsageError(f"--data_dataset={config.data_dataset}: the model was trained on all patients of {folder}")
    if again.any():
        print(f"{again.sum()} of {len(rows)} images are of patients that the model was trained on: left out")
    return rows[~again]


def written_predictions(config: EvaluateConfig, folder: Path) -> EvaluateConfig:
    """Return the options for an experiment that has no weights of its own: an ensemble, or all folds together."""
    from common.experiment import experiment_options
    from rsna_evaluation import experiment_predictions

    config.refuse_network_options(f"means nothing here: {folder} has no weights, its written predictions are judged")
    options = experiment_options(folder)
    dataset = config.data_dataset or options.get("data_dataset")
    if dataset is None:
        raise UsageError(f"{folder}: names no dataset; name the one that has the labels by --data_dataset")
    place = config.data_input_folder or Path(options.get("data_input_folder", TrainConfig.data_input_folder))
    return replace(
        config,
        experiment_id=None,
        eval_file=experiment_predictions(folder),
        data_dataset=dataset,
        data_input_folder=place,
    )


def evaluate_file(config: EvaluateConfig, name: str | None = None) -> pd.DataFrame:
    """Evaluate the predictions of a file; the constant predictor knows the dataset's other labelled images, or all."""
    from rsna_dataset import LABELS, dataset_folder, read_predictions
    from rsna_evaluation import constant_basis, labelled_rows

    dataset = dataset_folder(config.data_input_folder or TrainConfig.data_input_folder, config.data_dataset)
    frame, rows = read_predictions(config.eval_file), labelled_rows(dataset)
    known = frame.index.intersection(rows.index, sort=False)
    if known.empty:
        raise UsageError(f"{config.eval_file}: predicts none of the labelled images of {dataset}")
    print(f"{len(known)} of {len(frame)} predicted images have labels in {dataset}")
    prevalences = constant_basis(rows, known)[list(LABELS)].mean().to_numpy()
    name = name or f"{config.eval_file.stem}_evaluation"
    place = (rows.loc[known], prevalences, dataset, config.eval_file.parent)
    return report(config, frame.loc[known], *place, name, compared_with(config, known)).table


def report(
    config: EvaluateConfig,
    frame: pd.DataFrame,
    rows: pd.DataFrame,
    prevalences: np.ndarray,
    dataset: Path,
    folder: Path,
    name: str,
    theirs: pd.DataFrame | None,
    judged: pd.DataFrame | None = None,
) -> Evaluation:
    """Evaluate, write files ``<name>…`` to ``folder``, print what was found and how it differs from ``theirs``."""
    from common.files import write_csv
    from common.statistics import format_table
    from rsna_evaluation import (
        compare,
        describe,
        describe_comparison,
        described_images,
        evaluate_predictions,
        write_evaluation,
    )

    described = described_images(dataset, config.eval_truth)
    evaluation = evaluate_predictions(frame, rows, prevalences, config.eval_draws, described, judged)
    path = write_evaluation(evaluation, folder, name)
    columns = ["log_loss", "constant_log_loss", "auroc", "average_precision", "positives", "images"]
    print(format_table(evaluation.table[columns]))
    print(f"\n{describe(evaluation)}")
    if theirs is not None:
        second = evaluate_predictions(theirs, rows, prevalences, config.eval_draws)
        differences, areas = compare(evaluation, second)
        write_csv(folder / f"{name}_compared.csv", differences)
        print(
            describe_comparison(differences, areas, str(config.eval_file or config.experiment_id), config.eval_compare)
        )
        print(folder / f"{name}_compared.csv")
    print(path)
    return evaluation


def compared_with(config: EvaluateConfig, ids: pd.Index) -> pd.DataFrame | None:
    """Return --eval_compare's predictions of ``ids``: of a file, or an experiment's of images it wasn't trained on.

    Asked for first of all: what is wrong with them should be said before anything is predicted or written.
    """
    if config.eval_compare is None:
        return None
    from common.experiment import experiment_folder
    from rsna_dataset import read_predictions
    from rsna_evaluation import experiment_predictions, matching_predictions

    path = Path(config.eval_compare)
    if path.suffix != ".csv":
        path = experiment_predictions(experiment_folder(config.output_dir, config.eval_compare, "--eval_compare"))
    if not path.is_file():
        raise UsageError(f"--eval_compare={config.eval_compare}: there is no {path}")
    return matching_predictions(read_predictions(path), ids, config.eval_compare)


if __name__ == "__main__":
    main()
