"""Predict a split with trained weights: python predict.py --net_weight_file=output/results/1/best.pt --split=test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.cli.arguments import parse_args
from common.cli.command import command
from common.cli.console import set_verbosity
from common.cli.values import HOLDOUT
from common.training.memory import PREDICTION_ADVICE, out_of_memory_advice
from rsna.prediction.options import PredictConfig


@command
def main(argv: Sequence[str] | None = None) -> Path:
    """Write ``submission.csv``, ``predictions_<split>.csv`` or a folder of studies; print the path and return it.

    With --audit the path is the submission that was looked at, or the filled one.
    """
    config = parse_args(PredictConfig, argv)
    set_verbosity(config.verbosity, config.audit or config.source or config.net_weight_file)
    with out_of_memory_advice(PREDICTION_ADVICE):
        if config.audit is not None:
            path = audit_file(config)
        elif config.source is not None:
            path = predict_studies(config)
        elif config.features or config.net_weight_file.is_dir():
            path = predict_folds(config)
        else:
            path = predict_split(config)
    print(path)
    return path


def audit_file(config: PredictConfig) -> Path:
    """Look at the submission of --audit."""
    from rsna.prediction.submission_audit import audit_submission

    return audit_submission(config)


def predict_studies(config: PredictConfig) -> Path:
    """Predict the studies of --source."""
    from rsna.prediction.dicom_source import predict_source

    return predict_source(config)


def predict_folds(config: PredictConfig) -> Path:
    """Predict a split by the models of a cross-validation, or write their embeddings."""
    from rsna.prediction.predict_folds import predict_by_folds
    from rsna.prediction.write_features import write_all_features

    return write_all_features(config) if config.features else predict_by_folds(config)


def predict_split(config: PredictConfig) -> Path:
    """Predict a split of a dataset."""

    # Here, so that --help and a wrong flag answer at once.
    from common.evaluation.calibration import calibration_of
    from rsna.kinds.kind import dataset_folder_of
    from rsna.prediction.provenance import check_predicted, network_provenance
    from rsna.prediction.trained import (
        asked_calibration,
        load_asked,
        load_views,
        logged_value,
        output_path,
        predict_with_studies,
        says_how_it_flatters,
        split_rows,
        write_predictions,
        write_studies,
    )
    from rsna.training.outcome import write_flattery
    from rsna.training.provenance import write_provenance

    trained = load_asked(config, config.net_weight_file, config.net_compute)
    rows = split_rows(trained, config.split)
    path = output_path(config, trained, config.net_weight_file.parent)
    provenance = None
    if config.split != "test":
        provenance = network_provenance(trained, config.net_weight_file, rows.index, new=config.split == HOLDOUT)
        check_predicted(provenance, dataset_folder_of(trained), rows.index, config)
    calibration = asked_calibration(config, config.net_weight_file, trained)
    frame, studies = predict_with_studies(trained, rows, load_views(trained, config))
    if calibration is not None:
        frame = calibration_of(frame, calibration.slices)
        studies = None if studies is None else calibration_of(studies, calibration.studies)
    if says_how_it_flatters(config, trained, path):
        print(write_flattery(path.parent, [frame], rows, logged_value(trained)))
    if studies is not None:
        print(write_studies(studies, path))
    write_predictions(trained, frame, config.split, path)  # last: a sweep takes it for all
    if provenance is not None:
        write_provenance(path, provenance)
    return path


if __name__ == "__main__":
    main()
