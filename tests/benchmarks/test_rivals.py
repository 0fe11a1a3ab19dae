"""benchmarks/rivals.py: sides are tuned alike and apart from the judging, and a killed comparison goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from argparse import ArgumentTypeError
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss

from benchmarks import rivals
from benchmarks.rivals import KEYS, Comparison, Entry, Phantom, Plan, chosen, grid, read_log
from rsna_dataset import LABELS
from tests import PROJECT

RATES, SEEDS = ("0.001", "0.01"), 2


def drive(folder: Path) -> None:
    """Compare two tiny sides: kill it after two runs, then let it end. Each run is a fork of this process."""
    from tests import forked

    forked.preload()
    rivals.subprocess = forked
    rivals.PLAN = Plan(studies=12, scanned=64, model="test_resnet", batch=4, seeds=SEEDS)
    rivals.PHANTOMS = {"tuning": Phantom(2, size=32), "judging": Phantom(1, size=32)}
    rivals.RATES, rivals.SIDES = RATES, ("ours", "plain")
    rivals.OWN_AUGMENTATIONS, rivals.AUGMENTATIONS = {"complex": "train_complex_128.json"}, {"affine": ""}
    train = Comparison.train

    def watched(self: Comparison, phantom: str, entry: Entry, iterations: int, seed: int) -> dict[str, object]:
        assert phantom == "judging" or not (folder / "judging").exists()
        return train(self, phantom, entry, iterations, seed)

    Comparison.train = watched
    sys.argv = ["rivals.py", str(folder), "--budgets=3"]
    child = os.fork()
    if child == 0:
        rivals.main()
        os._exit(0)
    while not (folder / "rivals.csv").exists() or len(read_log(folder / "rivals.csv")) < 2:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), (folder / "commands.log").read_text()
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    (folder / "killed.csv").write_bytes((folder / "rivals.csv").read_bytes())
    rivals.main()


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rivals")
    code = f"import pathlib; from tests.benchmarks.test_rivals import drive; drive(pathlib.Path({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_a_killed_comparison_goes_on_and_repeats_no_finished_run(compared: Path) -> None:
    killed, log = (read_log(compared / name) for name in ("killed.csv", "rivals.csv"))
    assert len(killed) >= 2
    pd.testing.assert_frame_equal(log.head(len(killed)), killed)
    assert not log.duplicated(KEYS).any()
    assert log["phantom"].value_counts().to_dict() == {"tuning": 4, "judging": (2 + 2 + 1) * SEEDS}
    assert list(compared.glob("run_*")) == []
    assert (log["images"] == 3 * 4).all()
    assert (log["cpu_seconds"] > 0).all()


def test_the_table_has_the_judged_losses_and_marks_what_the_tuning_put_first(compared: Path) -> None:
    log = read_log(compared / "rivals.csv")
    truth = pd.read_csv(compared / "judging/datasets/rivals/dataset_rivals_fold_0.csv", index_col="id")
    truth = truth[truth["sample_type"] == "valid"]
    weights = [2 if name == "any" else 1 for name in LABELS]
    lines = (compared / "rivals.md").read_text().splitlines()
    for (side, rate, augmentation), rows in log[log["phantom"] == "judging"].groupby(["side", "rate", "augmentation"]):
        files = [compared / f"predictions/judging_{side}_{rate}_{augmentation}_3_{seed}.csv" for seed in range(SEEDS)]
        expected = []
        for file in files:
            frame = pd.read_csv(file, index_col="id")
            assert set(frame.index) == set(truth.index)  # the same images for each side
            by_label = [log_loss(truth[name], frame.loc[truth.index, name], labels=[0, 1]) for name in LABELS]
            expected.append(np.average(by_label, weights=weights))
        assert rows.sort_values("seed")["log_loss"].to_numpy() == pytest.approx(expected, rel=1e-9)
        tuned = log[(log["phantom"] == "tuning") & (log["side"] == side)].set_index("rate")["log_loss"]
        mark = "**" if rate == tuned.idxmin() else ""
        mean = f"{np.mean(expected):.4f}"
        (line,) = (line for line in lines if line.startswith(f"| {side}: {rate}, {augmentation} |"))
        assert line.split(" | ")[1].split(" [")[0] == f"{mark}{mean}{mark}"


def test_each_side_has_as_many_runs_and_only_its_best_third_trains_longer(tmp_path: Path, monkeypatch) -> None:
    runs: list[tuple[str, Entry, int, int]] = []

    def loss(self: Comparison, phantom: str, entry: Entry, iterations: int, seed: int) -> float:
        runs.append((phantom, entry, iterations, seed))
        return float(entry.rate) + len(entry.augmentation)

    monkeypatch.setattr(Comparison, "loss", loss)
    Comparison(tmp_path, Plan(), "--n_jobs=1").tune(rivals.SIDES, [240, 1000])
    assert {(phantom, seed) for phantom, _, _, seed in runs} == {("tuning", 0)}
    for side in rivals.SIDES:
        first, second = ([e for _, e, iterations, _ in runs if (e.side, iterations) == (side, n)] for n in (240, 1000))
        assert first == grid(side)
        assert len(first) == 12
        known = sorted(first, key=lambda entry: float(entry.rate) + len(entry.augmentation))
        assert set(second) == set(known[:4])


def test_the_chosen_are_the_best_two_of_the_budget_asked_for() -> None:
    rows = [("tuning", "plain", rate, "none", budget, "0", value) for rate, budget, value in (
        ("0.001", "240", 0.3), ("0.003", "240", 0.1), ("0.01", "240", 0.2), ("0.001", "1000", 0.05),
    )]  # fmt: skip
    rows.append(("judging", "plain", "0.001", "none", "240", "0", 0.01))
    log = pd.DataFrame(rows, columns=[*KEYS, "log_loss"])
    assert [entry.rate for entry in chosen(log, "plain", 240)] == ["0.003", "0.01"]
    assert [entry.rate for entry in chosen(log, "plain", 1000)] == ["0.001"]
    assert chosen(log, "timm", 240) == []


@pytest.mark.parametrize("text", ["plain:0.003", "plain:0.5:affine", "torch:0.003:affine", "plain:0.003:affine"])
def test_entries_that_no_side_has_or_without_ours_are_refused_by_name(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="ours"):
        rivals.parse_entries(text)


def test_ours_is_first_of_the_entries_as_the_others_are_compared_with_it() -> None:
    parsed = rivals.parse_entries("plain:0.003:affine,ours:default:default")
    assert parsed == [rivals.DEFAULTS, Entry("plain", "0.003", "affine")]


def test_the_random_crops_of_a_transform_file_have_the_compared_size(tmp_path: Path) -> None:
    copy = rivals.resized(PROJECT / "transforms" / "train_complex_128.json", 64, tmp_path)
    before, after = (path.read_text() for path in (PROJECT / "transforms" / copy.name, copy))
    assert json.loads(before.replace("128,", "64,").replace("128\n", "64\n")) == json.loads(after)
    plain = PROJECT / "transforms" / "train_demo.json"
    assert rivals.resized(plain, 64, tmp_path) == plain
