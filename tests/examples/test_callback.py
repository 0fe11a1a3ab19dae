"""A callback of one's own, named by its path: it is called, and its state goes on with a resumed run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import train
from tests.conftest import TINY, SmallDataset

NAME = "examples.callback.WEIGHT_NORMS"


def test_an_own_callback_is_called_and_its_state_goes_on(small_dataset: SmallDataset, tmp_path: Path) -> None:
    flags = [f"--tr_callbacks={NAME}", f"--output_dir={tmp_path}"]
    folder = train.main([*small_dataset.flags, *TINY, *flags])
    file = folder / "weight_norms.jsonl"
    first = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["iteration"] for line in first] == [2, 4]
    file.write_text("")
    train.main([f"--tr_resume={folder / 'last.pt'}", "--tr_iteration_num=6"])
    (line,) = [json.loads(text) for text in file.read_text().splitlines()]
    assert line["iteration"] == 6
    assert line["largest"] == max(first[-1]["largest"], *line["norms"].values())
    assert line["largest"] >= first[-1]["largest"] > 0


def test_an_own_callback_may_come_and_go_when_a_run_goes_on(small_dataset: SmallDataset, tmp_path: Path) -> None:
    folder = train.main([*small_dataset.flags, *TINY, "--tr_iteration_num=2", f"--output_dir={tmp_path}"])
    last = f"--tr_resume={folder / 'last.pt'}"
    train.main([last, "--tr_iteration_num=4", f"--tr_callbacks={NAME}"])
    train.main([last, "--tr_iteration_num=6", "--tr_callbacks="])
    (line,) = (folder / "weight_norms.jsonl").read_text().splitlines()
    assert json.loads(line)["iteration"] == 4


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("examples.callback.NOTHING", "has no CallbackRow of the name NOTHING"),
        ("examples.none.ROW", "there is no "),
        (f"{NAME},{NAME}", "names a callback twice"),
    ],
)
def test_a_callback_that_is_not_there_ends_before_anything_is_written(
    small_dataset: SmallDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, words: str
) -> None:
    results = tmp_path / "results"
    with pytest.raises(SystemExit) as caught:
        train.main([*small_dataset.flags, *TINY, f"--tr_callbacks={name}", f"--output_dir={results}"])
    assert caught.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert not results.exists()
