"""common/reports/record.py: an experiment's folder read in whatever state it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.experiments.folder import lock_experiment
from common.reports.record import (
    FINISHED,
    KILLED,
    RUNNING,
    UNKNOWN,
    experiment_folders,
    read_record,
    results_folder,
    write_status,
)

METRIC = "weighted_log_loss"


def experiment(folder: Path, *points: dict, config: str = "seed: 3\nnet_model: resnet18\n") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    (folder / "environment.json").write_text(json.dumps({"started": "2026-11-25T06:00:00+00:00"}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    return folder


def point(iteration: int, time: float = 0.0, **metrics: float | None) -> dict:
    named = {name.replace("__", "/"): value for name, value in metrics.items()}
    return {"iteration": iteration, "step": iteration, "time": time, **named}


def test_the_best_value_is_the_lowest_of_raw_and_averaged_weights_and_never_nan(tmp_path: Path) -> None:
    folder = experiment(
        tmp_path / "1",
        point(10, valid__weighted_log_loss=0.5, valid_ema__weighted_log_loss=0.3, valid__log_loss=0.1),
        point(20, valid__weighted_log_loss=0.2, valid_ema__weighted_log_loss=None),
        point(30, valid__weighted_log_loss=0.4, valid_ema__weighted_log_loss=0.25, train__weighted_log_loss=0.01),
    )
    record = read_record(folder)
    assert record.best(METRIC) == (0.2, 20, "raw")
    iterations, values = record.series("valid_ema/weighted_log_loss")
    assert iterations == [10, 20, 30]
    assert values[0] == 0.3
    assert values[1] != values[1]


def test_the_time_is_that_from_the_first_start_to_the_last_point(tmp_path: Path) -> None:
    start = 1795586400.0  # 2026-11-25T06:00:00Z
    record = read_record(experiment(tmp_path / "1", point(1, start + 5), point(2, start + 90)))
    assert record.seconds == 90


@pytest.mark.parametrize("damage", ["config.yaml", "environment.json", "metrics.jsonl"])
@pytest.mark.parametrize("content", [None, "{", "- 1\n"])
def test_a_file_that_is_damaged_or_missing_leaves_the_rest_readable(tmp_path: Path, damage: str, content) -> None:
    folder = experiment(tmp_path / "1", point(1, valid__weighted_log_loss=0.5), point(2))
    (folder / damage).unlink()
    if content is not None:
        (folder / damage).write_text(content)
    record = read_record(folder)
    assert record.best(METRIC) == (None if damage == "metrics.jsonl" else (0.5, 1, "raw"))
    assert record.config.get("seed") == (None if damage == "config.yaml" else 3)


def test_the_status_is_what_was_noted_unless_the_lock_says_otherwise(tmp_path: Path) -> None:
    folder = experiment(tmp_path / "1")
    assert read_record(folder).status == UNKNOWN
    write_status(folder, RUNNING)
    with lock_experiment(folder):
        assert read_record(folder).status == RUNNING
        write_status(folder, FINISHED)
        assert read_record(folder).status == FINISHED  # it still writes its report and serves its trackers
        write_status(folder, RUNNING)
    assert read_record(folder).status == KILLED
    write_status(folder, "interrupted")
    assert read_record(folder).status == "interrupted"


def test_looking_whether_a_run_is_in_progress_never_keeps_one_from_starting(tmp_path: Path) -> None:
    folder = experiment(tmp_path / "1")
    for _ in range(20):
        with lock_experiment(folder):
            pass
        read_record(folder)


def test_the_folds_of_a_cross_validation_and_the_trials_of_a_search_are_found_below_it(tmp_path: Path) -> None:
    names = ("a", "a/fold_0", "b", "search/trial_0", "search/trial_1", "search/trial_1/fold_0")
    for name in names:
        experiment(tmp_path / name)
    experiment(tmp_path / "a/b/c/d")  # deeper than any command writes
    (tmp_path / "nothing").mkdir()
    assert experiment_folders(tmp_path) == [tmp_path / name for name in names]
    assert results_folder(tmp_path / "a/fold_0") == results_folder(tmp_path / "a") == tmp_path
    assert experiment_folders(tmp_path / "none") == []


def test_brief_records_keep_what_a_table_needs_and_not_every_point(tmp_path: Path) -> None:
    start = 1795586400.0  # when the run began
    training = [point(at, start + at, train__loss=1.0) for at in range(1, 8)]
    folder = experiment(tmp_path / "1", *training[:4], point(4, valid__weighted_log_loss=0.5), *training[4:])
    whole, brief = read_record(folder), read_record(folder, brief=True)
    assert len(whole.points) == 8
    assert [entry["iteration"] for entry in brief.points] == [4, 7]
    assert brief.best(METRIC) == whole.best(METRIC)
    assert brief.seconds == whole.seconds == 7
