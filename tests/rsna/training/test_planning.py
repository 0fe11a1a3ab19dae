"""plan.py: what the hours have room for, from a dataset's tables and a machine's speed."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import plan
import sweep
from common.cli.arguments import parse_args
from common.networks.pace import Pace
from common.sweeps.plan import read_lines
from config import TrainConfig
from rsna.training import planning
from rsna.training.fingerprint import read_fingerprint, read_machine
from rsna.training.options import PlanConfig
from rsna.training.plan_rules import CANDIDATES, GPUS, RESERVE
from tests.conftest import SmallDataset
from tests.runs import failure

START_S = 20.0
# Seconds of an iteration, from the best candidate to the smallest.
ITERATIONS = {"resnet18": 2.0, "resnet10": 1.0, "resnet10_small": 0.5}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The candidates' speeds as of a machine that is always the same."""

    def speeds(config, data, machine):
        for candidate in CANDIDATES["cpu"]:
            flags, notes = planning.adjusted(config, data, candidate)
            pace = Pace(ITERATIONS[candidate.name], 4.0)
            yield planning.Speed(candidate, flags, parse_args(TrainConfig, flags), pace, START_S, tuple(notes))

    monkeypatch.setattr(planning, "measured", speeds)
    monkeypatch.setattr(
        planning, "read_machine", lambda gpus, jobs: replace(read_machine("T4", 2), gpu=None, device="cpu")
    )


def planned(small_dataset: SmallDataset, tmp_path: Path, *flags: str) -> tuple[Path, str, list[list[str]]]:
    """Return a plan's file, its text, and its lines without comments."""
    path = plan.main([*small_dataset.flags, f"--output_dir={tmp_path}", *flags])
    return path, path.read_text(), read_lines(path)


def options_of(line: list[str]) -> TrainConfig:
    return parse_args(TrainConfig, line)


@pytest.mark.parametrize("hours", [0.15, 0.3, 0.6, 1, 2, 4, 16])
def test_a_plan_fits_the_hours_and_sweep_takes_it_with_a_prediction_and_a_reason_for_each_line(
    hours, small_dataset: SmallDataset, tmp_path: Path, measured, capsys
) -> None:
    path, text, lines = planned(small_dataset, tmp_path, f"--hours={hours}")
    predictions = [
        float(line.split(": ")[1].split(" h predicted")[0]) for line in text.splitlines() if " h predicted; " in line
    ]
    assert len(predictions) == len(lines)
    assert sum(predictions) <= hours * (1 - RESERVE) * 1.001
    trainings = [options_of(line) for line in lines if line[0].startswith("--")]
    assert sum(options.tr_hours for options in trainings) < sum(predictions)
    capsys.readouterr()
    sweep.main([f"--lines={path}", f"--output_dir={tmp_path}", "--dry_run=1"])
    commands = capsys.readouterr().out.splitlines()
    assert [shlex.split(command)[1] for command in commands[: len(lines)]] == [
        "train.py" if line[0].startswith("--") else line[0] for line in lines
    ]


def test_more_hours_give_folds_then_a_sequence_model_then_an_ensemble_and_too_few_say_what_was_given_up(
    small_dataset: SmallDataset, tmp_path: Path, measured
) -> None:
    _, text, lines = planned(small_dataset, tmp_path, "--hours=6m")
    (line,) = lines
    assert options_of(line).data_fold == 0
    assert "given up for the hours" in text
    assert "one network on three folds, a sequence model: takes" in text
    _, text, lines = planned(small_dataset, tmp_path, "--hours=0.225")
    assert [options_of(line).net_kind for line in lines] == ["slice", "sequence"]
    assert len(options_of(lines[0]).data_fold) in (0, 3)
    assert options_of(lines[1]).seq_features == options_of(lines[0]).experiment_id
    _, text, lines = planned(small_dataset, tmp_path, "--hours=20")
    assert "given up" not in text
    assert [options_of(line).net_kind for line in lines[:6]] == ["slice", "sequence", "sequence"] * 2
    assert all(options_of(line).is_cross_validation for line in lines[:6])
    assert [line[0] for line in lines[-2:]] == ["second_level.py", "ensemble.py"]
    known = {options_of(line).experiment_id for line in lines[:-2]}
    assert set(lines[-2][1:-1]) == known


def test_pictures_are_never_larger_than_stored_and_the_plan_says_why(
    small_dataset: SmallDataset, tmp_path: Path, measured
) -> None:
    _, text, lines = planned(small_dataset, tmp_path, "--hours=20")  # stored with 64 pixels
    assert options_of(lines[0]).data_image_size == 64
    assert "data_image_size 64: the stored pictures have no more pixels" in text


def test_a_plan_that_is_there_is_kept(small_dataset: SmallDataset, tmp_path: Path, measured, capsys) -> None:
    path, text, _ = planned(small_dataset, tmp_path, "--hours=2")
    path.write_text(text + "# mine\n")
    again, kept, _ = planned(small_dataset, tmp_path, "--hours=2")
    assert (again, kept) == (path, text + "# mine\n")
    assert "is there and stays" in capsys.readouterr().err


def test_the_fingerprint_is_that_of_the_tables(small_dataset: SmallDataset) -> None:
    data = read_fingerprint(small_dataset.input_folder, "phantom")
    metadata = pd.read_csv(small_dataset.folder / "metadata.csv")
    fold = pd.read_csv(small_dataset.folder / "dataset_phantom_fold_0.csv")
    rows = metadata[metadata["id"].isin(fold["id"])]
    assert data.images == len(fold)
    assert data.train_images == (fold["sample_type"] == "train").sum()
    assert data.test_images == (metadata["split"] == "test").sum()
    assert data.patients == fold["group_id"].nunique()
    assert (data.studies, data.series) == (rows["study_id"].nunique(), rows["series_id"].nunique())
    assert data.pixels == 64
    assert data.slices[1] == np.median(rows["series_id"].value_counts())
    assert data.positives["any"] == fold["any"].sum()


def test_a_gpu_that_is_not_here_is_estimated_by_its_memory_and_says_so(
    small_dataset: SmallDataset, tmp_path: Path
) -> None:
    _, text, lines = planned(small_dataset, tmp_path, "--hours=8", "--gpus=2xT4")
    assert "2 x T4, 16 GB of GPU memory each: estimated, not measured" in text
    assert options_of(lines[0]).net_pretrained
    config = parse_args(PlanConfig, [*small_dataset.flags, "--hours=8"])
    data = read_fingerprint(small_dataset.input_folder, "phantom")
    slow, quick = (list(planning.estimated(config, data, read_machine(name, 0)))[-1] for name in ("T4", "RTX 3090"))
    assert quick.rate / slow.rate == pytest.approx(GPUS["3090"].bandwidth / GPUS["T4"].bandwidth)
    assert quick.rate == pytest.approx(2037 * (224 / 64) ** 2)  # timm's rate of a ResNet-34, at 64 pixels


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--hours=0"], "--hours: '0' is no duration"),
        (["--hours=-1"], "--hours: '-1' is no duration"),
        (["--hours=nan"], "--hours: 'nan' is no duration"),
        ([], "--hours is missing"),
        (["--hours=1", "--gpus=H900"], "'H900' is no GPU of the table; choose from T4"),
        (["--hours=1", "--gpus=0xT4"], "'0xT4' is no GPU of the table"),
        (["--hours=1", "--gpus=97"], "--gpus=97: torch sees"),
        (["--hours=1", "--data_dataset=nothing"], "nothing"),
        (["--hours=1", "--flags=--net_modell=x"], "--net_modell"),
        (["--hours=1", "--flags='"], "--flags: "),
        (["--hours=1", "--experiment_id=../x"], "../x"),
        (["--hours=60s"], "--hours=0.0167: too short; one network on one fold, the smallest candidate, takes "),
    ],
)
def test_what_can_not_be_planned_is_one_line_and_leaves_nothing(
    flags, said, small_dataset: SmallDataset, tmp_path: Path, measured, monkeypatch, capsys
) -> None:
    if "--gpus" in str(flags):
        monkeypatch.setattr(planning, "read_machine", read_machine)
    line = failure(plan.main, [*small_dataset.flags, f"--output_dir={tmp_path / 'results'}", *flags], capsys)
    assert said in line
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("lack", ["labels", "patients"])
def test_a_dataset_without_labels_or_with_too_few_patients_is_one_line(
    lack: str, small_dataset: SmallDataset, tmp_path: Path, capsys
) -> None:
    folder = tmp_path / "datasets" / "phantom"
    shutil.copytree(small_dataset.folder, folder, ignore=shutil.ignore_patterns("*.npy"))
    if lack == "labels":
        info = json.loads((folder / "dataset.json").read_text())
        (folder / "dataset.json").write_text(json.dumps(info | {"labelled": 0}))
    else:
        path = folder / "dataset_phantom_fold_0.csv"
        rows = pd.read_csv(path)
        rows[rows["sample_type"] == "train"].to_csv(path, index=False)
    line = failure(plan.main, [f"--data_input_folder={tmp_path}", "--data_dataset=phantom", "--hours=1"], capsys)
    assert {"labels": "no labels to train on", "patients": "too few patients to plan for"}[lack] in line
