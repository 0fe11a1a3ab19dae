"""Evaluate an experiment or any predictions: python evaluate.py --experiment_id=1; --help lists every option."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from common.cli.arguments import parse_args
from common.cli.command import command
from common.cli.console import set_verbosity
from common.errors import UsageError
from common.training.memory import PREDICTION_ADVICE, out_of_memory_advice
from config import TrainConfig
from rsna.judging.options import EvaluateConfig

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from common.lineage import Overlap, Provenance
    from rsna.judging.evaluation import Evaluation


@command
def main(argv: Sequence[str] | None = None) -> pd.DataFrame:
    """Print the metrics with their intervals, write ``evaluation…`` as CSV and JSON, and return the table by label."""
    config = parse_args(EvaluateConfig, argv)
    set_verbosity(config.verbosity, config.eval_file or config.experiment_id or config.output_dir)
    with out_of_memory_advice(PREDICTION_ADVICE):
        return evaluate_experiment(config) if config.eval_file is None else evaluate_file(config)


def evaluate_experiment(config: EvaluateConfig) -> pd.DataFrame:
    """Predict by the experiment's best weights and evaluate that; with --tta the views' table is returned."""
    # Here, so that --help and a wrong flag answer at once.
    from common.checkpoint import BEST
    from common.experiments.folder import experiment_folder
    from rsna.judging.evaluation import compare_views, labelled_rows
    from rsna.prediction.provenance import network_provenance
    from rsna.prediction.trained import (
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
    from rsna.training.outcome import PREDICTION_FILES, describe_flattery, is_cross_validation

    folder = experiment_folder(config.output_dir, config.experiment_id)
    if not (folder / BEST).is_file() and (folder / PREDICTION_FILES[0]).is_file():
        if config.data_dataset is not None and is_cross_validation(folder):
            return evaluate_folds(config, folder)
        external = config.data_dataset is not None
        table = evaluate_file(written_predictions(config, folder), "evaluation", external=external)
        if is_cross_validation(folder):
            print(describe_flattery(folder))
        return table
    weight_file = folder / BEST
    if not weight_file.is_file() and is_cross_validation(folder):
        raise UsageError(f"{folder}: the cross-validation is not finished; go on with: train.py --tr_resume={folder}")
    trained = load_asked(config, weight_file)
    views = load_views(trained, config)
    external = config.data_dataset is not None
    dataset = dataset_folder_of(trained)
    rows = labelled_rows(dataset) if external else split_rows(trained, "valid")
    provenance = network_provenance(trained, weight_file, rows.index)
    rows, found = unseen_rows(rows, provenance, dataset, str(weight_file), external)
    theirs = compared_with(config, rows.index, dataset)
    name = f"evaluation_{config.data_dataset}" if external else "evaluation"
    frame, judged = predict_with_studies(trained, rows)
    place = (rows, trained.prevalences, dataset, folder, found)
    if not external:
        write_calibration(trained, frame, judged, rows, folder / CALIBRATION_FILE)  # a sweep takes the table for all
    evaluation = report(config, frame, *place, name, theirs, judged)
    if not external:
        print(compare_with_log(trained, evaluation.table))
        print(describe_flattery(folder))
    if views is None:
        return evaluation.table
    augmented = predict_rows(trained, rows, views)
    print()
    evaluation = report(config, augmented, *place, f"{name}_tta", theirs)
    print(compare_views(rows, frame, augmented, config.eval_draws))
    return evaluation.table


def evaluate_folds(config: EvaluateConfig, folder: Path) -> pd.DataFrame:
    """Evaluate the mean of a cross-validation's models on --data_dataset; return the table by label."""
    from rsna.judging.evaluation import labelled_rows
    from rsna.prediction.fold_models import folds_provenance, load_fold_models, mean_by_folds
    from rsna.prediction.trained import dataset_folder_of

    if config.tta is not None:
        raise UsageError("--tta needs one model's experiment; predict.py --tta takes a cross-validation's folder")
    models = load_fold_models(config, folder, sequences=True, seq_features=config.seq_features)
    dataset = dataset_folder_of(next(iter(models.values())))
    rows = labelled_rows(dataset)
    provenance = folds_provenance(models, folder, rows.index)
    rows, found = unseen_rows(rows, provenance, dataset, str(folder), external=True)
    theirs = compared_with(config, rows.index, dataset)
    frame, judged, prevalences = mean_by_folds(config, models, rows)
    print(f"mean of the models of {len(models)} folds")
    name = f"evaluation_{config.data_dataset}"
    return report(config, frame, rows, prevalences, dataset, folder, found, name, theirs, judged).table


def unseen_rows(
    rows: pd.DataFrame, provenance: Provenance, dataset: Path, source: str, external: bool
) -> tuple[pd.DataFrame, Overlap]:
    """Return the images that may judge the networks behind ``provenance``, and what is known of them.

    Images that a network learnt from are left out where the question is ``external``, and refused where they should
    be none; so is then a network that no longer tells what it learnt from.
    """
    from rsna.training.lineage import overlap, overlap_lines, refuse_seen

    found = overlap(provenance, dataset, rows.index)
    if external and found.seen.all():
        raise UsageError(f"--data_dataset={dataset.name}: {source} was trained on all patients of {dataset}")
    if not external:
        advice = "train it anew, or judge it on other data by --data_dataset"
        refuse_seen(found, source, f"{dataset.name} that it would be judged by", advice)
    for line in overlap_lines(found):
        print(line)
    return rows[~found.seen], found


def written_predictions(config: EvaluateConfig, folder: Path) -> EvaluateConfig:
    """Return the options for an experiment that has no weights of its own: an ensemble, or all folds together."""
    from common.experiments.folder import experiment_options
    from rsna.training.outcome import experiment_predictions

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


def evaluate_file(config: EvaluateConfig, name: str | None = None, *, external: bool = True) -> pd.DataFrame:
    """Evaluate the predictions of a file; the constant predictor knows the dataset's other labelled images, or all.

    Not ``external``: they are an experiment's, of the dataset that it was trained on.
    """
    from rsna.forms import read_predictions
    from rsna.judging.evaluation import constant_prevalences, labelled_rows
    from rsna.training.provenance import written_provenance
    from rsna_dataset import dataset_folder

    place = config.data_input_folder or TrainConfig.data_input_folder
    dataset = dataset_folder(place, config.data_dataset)
    frame, rows = read_predictions(config.eval_file), labelled_rows(dataset)
    known = frame.index.intersection(rows.index, sort=False)
    if known.empty:
        raise UsageError(f"{config.eval_file}: predicts none of the labelled images of {dataset}")
    print(f"{len(known)} of {len(frame)} predicted images have labels in {dataset}")
    prevalences = constant_prevalences(rows, known)
    ids, provenance = written_provenance(config.eval_file, place)
    provenance = provenance.rows(ids.get_indexer(known))
    judged, found = unseen_rows(rows.loc[known], provenance, dataset, str(config.eval_file), external)
    name = name or f"{config.eval_file.stem}_evaluation"
    theirs = compared_with(config, judged.index, dataset)
    where = (dataset, config.eval_file.parent)
    return report(config, frame.loc[judged.index], judged, prevalences, *where, found, name, theirs).table


def report(
    config: EvaluateConfig,
    frame: pd.DataFrame,
    rows: pd.DataFrame,
    prevalences: np.ndarray,
    dataset: Path,
    folder: Path,
    found: Overlap,
    name: str,
    theirs: pd.DataFrame | None,
    judged: pd.DataFrame | None = None,
) -> Evaluation:
    """Evaluate, write files ``<name>…`` to ``folder``, print what was found and how it differs from ``theirs``.

    ``found`` tells what is known of the images that the networks learnt from, which the results say too.
    """
    from common.evaluation.statistics import format_table
    from common.files import write_csv
    from rsna.judging.evaluation import (
        compare,
        describe,
        describe_comparison,
        described_images,
        evaluate_predictions,
        write_evaluation,
    )
    from rsna.training.lineage import overlap_lines

    described = described_images(dataset, config.eval_truth)
    evaluation = evaluate_predictions(frame, rows, prevalences, config.eval_draws, described, judged)
    evaluation.document["lineage"] = found.document() | {"notes": overlap_lines(found)}
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


def compared_with(config: EvaluateConfig, ids: pd.Index, dataset: Path) -> pd.DataFrame | None:
    """Return --eval_compare's predictions of ``ids``: of a file, or an experiment's of images it wasn't trained on.

    Asked for first of all: what is wrong with them should be said before anything is predicted or written. UsageError
    where they are by networks that learnt from these images of ``dataset``.
    """
    if config.eval_compare is None:
        return None
    from common.experiments.folder import experiment_folder
    from rsna.forms import read_predictions
    from rsna.judging.evaluation import matching_predictions
    from rsna.training.lineage import overlap, overlap_lines, refuse_seen
    from rsna.training.outcome import experiment_predictions
    from rsna.training.provenance import written_provenance

    path = Path(config.eval_compare)
    if path.suffix != ".csv":
        path = experiment_predictions(experiment_folder(config.output_dir, config.eval_compare, "--eval_compare"))
    if not path.is_file():
        raise UsageError(f"--eval_compare={config.eval_compare}: there is no {path}")
    frame = matching_predictions(read_predictions(path), ids, config.eval_compare)
    theirs, provenance = written_provenance(path, dataset.parent.parent)
    found = overlap(provenance.rows(theirs.get_indexer(ids)), dataset, ids)
    source = f"--eval_compare={config.eval_compare}"
    refuse_seen(found, source, f"{dataset.name} that are compared", "compare predictions by networks that didn't")
    for line in overlap_lines(found):
        print(f"{source}: {line}")
    return frame


if __name__ == "__main__":
    main()
