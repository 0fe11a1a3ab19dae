"""Going on with a run: the same weights to the bit, wherever it was killed, and every refusal in one line."""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.checkpoint import load_checkpoint
from common.experiment import lock_experiment
from common.trackers.jsonl import cut_metrics
from tests.runs import Runs, assert_same_run, open_runs, points

OPTIONS = [
    "--net_model=test_resnet",
    "--data_image_size=32",
    "--tr_batch_size=4",
    "--tr_iteration_num=14",
    "--tr_iteration_valid=6",
    "--tr_iteration_log=4",
    "--tr_accumulation_step=2",
    "--tr_checkpoint_minutes=1e-9",
    "--tr_clip_norm=1",
    "--n_jobs=1",
]


def whole(runs: Runs) -> Path:
    """The folder of the run in one go."""
    return runs.output_dir / "whole"


@pytest.fixture(scope="module")
def runs(small_dataset, tmp_path_factory) -> Iterator[Runs]:
    output_dir = tmp_path_factory.mktemp("results")
    with open_runs(output_dir, [*small_dataset.flags, *OPTIONS]) as runs:
        answer = runs.start("whole")
        assert answer["code"] == 0, answer["output"]
        yield runs


@pytest.mark.parametrize(
    ("place", "at"),
    [("iteration", 0), ("iteration", 5), ("iteration", 6), ("validation", 6), ("save", 8), ("validation", 14)],
)
def test_a_run_killed_anywhere_and_gone_on_with_equals_one_in_one_go_to_the_bit(
    runs: Runs, place: str, at: int
) -> None:
    name = f"kill_{place}_{at}"
    answer = runs.start(name, signal=signal.SIGKILL, place=place, at=at)
    assert answer["code"] == -signal.SIGKILL, answer["output"]
    answer = runs.go_on(name)
    assert answer["code"] == 0, answer["output"]
    assert_same_run(runs.output_dir / name, whole(runs))
    history = json.loads((runs.output_dir / name / "environment.json").read_text())["resumed"]
    assert len(history) == 1
    assert f"--tr_resume={name}" in history[0]["command"]


@pytest.mark.parametrize(
    ("number", "place", "at"), [(signal.SIGTERM, "iteration", 5), (signal.SIGUSR1, "validation", 6)]
)
def test_a_signal_saves_at_the_next_step_says_how_to_go_on_and_exits_with_75(runs: Runs, number, place, at) -> None:
    name = f"signal_{number.name}"
    answer = runs.start(name, "--tr_checkpoint_minutes=0", signal=number, place=place, at=at)
    assert answer["code"] == 75
    last = answer["output"].splitlines()[-1]
    assert last.startswith("interrupted after iteration 6 of 14, state saved; go on with: python train.py --tr_resume=")
    assert "Traceback" not in answer["output"]
    answer = runs(last.rpartition(" ")[2])
    assert answer["code"] == 0, answer["output"]
    assert_same_run(runs.output_dir / name, whole(runs))


def test_loading_processes_leave_the_signals_to_the_run_and_the_result_as_it_is(runs: Runs) -> None:
    answer = runs.start("workers", "--n_jobs=2", signal=signal.SIGINT, place="iteration", at=7)
    assert answer["code"] == 75, answer["output"]
    assert "Ctrl-C again" in answer["output"]
    assert "Traceback" not in answer["output"]
    answer = runs.go_on("workers", "--n_jobs=1")
    assert answer["code"] == 0, answer["output"]
    losses = [
        [point["train/loss"] for point in points(folder) if "train/loss" in point]
        for folder in (runs.output_dir / "workers", whole(runs))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)  # two threads computed a part of it


@pytest.mark.slow
def test_with_loading_processes_too_a_killed_run_equals_one_in_one_go_to_the_bit(runs: Runs) -> None:
    assert runs.start("two", "--n_jobs=2")["code"] == 0
    assert runs.start("two_killed", "--n_jobs=2", signal=signal.SIGKILL, at=9)["code"] == -signal.SIGKILL
    assert runs.go_on("two_killed")["code"] == 0
    assert_same_run(runs.output_dir / "two_killed", runs.output_dir / "two")


def test_a_finished_run_says_so_and_more_iterations_go_on_from_it(runs: Runs) -> None:
    shutil.copytree(whole(runs), runs.output_dir / "more")
    answer = runs.go_on("more")
    assert answer["code"] == 0
    assert "the experiment is finished" in answer["output"]
    answer = runs.go_on("more", "--tr_iteration_num=20")
    assert answer["code"] == 0, answer["output"]
    assert load_checkpoint(runs.output_dir / "more" / "last.pt")["iteration"] == 20
    validated = [p["iteration"] for p in points(runs.output_dir / "more") if "valid/weighted_log_loss" in p]
    assert validated == [6, 12, 14, 18, 20]


def test_an_option_that_changes_the_result_must_be_named(runs: Runs) -> None:
    runs.start("change", signal=signal.SIGTERM, at=5)
    answer = runs.go_on("change", "--optim_lr=0.5")
    assert answer["code"] == 2
    assert "--optim_lr=0.5 (the run has 0.001)" in answer["output"]
    assert "--tr_resume_change=optim_lr" in answer["output"]
    answer = runs.go_on("change", "--optim_lr=0.0", "--tr_resume_change=optim_lr")
    assert answer["code"] == 0, answer["output"]
    rates = [p["train/learning_rate"] for p in points(runs.output_dir / "change") if "train/loss" in p]
    assert rates[0] > 0
    assert rates[1:] == [0.0] * (len(rates) - 1)


def test_what_cannot_be_gone_on_with_is_one_line(runs: Runs) -> None:
    folder = runs.output_dir / "damaged"
    shutil.copytree(whole(runs), folder)
    for flags, code, part in (
        (["--tr_resume=nothing"], 2, "--tr_resume=nothing: no such experiment in"),
        ([f"--tr_resume={folder}/other.pt"], 2, "no such file"),
        ([f"--tr_resume={folder}/best.pt"], 2, "has weights only"),
        (["--tr_resume=damaged", "--tr_resume_change=optim_lrr"], 2, "did you mean 'optim_lr'"),
    ):
        answer = runs(*flags, f"--output_dir={runs.output_dir}")
        assert (answer["code"], len(answer["output"].splitlines())) == (code, 1), answer["output"]
        assert part in answer["output"]
    contents = (folder / "last.pt").read_bytes()
    (folder / "last.pt").write_bytes(contents[: len(contents) // 2])
    answer = runs.go_on("damaged")
    assert (answer["code"], len(answer["output"].splitlines())) == (1, 1), answer["output"]
    assert (
        f"{folder}/last.pt: is cut or damaged; what can be used: {folder}/previous.pt (iteration 12)"
        in answer["output"]
    )


def test_a_run_in_progress_is_not_started_twice_and_its_lock_dies_with_it(runs: Runs) -> None:
    folder = runs.output_dir / "locked"
    shutil.copytree(whole(runs), folder)
    with lock_experiment(folder):
        answer = runs.go_on("locked", "--tr_iteration_num=16")
    assert answer["code"] == 1
    assert "in progress in another process" in answer["output"]
    runs.go_on("locked", "--tr_iteration_num=18", signal=signal.SIGKILL, at=15)
    with (folder / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_metrics_are_cut_back_to_the_checkpoint_and_half_a_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    points = [(2, "train/loss"), (4, "train/loss"), (4, "valid/x"), (4, "valid_ema/x"), (6, "train/loss")]
    text = "".join(json.dumps({"iteration": iteration, key: 1.0}) + "\n" for iteration, key in points)
    for validated, left in ((4, 4), (2, 2)):
        path.write_text(text + '{"iteration": 3, "tr')
        cut_metrics(path, 4, validated)
        assert path.read_text() == "".join(line + "\n" for line in text.splitlines()[:left])
    cut_metrics(tmp_path / "absent", 4, 4)
    assert not (tmp_path / "absent").exists()


@pytest.mark.slow
def test_sigkill_at_random_moments_changes_nothing(runs: Runs) -> None:
    """RANDOM_KILLS=100 pytest tests/test_resume.py -k random for more than the 20 of every full test."""
    kills, draw = int(os.environ.get("RANDOM_KILLS", "20")), random.Random(os.environ.get("RANDOM_SEED", "0"))
    longest = runs.start("timed")["seconds"]
    done = number = 0
    while done < kills:
        name, number = f"random_{number}", number + 1
        folder = runs.output_dir / name
        answer = runs.start(name, after=draw.uniform(0, longest))
        while answer["code"] != 0:
            assert answer["code"] == -signal.SIGKILL, answer["output"]
            done += 1
            if not (folder / "config.yaml").exists():
                break  # killed before there was anything to go on with
            answer = runs.go_on(name, **({"after": draw.uniform(0, longest)} if done < kills else {}))
        if answer["code"] == 0:
            assert_same_run(folder, whole(runs))
        shutil.rmtree(folder, ignore_errors=True)
