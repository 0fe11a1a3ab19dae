from __future__ import annotations

import logging
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from common.callbacks.callback import Callback
from common.callbacks.early_stopping import EarlyStopping
from common.callbacks.metric_logger import MetricLogger
from common.callbacks.model_checkpoint import ModelCheckpoint
from common.callbacks.progress_bar import ProgressBar, describe_pace
from common.callbacks.telemetry import Telemetry
from common.checkpoint import load_checkpoint, metric_key
from common.datasets.batch import LoadingFailed
from common.datasets.loaders import make_loader
from common.datasets.samplers import RandomSampler
from common.errors import UsageError, WorkError
from common.networks.network import Predictions
from common.trackers.jsonl import JsonlTracker, read_metrics
from tests.common.networks.test_guard import Poison
from tests.common.networks.test_network import Pictures, build, linear_model

KEY = "valid/weighted_log_loss"
DESCRIPTION = {"config": {}, "transforms": {}, "class_names": ["a", "b", "any"], "prevalences": [0.1, 0.2, 0.3]}


@pytest.fixture
def tracker(tmp_path: Path) -> JsonlTracker:
    tracker = JsonlTracker()
    tracker.start("1", tmp_path, {})
    yield tracker
    tracker.finish("finished")


def lines(folder: Path, key: str) -> list[tuple[int, float]]:
    return [(int(row["iteration"]), row[key]) for row in read_metrics(folder / "metrics.jsonl") if key in row]


class LossRecorder(MetricLogger):
    """Keeps each iteration's loss, to be averaged by hand."""

    def __init__(self, tracker, interval: int) -> None:
        super().__init__(tracker, interval)
        self.losses: list[float] = []

    def on_iteration_end(self, network, output) -> None:
        self.losses.append(float(output.loss.detach()))
        super().on_iteration_end(network, output)


def test_the_logged_training_loss_is_the_mean_since_the_last_line(tracker, tmp_path: Path) -> None:
    recorder = LossRecorder(tracker, 4)
    build(iteration_num=10, callbacks=[recorder]).fit()
    means = [sum(part) / len(part) for part in (recorder.losses[:4], recorder.losses[4:8], recorder.losses[8:])]
    logged = lines(tmp_path, "train/loss")
    assert [iteration for iteration, _ in logged] == [4, 8, 10]
    assert [value for _, value in logged] == pytest.approx(means, abs=1e-12)


def test_a_line_that_waits_for_its_values_is_logged_before_an_error_ends_the_run(tracker, tmp_path: Path) -> None:
    class Failing(Callback):
        def on_iteration_end(self, network, output) -> None:
            if network.iteration == 4:
                raise KeyError("first")

        def on_error(self, network) -> None:
            raise RuntimeError("second")

    network = build(
        iteration_num=6,
        iteration_valid=6,
        accumulation_step=3,
        callbacks=[Failing(), MetricLogger(tracker, 3)],
    )
    network.guard.late = True  # as on a GPU
    with pytest.raises(KeyError, match="first"):
        network.fit()
    assert [iteration for iteration, _ in lines(tmp_path, "train/loss")] == [3]


def test_a_line_of_an_update_that_ends_the_run_is_logged(tracker, tmp_path: Path) -> None:
    """The update of iteration 2 is closed in iteration 3, after which the group's optimizer step would be."""
    model = nn.Sequential(nn.Flatten(), Poison({2}), nn.Linear(16, 3))
    network = build(
        model=model, iteration_num=4, iteration_valid=4, accumulation_step=2, callbacks=[MetricLogger(tracker, 2)]
    )
    network.guard.late = True
    with pytest.raises(WorkError, match="of iteration 1 to 2 is not finite"):
        network.fit()
    logged = [point for point in read_metrics(tmp_path / "metrics.jsonl") if "train/loss" in point]
    assert [(point["iteration"], point["step"]) for point in logged] == [(2, 0)]


def test_validation_metrics_are_logged_whole_at_their_iteration(tracker, tmp_path: Path) -> None:
    build(iteration_num=10, iteration_valid=4, callbacks=[MetricLogger(tracker, 3)]).fit()
    assert [iteration for iteration, _ in lines(tmp_path, KEY)] == [4, 8, 10]
    assert [iteration for iteration, _ in lines(tmp_path, "valid/log_loss/any")] == [4, 8, 10]


def checkpoint(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(
        folder, KEY, DESCRIPTION, lambda predictions: (folder / "best").write_text(predictions.image_ids[0])
    )


def shown(name: str) -> dict[str, Predictions]:
    """Predictions of a validation, as the network holds them; the image's name tells them apart."""
    return {"raw": Predictions([name], np.zeros((1, 3)), None)}


def test_best_follows_the_lowest_value_and_last_the_latest(tmp_path: Path) -> None:
    callback, network = checkpoint(tmp_path), build()
    for iteration, value in ((1, 0.5), (2, 0.3), (3, 0.4)):
        network.iteration = iteration
        network.valid_predictions = shown(f"ID_{iteration}")
        with torch.no_grad():
            network.model[1].bias.fill_(iteration)
        callback.on_validation_end(network, {KEY: value})
    best, last = load_checkpoint(tmp_path / "best.pt"), load_checkpoint(tmp_path / "last.pt")
    assert (best["iteration"], best["metrics"][KEY], best["model"]["1.bias"][0]) == (2, 0.3, 2)
    assert (last["iteration"], last["metrics"][KEY], last["model"]["1.bias"][0]) == (3, 0.4, 3)
    assert (tmp_path / "best").read_text() == "ID_2"
    assert "optimizer" in last
    assert "optimizer" not in best


def test_a_continued_run_still_compares_with_the_best_before(tmp_path: Path) -> None:
    first, network = checkpoint(tmp_path), build()
    network.iteration = 1
    network.valid_predictions = shown("ID_1")
    first.on_validation_end(network, {KEY: 0.3})
    second = checkpoint(tmp_path)
    second.load_state_dict(first.state_dict())
    network.iteration = 2
    second.on_validation_end(network, {KEY: 0.4})
    assert load_checkpoint(tmp_path / "best.pt")["iteration"] == 1


def test_a_state_that_was_saved_to_a_file_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole = build(iteration_num=8, iteration_valid=4, callbacks=[checkpoint(tmp_path)])
    whole.fit()

    class InterruptAt(Callback):
        def __init__(self, iteration: int) -> None:
            self.iteration = iteration

        def on_iteration_end(self, network, output) -> None:
            if network.iteration == self.iteration:
                network.interrupt()

    folder = tmp_path / "first"
    folder.mkdir()
    first = build(iteration_num=8, iteration_valid=4, callbacks=[InterruptAt(4), checkpoint(folder)])
    first.fit()
    assert first.interrupted
    second = build(iteration_num=8, iteration_valid=4, callbacks=[InterruptAt(0), checkpoint(tmp_path)])
    second.load_state_dict(load_checkpoint(folder / "last.pt"))
    assert second.validation_due
    assert second.iteration == 4
    second.fit()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name])


def test_where_loading_fails_the_state_is_saved_and_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    """Real loading processes, which are killed after the third iteration."""

    class KillAt(Callback):
        def on_iteration_end(self, network, output) -> None:
            if network.iteration == 3:
                for worker in network.training.train_loader._iterator._workers:
                    worker.kill()

    options = {"iteration_num": 8, "iteration_valid": 8}
    whole = build(callbacks=[checkpoint(tmp_path)], **options)
    whole.fit()
    folder = tmp_path / "first"
    folder.mkdir()
    first = build(callbacks=[KillAt(), checkpoint(folder)], **options)
    pictures = Pictures(24)
    loader = make_loader(pictures, RandomSampler(24, 5), 4, 1, drop_last=True, seed=0, collate=pictures.collate)
    first.training = replace(first.training, train_loader=loader)
    with pytest.raises(LoadingFailed, match=r"was killed.*; the state after iteration \d is saved: --tr_resume"):
        first.fit()
    assert 3 <= first.iteration < 8
    second = build(callbacks=[Callback(), checkpoint(tmp_path)], **options)
    second.load_state_dict(load_checkpoint(folder / "last.pt"))
    assert second.iteration == first.iteration
    second.fit()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name])


def test_each_validation_prints_a_line_and_the_end_names_the_best(tracker, capsys, caplog) -> None:
    caplog.set_level(logging.INFO)
    metrics = MetricLogger(tracker, 3)
    bar = ProgressBar(metrics, KEY, reference=0.5)
    guard = SimpleNamespace(skips=3, scaler_skips=2, nonfinite_skips=1)
    network = SimpleNamespace(iteration=0, step=17, guard=guard, training=SimpleNamespace(iteration_num=20))
    bar.on_train_begin(network)
    for iteration, value in ((10, 0.25), (20, 0.3)):
        network.iteration = iteration
        bar.on_validation_end(network, {KEY: value})
    bar.on_train_end(network)
    assert capsys.readouterr().err.splitlines() == [
        "iteration 10/20: valid/weighted_log_loss 0.2500 (constant predictor 0.5000)",
        "iteration 20/20: valid/weighted_log_loss 0.3000 (constant predictor 0.5000)",
        "best valid/weighted_log_loss 0.2500 at iteration 10: 0.50 of the constant predictor's 0.5000",
        "17 of 20 updates landed; skipped: 2 by float16's scaler (its normal work), 1 for what was not finite",
    ]
    assert pd.Series([record.message for record in caplog.records]).str.startswith("iteration").sum() == 2


def test_where_no_terminal_is_a_line_now_and_then_says_how_far_a_run_is(tracker, capsys, monkeypatch) -> None:
    metrics = MetricLogger(tracker, 5)
    build(iteration_num=20, iteration_valid=20, callbacks=[metrics, ProgressBar(metrics, KEY, reference=0.5)]).fit()
    assert len(capsys.readouterr().err.splitlines()) == 2  # of the validation and of the end: it took no minute
    monkeypatch.setattr("common.cli.console.LINE_S", 0.0)
    build(iteration_num=20, iteration_valid=20, callbacks=[metrics, ProgressBar(metrics, KEY, reference=0.5)]).fit()
    printed = capsys.readouterr().err
    (line,) = [line for line in printed.split("\n") if "15/20" in line]
    assert re.fullmatch(r" *75%\| 15/20 \[\d\d:\d\d, loss [\d.]+\]", line)


def validations(callback, values: list[dict[str, float]]) -> SimpleNamespace:
    """Call the callback as the loop does after each validation, until it stops the run."""
    network = SimpleNamespace(iteration=0, should_stop=False, valid_predictions=dict.fromkeys(values[0]))
    for value in values:
        network.iteration += 1
        callback.on_validation_end(network, {metric_key(KEY, name): loss for name, loss in value.items()})
        if network.should_stop:
            break
    return network


@pytest.mark.parametrize(
    ("losses", "delta", "end"),
    [
        ([0.5, 0.4, 0.3, 0.2, 0.1, 0.09, 0.08], 0.0, 7),
        ([0.5, 0.6, 0.6, 0.4, 0.4, 0.5, 0.3], 0.0, 7),
        ([0.5, 0.6, 0.5, 0.7, 0.1, 0.1, 0.1], 0.0, 4),
        ([0.5, 0.49, 0.48, 0.47, 0.1, 0.1, 0.1], 0.05, 4),
    ],
)
def test_early_stopping_bears_so_many_validations_without_a_better_value(losses, delta, end, caplog) -> None:
    network = validations(EarlyStopping(KEY, 3, delta), [{"raw": loss} for loss in losses])
    assert network.iteration == end
    assert ("--tr_early_stop" in caplog.text) == network.should_stop


def test_early_stopping_goes_on_where_an_average_still_gets_better() -> None:
    values = [{"raw": 0.5, "ema": loss} for loss in (0.6, 0.4, 0.3, 0.2)]
    assert not validations(EarlyStopping(KEY, 1), values).should_stop


def test_early_stopping_of_a_continued_run_counts_on() -> None:
    first, second = EarlyStopping(KEY, 3), EarlyStopping(KEY, 3)
    validations(first, [{"raw": 0.5}, {"raw": 0.6}, {"raw": 0.7}])
    second.load_state_dict(first.state_dict())
    assert validations(second, [{"raw": 0.5}]).should_stop


class Counting(Callback):
    """Counts iterations from a start."""

    def __init__(self, start: int, name: str = "") -> None:
        self.count = start
        self.name = name or self.name

    def on_iteration_end(self, network, output) -> None:
        self.count += 1

    def state_dict(self) -> dict:
        return {"count": self.count}

    def load_state_dict(self, state) -> None:
        self.count = state["count"]


def test_two_callbacks_of_a_class_keep_a_state_each_and_one_without_a_name_has_its_classes() -> None:
    first, second = Counting(0), Counting(100, name="Late")
    network = build(iteration_num=3, callbacks=[first, second])
    network.fit()
    state = network.state_dict()
    assert state["callbacks"] == {"Counting": {"count": 3}, "Late": {"count": 103}}
    again = [Counting(0, name="Late"), Counting(0)]
    build(callbacks=again).load_state_dict(state)
    assert [callback.count for callback in again] == [103, 3]


def test_two_callbacks_of_one_name_are_refused_before_the_first_iteration() -> None:
    network = build(callbacks=[Counting(0), Counting(100)])
    with pytest.raises(UsageError, match="two callbacks are called Counting: set another name"):
        network.fit()
    assert network.iteration == 0


def test_early_stopping_ends_a_fit() -> None:
    network = build(lr=0.0, iteration_num=50, iteration_valid=2, callbacks=[EarlyStopping(KEY, 2)])
    network.fit()
    assert network.iteration == 6


class Clock:
    """Seconds that pass only where a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_telemetry_knows_speed_waiting_and_a_time_left_that_counts_validations() -> None:
    clock = Clock()
    telemetry = Telemetry(clock)
    network = build(iteration_num=100, iteration_valid=20)
    telemetry.on_train_begin(network)
    for network.iteration in range(1, 11):
        clock.now += 0.5
        network.wait_seconds += 0.1
        telemetry.on_iteration_end(network, SimpleNamespace(image_ids=["x"] * 8))
        if network.iteration == 1:  # before anything was logged
            assert telemetry.seconds_left(network) == pytest.approx(99 * 0.5 + 5 * 3 * 0.5 / 3)
    values = telemetry.values(network)
    assert values["perf/images_per_second"] == pytest.approx(16)
    assert values["perf/data_wait_share"] == pytest.approx(0.2)
    # 90 iterations of 0.5 s; 5 validations of 3 batches, each guessed at a third of an iteration.
    assert values["perf/eta_seconds"] == pytest.approx(90 * 0.5 + 5 * 3 * 0.5 / 3)
    for network.iteration in range(11, 21):
        clock.now += 0.5
        telemetry.on_iteration_end(network, SimpleNamespace(image_ids=["x"] * 8))
    clock.now += 7.0
    network.validation_seconds = 7.0
    telemetry.on_validation_end(network, {})
    network.iteration, clock.now = 21, clock.now + 0.5
    telemetry.on_iteration_end(network, SimpleNamespace(image_ids=["x"] * 8))
    values = telemetry.values(network)
    assert values["perf/images_per_second"] == pytest.approx(16)  # the validation doesn't slow training down
    assert values["perf/data_wait_share"] == 0
    assert values["perf/eta_seconds"] == pytest.approx(79 * 0.5 + 4 * 7.0)


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("interrupted_at", [0, 3, 6])
def test_lines_that_are_written_late_are_those_that_are_written_at_once(tmp_path, interrupted_at, accumulation) -> None:
    """As on a GPU, where the host learns an iteration later what it logs; interrupted and gone on with, too."""

    class Interrupt(Callback):
        def on_iteration_end(self, network, output) -> None:
            if network.iteration == interrupted_at:
                network.interrupt()

    def run(folder: Path, *, late: bool) -> list[dict]:
        folder.mkdir()
        tracker = JsonlTracker()
        tracker.start("1", folder, {})
        state = None
        for _ in range(2 if interrupted_at else 1):
            logger = MetricLogger(tracker, 1, Telemetry())
            network = build(
                model=nn.Sequential(linear_model(), Poison({2, 5})), fused=True, iteration_num=12, iteration_valid=6,
                accumulation_step=accumulation, nonfinite="skip", callbacks=[Interrupt(), logger, checkpoint(folder)],
            )  # fmt: skip
            network.guard.late = late
            if state is not None:
                network.load_state_dict(state)
                network.model[1].count = interrupted_at
            network.fit()
            state = load_checkpoint(folder / "last.pt")
        points = read_metrics(folder / "metrics.jsonl")
        return [{k: v for k, v in point.items() if not k.startswith(("time", "perf/"))} for point in points]

    at_once, late = run(tmp_path / "at_once", late=False), run(tmp_path / "late", late=True)
    assert late == at_once
    assert [line["iteration"] for line in late if "train/loss" in line] == list(range(1, 13))
    assert [line["train/nonfinite_skips"] for line in late if "train/loss" in line][-1] == 2


def test_every_logged_line_of_a_run_has_the_telemetry(tracker, tmp_path: Path) -> None:
    telemetry = Telemetry()
    network = build(iteration_num=6, callbacks=[telemetry, MetricLogger(tracker, 3, telemetry)])
    network.fit()
    for name in ("images_per_second", "data_wait_share", "host_memory_gb", "eta_seconds"):
        assert [iteration for iteration, _ in lines(tmp_path, f"perf/{name}")] == [3, 6]
    assert all(value > 0 for _, value in lines(tmp_path, "perf/images_per_second"))
    assert all(0 <= value <= 1 for _, value in lines(tmp_path, "perf/data_wait_share"))
    assert lines(tmp_path, "perf/eta_seconds")[-1][1] > 0  # the last validation
    assert all(0.01 < value < 100 for _, value in lines(tmp_path, "perf/host_memory_gb"))


def test_the_memory_of_processes_that_a_run_started_counts_and_they_are_looked_for_every_ten_seconds() -> None:
    clock = Clock()
    telemetry = Telemetry(clock)
    network = build()
    alone = telemetry.values(network)["perf/host_memory_gb"]
    code = "held = bytearray(300_000_000); print(len(held), flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=PIPE, stdout=PIPE) as child:
        child.stdout.readline()
        clock.now += 5
        assert telemetry.values(network)["perf/host_memory_gb"] - alone < 0.15
        clock.now += 5
        assert telemetry.values(network)["perf/host_memory_gb"] - alone > 0.25
        child.communicate(b"\n")
    assert telemetry.values(network)["perf/host_memory_gb"] - alone < 0.15


def test_the_logged_gradient_norm_is_that_of_the_last_step(tracker, tmp_path: Path) -> None:
    norms = []

    class Norms(Callback):
        def on_iteration_end(self, network, output) -> None:
            loss = network.training_step(network.model, batch).loss
            norms.append(
                torch.stack([g.norm() for g in torch.autograd.grad(loss, list(network.model.parameters()))]).norm()
            )

    batch = Pictures(24).collate(range(4))
    telemetry = Telemetry()
    network = build(
        lr=0.0, iteration_num=1, shuffle=False, callbacks=[Norms(), telemetry, MetricLogger(tracker, 1, telemetry)]
    )
    network.fit()
    assert lines(tmp_path, "train/gradient_norm") == [(1, pytest.approx(float(norms[0]), rel=1e-5))]


def test_the_bar_tells_the_time_left_the_speed_and_the_memory() -> None:
    latest = {
        "train/loss": 0.25,
        "perf/eta_seconds": 3725.0,
        "perf/images_per_second": 99.6,
        "perf/data_wait_share": 0.07,
    }
    assert describe_pace({"train/loss": 0.25}) == "loss 0.2500"
    text = describe_pace({**latest, "perf/gpu_memory_gb": 11.26})
    assert text == "1:02:05 left, loss 0.2500, 100 images/s, waits for data 7%, GPU 11.3 GB"
