"""How far several readers agree on one label, beyond chance."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def fleiss_kappa(votes: npt.ArrayLike) -> float:
    """Return Fleiss' kappa (1971, doi 10.1037/h0031619) of the categories (N subjects, M readers) that readers chose.

    1: they always agree. 0: as often as chance. NaN where all votes are the same, so that chance agrees always too.
    Raises ValueError for fewer than two readers.
    """
    chosen = np.asarray(votes)
    if chosen.ndim != 2 or chosen.shape[1] < 2 or not len(chosen):
        raise ValueError(f"votes (subjects, at least two readers) expected, got shape {chosen.shape}")
    readers = chosen.shape[1]
    counts = np.stack([(chosen == category).sum(axis=1) for category in np.unique(chosen)], axis=1).astype(np.float64)
    agreed = float(((counts**2).sum(axis=1) - readers).mean() / (readers * (readers - 1)))
    by_chance = float(((counts.sum(axis=0) / counts.sum()) ** 2).sum())
    return (agreed - by_chance) / (1 - by_chance) if by_chance < 1 else float("nan")
