"""Find each slice's position in its series, and what is unusual about it."""

from __future__ import annotations

import numpy as np
import pandas as pd

from common.dicom.geometry import (
    SAME_PLACE_MM,
    local_spacing,
    places_along,
    scanned_places,
    series_normal,
    series_spacing,
    slice_normals,
    slice_order,
)

POSITION = ["x", "y", "z"]
ORIENTATION = ["row_x", "row_y", "row_z", "column_x", "column_y", "column_z"]
NORMAL = ["normal_x", "normal_y", "normal_z"]
POSITION_DIGITS = 6  # of mm: a decimal text of 16 characters holds these, and rounding removes noise in the last bits
SAME_DIRECTION = np.cos(np.deg2rad(1))
GAP = 1.5  # times the spacing on both sides
FEW_SINGLES = 3  # series of one slice in a study, or studies of one slice; fewer are just stray images


def place_slices(records: pd.DataFrame, series: np.ndarray, ties: np.ndarray | None = None) -> pd.DataFrame:
    """Return the position of each record (index ``image_id``) in its series, which ``series`` (N,) names.

    - ``slice_index``: 0.. along the series, by position, then by ``ties`` (N,), or by id without ``ties``. Slices
      without a position come last.
    - ``position_mm``: the position along the series' normal; see :func:`common.dicom.geometry.slice_positions`. NaN if
      it is unknown, or if the slice has another orientation than most.
    - ``slice_spacing_mm``: the series' median distance of neighbours, along the normal and not along z. Two scans of
      one place count once.
    - ``normal_x``, ``normal_y``, ``normal_z``: the series' unit normal.
    - ``geometry``: names of what is unusual, joined by ``;``: no_position, other_orientation, repeated_position,
      single_slice, gap. A gap to the slice before is more than 1.5 times the spacing around both slices (see
      :func:`common.dicom.geometry.local_spacing`).
    """
    ties = records.index.to_numpy(dtype=object) if ties is None else ties
    positions = records[POSITION].to_numpy(dtype=np.float64)
    orientations = records[ORIENTATION].to_numpy(dtype=np.float64)
    normals = slice_normals(orientations)
    codes, _ = pd.factorize(series)
    by_series = np.lexsort((ties, codes))  # sorted within a series, so that nothing depends on the order of records
    ends = np.flatnonzero(np.diff(codes[by_series])) + 1
    slice_index = np.zeros(len(records), dtype=np.int64)
    position_mm = np.full(len(records), np.nan)
    series_normals = np.full((len(records), 3), np.nan)
    marks = {name: np.zeros(len(records), dtype=bool) for name in ("no_position", "other_orientation",
             "repeated_position", "gap", "single_slice")}  # fmt: skip
    for rows in np.split(by_series, ends) if len(records) else ():
        normal = series_normal(orientations[rows])
        place = places_along(normal, positions[rows], orientations[rows]).round(POSITION_DIGITS)
        marks["no_position"][rows] = np.isnan(place)
        other = normals[rows] @ normal < SAME_DIRECTION
        place[other] = np.nan
        order = slice_order(place, ties[rows])
        steps = np.diff(place[order])
        same = steps <= SAME_PLACE_MM
        slice_index[rows[order]] = np.arange(len(rows))
        position_mm[rows], series_normals[rows] = place, normal
        marks["other_orientation"][rows] = other
        marks["repeated_position"][rows[order[1:][same]]] = marks["repeated_position"][rows[order[:-1][same]]] = True
        marks["single_slice"][rows] = len(rows) == 1
    line = np.lexsort((slice_index, codes))
    line = line[np.isfinite(position_mm[line])]
    first, centers = scanned_places(codes[line], position_mm[line])
    owners = codes[line][first]
    around = local_spacing(owners, centers)
    hole = (np.diff(centers) > GAP * np.maximum(around[1:], around[:-1])) & (np.diff(owners) == 0)
    marks["gap"][line[first[1:][hole]]] = True
    found = series_spacing(owners, centers).round(POSITION_DIGITS)
    spacings = np.pad(found, (0, codes.max(initial=-1) + 1 - len(found)), constant_values=np.nan)
    geometry = np.full(len(records), "", dtype=object)
    unusual = np.flatnonzero(np.any(list(marks.values()), axis=0))
    geometry[unusual] = [";".join(name for name, flags in marks.items() if flags[row]) for row in unusual]
    placed = {"slice_index": slice_index, "position_mm": position_mm, "slice_spacing_mm": spacings[codes]}
    placed |= dict(zip(NORMAL, series_normals.round(POSITION_DIGITS).T + 0.0, strict=True))  # + 0: no minus zero
    return pd.DataFrame(placed | {"geometry": geometry}, index=records.index)


def describe_singles(table: pd.DataFrame) -> str:
    """Return a message on slices that are each a series or a study of their own, as in broken exports; "" for few.

    ``table`` is the metadata with patient_id, study_id and series_id, "" if unknown. Such series count if a study has
    several and they are at least half of its slices. Such studies count if that is true of a patient.
    """
    patient, study, series = (table[name].astype(object) for name in ("patient_id", "study_id", "series_id"))
    study = study.where(study != "", series)
    series = series.where(series != "", study)
    if study[study != ""].is_unique:  # if each is also a patient of its own, treat all as one patient
        patient = patient.where(patient.duplicated(keep=False), "")
    parts = []
    alone_study = (study != "") & ~study.duplicated(keep=False)
    broken_study = alone_study & _mostly(alone_study, patient)
    if broken_study.any():
        parts.append(f"{int(broken_study.sum()):,} slices are each a study of their own (StudyInstanceUID)")
    alone = (series != "") & ~series.duplicated(keep=False) & ~alone_study
    broken = alone & _mostly(alone, study)
    if broken.any():
        studies = study[broken].nunique()
        parts.append(f"{int(broken.sum()):,} slices in {studies:,} studies are each a series of their own "
                     "(SeriesInstanceUID)")  # fmt: skip
    if not parts:
        return ""
    return (
        f"{', '.join(parts)}: a broken export. Neighbouring slices, sequence models and predictions of studies see "
        "single slices there; export these studies again"
    )


def _mostly(marked: pd.Series, group: pd.Series) -> pd.Series:
    """Whether several slices of a slice's group, and at least half of it, are ``marked``."""
    count = marked.groupby(group).transform("sum")
    return (count >= FEW_SINGLES) & (2 * count >= marked.groupby(group).transform("size"))
