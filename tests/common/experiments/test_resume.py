"""Going on with a run: the same weights to the bit, wherever it was killed, and every refusal in one line."""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from html import unescape
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from common.checkpoint import load_checkpoint
from common.cli.arguments import parse_args, to_dict
from common.errors import UsageError
from common.experiments.folder import lock_experiment
from common.experiments.resume import resume_run
from common.reports.record import read_record
from common.trackers.jsonl import cut_metrics
from config import TrainConfig
from tests import PROJECT
from tests.runs import ENVIRONMENT, Runs, assert_same_run, open_runs, points

OPTIONS = [
    "--net_model=test_resnet",
    "--data_image_size=32",
    "--tr_batch_size=4",
    "--tr_iteration_num=14",
    "--tr_report=0",
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


@pytest.mark.parametrize(("file", "at"), [("status.json", 2), ("report.html", 1), ("leaderboard.csv", 1)])
def test_a_run_killed_after_its_last_iteration_is_concluded_by_the_next_start(runs: Runs, file: str, at: int) -> None:
    name = f"kill_{file}"
    folder = runs.output_dir / name
    answer = runs.start(name, "--tr_report=1", signal=signal.SIGKILL, place="write", file=file, at=at)
    assert answer["code"] == -signal.SIGKILL, answer["output"]
    # A sweep or a cross-validation starts what is not finished again: what is must have its report.
    assert read_record(folder).status == "killed" or (folder / "report.html").is_file()
    answer = runs.go_on(name)
    assert answer["code"] == 0, answer["output"]
    assert "the experiment is finished" in answer["output"]
    assert json.loads((folder / "status.json").read_text())["status"] == "finished"
    assert "finished" in (folder / "report.html").read_text()
    assert f"{name},finished," in (runs.output_dir / "leaderboard.csv").read_text()
    assert_same_run(folder, whole(runs))
    assert not list(runs.output_dir.glob(".*.tmp"))


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


def test_a_second_ctrl_c_stops_at_once_and_the_run_goes_on_from_the_last_checkpoint(runs: Runs) -> None:
    answer = runs.start("twice", signal=signal.SIGINT, times=2, place="validation", at=6)
    assert answer["code"] == 130, answer["output"]
    assert "press Ctrl-C again to stop at once" in answer["output"]
    assert answer["output"].splitlines()[-1] == "interrupted"
    assert "Traceback" not in answer["output"]
    folder = runs.output_dir / "twice"
    assert load_checkpoint(folder / "last.pt")["iteration"] == 4  # nothing was saved on the way out
    assert "interrupted" in (folder / "train.log").read_text()
    answer = runs.go_on("twice")
    assert answer["code"] == 0, answer["output"]
    assert_same_run(folder, whole(runs))


@pytest.mark.slow
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


LONG = [
    "--tr_batch_size=48",  # 6 iterations are an epoch
    "--tr_accumulation_step=3",
    "--tr_iteration_num=21",
    "--tr_report=0",
    "--tr_iteration_valid=3",
    "--tr_iteration_log=2",
    "--tr_ema=1",
    "--tr_ema_decay=0.6",
    "--tr_swa=1",
    "--tr_swa_start=0.3",
]
MIXES = {
    "hard": ["--data_sampler=hard", "--sched=plateau", "--sched_patience=0", "--sched_threshold=1", "--n_jobs=1"],
    "stopped": ["--data_sampler=hard", "--tr_early_stop=3", "--tr_early_stop_delta=9", "--sched=onecycle"],
    "balanced": ["--data_sampler=balanced", "--sched=onecycle", "--optim=lookahead_radam", "--optim_lookahead_k=2"],
    "study": ["--data_sampler=study", "--sampler_slices=20", "--sched=cosine", "--sched_cycles=2", "--optim=muon"],
    "sequential": [
        "--data_sampler=sequential",
        "--sched=poly",
        "--net_drop=0.3",
        "--loss_smoothing=0.1",
        "--optim=sgd",
    ],
    "skipping": ["--tr_nonfinite=skip", "--sched=multistep", "--net_drop_path=0.2", "--optim=adopt"],
}


def killed_thrice_equals_whole(runs: Runs, name: str, flags: list[str]) -> dict:
    """Begin two runs, kill one of them at three moments, in another epoch each; return the last checkpoint."""
    answer = runs.start(name, *flags)
    assert answer["code"] == 0, answer["output"]
    killed = f"{name}_killed"
    moments = [{"at": 5}, {"at": 9, "place": "save"}, {"at": 12, "place": "validation"}]
    for number, moment in enumerate(moments):
        moment = {"signal": signal.SIGKILL, **moment}
        answer = runs.go_on(killed, **moment) if number else runs.start(killed, *flags, **moment)
        assert answer["code"] == -signal.SIGKILL, answer["output"]
    answer = runs.go_on(killed)
    assert answer["code"] == 0, answer["output"]
    assert_same_run(runs.output_dir / killed, runs.output_dir / name)
    return load_checkpoint(runs.output_dir / killed / "last.pt")


@pytest.mark.slow
def test_averages_hard_examples_and_a_plateau_go_on_to_the_bit(runs: Runs) -> None:
    """Many states at once, each of which has moved by the end: it is not that there was nothing to compare."""
    last = killed_thrice_equals_whole(runs, "hard", [*LONG, *MIXES["hard"], "--tr_early_stop=9"])
    assert last["scheduler"]["level"] < 1
    assert last["callbacks"]["EarlyStopping"]["best"] == last["callbacks"]["ModelCheckpoint"]["best"]
    assert set(last["averages"]) == {"ema", "swa"}
    assert last["sampler"]["losses_epoch"] > 1
    assert bool(torch.isfinite(last["sampler"]["epoch_losses"]).any())


@pytest.mark.slow
def test_a_run_that_stops_early_stops_at_the_same_validation_however_often_it_was_killed(runs: Runs) -> None:
    last = killed_thrice_equals_whole(runs, "stopped", [*LONG, *MIXES["stopped"]])
    assert last["iteration"] == 12  # the first validation is a best one, and no later one is lower by 9
    assert last["callbacks"]["EarlyStopping"]["waited"] == 3
    assert last["loop"]["should_stop"]


@pytest.mark.slow
@pytest.mark.parametrize("mix", [name for name in MIXES if name not in ("hard", "stopped")])
def test_every_sampler_and_schedule_goes_on_to_the_bit(runs: Runs, mix: str) -> None:
    """One of them with loading processes, which take most of such a run's time, and know nothing of the others."""
    killed_thrice_equals_whole(runs, f"mix_{mix}", [*LONG, *MIXES[mix], f"--n_jobs={2 if mix == 'study' else 1}"])


def test_a_finished_run_says_so_and_more_iterations_go_on_from_it(runs: Runs) -> None:
    shutil.copytree(whole(runs), runs.output_dir / "more")
    answer = runs.go_on("more")
    assert answer["code"] == 0
    assert "the experiment is finished" in answer["output"]
    answer = runs.go_on("more", "--tr_iteration_num=20", "--tr_report=1")
    assert answer["code"] == 0, answer["output"]
    assert load_checkpoint(runs.output_dir / "more" / "last.pt")["iteration"] == 20
    validated = [p["iteration"] for p in points(runs.output_dir / "more") if "valid/weighted_log_loss" in p]
    assert validated == [6, 12, 14, 18, 20]
    assert yaml.safe_load((runs.output_dir / "more" / "config.yaml").read_text())["tr_iteration_num"] == 20
    board = pd.read_csv(runs.output_dir / "leaderboard.csv", index_col="experiment", dtype={"experiment": str})
    assert board.loc["more", "tr_iteration_num"] == 20
    report = (runs.output_dir / "more" / "report.html").read_text()
    again = unescape(re.sub("<[^>]+>", "", report[report.index("Do it again") :].partition("</pre>")[0]))
    commands = [shlex.split(line) for line in again.splitlines() if line.startswith("python train.py")]
    assert len(commands) == 2
    for command in commands:
        answer = runs(*command[2:], f"--output_dir={runs.output_dir}")
        assert answer["code"] == 0, answer["output"]
    assert_same_run(runs.output_dir / "more_again", runs.output_dir / "more")


def test_an_option_that_changes_the_result_must_be_named(runs: Runs) -> None:
    runs.start("change", signal=signal.SIGTERM, at=5)
    answer = runs.go_on("change", "--optim_lr=0.5")
    assert answer["code"] == 2
    assert "--optim_lr=0.5 (the run has 0.003)" in answer["output"]
    assert "--tr_resume_change=optim_lr" in answer["output"]
    answer = runs.go_on("change", "--optim_lr=0.0", "--tr_resume_change=optim_lr")
    assert answer["code"] == 0, answer["output"]
    rates = [p["train/learning_rate"] for p in points(runs.output_dir / "change") if "train/loss" in p]
    assert rates[0] > 0
    assert rates[1:] == [0.0] * (len(rates) - 1)


FREE = {
    "cv_run": None,
    "n_jobs": "2",
    "verbosity": "2",
    "data_input_folder": "elsewhere",
    "output_dir": None,  # where the run is found
    "experiment_id": "other",
    "net_in_chans": "3",
    "trackers": "tensorboard",
    "nml_enabled": "1",
    "nml_project": "a/b",
    "nml_mode": "offline",
    "list": "optim",
    "tr_callbacks": "examples.callback.WEIGHT_NORMS",  # they observe
    "tr_profile": "5",
    "tr_nonfinite": "skip",
    "tr_nonfinite_limit": "11",
    "tr_report": "0",
    "tr_iteration_num": "1000",
    "tr_iteration_log": "7",
    "tr_checkpoint_minutes": "3.5",
    "tr_resume": None,
    "tr_resume_change": None,
    "tr_compute": "auto",  # a resumed run keeps what was found
    "tr_hours": "0.5",  # and its iterations
}
TEXTS = {
    "data_windows": "40/90",
    "optim": "sgd",
    "sampler_label": "any",
    "net_weight_file": "weights.pt",
    "sched_milestones": "0.5",
    "optim_betas": "0.8,0.9",
    "loss_label_weights": "1,2",
    "loss_positive_weights": "2",
}


def another_value(option) -> str:
    """A value in the option's range that is not its default."""
    spec = option.metadata["option"]
    if option.name in TEXTS:
        return TEXTS[option.name]
    if spec.choices:
        return next(choice for choice in spec.choices if choice != option.default)
    if "bool" in option.type:
        return str(int(not option.default))
    if "float" in option.type:
        return "0.25"
    return str((option.default or 0) + 1) if "int" in option.type else "other"


def test_every_option_is_either_free_at_resume_or_refused_unless_named(tmp_path: Path) -> None:
    """Free are those that change no number of a finished iteration; a new option is refused until it is listed here."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(to_dict(TrainConfig(tr_early_stop=3))))

    def changed(*arguments: str) -> tuple[str, ...]:
        arguments = (*arguments, f"--tr_resume={folder}")
        config = parse_args(TrainConfig, arguments)
        with resume_run(TrainConfig, arguments, str(folder), config.tr_resume_change, tmp_path) as run:
            return run.changed

    for option in fields(TrainConfig):
        if option.name in FREE:
            if FREE[option.name] is not None:
                assert changed(f"--{option.name}={FREE[option.name]}") == (), option.name
            continue
        if option.name == "net_kind" or option.name.startswith(("seq_", "study_")):
            continue  # another kind of network is another run: options of one mean nothing to the other
        flag = f"--{option.name}={another_value(option)}"
        flags = (flag, "--tr_early_stop=3") if option.name == "tr_early_stop_delta" else (flag,)
        with pytest.raises(UsageError, match=f"--tr_resume: --{option.name}=.*--tr_resume_change={option.name}"):
            changed(*flags)
        assert changed(*flags, f"--tr_resume_change={option.name}") == (option.name,)


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


@pytest.mark.slow
@pytest.mark.skipif(
    not shutil.which("unshare")
    or subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode != 0,
    reason="a small disk can't be mounted here (unshare -rm)",
)
def test_a_disk_that_is_full_when_a_checkpoint_is_saved_costs_nothing_but_time(runs: Runs, tmp_path: Path) -> None:
    """In a mount namespace of its own: a disk that a file fills, but for 100 KB, as soon as there is a last.pt."""
    longer = ["--tr_iteration_num=300", "--tr_iteration_valid=150"]
    assert runs.start("undisturbed", *longer)["code"] == 0
    disk = tmp_path / "disk"
    disk.mkdir()
    train = f"{sys.executable} {PROJECT}/train.py"
    script = f"""
        mount -t tmpfs -o size=100m tmpfs {disk}
        {train} {" ".join([*runs.flags, *longer])} --output_dir={disk} --experiment_id=filled & run=$!
        while [ ! -s {disk}/filled/last.pt ]; do sleep 0.01; done
        head -c 200000000 /dev/zero > {disk}/taken 2>/dev/null
        truncate -s -100K {disk}/taken
        wait $run; echo first $?
        cp {disk}/filled/last.pt {tmp_path}/last.pt
        find {disk} -name '*.tmp' | wc -l
        rm {disk}/taken
        {train} --tr_resume={disk}/filled/last.pt; echo second $?
        cp -r {disk}/filled {tmp_path}/result
    """
    result = subprocess.run(
        ["unshare", "-rm", "bash", "-c", script], capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    lines = result.stdout.splitlines()
    assert lines[0] == "first 1", result.stdout + result.stderr
    assert 0 < load_checkpoint(tmp_path / "last.pt")["iteration"] < 300
    assert lines[1] == "0"  # half-written files
    assert "second 0" in lines
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert error in {
        f"error: {disk}/filled/{name}.pt: the disk is full; make space and start again" for name in ("last", "best")
    }
    assert "Traceback" not in result.stderr
    assert_same_run(tmp_path / "result", runs.output_dir / "undisturbed")


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
