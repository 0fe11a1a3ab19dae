"""The work of ``evaluate.py``: judge the predictions of an experiment, a cross-validation or a file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from common.checkpoint import BEST
from common.cli.arguments import refuse_given
from common.errors import UsageError
from common.evaluation.statistics import SHORT
from common.evaluation.texts import format_table
from common.experiments.folder import experiment_folder, experiment_options
from common.files import write_csv
from common.lineage import Overlap, Provenance
from config import TrainConfig
from rsna.forms import read_predictions
from rsna.judging.evaluation import (
    Evaluation,
    compare,
    constant_prevalences,
    evaluate_predictions,
    labelled_rows,
    reader_studies,
    write_evaluation,
)
from rsna.judging.evaluation_text import compare_views, describe, describe_comparison
from rsna.judging.held_out import matching_predictions
from rsna.judging.options import EvaluationOptions, ExperimentConfig, FileConfig
from rsna.judging.strata import described_images
from rsna.kinds.kind import dataset_folder_of
from rsna.prediction.fold_models import load_fold_models
from rsna.prediction.predict_folds import folds_provenance, mean_by_folds
from rsna.prediction.provenance import network_provenance
from rsna.prediction.trained import (
    CALIBRATION_FILE,
    compare_with_log,
    load_asked,
    load_views,
    predict_rows,
    predict_with_studies,
    split_rows,
    write_calibration,
)
from rsna.training.lineage import overlap, overlap_lines, refuse_seen
from rsna.training.outcome import PREDICTION_FILES, describe_flattery, experiment_predictions, is_cross_validation
from rsna.training.provenance import written_provenance
from rsna_dataset import dataset_folder


@dataclass(frozen=True)
class Judges:
    """The labelled images ``rows`` of ``dataset`` that judge the predictions.

    ``prevalences`` (6,): the constant predictor's. ``found``: which of these images the networks learnt from, as far as
    that is known. ``theirs``: the predictions of --eval_compare.
    """

    rows: pd.DataFrame
    dataset: Path
    prevalences: np.ndarray
    found: Overlap
    theirs: pd.DataFrame | None


def evaluate_experiment(config: ExperimentConfig) -> pd.DataFrame:
    """Evaluate an experiment and :func:`report` on it; return the table by label, with --tta that of the views."""
    folder = experiment_folder(config.output_dir, config.experiment_id)
    if (folder / BEST).is_file():
        return evaluate_network(config, folder)
    external = config.data_dataset is not None
    if (folder / PREDICTION_FILES[0]).is_file():
        if external and is_cross_validation(folder):
            return evaluate_folds(config, folder)
        table = evaluate_file(written_predictions(config, folder), "evaluation", external=external)
        if is_cross_validation(folder):
            print(describe_flattery(folder))
        return table
    if is_cross_validation(folder):
        raise UsageError(f"{folder}: the cross-validation is not finished; go on with: train.py --tr_resume={folder}")
    return evaluate_network(config, folder)


def evaluate_network(config: ExperimentConfig, folder: Path) -> pd.DataFrame:
    """Predict by the experiment's best weights and evaluate; with --tta do it once more with augmented views."""
    weight_file = folder / BEST
    trained = load_asked(config, weight_file)
    views = load_views(trained, config)
    external = config.data_dataset is not None
    dataset = dataset_folder_of(trained)
    rows = labelled_rows(dataset) if external else split_rows(trained, "valid")
    provenance = network_provenance(trained, weight_file, rows.index)
    judges = judges_of(config, rows, dataset, trained.prevalences, provenance, str(weight_file), external)
    name = f"evaluation_{config.data_dataset}" if external else "evaluation"
    frame, judged = predict_with_studies(trained, judges.rows)
    if not external:
        write_calibration(trained, frame, judged, judges.rows, folder / CALIBRATION_FILE)  # of all: a sweep returns it
    evaluation = report(config, frame, judges, folder, name, judged)
    if not external:
        print(compare_with_log(trained, evaluation.table))
        print(describe_flattery(folder))
    if views is None:
        return evaluation.table
    augmented = predict_rows(trained, judges.rows, views)
    print()
    evaluation = report(config, augmented, judges, folder, f"{name}_tta")
    print(compare_views(judges.rows, frame, augmented))
    return evaluation.table


def evaluate_folds(config: ExperimentConfig, folder: Path) -> pd.DataFrame:
    """Evaluate the mean of a cross-validation's models on --data_dataset; return the table by label."""
    if config.tta is not None:
        raise UsageError("--tta needs one model's experiment; predict.py --tta takes a cross-validation's folder")
    models = load_fold_models(config, folder, any_kind=True, seq_features=config.seq_features)
    dataset = dataset_folder_of(next(iter(models.values())))
    rows = labelled_rows(dataset)
    provenance = folds_provenance(models, folder, rows.index)
    judges = judges_of(config, rows, dataset, None, provenance, str(folder), external=True)
    frame, judged, prevalences = mean_by_folds(config, models, judges.rows)
    print(f"mean of the models of {len(models)} folds")
    judges = replace(judges, prevalences=prevalences)
    return report(config, frame, judges, folder, f"evaluation_{config.data_dataset}", judged).table


def written_predictions(config: ExperimentConfig, folder: Path) -> FileConfig:
    """Return the options to evaluate an experiment without weights of its own: an ensemble or a cross-validation."""
    shared = {name: getattr(config, name) for name in EvaluationOptions.__dataclass_fields__}
    of_networks = [name for name in config.__dataclass_fields__ if name not in {*shared, "experiment_id", "n_jobs"}]
    why = f"means nothing here: {folder} has no weights, its written predictions are judged"
    refuse_given(config, of_networks, why)
    options = experiment_options(folder)
    dataset = config.data_dataset or options.get("data_dataset")
    if dataset is None:
        raise UsageError(f"{folder}: names no dataset; name the one that has the labels by --data_dataset")
    place = config.data_input_folder or Path(options.get("data_input_folder", TrainConfig.data_input_folder))
    file = experiment_predictions(folder)
    return FileConfig(**shared | {"eval_file": file, "data_dataset": dataset, "data_input_folder": place})


def evaluate_file(config: FileConfig, name: str | None = None, *, external: bool = True) -> pd.DataFrame:
    """Evaluate the predictions of a file; return the table by label.

    The constant predictor's prevalences come from :func:`constant_prevalences`. ``external`` False: an experiment
    made the predictions, for the dataset that it was trained on.
    """
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
    source = str(config.eval_file)
    judges = judges_of(config, rows.loc[known], dataset, prevalences, provenance, source, external)
    name = name or f"{config.eval_file.stem}_evaluation"
    return report(config, frame.loc[judges.rows.index], judges, config.eval_file.parent, name).table


def judges_of(
    config: EvaluationOptions,
    rows: pd.DataFrame,
    dataset: Path,
    prevalences: np.ndarray,
    provenance: Provenance,
    source: str,
    external: bool,
) -> Judges:
    """Return the images of ``rows`` that may judge the networks behind ``provenance``.

    ``external`` True: the images come from another dataset, and those that a network learnt from are left out.
    ``external`` False: raise UsageError for such images, and for a network whose training images are no longer known.
    """
    found = overlap(provenance, dataset, rows.index)
    if external and found.seen.all():
        raise UsageError(f"--data_dataset={dataset.name}: {source} was trained on all patients of {dataset}")
    if not external:
        advice = "train it anew, or judge it on other data by --data_dataset"
        refuse_seen(found, source, f"{dataset.name} that it would be judged by", advice)
    for line in overlap_lines(found):
        print(line)
    rows = rows[~found.seen]
    return Judges(rows, dataset, prevalences, found, compared_with(config, rows.index, dataset))


def report(
    config: ExperimentConfig | FileConfig,
    frame: pd.DataFrame,
    judges: Judges,
    folder: Path,
    name: str,
    judged: pd.DataFrame | None = None,
) -> Evaluation:
    """Evaluate, write files ``<name>…`` to ``folder``, print the result and its comparison with --eval_compare.

    ``judged``: the model's own output for whole studies.
    """
    rows = judges.rows
    described = described_images(judges.dataset, config.eval_truth)
    evaluation = evaluate_predictions(frame, rows, judges.prevalences, config.eval_draws, described, judged)
    evaluation.document["lineage"] = judges.found.document() | {"notes": overlap_lines(judges.found)}
    path = write_evaluation(evaluation, folder, name)
    columns = [SHORT[0], "constant_log_loss", *SHORT[1:], "positives", "images"]
    print(format_table(evaluation.table[columns]))
    print(f"\n{describe(evaluation)}")
    if judges.theirs is not None:
        differences, areas = compare(evaluation, *reader_studies(judges.theirs, rows, config.eval_draws))
        write_csv(folder / f"{name}_compared.csv", differences)
        ours = str(config.reads)
        print(describe_comparison(differences, areas, ours, config.eval_compare))
        print(folder / f"{name}_compared.csv")
    print(path)
    return evaluation


def compared_with(config: EvaluationOptions, ids: pd.Index, dataset: Path) -> pd.DataFrame | None:
    """Return --eval_compare's predictions of ``ids``: those in a file, or an experiment's of images it didn't see.

    This comes first, so that an error in them is reported before anything is predicted or written. Raises UsageError if
    they come from networks that learnt from these images of ``dataset``.
    """
    if config.eval_compare is None:
        return None
    path = Path(config.eval_compare)
    if path.suffix != ".csv":
        path = experiment_predictions(experiment_folder(config.output_dir, config.eval_compare, "--eval_compare"))
    source = f"--eval_compare={config.eval_compare}"
    if not path.is_file():
        raise UsageError(f"{source}: there is no {path}")
    frame = matching_predictions(read_predictions(path), ids, config.eval_compare)
    theirs, provenance = written_provenance(path, dataset.parent.parent)
    found = overlap(provenance.rows(theirs.get_indexer(ids)), dataset, ids)
    refuse_seen(found, source, f"{dataset.name} that are compared", "compare predictions by networks that didn't")
    for line in overlap_lines(found):
        print(f"{source}: {line}")
    return frame
