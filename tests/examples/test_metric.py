"""examples/metric.py: a metric of one's own, which no other file knows of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from common.evaluation.metric_table import METRICS
from common.reports.leaderboard import update_leaderboard
from examples import metric as example
from rsna_dataset import LABELS, read_metadata
from tests import PROJECT
from tests.common.reports.test_record import experiment, point
from tests.rsna.judging.test_evaluation import Crowd, make_up

NAME, TITLE = "sensitivity_at_90", "sensitivity at 90 %"


@pytest.fixture(autouse=True)
def table_of_before() -> Iterator[None]:
    before = dict(METRICS)
    yield
    METRICS.clear()
    METRICS.update(before)


def test_a_row_alone_puts_a_metric_into_table_json_console_and_page(small_dataset, tmp_path: Path, capsys) -> None:
    crowd = Crowd(small_dataset, tmp_path / "crowd")
    labelled = read_metadata(small_dataset.folder).query("split == 'train'")
    frame = make_up(labelled, 3, tmp_path / "mine.csv")
    make_up(labelled, 1, tmp_path / "worse.csv", seed=1)
    flags = [f"--eval_file={tmp_path / 'mine.csv'}", f"--eval_compare={tmp_path / 'worse.csv'}", "--eval_draws=200"]
    table = example.main([*crowd.flags, *flags])
    for label in LABELS:
        scores, positive = frame[label].to_numpy(), labelled[label].to_numpy() == 1
        found = [
            (scores >= at)[positive].mean() for at in np.append(scores, 2) if (scores < at)[~positive].mean() >= 0.9
        ]
        assert table.loc[label, NAME] == pytest.approx(max(found))
    low, value, high = table.loc["any", [f"{NAME}_low", NAME, f"{NAME}_high"]]
    assert 0 < low < value < high < 1
    document = json.loads((tmp_path / "mine_evaluation.json").read_text())
    assert [row[NAME] for row in document["slice_level"]] == table[NAME].tolist()
    assert document["largest_error_of_binned_scores"][NAME] < 0.01
    header, *rows = capsys.readouterr().out.split("\nslices ", 1)[1].splitlines()
    assert header.endswith(TITLE)
    assert rows[5].endswith(f"{value:.4f} [{low:.4f}, {high:.4f}]")
    assert any(row.startswith(f"  {TITLE}") and row.endswith("(higher is better)") for row in rows)
    page = (tmp_path / "mine_evaluation.html").read_text()
    assert f">{TITLE}</th>" in page
    assert f"{value:.3f} [{low:.3f}, {high:.3f}]" in page


def test_the_leaderboard_ranks_by_the_rows_direction(tmp_path: Path) -> None:
    METRICS[NAME] = example.ROW
    for name, value in (("worse", 0.25), ("better", 0.75)):
        points = [point(8, **{f"valid__weighted_{NAME}": part, f"valid__{NAME}/any": part}) for part in (0.1, value)]
        experiment(tmp_path / name, *points)
    page = update_leaderboard(tmp_path, f"weighted_{NAME}").read_text()
    assert f"highest weighted {TITLE} first" in page
    lines = (tmp_path / "leaderboard.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["experiment", "better", "worse"]
    assert lines[1].split(",")[2] == "0.75"


def test_the_example_is_short() -> None:
    assert len((PROJECT / "examples" / "metric.py").read_text().splitlines()) < 60
