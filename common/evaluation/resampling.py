"""Bootstrap over patients: sums over random samples of whole patients, and the intervals that follow from them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

CHUNK_COUNTS = 2**23  # of a chunk of draws: 64 MiB of how often each patient was drawn
LEVEL = 0.95
MIN_SHARE = 0.9  # of the draws that must have a value


class PatientBootstrap:
    """Random samples, with replacement, of as many patients as there are (cluster bootstrap).

    Whatever adds up over images (a loss, a count, a histogram's bin) is summed once for each patient, so that a draw
    costs one product of matrices. The same ``seed`` gives the same draws for any values: differences are paired.
    """

    def __init__(self, patients: npt.ArrayLike, draws: int = 2000, seed: int = 0) -> None:
        """``patients`` (N,) names each image's patient; ValueError where there is none."""
        names, self.place = np.unique(np.asarray(patients), return_inverse=True)
        if len(names) == 0:
            raise ValueError("no image, so there is no patient to draw")
        self.count = len(names)
        self.draws = draws
        self.seed = seed

    def by_patient(self, values: npt.ArrayLike) -> Array:
        """Return the sums over each patient's images of ``values`` (N, K): (patients, K)."""
        columns = np.asarray(values, dtype=np.float64).T
        return np.stack([np.bincount(self.place, column, self.count) for column in columns], axis=1)

    def histograms(self, bins: npt.NDArray[np.int64], weights: npt.ArrayLike, count: int) -> Array:
        """Return each patient's histogram (patients, ``count``) of ``bins`` (N,); images count ``weights`` (N,)."""
        cells = np.bincount(self.place * count + bins, np.asarray(weights, np.float64), self.count * count)
        return cells.reshape(self.count, count)

    def totals(self, sums: Array) -> Array:
        """Return for each draw the sum of ``sums`` (patients, K) over its patients, repeats counted: (draws, K)."""
        return np.concatenate([counts @ sums for counts in self._counts()])

    def _counts(self) -> Iterator[Array]:
        """Yield how often each patient was drawn, (draws, patients) chunk by chunk."""
        generator = np.random.default_rng(self.seed)
        rows = max(1, CHUNK_COUNTS // self.count)
        for start in range(0, self.draws, rows):
            number = min(rows, self.draws - start)
            # A draw is read from the generator as a whole, so that the chunks' size changes nothing.
            drawn = generator.integers(0, self.count, (number, self.count))
            cells = np.arange(number)[:, None] * self.count + drawn
            counts = np.bincount(cells.ravel(), minlength=number * self.count)
            yield counts.reshape(number, self.count).astype(np.float64)


def interval(draws: npt.ArrayLike, level: float = LEVEL) -> tuple[float, float]:
    """Return the percentile interval of ``draws``; NaN where more than a tenth of the draws have no value (NaN).

    A metric that needs both classes has none where a draw lacks one. Leaving out many such draws would make the
    interval of a rare label look narrower than it is.
    """
    values = np.asarray(draws, dtype=np.float64)
    known = values[~np.isnan(values)]
    if len(known) < MIN_SHARE * len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def verdict(low: float, high: float, *, smaller_is_better: bool) -> str:
    """Say what a difference's interval shows: ``better``, ``worse``, or ``no difference shown`` where it holds 0."""
    if not (high < 0 or low > 0):
        return "no difference shown"
    return "better" if (high < 0) == smaller_is_better else "worse"
