"""--tr_hours: a run gets the iterations for which there is time, and is the run that is given them by hand."""

from __future__ import annotations

import pickle
import shutil
import time
from pathlib import Path

import pytest
import torch

import train
from common.checkpoint import load_checkpoint
from common.cli.arguments import parse_args, to_dict
from common.cli.values import parse_hours
from common.errors import UsageError
from common.experiments.folder import create_experiment
from common.experiments.resume import read_options
from common.networks.pace import Pace, measure_pace
from config import TrainConfig
from rsna.training import length
from rsna.training.folds import joined_options
from tests.conftest import TINY, SmallDataset
from tests.runs import failure

# What starting takes on any machine is nothing beside an iteration of so many seconds.
SLOW = Pace(iteration=1e5, validation=5e4)
SIX = "--tr_hours=210h"  # 756,000 s: six iterations, and a validation after every second one


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Measure for real, but with a result as of a slow machine; the list gets the seconds of each measurement."""
    asked: list[float] = []

    def measured(network, seconds, clock):
        asked.append(seconds)
        assert measure_pace(network, 0.0, clock).iteration > 0
        return SLOW

    monkeypatch.setattr(length, "measure_pace", measured)
    return asked


@pytest.mark.parametrize(
    ("text", "hours"),
    [("8", 8), ("0.5", 0.5), ("8h", 8), ("30m", 0.5), ("90S", 0.025), ("1e-2", 0.01)],
)
def test_hours_are_a_number_or_have_a_unit(text: str, hours: float) -> None:
    assert parse_hours(text) == pytest.approx(hours)
    assert parse_args(TrainConfig, [f"--tr_hours={text}"]).tr_hours == pytest.approx(hours)


@pytest.mark.parametrize("text", ["0", "0m", "-1", "1d", "h", "1h30m", "nan", "inf", "20000", "1e99"])
def test_what_is_no_time_to_train_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--tr_hours.*is no duration"):
        parse_args(TrainConfig, [f"--tr_hours={text}"])


@pytest.mark.parametrize(
    ("flags", "option"),
    [
        (["--tr_lr_find=1"], "tr_lr_find"),
        (["--tr_batch_find=1"], "tr_batch_find"),
        (["--data_fold=all", "--experiment_id=cv", "--cv_run=0"], "cv_run"),
    ],
)
def test_what_would_take_an_unknown_time_or_give_folds_of_other_lengths_is_refused(flags, option) -> None:
    with pytest.raises(UsageError, match=f"--{option} doesn't go with --tr_hours"):
        parse_args(TrainConfig, ["--tr_hours=1", *flags])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "last.pt")["model"]


def same(one: Path, other: Path) -> bool:
    return all(torch.equal(value, weights(other)[name]) for name, value in weights(one).items())


def test_a_run_by_the_hours_is_the_run_that_is_given_its_iterations_also_where_it_starts_again(
    small_dataset: SmallDataset, tmp_path: Path, slow: list[float], capsys
) -> None:
    flags = [
        *small_dataset.flags, *TINY, f"--output_dir={tmp_path}", "--net_model=test_resnet", "--net_drop=0.3",
        "--data_sampler=hard", "--tr_ema=1", "--sched=onecycle",
    ]  # fmt: skip
    timed = train.main([*flags, SIX, "--experiment_id=timed"])
    said = "1e+05 s an iteration, 5e+04 s a validation: --tr_hours=210 has room for 6 iterations; 20% is validations"
    assert said in capsys.readouterr().err
    options = read_options(timed)
    assert (options["tr_iteration_num"], options["tr_hours"]) == ("6", "null")  # TINY's 4 is replaced
    assert load_checkpoint(timed / "last.pt")["iteration"] == 6
    given = train.main([*flags, "--tr_iteration_num=6", "--experiment_id=given"])
    assert same(timed, given)
    assert slow == [60.0]  # once

    cut = tmp_path / "cut"  # killed before its first checkpoint
    shutil.copytree(timed, cut, ignore=shutil.ignore_patterns("*.pt", "status.json", "*.csv", "metrics.jsonl"))
    again = train.main([*small_dataset.flags, f"--output_dir={tmp_path}", "--tr_resume=cut", "--tr_hours=1m"])
    assert "--tr_hours: a resumed run keeps its 6 iterations" in capsys.readouterr().err
    assert same(again, timed)
    assert read_options(again)["tr_iteration_num"] == "6"
    assert slow == [60.0]


def test_too_short_a_time_is_one_line_that_says_how_much_it_takes_and_leaves_no_folder(
    small_dataset: SmallDataset, tmp_path: Path, slow: list[float], capsys
) -> None:
    flags = [*small_dataset.flags, *TINY, f"--output_dir={tmp_path}", "--net_model=test_resnet"]
    line = failure(train.main, [*flags, "--tr_hours=90s"], capsys)
    assert "--tr_hours=0.025: too short for one optimizer step" in line
    needed = int(line.rsplit(" ", 3)[1].removesuffix("s"))
    assert 150_000 < needed < 152_000  # an iteration, a validation, and the seconds of this test
    assert slow == [length.SHORTEST_S]
    assert not list(tmp_path.iterdir())


def test_the_hours_of_a_cross_validation_are_those_of_all_folds_in_the_rounds_that_its_places_need(
    small_dataset: SmallDataset, monkeypatch, slow: list[float]
) -> None:
    flags = [*small_dataset.flags, *TINY, "--net_model=test_resnet", "--data_fold=0,1,2", "--tr_hours=420h"]
    config = parse_args(TrainConfig, flags)
    first = parse_args(TrainConfig, [*flags, "--data_fold=0"])

    class Here:
        """Stands in for a process of its own."""

        def __init__(self, workers, context) -> None:
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error) -> None:
            pass

        def submit(self, *call):
            function, *arguments = pickle.loads(pickle.dumps(call))  # as on the way to another process
            self.result = lambda: (function(*arguments)[0], 0.0)
            return self

    monkeypatch.setattr(length, "ProcessPoolExecutor", Here)
    now = time.perf_counter()
    for places, expected in ((3, 12), (2, 6), (1, 4)):  # 1,512,000 s, a half and a third of it for each fold
        monkeypatch.setattr(length, "slots", lambda parallel, experiments, places=places: [{}] * places)
        settled = length.settle_fold_length(config, first, [10, 10, 10], now)
        assert (settled.tr_iteration_num, settled.tr_hours) == (expected, None)
    assert slow == [60.0] * 3


def test_a_cross_validation_that_goes_on_keeps_the_iterations_that_it_has(tmp_path: Path, capsys) -> None:
    flags = [f"--output_dir={tmp_path}", "--data_fold=0,1", "--tr_iteration_valid=2"]
    settled = parse_args(TrainConfig, [*flags, "--tr_iteration_num=1234"])
    create_experiment(tmp_path, "cv", to_dict(settled), ["x"])
    for name in ("--experiment_id=cv", "--tr_resume=cv"):
        arguments = [*flags, name, "--tr_hours=3"]
        config, folder = joined_options(parse_args(TrainConfig, arguments), arguments)
        assert folder == tmp_path / "cv"
        assert (config.tr_iteration_num, config.tr_hours) == (1234, None)
        assert "--tr_hours: the cross-validation keeps its 1234 iterations" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("folds", ["0", "0,1"])
def test_a_run_ends_about_when_its_time_is_over(small_dataset: SmallDataset, tmp_path: Path, folds: str) -> None:
    """Tolerance is wide: other programs may take the machine's time. The documents say what was measured alone."""
    flags = [*small_dataset.flags, f"--output_dir={tmp_path}", "--net_model=test_resnet", "--data_image_size=32"]
    began = time.perf_counter()
    train.main([*flags, f"--data_fold={folds}", "--tr_hours=3m", "--n_jobs=1"])
    assert 60 < time.perf_counter() - began < 400
