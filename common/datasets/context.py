"""Neighbouring slices of a slice, by their places along the series and not by the order of files."""

from __future__ import annotations

import numpy as np

SAME_PLACE_MM = 0.001
TOLERANCE = 0.5  # of the series' spacing: farther from its place a slice is no neighbour


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

    The neighbour ``j`` is the slice of the same series that is nearest to the slice's place plus ``j`` times the
    series' spacing (the median distance of different places), and at most half a spacing from there. Where there is
    none, beyond the ends and in a gap, the one before it towards the middle stands there again. Of several slices at
    one place the one with the same number among them, by ``slice_index``, is taken, so that a head that was scanned
    twice is not mixed. A slice without a place (NaN) has only itself, and is nobody's neighbour.
    """
    rows = np.arange(len(series))
    found = np.repeat(rows[:, None], 2 * count + 1, axis=1)
    order = np.lexsort((slice_index, places, series))
    order = order[np.isfinite(places[order])]
    if count == 0 or len(order) == 0:
        return found
    own_series, own_places = series[order], places[order]
    new_series = np.diff(own_series, prepend=own_series[0] - 1) != 0
    new_place = new_series | (np.diff(own_places, prepend=own_places[0]) > SAME_PLACE_MM)
    first = np.flatnonzero(new_place)  # of the slices at one place
    sizes = np.diff(first, append=len(order))
    site = np.cumsum(new_place) - 1
    number = np.arange(len(order)) - first[site]
    spacing = series_spacing(own_series[first], own_places[first])[own_series]
    # All series on one line, so far apart that no neighbour lies in another one.
    starts = own_places[np.flatnonzero(new_series)]
    relative = own_places - np.repeat(starts, np.diff(np.flatnonzero(new_series), append=len(order)))
    step = relative.max() + (count + 1) * spacing.max()
    line = relative + (np.cumsum(new_series) - 1) * step
    sites = line[first]
    for direction in (-1, 1):
        for distance in range(1, count + 1):
            wanted = line + direction * distance * spacing
            right = np.searchsorted(sites, wanted)
            left, right = (right - 1).clip(min=0), right.clip(max=len(sites) - 1)
            near = np.where(wanted - sites[left] <= sites[right] - wanted, left, right)
            there = (np.abs(sites[near] - wanted) <= TOLERANCE * spacing + SAME_PLACE_MM) & (near != site)
            neighbour = order[first[near] + np.minimum(number, sizes[near] - 1)]
            slot = count + direction * distance
            found[order, slot] = np.where(there, neighbour, found[order, slot - direction])
    return found


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
