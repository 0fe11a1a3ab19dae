"""Positions of slices in the patient, their order and their spacing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SAME_PLACE_MM = 0.001
TWIN_SHARE = 0.3  # a step below this share of the steps around it lies between two scans of one place
MOST_SCANS = 3  # of one place; more are taken for a scan with thin slices
SIDES = ("LR", "PA", "HF")  # of the patient, to which x, y and z grow and fall (PS3.3 C.7.6.1.1.1)
ASIDE = 0.1  # smaller parts of a direction are not named: 6 degrees
NEAR_STEPS = 3  # steps on each side whose median is the spacing around a place


@dataclass(frozen=True)
class SliceGeometry:
    """A slice's position in patient coordinates, in mm (PS3.3 C.7.6.2); NaN for what the file doesn't say.

    ``position`` is the centre of the first pixel (x, y, z). ``orientation`` is the direction of a row, then that of a
    column. ``thickness_mm`` is SliceThickness, which is not the distance to the next slice.
    """

    position: tuple[float, ...]
    orientation: tuple[float, ...]
    row_spacing_mm: float
    column_spacing_mm: float
    thickness_mm: float


def slice_positions(positions: np.ndarray, orientations: np.ndarray) -> np.ndarray:
    """Return the position of each slice of a series along the series' normal, in mm, shape (N,).

    ``positions`` (N, 3) and ``orientations`` (N, 6) are those of :class:`SliceGeometry`. The normal belongs to the most
    frequent orientation, so that a stray slice doesn't change it. With a tilted gantry it is not the z axis, and
    differences along it are the true distances of slices. NaN for a slice or a series without geometry.
    """
    return places_along(series_normal(orientations), positions, orientations)


def places_along(normal: np.ndarray, positions: np.ndarray, orientations: np.ndarray) -> np.ndarray:
    """Return what :func:`slice_positions` does, for a series whose normal (3,) is known."""
    known = np.isfinite(positions).all(axis=1) & np.isfinite(orientations).all(axis=1)
    place = np.full(len(positions), np.nan)
    place[known] = positions[known] @ normal
    return place


def series_normal(orientations: np.ndarray) -> np.ndarray:
    """Return the unit normal (3,) of the most frequent orientation of a series, NaN if no slice has one.

    ``orientations`` (N, 6): direction of a row, then that of a column.
    """
    known = orientations[np.isfinite(orientations).all(axis=1)]
    if not len(known):
        return np.full(3, np.nan)
    rounded = known.round(3)
    most = 0
    if (rounded != rounded[0]).any():  # rare, and np.unique is slow
        _, first, counts = np.unique(rounded, axis=0, return_index=True, return_counts=True)
        most = first[counts.argmax()]
    return slice_normals(known[[most]])[0]


def slice_normals(orientations: np.ndarray) -> np.ndarray:
    """Return the unit normal of each slice, (N, 3), from ``orientations`` (N, 6); NaN for a slice without one."""
    normals = np.cross(orientations[:, :3], orientations[:, 3:])
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    return normals / np.where(lengths > 0, lengths, np.nan)


def direction_letters(direction: np.ndarray) -> str:
    """Return to which sides of the patient a unit vector (3,) points, the nearest first: L, R, A, P, H, F, or "PF"."""
    order = np.argsort(-np.abs(direction), kind="stable")
    return "".join(SIDES[axis][int(direction[axis] < 0)] for axis in order if abs(direction[axis]) > ASIDE)


def edge_letters(orientation: np.ndarray) -> tuple[str, str, str, str]:
    """Return which side of the patient lies at a picture's top, right, bottom and left edge.

    ``orientation`` (6,): direction of a row, then that of a column.
    """
    row, column = orientation[:3], orientation[3:]
    return direction_letters(-column), direction_letters(row), direction_letters(column), direction_letters(-row)


def slice_order(position_mm: np.ndarray, image_ids: np.ndarray) -> np.ndarray:
    """Return the indices that sort a series' slices by position, then by id. Unknown positions come last."""
    # Files store positions as decimal texts, so those that differ by less than a micrometre are equal.
    return np.lexsort((image_ids, np.round(position_mm, 3)))


def scanned_places(series: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the index of the first slice of each scanned place (S,), and the place's mean position (S,).

    The slices are sorted by series and position. A head may be scanned twice: slices whose distance is less than three
    tenths of the steps around it are at one place.
    """
    steps = np.diff(places)
    steps[np.diff(series) != 0] = np.inf
    apart = steps > SAME_PLACE_MM
    kept, twin = steps[apart], np.zeros(apart.sum(), dtype=bool)
    around = np.concatenate([np.full(1, np.inf), kept, np.full(MOST_SCANS, np.inf)])
    for run in range(1, MOST_SCANS):  # number of small steps between two large ones
        last = len(kept) - run + 1
        if last < 1:
            break
        largest = np.max([around[1 + offset : 1 + offset + last] for offset in range(run)], axis=0)
        bound = np.minimum(around[:last], around[1 + run : 1 + run + last])  # infinite beyond a series' ends
        small = np.isfinite(bound) & (largest < TWIN_SHARE * bound)
        for offset in range(run):
            twin[offset : offset + last] |= small
    new = apart.copy()
    new[np.flatnonzero(apart)[twin]] = False
    first = np.flatnonzero(np.concatenate([np.ones(min(len(places), 1), dtype=bool), new]))
    return first, np.add.reduceat(places, first) / np.diff(first, append=len(places))


def local_spacing(series: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the spacing around each place (S,): the median of the three steps on each side, 1 for a single place.

    Many heads have thin slices below and thick ones above. ``series`` (S,) and ``places`` (S,) hold an entry for each
    place that :func:`scanned_places` returns.
    """
    size = len(places)
    steps = np.full(size + 2 * NEAR_STEPS, np.nan)
    steps[NEAR_STEPS : NEAR_STEPS + size - 1] = np.where(np.diff(series) == 0, np.diff(places), np.nan)
    around = np.full((size, 2 * NEAR_STEPS), np.nan)
    for side, start in ((range(NEAR_STEPS), NEAR_STEPS), (range(-1, -NEAR_STEPS - 1, -1), NEAR_STEPS)):
        within = np.ones(size, dtype=bool)  # whether the series reaches this far
        for offset in side:
            values = steps[start + offset : start + offset + size]
            within &= np.isfinite(values)
            around[:, offset] = np.where(within, values, np.nan)
    around.sort(axis=1)  # NaN come last
    known = np.isfinite(around).sum(axis=1)
    low, high = np.maximum(known - 1, 0) // 2, np.minimum(known // 2, 2 * NEAR_STEPS - 1)
    rows = np.arange(size)
    return np.where(known > 0, (around[rows, low] + around[rows, high]) / 2, 1.0)


def series_spacing(series: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the median distance of consecutive places of each series, indexed by its number; NaN for a single place.

    ``series`` and ``places`` are those of :func:`local_spacing`.
    """
    spacing = np.full(series.max(initial=-1) + 1, np.nan)
    within = np.diff(series) == 0
    steps, owners = np.diff(places)[within], series[1:][within]
    order = np.lexsort((steps, owners))
    steps, owners = steps[order], owners[order]
    starts = np.flatnonzero(np.diff(owners, prepend=-1))
    sizes = np.diff(starts, append=len(owners))
    low, high = steps[starts + (sizes - 1) // 2], steps[starts + sizes // 2]
    spacing[owners[starts]] = (low + high) / 2
    return spacing
