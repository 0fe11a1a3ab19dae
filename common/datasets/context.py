"""Finds a slice's neighbours by their places along the series, not by the order of files."""

from __future__ import annotations

import numpy as np

from common.dicom.geometry import SAME_PLACE_MM, local_spacing, scanned_places

TOLERANCE = 0.5  # share of the spacing by which a neighbour may miss its place


def slice_places(series: np.ndarray, positions_mm: np.ndarray, slice_index: np.ndarray) -> np.ndarray:
    """Return each slice's place along its series in mm (N,): its position, or NaN.

    A series without any position gets equal steps of 1 in the order of ``slice_index``. ``series`` (N,) numbers the
    series from 0.
    """
    positions = np.asarray(positions_mm, dtype=np.float64)
    placed = np.bincount(series, weights=np.isfinite(positions), minlength=series.max(initial=-1) + 1) > 0
    return np.where(placed[series], positions, np.asarray(slice_index, dtype=np.float64))


def find_neighbours(series: np.ndarray, places: np.ndarray, slice_index: np.ndarray, count: int) -> np.ndarray:
    """Return the rows of each slice's neighbours, int64 (N, 2 · ``count`` + 1); the middle one is the slice itself.

    The next neighbour is the first slice of the same series that lies one spacing farther on, give or take half of it.
    The spacing is local, the median of the three steps on each side: many heads have thin slices below and thick ones
    above. Beyond the ends and in a gap there is no such slice. The last neighbour towards the middle is then repeated,
    and the search goes on one spacing farther.

    Two scans of a head, at the same places or some tenths of a millimetre apart, are not mixed. Slices closer than
    three tenths of the steps around them share one place. Of these, the neighbour is the one with the same number among
    them, counted by place and ``slice_index``. A slice without a place (NaN) has only itself and is nobody's neighbour.
    """
    rows = np.arange(len(series))
    found = np.repeat(rows[:, None], 2 * count + 1, axis=1)
    order = np.lexsort((slice_index, places, series))
    order = order[np.isfinite(places[order])]
    if count == 0 or len(order) == 0:
        return found
    own_series, own_places = series[order], places[order]
    first, centers = scanned_places(own_series, own_places)  # of the slices at one place
    sizes = np.diff(first, append=len(order))
    site = np.repeat(np.arange(len(first)), sizes)
    number = np.arange(len(order)) - first[site]
    spacing = local_spacing(own_series[first], centers)
    line = _on_one_line(own_series[first], centers, spacing, count)
    for direction in (-1, 1):
        here, place, step = np.arange(len(first)), line, spacing
        for distance in range(1, count + 1):
            place = place + direction * step
            near, there = _first_within(line, place, TOLERANCE * step + SAME_PLACE_MM, direction)
            there &= near != here
            here, place = np.where(there, near, here), np.where(there, line[near], place)
            step = np.where(there, spacing[near], step)
            slot = count + direction * distance
            neighbour = order[first[here[site]] + np.minimum(number, sizes[here[site]] - 1)]
            # Without a neighbour a slice keeps its own row, even if others share its place.
            found[order, slot] = np.where(there[site], neighbour, found[order, slot - direction])
    return found


def _on_one_line(series: np.ndarray, centers: np.ndarray, spacing: np.ndarray, count: int) -> np.ndarray:
    """Return the places of all series on one line (S,), each series far from the next."""
    new = np.diff(series, prepend=series[0] - 1) != 0
    relative = centers - np.repeat(centers[new], np.diff(np.flatnonzero(new), append=len(centers)))
    return relative + (np.cumsum(new) - 1) * (relative.max() + 2 * (count + 1) * spacing.max())


def _first_within(
    line: np.ndarray, wanted: np.ndarray, reach: np.ndarray, direction: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the index of the first of the sorted places, in a direction, within ``reach`` of the wanted one.

    The second array says whether there is one. All are (S,).
    """
    found = np.searchsorted(line, wanted - direction * reach, side="left" if direction > 0 else "right")
    found = (found if direction > 0 else found - 1).clip(0, len(line) - 1)
    return found, np.abs(line[found] - wanted) <= reach


def describe_lacks(neighbours: np.ndarray) -> str:
    """Say how many slices lack a neighbour; ``neighbours`` (N, 2 · count + 1) come from :func:`find_neighbours`."""
    same = neighbours[:, 1:] == neighbours[:, :-1]
    lacking = same.any(axis=1)
    alone = same.all(axis=1)
    count = neighbours.shape[1] // 2
    # A slice at an end of its series lacks neighbours on one side only.
    ends = lacking & ~alone & (~same[:, :count].any(axis=1) | ~same[:, count:].any(axis=1))
    return (
        f"{int(lacking.sum()):,} of {len(same):,} slices lack a neighbour, and the nearest slice towards the middle "
        f"stands in its place: {int(ends.sum()):,} at one side, {int((lacking & ~ends & ~alone).sum()):,} at both, "
        f"{int(alone.sum()):,} that have none at all"
    )
