from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from common.callbacks.metric_logger import MetricLogger
from common.callbacks.model_checkpoint import ModelCheckpoint
from common.callbacks.progress_bar import ProgressBar
from common.checkpoint import load_checkpoint
from common.networks.network import Predictions
from common.trackers.jsonl import JsonlTracker, read_metrics
from tests.test_network import build

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

    class Stop(ModelCheckpoint):
        def on_validation_end(self, network, metrics) -> None:
            super().on_validation_end(network, metrics)
            network.should_stop = True

    folder = tmp_path / "first"
    folder.mkdir()
    first = build(iteration_num=8, iteration_valid=4, callbacks=[Stop(folder, KEY, DESCRIPTION, lambda network: None)])
    first.fit()
    second = build(iteration_num=8, iteration_valid=4, callbacks=[checkpoint(tmp_path)])
    second.load_state_dict(load_checkpoint(folder / "last.pt"))
    assert second.iteration == 4
    second.fit()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name])


def test_each_validation_prints_a_line_and_the_end_names_the_best(tracker, capsys, caplog) -> None:
    caplog.set_level(logging.INFO)
    metrics = MetricLogger(tracker, 3)
    bar = ProgressBar(metrics, KEY, reference=0.5)
    network = SimpleNamespace(iteration=0, training=SimpleNamespace(iteration_num=20))
    bar.on_train_begin(network)
    for iteration, value in ((10, 0.25), (20, 0.3)):
        network.iteration = iteration
        bar.on_validation_end(network, {KEY: value})
    bar.on_train_end(network)
    assert capsys.readouterr().err.splitlines() == [
        "iteration 10/20: valid/weighted_log_loss 0.2500 (constant predictor 0.5000)",
        "iteration 20/20: valid/weighted_log_loss 0.3000 (constant predictor 0.5000)",
        "best valid/weighted_log_loss 0.2500 at iteration 10: 0.50 of the constant predictor's 0.5000",
    ]
    assert pd.Series([record.message for record in caplog.records]).str.startswith("iteration").sum() == 2
