"""rsna/training/folds.py: folds inside one experiment, honest, resumable, put together."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss

import ensemble
import evaluate
import train
from common.cli.arguments import parse_args
from common.cli.values import format_folds, parse_folds
from common.errors import UsageError, WorkError
from common.experiments.folder import create_experiment
from common.reports.leaderboard import update_leaderboard
from common.reports.record import read_record, write_status
from config import TrainConfig
from rsna.forms import read_predictions
from rsna.judging.reports import write_report
from rsna.training.folds import claimed, fold_plan, joined_options, read_folds
from rsna.training.outcome import is_cross_validation
from rsna_dataset import LABELS, METRIC, fold_path, read_fold
from tests import PROJECT
from tests.conftest import TINY, SmallDataset
from tests.runs import ENVIRONMENT, assert_same_run, failure

FOLDS = (0, 1, 2)


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "results" / "cv")
    return tmp_path / "results" / "cv"


@pytest.fixture
def tables(small_dataset: SmallDataset, tmp_path: Path) -> SmallDataset:
    """The small dataset's tables, which may be changed, without images."""
    folder = tmp_path / "input" / "datasets" / "phantom"
    shutil.copytree(small_dataset.folder, folder, ignore=shutil.ignore_patterns("images"))
    return SmallDataset(tmp_path / "input")


def again(folder: Path, *more: str) -> Path:
    return train.main([f"--tr_resume={folder.name}", f"--output_dir={folder.parent}", *more])


@pytest.mark.parametrize(("text", "folds"), [("3", 3), ("0,2", (0, 2)), ("all", ()), ("ALL", ())])
def test_folds_are_a_number_several_or_all(text: str, folds) -> None:
    assert parse_folds(text) == folds
    assert parse_folds(format_folds(folds)) == folds


@pytest.mark.parametrize("text", ["-1", "0,0", "0,x", "", "1.5"])
def test_what_is_no_fold_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="data_fold"):
        parse_args(TrainConfig, [f"--data_fold={text}"])


def test_each_fold_is_a_whole_experiment_with_the_options_of_the_command(finished: Path) -> None:
    for fold in FOLDS:
        record = read_record(finished / f"fold_{fold}")
        assert record.status == "finished"
        assert record.config["data_fold"] == fold
        assert record.config["tr_iteration_num"] == 4
        assert (record.folder / "best.pt").is_file()
    assert read_record(finished).status == "finished"
    for name in ("config.yaml", "environment.json", "train.log"):
        assert (finished / name).is_file()


def test_each_image_is_predicted_by_the_fold_that_held_it_out(finished: Path, small_dataset: SmallDataset) -> None:
    together = read_predictions(finished / "predictions_oof.csv")
    due = []
    for fold in FOLDS:
        rows = read_fold(small_dataset.folder, "phantom", fold)
        held = rows.index[rows["sample_type"] == "valid"]
        own = read_predictions(finished / f"fold_{fold}" / "predictions_valid.csv")
        pd.testing.assert_frame_equal(together.loc[held], own.loc[held])
        due += held.tolist()
    assert sorted(together.index) == sorted(due)


def test_the_summary_is_what_scikit_learn_says_of_the_files(finished: Path, small_dataset: SmallDataset) -> None:
    document = json.loads((finished / "cross_validation.json").read_text())
    weights = np.array([1, 1, 1, 1, 1, 2]) / 7

    def loss(frame: pd.DataFrame, targets: pd.DataFrame) -> float:
        parts = [log_loss(targets[name], frame[name], labels=[0, 1]) for name in LABELS]
        return float(weights @ parts)

    found, truths = [], []
    for fold in FOLDS:
        rows = read_fold(small_dataset.folder, "phantom", fold)
        truth = rows.loc[rows["sample_type"] == "valid", list(LABELS)]
        found.append(
            loss(read_predictions(finished / f"fold_{fold}" / "predictions_valid.csv").loc[truth.index], truth)
        )
        truths.append(truth)
    assert [fact["weighted_log_loss"] for fact in document["folds"]] == pytest.approx(found, abs=1e-12)
    assert document["mean"] == pytest.approx(np.mean(found))
    assert document["sd"] == pytest.approx(np.std(found, ddof=1))
    truth = pd.concat(truths)
    whole = loss(read_predictions(finished / "predictions_oof.csv").loc[truth.index], truth)
    assert document["pooled"]["weighted_log_loss"] == pytest.approx(whole, abs=1e-12)


def test_the_leaderboard_has_the_folds_and_all_together(copy: Path) -> None:
    update_leaderboard(copy.parent, METRIC)
    table = pd.read_csv(copy.parent / "leaderboard.csv").set_index("experiment")
    assert set(table.index) == {"cv", "cv/fold_0", "cv/fold_1", "cv/fold_2"}
    assert (table["status"] == "finished").all()
    document = json.loads((copy / "cross_validation.json").read_text())
    assert table.loc["cv", "weighted_log_loss"] == pytest.approx(document["pooled"]["weighted_log_loss"])


def test_evaluate_takes_the_names_that_the_leaderboard_shows_and_its_links_are_there(copy: Path) -> None:
    """Of a fold, and of a trial of a search, which lies as deep but below no cross-validation."""
    shutil.copytree(copy / "fold_1", copy.parent / "search" / "trial_0000")
    write_report(copy.parent / "search" / "trial_0000")
    update_leaderboard(copy.parent, METRIC)
    table = pd.read_csv(copy.parent / "leaderboard.csv").set_index("experiment")
    assert set(table.index) == {"cv", "cv/fold_0", "cv/fold_1", "cv/fold_2", "search/trial_0000"}
    page = (copy.parent / "leaderboard.html").read_text()
    links = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])["reports"]
    assert links["search/trial_0000"] == "search/trial_0000/report.html"
    assert all((copy.parent / link).is_file() for link in links.values())
    for name in ("cv/fold_1", "search/trial_0000"):
        found = evaluate.main([f"--output_dir={copy.parent}", f"--experiment_id={name}", "--eval_draws=100"])
        assert found.loc["weighted", "log_loss"] == pytest.approx(table.loc[name, METRIC], abs=1e-9)


def test_a_fold_with_a_label_that_no_threshold_separates_has_a_report(copy: Path) -> None:
    for fold in FOLDS:
        assert write_report(copy / f"fold_{fold}").stat().st_size > 10_000


def test_evaluate_and_ensemble_take_it_like_any_experiment(copy: Path, capsys) -> None:
    place = f"--output_dir={copy.parent}"
    table = evaluate.main(["--experiment_id=cv", place, "--eval_draws=100"])
    document = json.loads((copy / "cross_validation.json").read_text())
    assert table.loc["weighted", "log_loss"] == pytest.approx(document["pooled"]["weighted_log_loss"], abs=1e-12)
    shutil.copytree(copy, copy.parent / "other")
    folder = ensemble.main(["cv", "other", place, "--ens_draws=100"])
    assert (folder / "predictions_oof.csv").is_file()


def test_the_same_command_and_resume_skip_what_is_finished(copy: Path, capsys) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.glob("fold_*/*.pt")}
    (copy / "predictions_oof.csv").unlink()
    assert again(copy) == copy
    assert (copy / "predictions_oof.csv").is_file()
    assert {path: path.stat().st_mtime_ns for path in copy.glob("fold_*/*.pt")} == before
    assert capsys.readouterr().out.splitlines()[-1] == str(copy)


def test_other_options_than_the_folds_have_are_refused(copy: Path, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        again(copy, "--optim_lr=0.5")
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert "--optim_lr=0.5 (the run has 0.003)" in error


@pytest.mark.parametrize("rate", ["0.003", "0.001", "0.02"])
def test_a_fold_trains_by_its_cross_validations_rate_whatever_it_starts_from(tmp_path: Path, rate: str) -> None:
    for start in ([], ["--net_weight_file=a.pt"]):
        config = parse_args(TrainConfig, ["--data_fold=0,1", f"--optim_lr={rate}", *start])
        assert parse_args(TrainConfig, fold_plan(config, tmp_path, 1).command).optim_lr == float(rate)


@pytest.mark.parametrize(
    ("of", "flags", "part"),
    [
        ("cv", ["--experiment_id=other"], "--experiment_id=other: --tr_resume goes on in"),
        ("cv", ["--output_dir=elsewhere"], "--output_dir=elsewhere: --tr_resume goes on in"),
        ("cv/fold_0", ["--experiment_id=other"], "--experiment_id=other: --tr_resume goes on in"),
        ("cv/fold_0", ["--output_dir=elsewhere"], "--output_dir=elsewhere: --tr_resume goes on in"),
        ("cv/fold_0", ["--cv_run=1"], "--cv_run=1: "),
    ],
)
def test_another_name_place_or_fold_than_that_of_what_is_gone_on_with_is_refused(
    finished: Path, capsys, of: str, flags: list[str], part: str
) -> None:
    assert part in failure(train.main, [f"--tr_resume={finished.parent / of}", *flags], capsys)


def test_a_fold_that_changed_since_it_was_trained_is_refused(copy: Path, tables: SmallDataset, capsys) -> None:
    path = fold_path(tables.folder, "phantom", 1)
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    rows.loc[rows.index[rows["sample_type"] == "train"][0], "any"] = "1"
    rows.loc[rows.index[rows["sample_type"] == "train"][1], "any"] = "0"
    rows.to_csv(path, index=False)
    with pytest.raises(SystemExit) as caught:
        again(copy, f"--data_input_folder={tables.input_folder}")
    assert caught.value.code == 1
    assert "changed since it was trained" in capsys.readouterr().err


def edited(tables: SmallDataset, fold: int, change) -> TrainConfig:
    path = fold_path(tables.folder, "phantom", fold)
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    change(rows).to_csv(path, index=False)
    return parse_args(TrainConfig, [*tables.flags, "--data_fold=all"])


def test_a_patient_on_both_sides_of_a_fold_is_refused(tables: SmallDataset) -> None:
    def change(rows: pd.DataFrame) -> pd.DataFrame:
        valid = rows.index[rows["sample_type"] == "valid"]
        rows.loc[valid[0], "sample_type"] = "train"
        return rows

    with pytest.raises(WorkError, match=r"_fold_2.csv: 1 patients stand in both train and valid"):
        read_folds(edited(tables, 2, change))


def test_a_patient_that_two_folds_hold_out_is_refused(tables: SmallDataset) -> None:
    first = read_fold(tables.folder, "phantom", 0)
    patient = first.loc[first["sample_type"] == "valid", "patient_id"].iloc[0]

    def change(rows: pd.DataFrame) -> pd.DataFrame:
        rows.loc[rows["patient_id"] == patient, "sample_type"] = "valid"
        return rows

    with pytest.raises(WorkError, match=r"_fold_1.csv: holds out .* images .* that .*_fold_0.csv holds out too"):
        read_folds(edited(tables, 1, change))


def test_an_image_that_no_fold_holds_out_is_refused(tables: SmallDataset) -> None:
    def change(rows: pd.DataFrame) -> pd.DataFrame:
        return rows.assign(sample_type=rows["sample_type"].where(rows["patient_id"] != kept, "train"))

    last = read_fold(tables.folder, "phantom", 4)
    kept = last.loc[last["sample_type"] == "valid", "patient_id"].iloc[0]
    with pytest.raises(WorkError, match="images are held out by no fold"):
        read_folds(edited(tables, 4, change))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--data_fold=0,7"], "--data_fold=7"),
        (["--data_fold=all", "--tr_overfit=1"], "--tr_overfit"),
        (["--cv_run=1"], "--cv_run needs a cross-validation"),
        (["--data_fold=all", "--cv_run=1"], "--cv_run needs --experiment_id"),
        (["--data_fold=0,1", "--cv_run=2", "--experiment_id=x"], "has the folds 0, 1"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    flags: list[str], said: str, small_dataset: SmallDataset, tmp_path: Path, capsys
) -> None:
    results = tmp_path / "results"
    assert said in failure(train.main, [*small_dataset.flags, *TINY, f"--output_dir={results}", *flags], capsys)
    assert not results.exists()


def test_torchrun_is_refused(small_dataset: SmallDataset, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    flags = [*small_dataset.flags, *TINY, f"--output_dir={tmp_path}", "--data_fold=all"]
    assert "without torchrun" in failure(train.main, flags, capsys)


def test_an_experiment_of_one_fold_is_never_joined(small_dataset: SmallDataset, tmp_path: Path, capsys) -> None:
    create_experiment(tmp_path, "one", {"data_fold": 0}, ["x"])
    flags = [*small_dataset.flags, *TINY, f"--output_dir={tmp_path}", "--data_fold=all", "--experiment_id=one"]
    assert "exists in" in failure(train.main, flags, capsys)
    assert not is_cross_validation(tmp_path / "one")


def test_jobs_join_the_experiment_that_the_first_of_them_made(small_dataset: SmallDataset, tmp_path: Path) -> None:
    flags = [*small_dataset.flags, *TINY, "--data_fold=0,1,2", "--experiment_id=cv", f"--output_dir={tmp_path}"]
    jobs = [parse_args(TrainConfig, [*flags, f"--cv_run={fold}"]) for fold in FOLDS]
    with claimed(jobs[0], None, flags) as first, claimed(jobs[1], None, flags) as second:  # the second lost the race
        assert first.folder.resolve() == second.folder.resolve()
    assert joined_options(jobs[2], flags)[1] == tmp_path / "cv"


def test_a_finished_fold_goes_on_where_more_iterations_are_asked_for(copy: Path) -> None:
    saved = read_record(copy).config
    assert fold_plan(parse_args(TrainConfig, [], saved), copy, 0).state == "finished"
    longer = parse_args(TrainConfig, ["--tr_iteration_num=8"], saved)
    assert fold_plan(longer, copy, 0).state == "resume"


@pytest.mark.slow
def test_killed_in_the_middle_of_the_second_fold_the_same_command_ends_as_a_run_in_one_go(
    small_dataset: SmallDataset, tmp_path: Path
) -> None:
    flags = [*small_dataset.flags, *TINY, "--tr_iteration_num=60", "--tr_iteration_valid=20", "--data_fold=0,1"]
    command = [sys.executable, str(PROJECT / "train.py"), *flags, f"--output_dir={tmp_path}"]
    subprocess.run([*command, "--experiment_id=whole"], env=ENVIRONMENT, check=True, capture_output=True)
    killed = [*command, "--experiment_id=killed"]
    run = subprocess.Popen(
        killed, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    metrics = tmp_path / "killed" / "fold_1" / "metrics.jsonl"
    while not (metrics.is_file() and metrics.read_bytes().count(b"\n") >= 2):
        assert run.poll() is None
        time.sleep(0.02)
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()  # ends only when the fold's process, which holds the pipes, has ended too
    assert read_record(tmp_path / "killed" / "fold_0").status == "finished"
    assert read_record(tmp_path / "killed" / "fold_1").status != "finished"
    again = subprocess.run(killed, env=ENVIRONMENT, check=True, capture_output=True, text=True)
    assert again.stdout.splitlines()[-1] == str(tmp_path / "killed")
    for fold in (0, 1):
        assert_same_run(tmp_path / "killed" / f"fold_{fold}", tmp_path / "whole" / f"fold_{fold}")
    name = "predictions_oof.csv"
    assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_the_fold_and_says_how_to_go_on(
    number: int, small_dataset: SmallDataset, tmp_path: Path
) -> None:
    flags = [*small_dataset.flags, *TINY, "--tr_iteration_num=100000", "--tr_iteration_valid=100000", "--data_fold=0,1"]
    command = [sys.executable, str(PROJECT / "train.py"), *flags, f"--output_dir={tmp_path}", "--experiment_id=cv"]
    run = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "cv" / "fold_0" / "metrics.jsonl").is_file():
        assert run.poll() is None
        time.sleep(0.02)
    time.sleep(1)
    run.send_signal(number)
    _, errors = run.communicate()
    assert run.returncode == 75, errors
    assert errors.splitlines()[-1] == f"interrupted; go on with: python train.py --tr_resume={tmp_path / 'cv'}"
    assert (tmp_path / "cv" / "fold_0" / "last.pt").is_file()
    assert not (tmp_path / "cv" / "fold_1").exists()
    assert read_record(tmp_path / "cv").status == "interrupted"


@pytest.mark.slow
def test_a_first_fold_that_cannot_begin_leaves_no_experiment(small_dataset: SmallDataset, tmp_path: Path) -> None:
    flags = [*small_dataset.flags, *TINY, "--data_fold=all", "--net_model=resnet11", f"--output_dir={tmp_path}"]
    run = subprocess.run(
        [sys.executable, str(PROJECT / "train.py"), *flags],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert "--net_model=resnet11" in run.stderr
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_status_of_a_killed_run_is_not_finished(copy: Path) -> None:
    write_status(copy / "fold_1", "running")
    assert read_record(copy / "fold_1").status == "killed"
    saved = read_record(copy).config
    assert fold_plan(parse_args(TrainConfig, [], saved), copy, 1).state == "resume"


def test_one_with_other_options_or_not_finished_says_what_can_be_done(
    copy: Path, small_dataset: SmallDataset, capsys
) -> None:
    place = f"--output_dir={copy.parent}"
    flags = [*small_dataset.flags, *TINY, "--data_fold=0,1,2", "--experiment_id=cv", place]
    for name in ("predictions_oof.csv", "cross_validation.json"):
        (copy / name).unlink()
    for main, argv, said in (
        (train.main, [*flags, "--optim_lr=0.5"], "leave it out, or train it under another --experiment_id than cv"),
        (evaluate.main, ["--experiment_id=cv", place], "the cross-validation is not finished; go on with: train.py"),
    ):
        capsys.readouterr()
        assert said in failure(main, argv, capsys)
