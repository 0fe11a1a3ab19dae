"""``predict.py --split``: predict a part of a dataset with one network or with the models of a cross-validation."""

from __future__ import annotations

from pathlib import Path

from common.cli.values import HOLDOUT
from common.evaluation.calibration import calibration_of
from rsna.kinds.kind import dataset_folder_of
from rsna.prediction.options import SplitConfig
from rsna.prediction.predict_folds import predict_by_folds
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


def predict_split(config: SplitConfig) -> Path:
    """Predict ``--split`` with the network or the cross-validation in ``--net_weight_file``; return the file."""
    if config.net_weight_file.is_dir():
        return predict_by_folds(config)
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
        print(write_flattery(path.parent, [(frame, studies)], rows, logged_value(trained)))
    if studies is not None:
        print(write_studies(studies, path))
    write_predictions(trained, frame, config.split, path)  # last: a sweep takes this file as the end of the prediction
    if provenance is not None:
        write_provenance(path, provenance)
    return path
