"""Sum up the slices of each series: what it shows, how it was made, and how much of the head it covers."""

from __future__ import annotations

import numpy as np
import pandas as pd

from common.preprocessing.series import NORMAL
from common.preprocessing.skull import HEAD_MM2

SCAN = ["vendor", "kernel", "contrast", "reconstruction", "energy"]  # of each slice's header
OF_SERIES = ["orientation", "head", "coverage_mm", "head_mm", "series_slices"]  # columns of each slice's metadata
PLANES = {"sagittal": "normal_x", "coronal": "normal_y", "axial": "normal_z"}  # the axis that its slices stand across
NEARLY = np.cos(np.deg2rad(37))  # a gantry tilts by 30 degrees at most
JUDGED_MM, JUDGED_SLICES = 60.0, 5  # a shorter series may well miss the skull
REPEATS = 3  # scans of each place: a perfusion scan, or the tracking of a bolus
THICKEST_MM = 50.0  # scouts have thicknesses of hundreds of mm


def series_facts(table: pd.DataFrame, series: np.ndarray, studies: np.ndarray) -> pd.DataFrame:
    """Return a row for each series, index ``series_id``, sorted.

    ``table``: a row for each slice with the columns of the metadata. ``series`` (N,) and ``studies`` (N,) name what
    each slice belongs to.

    - ``study_id``; ``vendor``, ``kernel``, ``contrast``, ``reconstruction``, ``energy``, ``series_number``: the most
      frequent values of its slices, see :class:`common.dicom.scan.ScanFacts`.
    - ``orientation``: axial, coronal, sagittal, oblique or unknown.
    - ``coverage_mm``: its extent along the normal. ``head_mm``: the extent of the slices that show a skull.
    - ``head``: yes, no or unknown, by :func:`common.preprocessing.skull.skull_area`. Only a series of some length
      without any skull is a ``no``.
    - ``repeats``: yes if each place was scanned several times. ``series_slices``: the number of slices.
    - ``thickness_mm``: the median thickness, or the spacing where that is unknown. ``slice_spacing_mm``.
    """
    rows = table[[*SCAN, "series_number", "position_mm", "slice_spacing_mm", "thickness_mm", "skull_mm2", *NORMAL]]
    rows = rows.assign(series_id=series, study_id=studies).reset_index(drop=True)
    groups = rows.groupby("series_id", sort=True)
    facts = groups[["study_id", "slice_spacing_mm", *NORMAL]].first()
    for name in [*SCAN, "series_number"]:
        facts[name] = _most_frequent(rows, name)
    facts["orientation"] = _orientation(facts)
    facts["series_slices"] = groups.size()
    thickness = rows["thickness_mm"].where((rows["thickness_mm"] > 0) & (rows["thickness_mm"] < THICKEST_MM))
    facts["thickness_mm"] = thickness.groupby(rows["series_id"]).median().fillna(facts["slice_spacing_mm"])
    step = facts["slice_spacing_mm"].fillna(facts["thickness_mm"])
    facts["coverage_mm"] = (_extent(rows) + step).round(2)
    skulls = rows[rows["skull_mm2"] >= HEAD_MM2]
    facts["head_mm"] = (_extent(skulls).reindex(facts.index) + step).round(2)
    shows = facts.index.isin(skulls["series_id"])
    judged = groups["skull_mm2"].count() >= JUDGED_SLICES
    none = ~shows & judged & (facts["coverage_mm"] >= JUDGED_MM)
    facts["head"] = np.select([shows, none], ["yes", "no"], "unknown")
    places = rows["position_mm"].round(1).groupby(rows["series_id"]).nunique()
    facts["repeats"] = np.where((places > 0) & (facts["series_slices"] >= REPEATS * places), "yes", "no")
    return facts.drop(columns=NORMAL)


def _most_frequent(rows: pd.DataFrame, name: str) -> pd.Series:
    """Return each series' most frequent value of a column; the first in order of two that are equally frequent."""
    values = rows[name].astype(object)
    counts = values.groupby([rows["series_id"], values]).size().rename("count").reset_index()
    counts = counts.sort_values(["series_id", "count", name], ascending=[True, False, True])
    return counts.drop_duplicates("series_id").set_index("series_id")[name]


def _orientation(facts: pd.DataFrame) -> np.ndarray:
    known = facts[NORMAL].notna().all(axis=1)
    along = [facts[axis].abs() >= NEARLY for axis in PLANES.values()]
    return np.select([~known, *along], ["unknown", *PLANES], "oblique")


def _extent(rows: pd.DataFrame) -> pd.Series:
    """Return the distance between the first and last position of each series."""
    places = rows.groupby("series_id")["position_mm"]
    return places.max() - places.min()
