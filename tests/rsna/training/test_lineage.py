"""rsna/training/lineage.py: what starting weights and external validation may have learnt from."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss

import evaluate
import predict
import preprocessing
import train
from common.checkpoint import load_checkpoint
from common.cli.arguments import parse_args
from common.errors import UsageError
from config import TrainConfig
from rsna.prediction.trained import load_network, predict_rows
from rsna.training.folds import fold_plan, read_folds
from rsna.training.lineage import check_starting_weights, training_rows
from rsna_dataset import LABELS, read_fold, read_metadata
from tests.conftest import TINY, SmallDataset
from tests.runs import failure


@pytest.fixture(scope="module")
def again(small_dataset: SmallDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same studies in another dataset, of smaller pictures."""
    folder = tmp_path_factory.mktemp("again")
    flags = [f"--data_input_folder={folder}", "--data_dataset=again", f"--pre_source={small_dataset.source}"]
    preprocessing.main([*flags, "--pre_size=32", "--n_jobs=1"])
    return folder


def test_weights_that_saw_patients_who_validate_start_no_training_of_slices(
    finished: Path, small_dataset: SmallDataset, tmp_path: Path, capsys
) -> None:
    start = f"--net_weight_file={finished / 'fold_1' / 'best.pt'}"
    flags = [*small_dataset.flags, *TINY, start, f"--output_dir={tmp_path}"]
    for more in (["--data_fold=0"], ["--data_fold=1,0"], ["--data_fold=all"], ["--data_fold=0", "--dev_enabled=1"]):
        line = failure(train.main, [*flags, *more], capsys)
        assert "who validate fold" in line
    assert list(tmp_path.iterdir()) == []


def test_weights_of_the_same_fold_and_of_patients_who_train_start_one(
    finished: Path, small_dataset: SmallDataset, again: Path
) -> None:
    file = finished / "fold_1" / "best.pt"
    config = parse_args(TrainConfig, [*small_dataset.flags, f"--net_weight_file={file}", "--data_fold=1"])
    check_starting_weights(config, read_fold(small_dataset.folder, "phantom", 1).query("sample_type == 'valid'").index)
    with pytest.raises(UsageError, match="who validate fold 1"):
        check_starting_weights(
            config, read_fold(small_dataset.folder, "phantom", 0).query("sample_type == 'valid'").index
        )
    place = [f"--data_input_folder={again}", "--data_dataset=again", f"--net_weight_file={file}", "--data_fold=1"]
    rows = read_fold(again / "datasets" / "again", "again", 1)
    assert set(rows.index) == set(read_fold(small_dataset.folder, "phantom", 1).index)  # the same fold
    check_starting_weights(parse_args(TrainConfig, place), rows.query("sample_type == 'valid'").index)


def test_weights_of_another_form_of_the_same_patients_are_known_for_what_they_saw(
    finished: Path, again: Path, tmp_path: Path, capsys
) -> None:
    flags = [f"--data_input_folder={again}", "--data_dataset=again", *TINY, f"--output_dir={tmp_path}"]
    start = f"--net_weight_file={finished / 'fold_1' / 'best.pt'}"
    line = failure(train.main, [*flags, start, "--data_fold=0"], capsys)
    assert "who validate fold 0 of again" in line


def test_each_fold_of_slice_networks_starts_from_the_network_of_its_own(
    finished: Path, small_dataset: SmallDataset, tmp_path: Path
) -> None:
    config = parse_args(
        TrainConfig, [*small_dataset.flags, *TINY, f"--net_weight_file={finished}", "--data_fold=0,1,2"]
    )
    assert [fold.number for fold in read_folds(config)] == [0, 1, 2]
    own = f"--net_weight_file={finished.resolve() / 'fold_2' / 'best.pt'}"
    assert own in fold_plan(config, tmp_path, 2).command


def test_external_validation_leaves_out_the_patients_that_the_network_was_trained_on(
    finished: Path, small_dataset: SmallDataset, again: Path, tmp_path: Path, capsys
) -> None:
    results = tmp_path / "results"
    flags = [*small_dataset.flags, *TINY, "--data_fold=1", f"--output_dir={results}", "--experiment_id=one"]
    folder = train.main(flags)
    there = ["--data_dataset=again", f"--data_input_folder={again}", "--eval_draws=100", "--n_jobs=1"]
    table = evaluate.main(["--experiment_id=one", f"--output_dir={results}", *there])
    metadata = read_metadata(again / "datasets" / "again")
    fold = read_fold(small_dataset.folder, "phantom", 1)
    trained_on = set(fold["patient_id"][fold["sample_type"] == "train"])
    due = metadata[metadata[list(LABELS)].notna().all(axis=1) & ~metadata["patient_id"].isin(trained_on)]
    assert table["images"].unique().tolist() == [len(due)]
    assert "are of patients that the model was trained on: left out" in capsys.readouterr().out
    there = [f"--net_weight_file={folder / 'best.pt'}", *there[:2], "--n_jobs=1"]
    assert predict.main(there) == folder / "submission_again.csv"  # submission.csv is the training's dataset's
    assert set(training_rows(load_checkpoint(folder / "best.pt"), again)[1]["patient_id"]) == trained_on


def test_external_validation_of_a_cross_validation_is_that_of_its_models_mean(
    finished: Path, again: Path, tmp_path: Path, capsys
) -> None:
    copy = tmp_path / "cv"
    shutil.copytree(finished, copy)
    there = ["--data_dataset=again", f"--data_input_folder={again}", "--n_jobs=1"]
    flags = ["--experiment_id=cv", f"--output_dir={tmp_path}", "--eval_draws=100", *there]
    line = failure(evaluate.main, flags, capsys)  # between them the folds saw all patients
    assert "was trained on all patients" in line
    folder = again / "datasets" / "other"
    shutil.copytree(again / "datasets" / "again", folder)
    metadata = pd.read_csv(folder / "metadata.csv", dtype=str, keep_default_na=False)
    for name in ("patient_id", "study_id", "group_id"):
        metadata[name] = "new_" + metadata[name]
    metadata.to_csv(folder / "metadata.csv", index=False)
    assert "was trained on all patients" in failure(evaluate.main, [*flags, "--data_dataset=other"], capsys)
    metadata["picture_hash"] = metadata["picture_hash"].str[::-1]  # other pictures too
    metadata.to_csv(folder / "metadata.csv", index=False)
    there[0] = "--data_dataset=other"
    table = evaluate.main([*flags, there[0]])
    assert "mean of the models of 3 folds" in capsys.readouterr().out
    truth = read_metadata(folder).dropna(subset=list(LABELS))
    frames = []
    for fold in range(3):
        trained = load_network(copy / f"fold_{fold}" / "best.pt", 1, again, "other")
        frames.append(predict_rows(trained, truth))
    mean = sum(frames) / 3
    losses = [log_loss(truth[name], mean.loc[truth.index, name], labels=[0, 1]) for name in LABELS]
    np.testing.assert_allclose(table["log_loss"].to_numpy()[:6], losses, rtol=1e-9)
    assert (copy / "evaluation_other.csv").is_file()
