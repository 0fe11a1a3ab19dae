"""Where slices stand: order, true distances and what is unusual, computed by hand for each case."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.preprocessing.series import NORMAL, ORIENTATION, POSITION, describe_singles, place_slices

AXIAL = (1, 0, 0, 0, 1, 0)
CORONAL = (1, 0, 0, 0, 0, -1)


def records(
    positions: dict[str, tuple[float, ...]], orientations: dict[str, tuple[float, ...]] | None = None
) -> pd.DataFrame:
    """Records with these places (x, y, z), axial unless told otherwise."""
    turned = orientations or {}
    rows = [(*place, *turned.get(name, AXIAL)) for name, place in positions.items()]
    return pd.DataFrame(rows, columns=[*POSITION, *ORIENTATION], index=list(positions), dtype=float)


def placed(table: pd.DataFrame, series: list[str] | None = None) -> pd.DataFrame:
    return place_slices(table, np.array(series or ["s"] * len(table), dtype=object))


def test_a_plain_series_is_ordered_by_place_with_its_spacing_and_nothing_unusual() -> None:
    table = placed(records({"a": (0, 0, 10), "b": (0, 0, 0), "c": (0, 0, 5)}))
    assert table["slice_index"].tolist() == [2, 0, 1]
    assert table["position_mm"].tolist() == [10, 0, 5]
    assert table["slice_spacing_mm"].tolist() == [5, 5, 5]
    assert table[NORMAL].to_numpy().tolist() == [[0, 0, 1]] * 3
    assert (table["geometry"] == "").all()


def test_with_a_tilted_gantry_the_spacing_is_that_along_the_normal_and_not_along_z() -> None:
    """The table moves 5 mm along z between slices that lean by 20 degrees: they are 5 cos 20 = 4.698 mm apart."""
    lean = np.deg2rad(20)
    tilted = (1, 0, 0, 0, np.cos(lean), np.sin(lean))
    names = {f"{n}": (0.0, 0.0, 5.0 * n) for n in range(4)}
    table = placed(records(names, dict.fromkeys(names, tilted)))
    np.testing.assert_allclose(table["slice_spacing_mm"], 4.698463, atol=1e-6)
    np.testing.assert_allclose(table["position_mm"], np.arange(4) * 4.698463, atol=1e-5)
    np.testing.assert_allclose(table[NORMAL].to_numpy()[0], [0, -0.342020, 0.939693], atol=1e-6)
    assert (table["geometry"] == "").all()


def test_repeated_places_are_marked_on_all_their_slices_and_ordered_by_id() -> None:
    table = placed(records({"d": (0, 0, 5), "b": (0, 0, 5.0000004), "a": (0, 0, 10), "c": (0, 0, 0)}))
    assert table["slice_index"].to_dict() == {"c": 0, "b": 1, "d": 2, "a": 3}
    assert table["geometry"].to_dict() == {"d": "repeated_position", "b": "repeated_position", "a": "", "c": ""}
    assert (table["slice_spacing_mm"] == 5).all()


def test_the_slice_after_a_gap_is_marked() -> None:
    table = placed(records({f"{z:02d}": (0, 0, z) for z in (0, 5, 10, 20, 25, 30)}))
    assert table["geometry"].to_dict() == {"00": "", "05": "", "10": "", "20": "gap", "25": "", "30": ""}


def test_thick_slices_above_thin_ones_are_no_gap_and_a_missing_one_is() -> None:
    """The posterior fossa at 2.5 mm, the rest at 5 (dcm2niix issue 22), between them and above a slice left out."""
    head = [0, 2.5, 5, 7.5, 10, 12.5, 15, 17.5, 20, 25, 30, 35, 40, 45, 50]
    table = placed(records({f"{z:04.1f}": (0, 0, z) for z in head}))
    assert (table["geometry"] == "").all()
    table = placed(records({f"{z:04.1f}": (0, 0, z) for z in head if z not in (7.5, 40)}))
    assert table.index[table["geometry"] == "gap"].tolist() == ["10.0", "45.0"]


@pytest.mark.parametrize("offset", [0.3, 1.0])
def test_a_head_scanned_twice_has_the_spacing_of_one_scan_and_no_gap_but_where_both_have_one(offset) -> None:
    places = [z + scan * offset for z in (0, 5, 10, 15, 20, 30, 35, 40) for scan in (0, 1)]
    table = placed(records({f"{z:04.1f}": (0, 0, z) for z in places}))
    assert table.index[table["geometry"] == "gap"].tolist() == ["30.0"]
    assert (table["slice_spacing_mm"] == 5).all()


def test_a_slice_of_another_orientation_has_no_place_among_the_others() -> None:
    positions = {"x": (0, 40, 7), "a": (0, 0, 0), "b": (0, 0, 5), "c": (0, 0, 10)}
    table = placed(records(positions, {"x": CORONAL}))
    assert table["slice_index"].to_dict() == {"a": 0, "b": 1, "c": 2, "x": 3}
    assert np.isnan(table.loc["x", "position_mm"])
    assert table["geometry"].to_dict() == {"x": "other_orientation", "a": "", "b": "", "c": ""}
    assert (table["slice_spacing_mm"] == 5).all()


def test_a_hundredth_of_a_degree_is_the_same_orientation() -> None:
    nearly = (1, 0, 0, 0, np.cos(2e-4), np.sin(2e-4))
    table = placed(records({"a": (0, 0, 0), "b": (0, 0, 5), "c": (0, 0, 10)}, {"c": nearly}))
    assert table["slice_index"].tolist() == [0, 1, 2]
    assert (table["geometry"] == "").all()


@pytest.mark.parametrize("missing", ["position", "orientation"])
def test_slices_without_geometry_stand_last_and_are_marked(missing: str) -> None:
    table = records({"z": (0, 0, 0), "y": (0, 0, 5), "b": (0, 0, 2), "a": (0, 0, 1)})
    table.loc[["b", "a"], POSITION if missing == "position" else ORIENTATION] = np.nan
    result = placed(table)
    assert result["slice_index"].to_dict() == {"z": 0, "y": 1, "a": 2, "b": 3}
    assert result["geometry"].to_dict() == {"z": "", "y": "", "b": "no_position", "a": "no_position"}


def test_a_series_without_any_geometry_is_ordered_by_id() -> None:
    table = records({"b": (0, 0, 0), "a": (0, 0, 1)})
    table[ORIENTATION] = 0.0
    result = placed(table)
    assert result["slice_index"].tolist() == [1, 0]
    assert result[["position_mm", "slice_spacing_mm", *NORMAL]].isna().all(axis=None)
    assert (result["geometry"] == "no_position").all()


def test_single_slices_have_a_place_and_no_spacing() -> None:
    table = placed(records({"a": (0, 0, 3), "b": (0, 0, 4)}), ["one", "two"])
    assert table["slice_index"].tolist() == [0, 0]
    assert table["position_mm"].tolist() == [3, 4]
    assert table["slice_spacing_mm"].isna().all()
    assert (table["geometry"] == "single_slice").all()


def test_no_records_give_no_places() -> None:
    assert len(placed(records({}))) == 0


@settings(deadline=None)
@given(data=st.data())
def test_the_places_do_not_depend_on_the_order_of_the_records(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    numbers = st.sampled_from([0.0, 2.5, 5.0, 5.0000001, 30.0, float("nan")])
    turns = {f"{n:02d}": data.draw(st.sampled_from([AXIAL, CORONAL, (0,) * 6])) for n in range(count)}
    table = records({name: (0, data.draw(numbers), data.draw(numbers)) for name in turns}, turns)
    series = np.array([data.draw(st.sampled_from("st")) for _ in turns], dtype=object)
    shuffled = np.array(data.draw(st.permutations(range(count))))
    first = place_slices(table, series)
    again = place_slices(table.iloc[shuffled], series[shuffled])
    pd.testing.assert_frame_equal(again.loc[first.index], first)
    for name in "st":
        assert sorted(first["slice_index"][series == name]) == list(range((series == name).sum()))


def rows_of(*groups: tuple[str, str, list[str]]) -> pd.DataFrame:
    """A metadata table of (patient, study, series of each slice)."""
    rows = [(patient, study, series) for patient, study, all_series in groups for series in all_series]
    return pd.DataFrame(rows, columns=["patient_id", "study_id", "series_id"])


def test_slices_that_are_each_their_own_series_or_study_are_counted() -> None:
    good = ("p0", "s0", ["a"] * 30)
    exploded = ("p1", "s1", [f"b{number}" for number in range(30)])
    assert describe_singles(rows_of(good, exploded)).startswith(
        "30 slices in 1 studies are each a series of their own (SeriesInstanceUID)"
    )
    studies = [("p2", f"t{number}", [f"c{number}"]) for number in range(40)]
    found = describe_singles(rows_of(good, exploded, *studies))
    assert "40 slices are each a study of their own (StudyInstanceUID), 30 slices in 1 studies" in found
    patients = [(f"q{number}", f"t{number}", [f"c{number}"]) for number in range(40)]
    assert "40 slices are each a study" in describe_singles(rows_of(*patients))


def test_a_stray_slice_a_scout_and_a_few_thin_series_are_no_broken_export() -> None:
    stray = ("p0", "s0", ["a"] * 30 + ["scout", "stray"])
    assert describe_singles(rows_of(stray, ("p1", "s1", ["b"]), ("p2", "s2", ["c"] * 2))) == ""
    assert describe_singles(rows_of(("", "", [""] * 5))) == ""
