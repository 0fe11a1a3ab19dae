"""rsna/prediction/predict_folds.py: the mean predictions of a cross-validation."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd

import predict
from rsna.forms import read_predictions
from tests.runs import failure


def test_new_images_get_the_mean_of_the_folds_probabilities(finished: Path, tmp_path: Path) -> None:
    together = predict.main([f"--net_weight_file={finished}", f"--output_file={tmp_path / 'mean.csv'}", "--n_jobs=1"])
    frames = []
    for fold in (0, 1, 2):
        file, output = finished / f"fold_{fold}" / "best.pt", tmp_path / f"{fold}.csv"
        frames.append(read_predictions(predict.main([f"--net_weight_file={file}", f"--output_file={output}"])))
    found = read_predictions(together)
    expected = sum(frame.loc[found.index] for frame in frames) / 3
    pd.testing.assert_frame_equal(found, expected, rtol=1e-12)


def test_what_is_not_finished_or_no_cross_validation_is_refused(finished: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(finished, tmp_path / "cv")
    (tmp_path / "cv" / "cross_validation.json").unlink()
    shutil.copytree(tmp_path / "cv", tmp_path / "two")  # not trained to their end, and too few
    config = (tmp_path / "two" / "config.yaml").read_text()
    assert "data_fold: 0,1,2" in config
    (tmp_path / "two" / "config.yaml").write_text(config.replace("data_fold: 0,1,2", "data_fold: 0,1"))
    for folder, flag, said in [
        (tmp_path / "cv", "--split=test", "is not finished"),
        (tmp_path / "two", "--features=1", "needs 3 folds or more"),
        (finished / "fold_0", "--features=1", "is no cross-validation's folder"),
        (finished, "--split=valid", "predictions_oof.csv has"),
        (finished, "--calibrate=1", "needs one model's weights"),
    ]:
        assert said in failure(predict.main, [f"--net_weight_file={folder}", flag], capsys)
