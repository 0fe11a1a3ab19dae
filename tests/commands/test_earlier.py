"""What earlier versions wrote still works: a dataset and experiments of each kind, made at commit a223f84.

``tests/earlier.tar.xz`` holds the phantom's dataset ``small`` (10 studies at 32 pixels, 3 folds), a cross-validation
with features, and a network of each kind, all of timm's ``test_efficientnet`` with a frozen backbone. Pages and the
features' alignment were left out.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import pandas as pd
import pytest

import evaluate
import predict
import report
import train
from common.trackers.jsonl import read_metrics
from tests import PROJECT

KINDS = ("slices", "sequences", "studies")


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the experiments, in the current folder as the commands were typed then."""
    with tarfile.open(PROJECT / "tests" / "earlier.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "output" / "results"


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_of_an_earlier_version_predicts_what_it_predicted_then(earlier: Path, kind: str) -> None:
    then = pd.read_csv(earlier / kind / "predictions_valid.csv", index_col="id")
    weights = f"output/results/{kind}/best.pt"
    predict.main([f"--net_weight_file={weights}", "--split=valid", "--output_file=now.csv", "--n_jobs=1"])
    now = pd.read_csv("now.csv", index_col="id")
    pd.testing.assert_frame_equal(now, then.loc[now.index], rtol=0, atol=1e-5)
    assert len(now) == len(then)


def test_the_models_of_an_earlier_cross_validation_predict_together(earlier: Path) -> None:
    then = pd.read_csv(earlier / "cv" / "submission.csv", index_col="ID")
    predict.main(["--net_weight_file=output/results/cv", "--split=test", "--output_file=now.csv", "--n_jobs=1"])
    pd.testing.assert_frame_equal(pd.read_csv("now.csv", index_col="ID"), then, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "iterations"), [("slices", 8), ("sequences", 4), ("studies", 4)])
def test_a_run_of_an_earlier_version_goes_on(earlier: Path, kind: str, iterations: int) -> None:
    before = read_metrics(earlier / kind / "metrics.jsonl")
    train.main([f"--tr_resume={kind}", f"--tr_iteration_num={iterations}", "--tr_report=0"])
    after = read_metrics(earlier / kind / "metrics.jsonl")
    assert after[: len(before)] == before
    assert after[-1]["iteration"] == iterations


def test_experiments_of_an_earlier_version_are_evaluated_reported_and_listed(earlier: Path) -> None:
    then = pd.read_csv(earlier / "slices" / "evaluation.csv", index_col=0)
    evaluate.main(["--experiment_id=slices", "--n_jobs=1"])
    now = pd.read_csv(earlier / "slices" / "evaluation.csv", index_col=0)
    assert now.loc["weighted", "log_loss"] == pytest.approx(then.loc["weighted", "log_loss"], abs=1e-5)
    train.main(["--tr_resume=cv"])  # finished: it is put together again
    report.main(["--experiment_id=cv,sequences,studies"])
    assert all((earlier / name / "report.html").is_file() for name in ("cv", "sequences", "studies"))
    listed = pd.read_csv(earlier / "leaderboard.csv")
    assert {"slices", "sequences", "studies", "cv"} <= set(listed["experiment"])
    assert set(listed["status"]) == {"finished"}
