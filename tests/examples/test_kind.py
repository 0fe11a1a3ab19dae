"""A kind of network in one file, without an edit elsewhere: it trains, resumes, predicts and is evaluated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import evaluate
import export
import predict
import train
from common.checkpoint import load_checkpoint
from examples.kind import EDGES, Histogram
from rsna.forms import read_predictions
from rsna_dataset import read_fold
from tests.conftest import SmallDataset, cross_validated

KIND = "--net_kind=examples.kind.HISTOGRAM"
FLAGS = [KIND, "--tr_iteration_num=6", "--tr_iteration_valid=3", "--tr_batch_size=8", "--sched=constant"]
OTHERS = ["--optim_lr=0.01", "--tr_report=0", "--n_jobs=1"]


@pytest.fixture(scope="module")
def folds(small_dataset: SmallDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-validation over three folds."""
    flags = [*small_dataset.flags, *FLAGS, *OTHERS, "--data_fold=0,1,2"]
    return cross_validated(flags, tmp_path_factory.mktemp("results"))


def failure(main, argv: list[str], capsys) -> tuple[int, str]:
    """The exit code and the last line on stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        main(argv)
    return exit_info.value.code, capsys.readouterr().err.splitlines()[-1]


def test_a_histogram_counts_each_pixel_once() -> None:
    image = np.array([[-1000, -100], [55, 3000]], dtype=np.int16)
    shares = Histogram()(image=image)["image"]
    assert shares.shape == (1, 1, len(EDGES) - 1)
    assert np.flatnonzero(shares[0, 0]).tolist() == [0, 1, 16, len(EDGES) - 2]
    assert shares.sum() == 1


def test_a_run_of_an_own_kind_resumes_where_it_stood(small_dataset: SmallDataset, folds: Path, tmp_path: Path) -> None:
    place = f"--output_dir={tmp_path}"
    train.main([*small_dataset.flags, *FLAGS, *OTHERS, place, "--experiment_id=short", "--tr_iteration_num=3"])
    train.main(["--tr_resume=short", place, "--tr_iteration_num=6"])
    resumed, straight = (load_checkpoint(folder / "last.pt") for folder in (tmp_path / "short", folds / "fold_0"))
    assert resumed["iteration"] == straight["iteration"] == 6
    assert all(torch.equal(value, straight["model"][key]) for key, value in resumed["model"].items())


def test_predictions_of_an_own_kind_are_those_of_its_training(
    folds: Path, small_dataset: SmallDataset, capsys: pytest.CaptureFixture
) -> None:
    own = folds / "fold_0"
    logged = read_predictions(own / "predictions_valid.csv")
    path = predict.main(
        [f"--net_weight_file={own}", "--split=valid", f"--output_file={folds / 'again.csv'}", "--n_jobs=1"]
    )
    again = read_predictions(path)
    assert np.allclose(again.loc[logged.index], logged, rtol=0, atol=1e-9)
    assert len(again) == (read_fold(small_dataset.folder, "phantom", 0)["sample_type"] == "valid").sum()
    evaluate.main(["--experiment_id=fold_0", f"--output_dir={folds}", "--n_jobs=1"])
    assert "reproduces the logged" in capsys.readouterr().out
    assert len(read_predictions(predict.main([f"--net_weight_file={folds}", "--n_jobs=1"]))) > 0


@pytest.mark.parametrize(
    ("main", "flags", "said"),
    [
        (train.main, [KIND, "--net_model=resnet18"], "--net_model means nothing to --net_kind=examples.kind.HISTOGRAM"),
        (train.main, ["--net_kind=examples.kind.NONE"], "has no KindRow of the name NONE"),
        (train.main, ["--net_kind=examples.kind.HistogramKind"], "has no KindRow of the name HistogramKind"),
        (train.main, ["--net_kind=os.path"], "there is no"),
        (predict.main, ["--tta=train_demo.json"], "a network over histograms sees no pictures"),
        (predict.main, ["--net_compute=bfloat16"], "this is a network over histograms"),
        (predict.main, ["--source=.", "--predict_output=new"], "a network over histograms, which sees no pictures"),
        (export.main, ["--export_format=onnx"], "--export_format=checkpoint alone"),
    ],
)
def test_what_an_own_kind_cannot_do_is_said_in_one_line(
    folds: Path, capsys: pytest.CaptureFixture, main, flags: list[str], said: str
) -> None:
    weights = [] if main is train.main else [f"--net_weight_file={folds / 'fold_0'}"]
    code, line = failure(main, [*weights, *flags], capsys)
    assert code == 2
    assert said in line
