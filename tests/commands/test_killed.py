"""Commands that are killed when a file is about to get its name: the same command then ends as if nothing had been."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from common.experiments.folder import is_in_progress
from common.reports.record import read_record
from rsna.prediction.dicom_source import WORK
from tests.conftest import SmallDataset
from tests.runs import Runs, open_runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Iterator[Runs]:
    with open_runs(tmp_path_factory.mktemp("results"), []) as runs:
        yield runs


@pytest.fixture
def results(finished: Path, tmp_path: Path) -> Path:
    """Two cross-validations, all folds of which are trained."""
    for name in ("cv", "other"):
        shutil.copytree(finished, tmp_path / "results" / name)
    return tmp_path / "results"


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a folder as a living process does."""
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    yield
    os.close(handle)


def killed_at(runs: Runs, file: str, at: int, script: str, arguments: list[str]) -> None:
    answer = runs(*arguments, script=script, signal=signal.SIGKILL, place="write", file=file, at=at)
    assert answer["code"] == -signal.SIGKILL, answer["output"]


def starts(runs: Runs, script: str, arguments: list[str]) -> None:
    answer = runs(*arguments, script=script)
    assert answer["code"] == 0, answer["output"]


WRITES = [("config.yaml", 1), ("environment.json", 1), ("evaluation.csv", 1), ("report.html", 1)]
ENSEMBLE = ["cv", "other", "--experiment_id=e", "--ens_draws=100"]
LEVEL = ["cv", "other", "--experiment_id=e", "--level_trees=2", "--level_draws=100"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "arguments", "killed"),
    [
        ("ensemble", ENSEMBLE, WRITES),
        ("second_level", LEVEL, [("predictions_oof.csv", 1), ("second_level.json", 1), ("status.json", 2)]),
    ],
)
def test_what_is_made_of_others_is_made_again_by_the_same_command(
    runs: Runs, results: Path, script: str, arguments: list[str], killed: list[tuple[str, int]]
) -> None:
    arguments = [*arguments, f"--output_dir={results}"]
    folder = results / "e"
    for file, at in killed:
        killed_at(runs, file, at, script, arguments)
        assert read_record(folder).status in ("killed", "unknown")
    starts(runs, script, arguments)
    assert read_record(folder).status == "finished"
    assert "report.html" in files(folder)
    assert not [name for name in files(results) if name.endswith(".tmp")]
    answer = runs(*arguments, script=script)
    assert (answer["code"], "exists in" in answer["output"]) == (2, True)  # what is finished is never written over
    starts(runs, script, [*(word for word in arguments if word != "--experiment_id=e"), "--experiment_id=whole"])
    assert files(folder) == files(results / "whole")
    for name in (
        name for name in files(folder) if name.endswith(".csv") or name in ("ensemble.json", "evaluation.json")
    ):
        assert (folder / name).read_bytes() == (results / "whole" / name).read_bytes(), name


@pytest.mark.parametrize("file", ["predictions_oof.csv", "metrics.jsonl", "report.html", "status.json"])
def test_a_cross_validation_killed_when_its_folds_are_put_together_is_not_finished_until_all_is_there(
    runs: Runs, results: Path, file: str
) -> None:
    folder = results / "cv"
    for name in ("predictions_oof.csv", "cross_validation.json", "metrics.jsonl"):
        (folder / name).unlink()
    arguments = ["--tr_resume=cv", f"--output_dir={results}", "--tr_report=1"]
    killed_at(runs, file, 2 if file == "status.json" else 1, "train", arguments)
    assert read_record(folder).status == "killed"
    starts(runs, "train", arguments)
    assert read_record(folder).status == "finished"
    assert files(folder) >= {"predictions_oof.csv", "cross_validation.json", "metrics.jsonl", "report.html"}
    assert not [name for name in files(results) if name.endswith(".tmp")]
    assert not is_in_progress(folder)
    assert (folder / "predictions_oof.csv").read_bytes() == (results / "other" / "predictions_oof.csv").read_bytes()
    documents = [json.loads((results / name / "cross_validation.json").read_text()) for name in ("cv", "other")]
    assert documents[0] == documents[1]


def test_an_evaluation_is_taken_as_done_only_when_all_its_files_are_there(runs: Runs, results: Path) -> None:
    """By its table, as sweeps do."""
    folder = results / "cv" / "fold_0"
    arguments = ["--experiment_id=fold_0", f"--output_dir={results / 'cv'}", "--eval_draws=100"]
    starts(runs, "evaluate", arguments)
    for name in sorted(name for name in files(folder) if name.startswith("evaluation") or name == "calibration.json"):
        written = [path for path in folder.iterdir() if path.name.startswith(("evaluation", "calibration"))]
        for path in written:
            path.unlink()
        killed_at(runs, name, 1, "evaluate", arguments)
        assert not (folder / "evaluation.csv").exists(), name
    starts(runs, "evaluate", arguments)
    assert not [name for name in files(folder) if name.endswith(".tmp")]


def test_features_that_a_killed_command_left_half_written_do_not_stay(runs: Runs, results: Path) -> None:
    arguments = [f"--net_weight_file={results / 'cv'}", "--features=1", "--n_jobs=1"]
    folder = results / "cv" / "features" / "train"
    folder.mkdir(parents=True)
    (folder / ".features.npy.123.tmp").write_bytes(b"gigabytes")
    starts(runs, "predict", arguments)
    assert not [name for name in files(results) if name.endswith(".tmp")]


@pytest.mark.slow
def test_a_prediction_of_dicom_files_that_was_killed_is_made_anew_in_its_folder(
    runs: Runs, results: Path, small_dataset: SmallDataset, tmp_path: Path
) -> None:
    arguments = [f"--source={small_dataset.source / 'stage_2_test'}", "--n_jobs=1", f"--data_input_folder={tmp_path}"]
    arguments += [f"--net_weight_file={results / 'cv' / 'fold_0' / 'best.pt'}"]
    output = tmp_path / "killed"
    for file in ("failed.csv", "slices.csv", "predictions.json"):
        killed_at(runs, file, 1, "predict", [*arguments, f"--predict_output={output}"])
    (output / "of_another_source.png").write_bytes(b"")
    (output / "of_another_source.html").write_bytes(b"")
    with lock(output / WORK):
        answer = runs(*arguments, f"--predict_output={output}", script="predict")
        assert (answer["code"], "in progress there" in answer["output"]) == (2, True)
        assert (output / "slices.csv").is_file()
    starts(runs, "predict", [*arguments, f"--predict_output={output}"])
    starts(runs, "predict", [*arguments, f"--predict_output={tmp_path / 'whole'}"])
    assert files(output) == files(tmp_path / "whole")
    assert (output / "slices.csv").read_bytes() == (tmp_path / "whole" / "slices.csv").read_bytes()
    assert not (output / WORK).exists()
    answer = runs(*arguments, f"--predict_output={output}", script="predict")
    assert (answer["code"], "is not empty" in answer["output"]) == (2, True)
