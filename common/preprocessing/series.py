"""Where each slice stands in its series."""

from __future__ import annotations

import numpy as np
import pandas as pd

from common.dicom.geometry import slice_order, slice_positions

POSITION = ["x", "y", "z"]
ORIENTATION = ["row_x", "row_y", "row_z", "column_x", "column_y", "column_z"]
POSITION_DIGITS = 6  # of mm: what a decimal text of 16 characters can hold, without the last bits' noise


def place_slices(records: pd.DataFrame, series: np.ndarray) -> pd.DataFrame:
    """Return ``slice_index`` (0.. along each series) and ``position_mm`` for records with index ``image_id``.

    ``series`` (N,) names each record's series. See :func:`common.dicom.geometry.slice_positions` for the place and
    :func:`common.dicom.geometry.slice_order` for equal and unknown places.
    """
    ids = records.index.to_numpy(dtype=object)
    positions = records[POSITION].to_numpy(dtype=np.float64)
    orientations = records[ORIENTATION].to_numpy(dtype=np.float64)
    codes, _ = pd.factorize(series)
    by_series = np.lexsort((ids, codes))  # within a series by id, so that nothing depends on the records' order
    ends = np.flatnonzero(np.diff(codes[by_series])) + 1
    slice_index = np.zeros(len(records), dtype=np.int64)
    position_mm = np.full(len(records), np.nan)
    for rows in np.split(by_series, ends) if len(records) else ():
        place = slice_positions(positions[rows], orientations[rows]).round(POSITION_DIGITS)
        slice_index[rows[slice_order(place, ids[rows])]] = np.arange(len(rows))
        position_mm[rows] = place
    return pd.DataFrame({"slice_index": slice_index, "position_mm": position_mm}, index=records.index)
