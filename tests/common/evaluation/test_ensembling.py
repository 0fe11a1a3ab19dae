"""Tests of common/evaluation/ensembling.py, against numbers worked out by hand and scipy."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit
from scipy.stats import rankdata

from common.errors import UsageError, WorkError
from common.evaluation.ensemble_choices import METHODS
from common.evaluation.ensembling import align, combine


def frame(values, ids=None, columns=("x", "y")):
    values = np.asarray(values, dtype=np.float64)
    return pd.DataFrame(values, index=ids or [f"ID_{i}" for i in range(len(values))], columns=list(columns))


FIRST = frame([[0.1, 0.9], [0.5, 0.2], [0.3, 0.3]])
SECOND = frame([[0.3, 0.5], [0.7, 0.2], [0.1, 0.9]])


def put_together(frames, weights, method):
    return combine(frames, weights, method, 3.0 if method == "power" else None)


def both(method, weights=(1, 1)):
    return put_together({"a.csv": FIRST, "b.csv": SECOND}, weights, method)


def test_the_mean_with_weights_worked_out_by_hand():
    expected = frame([[0.25, 0.6], [0.65, 0.2], [0.15, 0.75]])  # (1 · first + 3 · second) / 4
    pd.testing.assert_frame_equal(both("mean", (1, 3)), expected)


def test_the_logit_mean_is_the_geometric_mean_of_the_odds():
    odds = np.sqrt(FIRST / (1 - FIRST) * SECOND / (1 - SECOND))
    pd.testing.assert_frame_equal(both("logit"), odds / (1 + odds))


def test_the_logit_mean_of_0_and_a_half_is_clipped_at_one_in_ten_million():
    result = combine({"a": frame([[0.0, 1.0]]), "b": frame([[0.5, 0.5]])}, (1, 1), "logit")
    low = expit(logit(1e-7) / 2)
    assert result.to_numpy() == pytest.approx(np.array([[low, 1 - low]]), rel=1e-6)


def test_the_rank_mean_worked_out_by_hand_with_ties():
    first = frame([[0.1, 0.5], [0.2, 0.5], [0.9, 0.1], [0.8, 0.7]])
    second = frame([[0.4, 0.1], [0.3, 0.2], [0.2, 0.3], [0.1, 0.4]])
    result = combine({"a": first, "b": second}, (1, 1), "rank")
    # Ranks of x: 1 2 4 3 and 4 3 2 1; of y: 2.5 2.5 1 4 (a tie shares its mean) and 1 2 3 4; over 4 rows, then halved.
    expected = np.array([[5, 3.5], [5, 4.5], [6, 4], [4, 8]]) / 8
    np.testing.assert_allclose(result.to_numpy(), expected, rtol=1e-15)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_stays_in_range_and_keeps_rows_and_columns(method):
    result = both(method, (0.1, 0.7))
    assert ((result >= 0) & (result <= 1)).all(axis=None)
    assert list(result.index) == list(FIRST.index)
    assert list(result.columns) == ["x", "y"]
    assert (result.dtypes == np.float64).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_weight_of_0_leaves_a_file_out(method):
    alone = put_together({"a.csv": FIRST}, (5,), method)
    np.testing.assert_allclose(both(method, (2, 0)).to_numpy(), alone.to_numpy(), rtol=1e-14)


@given(
    values=st.lists(st.lists(st.floats(0, 1), min_size=2, max_size=2), min_size=1, max_size=12),
    weights=st.lists(st.floats(0.01, 100), min_size=2, max_size=2),
    method=st.sampled_from(sorted(METHODS)),
    order=st.randoms(use_true_random=False),
)
def test_neither_the_order_of_rows_and_columns_nor_the_scale_of_weights_matters(values, weights, method, order):
    first = frame(values)
    second = frame(1 - first.to_numpy())
    ids = list(second.index)
    order.shuffle(ids)
    result = put_together({"a": first, "b": second}, weights, method)
    others = {"a": first, "b": second.loc[ids, ["y", "x"]]}
    shuffled = put_together(others, [weight * 3 for weight in weights], method)
    pd.testing.assert_frame_equal(result, shuffled, rtol=1e-12, atol=1e-15)
    assert ((result >= 0) & (result <= 1)).all(axis=None)


def test_equal_members_give_themselves():
    twin = {"a": FIRST, "b": FIRST}
    np.testing.assert_allclose(combine(twin, (1, 2), "mean"), FIRST, rtol=1e-15)
    np.testing.assert_allclose(combine(twin, (1, 2), "logit"), FIRST, rtol=1e-12)
    np.testing.assert_allclose(combine(twin, (1, 2), "rank"), rankdata(FIRST, axis=0) / 3, rtol=1e-15)


def test_the_power_mean_worked_out_by_hand():
    result = combine({"a": frame([[0.2, 0.0]]), "b": frame([[0.6, 0.5]])}, (1, 3), "power", 2)
    np.testing.assert_allclose(result, [[np.sqrt((0.04 + 3 * 0.36) / 4), np.sqrt(3 * 0.25 / 4)]], rtol=1e-15)


def test_the_power_mean_of_power_1_is_the_mean_and_a_high_power_nears_the_highest():
    frames = {"a": FIRST, "b": SECOND}
    np.testing.assert_allclose(combine(frames, (1, 1), "power", 1), both("mean"), rtol=1e-15)
    highest = np.maximum(FIRST, SECOND)
    assert (combine(frames, (1, 1), "power", 99) - highest).abs().max(axis=None) < 0.01


@pytest.mark.parametrize(("method", "power"), [("power", None), ("mean", 2.0)])
def test_a_power_belongs_to_the_power_mean_alone(method, power):
    with pytest.raises(UsageError, match="--ens_power"):
        combine({"a": FIRST}, (1,), method, power)


def test_align_puts_rows_and_columns_into_the_order_of_the_first():
    aligned = align({"a": FIRST, "b": SECOND.iloc[::-1][["y", "x"]]})
    assert list(aligned) == ["a", "b"]
    pd.testing.assert_frame_equal(aligned["b"], SECOND)


def changed(row, column, value):
    values = SECOND.copy()
    values.iloc[row, column] = value
    return values


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (SECOND.iloc[:2], r"b.csv \(2 rows\) and a.csv \(3 rows\).*: 1 rows only in a.csv \(ID_2\)$"),
        (frame(np.full((5, 2), 0.5)), r"2 rows only in b.csv \(ID_3, ID_4\)$"),
        (
            frame(np.full((9, 2), 0.5), [f"N{i}" for i in range(9)]),
            r"3 rows only in a.csv \(ID_0, ID_1, ID_2\); 9 rows only in b.csv \(N0, N1, N2\)$",
        ),
        (frame(np.full((3, 2), 0.5), ["ID_0", "ID_1", "ID_1"]), r"b.csv: row ID_1 stands there more than once"),
        (frame(np.full((3, 2), 0.5), columns=("x", "z")), r"b.csv has the labels x, z; a.csv has x, y"),
        (SECOND.iloc[:0], r"b.csv: has no rows"),
        (changed(1, 0, np.nan), r"b.csv: row ID_1, label x: empty or not a number"),
        (changed(2, 1, np.inf), r"b.csv: row ID_2, label y: inf, not a probability in 0..1"),
        (changed(2, 1, 1.5), r"b.csv: row ID_2, label y: 1.5, not a probability in 0..1"),
        (changed(0, 1, -0.1), r"b.csv: row ID_0, label y: -0.1, not a probability in 0..1"),
    ],
)
def test_files_that_do_not_fit_together_are_refused_in_one_line(other, message):
    with pytest.raises(WorkError, match=message) as caught:
        align({"a.csv": FIRST, "b.csv": other})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("weights", [(1,), (1, 1, 1), (1, -1), (0, 0), (1, np.nan), (1, np.inf)])
def test_weights_that_make_no_mean_are_refused(weights):
    with pytest.raises(UsageError, match="--weights"):
        both("mean", weights)


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(UsageError, match=r"--ens_method=ranks.*did you mean 'rank'"):
        both("ranks")


def test_no_frame_at_all_is_a_fault_of_the_caller():
    with pytest.raises(ValueError, match="no frame"):
        align({})
