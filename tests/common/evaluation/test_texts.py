"""Tests of common/evaluation/texts.py."""

from __future__ import annotations

import numpy as np
import pandas as pd

from common.evaluation.texts import format_table, interval_text


def test_the_printed_table_is_aligned_and_shows_a_dash_for_no_value():
    frame = pd.DataFrame({"loss": [0.123456, np.nan], "images": np.array([7, 1234])}, index=["a", "long name"])
    assert format_table(frame.rename_axis("label")).split("\n") == [
        "label         loss  images",
        "a          0.12346       7",
        "long name        -    1234",
    ]


def test_a_value_without_an_interval_or_without_a_value_says_no_nan():
    nan = float("nan")
    assert interval_text(0.12345, 0.1, 0.2) == "0.1235 [0.1000, 0.2000]"
    assert interval_text(0.12345, nan, nan, 2) == interval_text(0.12345, None, None, 2) == "0.12"
    assert interval_text(nan, nan, nan) == interval_text(None, None, None) == "-"
