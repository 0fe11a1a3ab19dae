"""Where slices lie in the patient and in which order they stand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SliceGeometry:
    """Where a slice lies, in millimetres of patient coordinates (PS3.3 C.7.6.2); NaN for what the file doesn't say.

    ``position``: of the first pixel's centre (x, y, z); ``orientation``: direction of a row, then of a column;
    ``thickness_mm`` as the file says it, which is not the distance to the next slice.
    """

    position: tuple[float, ...]
    orientation: tuple[float, ...]
    row_spacing_mm: float
    column_spacing_mm: float
    thickness_mm: float


def slice_positions(positions: np.ndarray, orientations: np.ndarray) -> np.ndarray:
    """Return the place of each slice of a series along the series' normal, in mm, shape (N,).

    ``positions`` (N, 3) and ``orientations`` (N, 6) are in mm as in :class:`SliceGeometry`. The normal is that of the
    orientation that most slices have, so that a stray slice doesn't turn it. With a tilted gantry it is not the z
    axis, and differences along it are the slices' true distances. NaN for a slice or a series without geometry.
    """
    return places_along(series_normal(orientations), positions, orientations)


def places_along(normal: np.ndarray, positions: np.ndarray, orientations: np.ndarray) -> np.ndarray:
    """Return what :func:`slice_positions` does, for a series whose normal (3,) is known."""
    known = np.isfinite(positions).all(axis=1) & np.isfinite(orientations).all(axis=1)
    place = np.full(len(positions), np.nan)
    place[known] = positions[known] @ normal
    return place


def series_normal(orientations: np.ndarray) -> np.ndarray:
    """Return the unit normal (3,) of the orientation that most of a series' slices have; NaN where none has any.

    ``orientations`` (N, 6): direction of a row, then of a column.
    """
    known = orientations[np.isfinite(orientations).all(axis=1)]
    if not len(known):
        return np.full(3, np.nan)
    rounded = known.round(3)
    most = 0
    if (rounded != rounded[0]).any():  # hardly ever, and then it takes its time
        _, first, counts = np.unique(rounded, axis=0, return_index=True, return_counts=True)
        most = first[counts.argmax()]
    return slice_normals(known[[most]])[0]


def slice_normals(orientations: np.ndarray) -> np.ndarray:
    """Return the unit normal of each slice, (N, 3), from ``orientations`` (N, 6); NaN where they have none."""
    normals = np.cross(orientations[:, :3], orientations[:, 3:])
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    return normals / np.where(lengths > 0, lengths, np.nan)


def slice_order(position_mm: np.ndarray, image_ids: np.ndarray) -> np.ndarray:
    """Return the indices that put a series' slices in order: by position, equal ones by id, unknown ones last."""
    # Positions are decimal texts in the file: what differs by less than a micrometre is the same place.
    return np.lexsort((image_ids, np.round(position_mm, 3)))
