"""Several processes train as one does with a batch that many times as large, and end together."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from common.checkpoint import load_checkpoint
from common.datasets.samplers import SequentialSampler
from common.datasets.shards import ShardedSampler
from common.errors import UsageError
from common.models.freezing import freeze, train_mode
from common.networks.network import Predictions, joined
from common.training import distributed
from rsna_dataset import read_fold
from tests import PROJECT
from tests.runs import ENVIRONMENT, Runs, assert_alike, assert_same_run, equal, open_runs, points

KEY = "valid/weighted_log_loss"
OPTIONS = [
    "--net_model=test_convnext",  # without batch norm, whose statistics are those of each process
    "--data_image_size=32",
    "--tr_iteration_num=8",
    "--tr_report=0",
    "--tr_iteration_valid=4",
    "--tr_iteration_log=2",
    "--tr_accumulation_step=2",
    "--optim_lr=1e-3",  # Adam makes of rounding a step as large as the rate
    "--net_head_init=random",  # equal losses of untrained images would leave the order of hard ones to rounding
    "--n_jobs=1",
]
TWO = {"processes": 2}


@pytest.fixture(scope="module")
def runs(small_dataset, tmp_path_factory) -> Iterator[Runs]:
    with open_runs(tmp_path_factory.mktemp("results"), [*small_dataset.flags, *OPTIONS]) as runs:
        answer = runs.start("two", "--tr_batch_size=4", **TWO)
        assert answer["codes"] == [0, 0], answer["output"]
        yield runs


def test_more_processes_than_gpus_are_refused_before_any_waits_for_another(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {"WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 4, "RANK": 1, "LOCAL_RANK": 1}.items():
        monkeypatch.setenv(name, str(value))
    with (
        pytest.raises(UsageError, match=r"4 processes on this machine, which has 2 GPU\(s\).* --nproc_per_node=2"),
        distributed.process_group(),
    ):
        pass


def test_two_processes_have_the_losses_and_weights_of_one_with_twice_the_batch(runs: Runs) -> None:
    answer = runs.start("one", "--tr_batch_size=8")
    assert answer["code"] == 0, answer["output"]
    two, one = runs.output_dir / "two", runs.output_dir / "one"
    assert_alike(two, one)


def test_the_metric_counts_each_image_once_and_is_the_one_of_a_single_process(runs: Runs, small_dataset) -> None:
    """Without a learning rate both have the same weights; the batches are composed alike, so the sums are the same."""
    for name, more in (("fixed_one", {}), ("fixed_two", TWO)):
        answer = runs.start(name, "--tr_batch_size=4", "--optim_lr=0", **more)
        assert answer["code"] == 0, answer["output"]
    one, two = (
        [point[KEY] for point in points(runs.output_dir / name) if KEY in point] for name in ("fixed_one", "fixed_two")
    )
    assert two == pytest.approx(one, abs=1e-12)
    frame = pd.read_csv(runs.output_dir / "fixed_two" / "predictions_valid.csv", index_col="id")
    fold = read_fold(small_dataset.folder, "phantom", 0)
    assert list(frame.index) == list(fold.index[fold["sample_type"] == "valid"])


def test_one_process_alone_claims_the_folder_and_writes(runs: Runs) -> None:
    before = {path.name for path in runs.output_dir.iterdir()}
    answer = runs(*runs.flags, "--tr_batch_size=4", "--tr_iteration_num=2", **TWO)
    assert answer["codes"] == [0, 0], answer["output"]
    (new,) = {path.name for path in runs.output_dir.iterdir()} - before
    assert len((runs.output_dir / new / "metrics.jsonl").read_text().splitlines()) == 2
    assert answer["outputs"][1] == ""


def test_a_killed_run_of_two_goes_on_to_the_same_bits_and_only_as_two(runs: Runs) -> None:
    flags = ("--tr_batch_size=4", "--tr_checkpoint_minutes=1e-9")
    answer = runs.start("killed", *flags, signal=signal.SIGKILL, at=5, rank=0, **TWO)
    assert answer["codes"][0] == -signal.SIGKILL
    answer = runs.go_on("killed")
    assert answer["code"] == 2
    assert "the run had 2 process(es) and this one 1" in answer["output"]
    answer = runs.go_on("killed", **TWO)
    assert answer["codes"] == [0, 0], answer["output"]
    assert_same_run(runs.output_dir / "killed", runs.output_dir / "two")


def test_a_signal_to_one_process_stops_all_at_the_same_step(runs: Runs) -> None:
    answer = runs.start("told", "--tr_batch_size=4", signal=signal.SIGTERM, at=2, rank=1, **TWO)
    assert answer["codes"] == [75, 75], answer["output"]
    assert load_checkpoint(runs.output_dir / "told" / "last.pt")["iteration"] == 4


def test_a_process_that_fails_tells_why_and_the_others_end_by_themselves(runs: Runs) -> None:
    """Within a minute: whoever is left then is killed, which its exit code would show."""
    failing = {"fail": "the scanner is on fire", "at": 3, "rank": 1, "bound": 60}
    answer = runs.start("failed", "--tr_batch_size=4", **failing, **TWO)
    assert answer["codes"] == [1, 1], answer["output"]
    assert "error: the scanner is on fire" in answer["outputs"][1]
    assert "another process" in answer["outputs"][0].splitlines()[-1]
    assert "Traceback" not in answer["output"]


def test_synchronized_batch_norms_without_gpus_are_refused(runs: Runs) -> None:
    answer = runs.start("bn", "--tr_batch_size=4", "--tr_sync_bn=1")
    assert answer["code"] == 2
    assert "--tr_sync_bn=1 needs several GPUs" in answer["output"]
    assert not (runs.output_dir / "bn").exists()


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_synchronized_batch_norms_keep_names_weights_results_and_what_is_frozen(name: str, monkeypatch) -> None:
    """What can be tested of them without GPUs; their training step has kernels for GPUs alone."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    model = timm.create_model(name, num_classes=6)
    freeze(model, "norms")
    image = torch.randn(2, 3, 32, 32)
    before, expected = dict(model.state_dict()), model.eval()(image)
    distributed.check_synchronized_norms(model)
    model = distributed.synchronized_norms(model)
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    assert norms
    assert all(isinstance(norm, torch.nn.SyncBatchNorm) for norm in norms)
    train_mode(model)
    assert not any(norm.training or norm.weight.requires_grad for norm in norms)
    assert equal(before, dict(model.state_dict()))
    torch.testing.assert_close(model.eval()(image), expected)
    with pytest.raises(UsageError, match="--tr_sync_bn=1: the model has no batch norms"):
        distributed.check_synchronized_norms(timm.create_model("test_convnext"))


HARD = ["--data_sampler=hard", "--tr_iteration_num=16", "--tr_iteration_valid=8", "--tr_checkpoint_minutes=1e-9"]


@pytest.mark.slow
def test_hard_examples_are_shared_over_processes_and_go_on_after_a_kill(runs: Runs) -> None:
    """Three epochs of 6 iterations; from the second on the order follows from the losses that each process saw."""
    assert runs.start("hard_one", *HARD, "--tr_batch_size=48")["code"] == 0
    flags = [*HARD, "--tr_batch_size=24"]
    answer = runs.start("hard_two", *flags, **TWO)
    assert answer["codes"] == [0, 0], answer["output"]
    answer = runs.start("hard_killed", *flags, signal=signal.SIGKILL, at=11, rank=1, bound=60, **TWO)
    assert answer["codes"] == [1, -signal.SIGKILL], answer["output"]
    answer = runs.go_on("hard_killed", **TWO)
    assert answer["codes"] == [0, 0], answer["output"]
    one, two, killed = (runs.output_dir / f"hard_{name}" for name in ("one", "two", "killed"))
    assert_same_run(killed, two)
    for first, second in zip(points(two), points(one), strict=True):
        assert first == pytest.approx(second, abs=1e-4)
    losses = [load_checkpoint(folder / "last.pt")["sampler"]["epoch_losses"] for folder in (one, two)]
    assert float(torch.isfinite(losses[1]).float().mean()) > 0.9
    torch.testing.assert_close(losses[1], losses[0], rtol=0, atol=1e-3, equal_nan=True)


def test_the_rate_finder_and_the_report_at_the_start_know_of_all_processes(runs: Runs) -> None:
    answer = runs.start("found", "--tr_batch_size=4", "--tr_lr_find=1", "--tr_iteration_num=4", **TWO)
    assert answer["codes"] == [0, 0], answer["output"]
    lines = answer["outputs"][0]
    assert "4 iterations of 4 images in each of 2 processes = 2 steps of 16" in lines
    assert lines.count("the loss falls fastest at --optim_lr=") == 1
    assert answer["outputs"][1] == ""
    assert (runs.output_dir / "found" / "lr_find.svg").is_file()


@pytest.mark.parametrize(("images", "batch", "world"), [(23, 3, 2), (24, 4, 2), (7, 2, 4), (1, 4, 3)])
def test_shards_never_overlap_and_leave_nothing_out(images: int, batch: int, world: int) -> None:
    whole = list(SequentialSampler(images, 0))
    samplers = [ShardedSampler(SequentialSampler(images, 0), batch, r, world) for r in range(world)]
    shards = [list(sampler) for sampler in samplers]
    assert sorted(key for shard in shards for key in shard) == whole
    parts = [Predictions([str(k.index) for k in s], np.zeros((len(s), 1)), None) for s in shards if s]
    positions = [sampler.positions(rank) for rank, sampler in enumerate(samplers)]
    together = joined(parts, np.argsort(np.concatenate(positions)))
    assert together.image_ids == [str(index) for index in range(images)]


@pytest.mark.slow
def test_two_processes_measure_together_and_train_the_iterations_of_the_first(runs: Runs) -> None:
    answer = runs.start("timed", "--tr_batch_size=4", "--tr_hours=4m", "--tr_iteration_valid=100", **TWO)
    assert answer["codes"] == [0, 0], answer["output"]
    state = load_checkpoint(runs.output_dir / "timed" / "last.pt")
    assert state["iteration"] == state["config"]["tr_iteration_num"] > 8
    assert state["config"]["tr_hours"] is None


@pytest.mark.parametrize(("lengths", "batch", "world"), [((3, 1, 4, 1, 5), 2, 2), ((2, 2), 1, 3), ((7,), 4, 2)])
def test_the_slices_of_shared_series_come_back_in_the_order_of_a_single_process(lengths, batch, world) -> None:
    names = [[f"{series}_{place}" for place in range(length)] for series, length in enumerate(lengths)]
    parts, places = [], []
    for rank in range(world):
        sampler = ShardedSampler(SequentialSampler(len(lengths), 0), batch, rank, world, np.array(lengths))
        own = [name for key in sampler for name in names[key.index]]
        if own:
            parts.append(Predictions(own, np.zeros((len(own), 1)), None))
            places.append(sampler.predictions(rank))
    together = joined(parts, np.argsort(np.concatenate(places)))
    assert together.image_ids == [name for series in names for name in series]


@pytest.mark.slow
def test_torchrun_starts_a_dead_process_again_and_the_run_goes_on_from_last_pt(runs: Runs, tmp_path: Path) -> None:
    script = tmp_path / "dying.py"
    script.write_text(
        "import os, signal, sys\n"
        f"sys.path.insert(0, {str(PROJECT)!r})\n"
        "import train\n"
        "from rsna_network import RSNANetwork\n"
        "step = RSNANetwork.training_step\n"
        "def dying(self, *arguments):\n"
        "    first = os.environ['TORCHELASTIC_RESTART_COUNT'] == '0' and os.environ['RANK'] == '1'\n"
        "    if first and self.iteration == 5:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(self, *arguments)\n"
        "RSNANetwork.training_step = dying\n"
        "train.main()\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max_restarts=1"]
    flags = [*runs.flags, "--tr_batch_size=4", "--tr_checkpoint_minutes=1e-9", "--experiment_id=elastic"]
    result = subprocess.run(
        [*launch, str(script), *flags], capture_output=True, text=True, cwd=PROJECT, env=ENVIRONMENT, check=False
    )
    assert result.returncode == 0, result.stderr
    assert_same_run(runs.output_dir / "elastic", runs.output_dir / "two")
    history = json.loads((runs.output_dir / "elastic" / "environment.json").read_text())["resumed"]
    assert [entry["iteration"] for entry in history] == [4]
