"""Errors whose option or file is nearly right name what works, and it does."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from common.errors import UsageError, WorkError, nearest_file
from common.preprocessing.folder import check_space
from config import TrainConfig
from rsna.forms import read_label_file
from rsna.kinds.pictures import overfit_rows


def advised(error: pytest.ExceptionInfo[Exception], option: str) -> int:
    """The last value of an option that a message names."""
    return int(re.findall(rf"--{option}=(\d+)", str(error.value))[-1])


@pytest.mark.parametrize(("valid", "accumulation"), [(10, 4), (3, 8), (1000, 7)])
def test_iterations_between_validations_that_are_no_multiple(valid: int, accumulation: int) -> None:
    with pytest.raises(UsageError) as error:
        TrainConfig(tr_iteration_valid=valid, tr_accumulation_step=accumulation)
    works = advised(error, "tr_iteration_valid")
    assert TrainConfig(tr_iteration_valid=works, tr_accumulation_step=accumulation).tr_iteration_valid == works
    assert abs(works - valid) < accumulation


def test_more_batches_to_learn_by_heart_than_there_are() -> None:
    rows = pd.DataFrame(index=range(19))
    with pytest.raises(UsageError) as error:
        overfit_rows(rows, 5, 4)
    assert len(overfit_rows(rows, advised(error, "tr_overfit"), 4)) == 16
    with pytest.raises(UsageError) as error:
        overfit_rows(rows, 1, 20)
    assert "works" not in str(error.value)  # no number does


def test_a_disk_too_small_names_the_options_that_fit(tmp_path: Path) -> None:
    with pytest.raises(WorkError) as error:
        check_space(tmp_path, 10**15, {"--small=1": 1000, "--large=1": 10**14})
    assert "--small=1 needs 0.00 GB, or make space" in str(error.value)
    assert "--large" not in str(error.value)


def test_a_file_that_is_nearly_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("x")
    with pytest.raises(UsageError, match=r"no such file; did you mean 'labels.csv'\?"):
        read_label_file(tmp_path / "lables.csv")
    assert nearest_file(tmp_path / "other" / "labels.csv") == ""
