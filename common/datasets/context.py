"""Neighbouring slices of a slice, by their places along the series and not by the order of files."""

from __future__ import annotations

import numpy as np

SAME_PLACE_MM = 0.001
TWIN_SHARE = 0.3  # of the steps around it: a step below that parts two scans of one place
MOST_SCANS = 3  # of one place, that are told from a scan of thin slices
NEAR_STEPS = 3  # on each side, whose median is the spacing around a place
TOLERANCE = 0.5  # of the spacing: farther from its place a slice is no neighbour


def slice_places(series: np.ndarray, positions_mm: np.ndarray, slice_index: np.ndarray) -> np.ndarray:
    """Return each slice's place along its series, in mm (N,): its position, NaN where it has none.

    A series without any position counts as one of equal steps of 1 in the order of ``slice_index``. ``series`` (N,)
    holds the series' numbers, from 0.
    """
    positions = np.asarray(positions_mm, dtype=np.float64)
    placed = np.bincount(series, weights=np.isfinite(positions), minlength=series.max(initial=-1) + 1) > 0
    return np.where(placed[series], positions, np.asarray(slice_index, dtype=np.float64))


def find_neighbours(series: np.ndarray, places: np.ndarray, slice_index: np.ndarray, count: int) -> np.ndarray:
    """Return the rows of each slice's neighbours, int64 (N, 2 · ``count`` + 1); the middle one is the slice itself.

    The next neighbour is the first slice of the same series that lies one spacing farther on, give or take half of it.
    The spacing is that of the neighbourhood, since many heads have thin slices below and thick ones above:
    the median of the three steps on each side. Where there is no such slice, beyond the ends and in a gap, the one
    before it towards the middle stands there again, and the one after it is looked for one spacing farther.

    A head that was scanned twice, at the same places or some tenths of a millimetre beside them, is not mixed: slices
    whose distance is less than three tenths of the steps around it are at one place, and of these the one with the same
    number among them, by place and ``slice_index``, is taken. A slice without a place (NaN) has only itself, and is
    nobody's neighbour.
    """
    rows = np.arange(len(series))
    found = np.repeat(rows[:, None], 2 * count + 1, axis=1)
    order = np.lexsort((slice_index, places, series))
    order = order[np.isfinite(places[order])]
    if count == 0 or len(order) == 0:
        return found
    own_series, own_places = series[order], places[order]
    first = _sites(own_series, own_places)  # of the slices at one place
    sizes = np.diff(first, append=len(order))
    site = np.repeat(np.arange(len(first)), sizes)
    number = np.arange(len(order)) - first[site]
    line, spacing = _on_one_line(own_series[first], np.add.reduceat(own_places, first) / sizes, count)
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
            # A slice that has none keeps its own row, also where others lie at its place.
            found[order, slot] = np.where(there[site], neighbour, found[order, slot - direction])
    return found


def _sites(series: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return where each place begins among slices that are sorted by series and place, (S,)."""
    steps = np.diff(places)
    steps[np.diff(series) != 0] = np.inf
    apart = steps > SAME_PLACE_MM
    kept, twin = steps[apart], np.zeros(apart.sum(), dtype=bool)
    around = np.concatenate([np.full(1, np.inf), kept, np.full(MOST_SCANS, np.inf)])
    for run in range(1, MOST_SCANS):  # so many small steps between two large ones
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
    return np.flatnonzero(np.concatenate([[True], new]))


def _on_one_line(series: np.ndarray, centers: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of all series on one line (S,), each series far from the next, and the spacing at each (S,)."""
    size = len(centers)
    steps = np.full(size + 2 * NEAR_STEPS, np.nan)
    steps[NEAR_STEPS : NEAR_STEPS + size - 1] = np.where(np.diff(series) == 0, np.diff(centers), np.nan)
    around = np.full((size, 2 * NEAR_STEPS), np.nan)
    for side, start in ((range(NEAR_STEPS), NEAR_STEPS), (range(-1, -NEAR_STEPS - 1, -1), NEAR_STEPS)):
        within = np.ones(size, dtype=bool)  # the series has not ended between
        for offset in side:
            values = steps[start + offset : start + offset + size]
            within &= np.isfinite(values)
            around[:, offset] = np.where(within, values, np.nan)
    around.sort(axis=1)  # NaN come last
    known = np.isfinite(around).sum(axis=1)
    low, high = np.maximum(known - 1, 0) // 2, np.minimum(known // 2, 2 * NEAR_STEPS - 1)
    rows = np.arange(size)
    spacing = np.where(known > 0, (around[rows, low] + around[rows, high]) / 2, 1.0)
    new = np.diff(series, prepend=series[0] - 1) != 0
    relative = centers - np.repeat(centers[new], np.diff(np.flatnonzero(new), append=size))
    return relative + (np.cumsum(new) - 1) * (relative.max() + 2 * (count + 1) * spacing.max()), spacing


def _first_within(
    line: np.ndarray, wanted: np.ndarray, reach: np.ndarray, direction: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return which of the sorted places is the first, in a direction, of those within ``reach``; whether there is one.

    All are (S,).
    """
    found = np.searchsorted(line, wanted - direction * reach, side="left" if direction > 0 else "right")
    found = (found if direction > 0 else found - 1).clip(0, len(line) - 1)
    return found, np.abs(line[found] - wanted) <= reach


def describe_lacks(neighbours: np.ndarray) -> str:
    """Say of how many slices a neighbour is missing; ``neighbours`` (N, 2 · count + 1) as :func:`find_neighbours`."""
    same = neighbours[:, 1:] == neighbours[:, :-1]
    lacking = same.any(axis=1)
    alone = same.all(axis=1)
    count = neighbours.shape[1] // 2
    # At an end of a series all that lies beyond is missing, and nothing on the other side.
    ends = lacking & ~alone & (~same[:, :count].any(axis=1) | ~same[:, count:].any(axis=1))
    return (
        f"{int(lacking.sum()):,} of {len(same):,} slices lack a neighbour, and the nearest slice towards the middle "
        f"stands in its place: {int(ends.sum()):,} at one side, {int((lacking & ~ends & ~alone).sum()):,} at both, "
        f"{int(alone.sum()):,} that have none at all"
    )


def series_spacing(series: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the median distance of consecutive places for each number of a series; 1 where there is one place only.

    ``series`` and ``places`` are sorted by both, without repeats.
    """
    spacing = np.ones(series.max(initial=-1) + 1)
    within = np.diff(series) == 0
    steps, owners = np.diff(places)[within], series[1:][within]
    order = np.lexsort((steps, owners))
    steps, owners = steps[order], owners[order]
    starts = np.flatnonzero(np.diff(owners, prepend=-1))
    sizes = np.diff(starts, append=len(owners))
    low, high = steps[starts + (sizes - 1) // 2], steps[starts + sizes // 2]
    spacing[owners[starts]] = (low + high) / 2
    return spacing
