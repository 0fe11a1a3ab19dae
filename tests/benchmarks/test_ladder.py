"""benchmarks/ladder.py: every rung runs on a tiny phantom, a second start repeats nothing, the table is right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss

from benchmarks import ladder
from benchmarks.ladder import QUICK, Ladder, seeds_table
from benchmarks.rivals import Entry
from rsna_dataset import LABELS
from tests import PROJECT
from tests.pretended_cuda import Settings

TINY = (
    "import sys; sys.path[:0] = ['.', 'benchmarks']; import ladder; from tests import forked; forked.preload(); "
    "ladder.subprocess = forked; "
    "ladder.QUICK = ladder.Budget(studies=32, size=32, iterations=4, sequence_iterations=4, batch=8); ladder.main()"
)


def climb(folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", TINY, str(folder), "--quick", "--n_jobs=1"], cwd=PROJECT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_each_seed_has_steps_and_results_of_its_own_and_the_data_is_made_once(tmp_path: Path, capsys) -> None:
    for seed in (0, 1, 1):
        one = Ladder(tmp_path, QUICK, 1, seed)
        for step in ("preprocessing", "slice fold 0"):
            one.run(step, "-c", "pass", one.own_seed)
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in said] == ["preprocessing", "slice fold 0", "slice fold 0 seed 1"]
    assert [line.split()[-1] for line in said] == ["--seed=0", "--seed=0", "--seed=1"]
    assert f"--output_dir={tmp_path / 'results_1'}" in one.place


def test_the_table_of_all_seeds_has_each_ones_value_their_mean_and_spread() -> None:
    values = {"constant predictor": [0.23, 0.23, 0.23], "slice network": [0.17, 0.16, 0.18]}
    rows = [
        {"seed": seed, "rung": rung, "log_loss": losses[seed], "change": None if known is None else losses[seed] - 0.23,
         "known": known, "goes_on": seed != 1}
        for seed in range(3)
        for (rung, losses), known in zip(values.items(), (None, 0.2), strict=True)
    ]  # fmt: skip
    lines = seeds_table(pd.DataFrame(rows).astype({"change": float, "known": float})).splitlines()
    assert lines[0] == "Test log loss of 3 seeds"
    assert lines[-2] == "| constant predictor | 0.2300 | 0.2300 | 0.2300 | 0.2300 (0.0000) | – | – |"
    assert lines[-1] == (
        "| slice network | 0.1700 | 0.1600 | 0.1800 | 0.1700 (0.0100) | -0.0600 [-0.0700, -0.0500] | 2 of 3 |"
    )


@pytest.mark.slow
def test_all_rungs_are_climbed_once_and_judged_by_labels_that_no_command_read(tmp_path: Path) -> None:
    first = climb(tmp_path / "ladder")
    assert "second level" in first
    table = pd.read_csv(tmp_path / "ladder" / "ladder.csv", index_col="rung")
    assert len(table) == 12
    truth = pd.read_csv(tmp_path / "ladder" / "phantom" / "phantom_truth.csv", index_col="id").query("split == 'test'")
    (file,) = (tmp_path / "ladder").glob("plain_*.csv")
    plain = pd.read_csv(file, index_col="id").loc[truth.index]
    by_label = [log_loss(truth[name], plain[name], labels=[0, 1]) for name in LABELS]
    weights = [2 if name == "any" else 1 for name in LABELS]
    expected = np.average(by_label, weights=weights)
    assert table.loc[table.index.str.startswith("rival: plain"), "log_loss"].item() == pytest.approx(expected, rel=1e-9)
    assert table[["low", "high"]].isna().all(axis=None)  # few test patients
    patients = pd.read_csv(tmp_path / "ladder/datasets/real/metadata.csv", index_col="id").loc[
        truth.index, "patient_id"
    ]
    assert set(table["verdict"].dropna()) == {f"{patients.nunique()} patients, and an interval needs 20"}
    report = (tmp_path / "ladder" / "ladder.md").read_text()
    assert all(name in report for name in table.index)
    (chosen,) = table.loc[table.index.str.startswith("rival"), "built_on"].unique()
    above = table[~table.index.str.startswith("rival") & table["goes_on"]]
    assert chosen == above.index[-1]
    assert [line.split(" | ")[0][2:] for line in report.splitlines() if "**" in line] == [chosen]
    again = climb(tmp_path / "ladder")
    assert ": python " not in again
    assert (tmp_path / "ladder" / "ladder.md").read_text() == report


@pytest.mark.slow
def test_a_rival_computes_on_the_gpu_and_waits_for_it_only_where_it_prints(small_dataset, tmp_path: Path) -> None:
    options = "--dataset=phantom --model=test_resnet --size=32 --batch=4 --iterations=5 --n_jobs=1"
    subprocess.run(
        [
            *(
                sys.executable,
                PROJECT / "benchmarks/rival_loops.py",
                "timm",
                small_dataset.input_folder,
                *options.split(),
            ),
            f"--output={tmp_path / 'predictions.csv'}",
        ],
        env=Settings(findings=str(tmp_path)).environment(),
        check=True,
    )
    assert np.isfinite(pd.read_csv(tmp_path / "predictions.csv", index_col="id").to_numpy()).all()
    (found,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    assert found["errors"] == []
    assert found["copies"] == {"host to device, asynchronous": 10}  # five times pictures and targets
    assert [wait["count"] for wait in found["waits"] if wait["place"] == "benchmarks/rival_loops.py:run"] == [1]


def test_a_rival_has_the_configuration_of_the_largest_tuned_budget_within_its_own(tmp_path: Path, monkeypatch) -> None:
    log = tmp_path / "rivals.csv"
    monkeypatch.setattr(ladder, "LOG", log)
    assert ladder.tuned("plain", 1500) == (Entry("plain", "0.003", "affine"), "0.003, affine, not tuned")
    log.write_text(
        "phantom,side,rate,augmentation,iterations,seed,log_loss\ntuning,plain,0.01,none,240,0,0.2\n"
        "tuning,plain,0.001,none,1000,0,0.3\ntuning,plain,0.003,timm,1000,0,0.1\njudging,plain,0.01,timm,1000,0,0.01\n"
    )
    assert ladder.tuned("plain", 1500) == (Entry("plain", "0.003", "timm"), "0.003, timm, tuned by 1000 iterations")
    assert ladder.tuned("plain", 500) == (Entry("plain", "0.01", "none"), "0.01, none, tuned by 240 iterations")
    assert ladder.tuned("plain", 60)[0] == Entry("plain", "0.01", "none")
    assert ladder.tuned("timm", 1500)[1].endswith("not tuned")
