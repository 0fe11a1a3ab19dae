"""How sure a metric is: what each patient adds to it, bootstrap draws of whole patients, and intervals.

The error comes from the patients' parts: how far the metric moves with each patient's weight (infinitesimal jackknife,
Efron 1982; for a mean the sandwich of Liang and Zeger 1986). If the positive patients decide, they also give the
small-sample factor and the degrees of freedom of Student's quantile. `benchmarks/coverage.py` shows how often the
intervals hold the true value, from how many patients on, and what was tried instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

CHUNK_COUNTS = 2**23  # counts in a chunk of draws: 64 MiB
LEVEL = 0.95
MIN_SHARE = 0.9  # of the draws must have a value
LARGEST_LOG = 700.0  # its exponential is still finite
FEWEST_PATIENTS = 20  # with fewer, benchmarks/coverage.py finds no useful interval that holds its level
FEWEST_OF_A_SIDE = 5
UNLABELLED = "nobody labelled it"
MOST_TAKEN = 0.5  # of a variance, for what two patients do together; less where few show it: half of it at 15
FULLY_TAKEN = 30.0


def effective_number(counts: npt.ArrayLike) -> float:
    """Return how many patients of equal weight would tell as much: (Σ n)² / Σ n² of the patients' ``counts`` (P,).

    Example: if one of 5 patients has nearly all positive slices, it is hardly more than 1 (Kish 1965). 0 for no counts.
    """
    values = np.asarray(counts, dtype=np.float64)
    squares = float(values @ values)
    return float(values.sum() ** 2 / squares) if squares else 0.0


@dataclass(frozen=True)
class Evidence:
    """The patients behind a metric: all ``patients``, those with a ``positive`` and those with a ``negative`` image.

    ``effective``: the rarer side's effective number. ``with_positive`` (P,): which patients have a positive image.
    ``labelled`` (P,): which have an image with the label; None: all. A side is None if the metric doesn't depend on it,
    see :meth:`of_one_side`.
    """

    patients: int
    positive: int | None
    negative: int | None
    effective: float
    with_positive: Bools = field(repr=False, compare=False)
    labelled: Bools | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of_one_side(cls, counts: npt.ArrayLike) -> Evidence:
        """Return the evidence of a metric of positive images only, or of negative ones only; ``counts`` (P,)."""
        return cls(int(np.count_nonzero(counts)), None, None, effective_number(counts), np.ones(np.shape(counts), bool))

    @classmethod
    def of_sides(cls, positive: Array, negative: Array) -> Evidence:
        """Return the evidence of patients with these numbers of ``positive`` and ``negative`` images (P,)."""
        present = [int(np.count_nonzero(side)) for side in (positive + negative, positive, negative)]
        rarer = min(effective_number(positive), effective_number(negative))
        return cls(*present, rarer, positive > 0, positive + negative > 0)

    @property
    def reason(self) -> str:
        """Why there is no interval, in words; empty if there is one."""
        if self.patients == 0:
            return UNLABELLED
        if self.patients < FEWEST_PATIENTS:
            return f"{_counted(self.patients, 'patient')}, and an interval needs {FEWEST_PATIENTS}"
        for number, what in ((self.positive, "positive patient"), (self.negative, "negative patient")):
            if number is not None and number < FEWEST_OF_A_SIDE:
                return f"{_counted(number, what)}, and an interval needs {FEWEST_OF_A_SIDE}"
        return ""

    @property
    def freedom(self) -> float:
        """Degrees of freedom of a metric that the rarer side's patients decide; at least 1."""
        return max(self.effective - 1, 1.0)

    @property
    def text(self) -> str:
        """The number of patients, and of positive ones if known."""
        positive = "" if self.positive is None else f", {self.positive} positive"
        return f"{_counted(self.patients, 'patient')}{positive}"

    def freedom_of(self, parts: Array) -> float:
        """Return the degrees of freedom of the variance of a sum of patients' ``parts`` (P,).

        These are Satterthwaite's (1946), given the number of positive patients. Differences within each side count, the
        difference between the sides doesn't: it adds no doubt about the variance. At least :attr:`freedom`.
        """
        others = ~self.with_positive if self.labelled is None else self.labelled & ~self.with_positive
        sides = [parts[self.with_positive], parts[others]]
        if min(map(len, sides)) < 2:
            return self.freedom
        own, others = (float(((side - side.mean()) ** 2).sum()) for side in sides)
        doubt = own**2 / self.freedom + others**2 / (len(sides[1]) - 1)
        return max(float(parts @ parts) ** 2 / doubt, self.freedom) if doubt > 0 else self.freedom

    def interval(self, value: float, error: float, freedom: float, scale: str = "plain") -> tuple[float, float]:
        """Return the ends of :func:`student_interval`; NaN if there is a :attr:`reason` for none."""
        if self.reason:
            return float("nan"), float("nan")
        low, high = student_interval(value, error, freedom, scale)
        return float(low), float(high)

    def mean_interval(self, value: float, parts: Array, scale: str = "plain") -> tuple[float, float]:
        """Return the interval of a mean over images, or of its change; ``parts`` (P,) are centred on 0."""
        error = float(np.sqrt(parts @ parts * self.patients / max(self.patients - 1, 1)))
        return self.interval(value, error, self.freedom_of(parts), scale)

    def rank_interval(self, value: float, parts: Array) -> tuple[float, float]:
        """Return the interval of an average precision, which the rarer side's patients decide."""
        return self.interval(value, float(np.sqrt(self._first_order(parts))), self.freedom, "share")

    def jackknife_interval(self, value: float, left_out: Array) -> tuple[float, float]:
        """Return the interval of an AUROC; ``left_out`` (P,): how far it moves where each patient is left out.

        The parts of few positive patients understate an AUROC's error: each of them is much of its side, so that the
        side looks more alike with it than without it (Efron and Stein 1981).
        """
        return self.interval(value, float(np.sqrt(left_out @ left_out)), self.freedom, "share")

    def change_interval(self, change: float, parts: Array, rest: Array) -> tuple[float, float]:
        """Return the interval of a difference of two metrics that are no means; ``rest`` (D,): see :data:`MOST_TAKEN`.

        ``parts`` count twice what two patients do together, which is much of how two models differ: its variance, seen
        in what the draws have beyond the sum of the parts, is taken off once (Efron and Stein 1981).
        """
        first = self._first_order(parts)
        kept = max(1 - MOST_TAKEN, 1 - self.effective / FULLY_TAKEN)
        variance = max(first - error_of(rest) ** 2, kept * first)
        return self.interval(change, float(np.sqrt(variance)), self.freedom_of(parts))

    def _first_order(self, parts: Array) -> float:
        """Return the variance that ``parts`` (P,) show, of which the rarer side's patients are a sample."""
        return float(parts @ parts) * (self.freedom + 1) / self.freedom


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)


class PatientBootstrap:
    """Cluster bootstrap: each draw takes as many patients as there are, with replacement.

    Values that add up over images (a loss, a count, a histogram's bin) are summed once for each patient, so that a draw
    costs one product of matrices. The same ``seed`` gives the same draws for any values, so differences are paired.
    """

    def __init__(self, patients: npt.ArrayLike, draws: int = 2000, seed: int = 0) -> None:
        """``patients`` (N,) names each image's patient; ValueError without any."""
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
        """Return each patient's histogram (patients, ``count``) of ``bins`` (N,), weighted by ``weights`` (N,)."""
        cells = np.bincount(self.place * count + bins, np.asarray(weights, np.float64), self.count * count)
        return cells.reshape(self.count, count)

    def evidence(self, positive: npt.ArrayLike, known: npt.ArrayLike = True) -> Evidence:
        """Return the patients behind a metric of these images; ``positive`` (N,) marks the positive ones.

        ``known`` (N,) marks those with a label; the others don't count.
        """
        truth = np.asarray(positive, dtype=bool)
        return Evidence.of_sides(*(np.bincount(self.place, side & known, self.count) for side in (truth, ~truth)))

    def totals(self, sums: Array) -> Array:
        """Return for each draw the total of ``sums`` (patients, K) over its patients, counting repeats: (draws, K)."""
        return np.concatenate([counts @ sums for counts in self._counts()])

    def _counts(self) -> Iterator[Array]:
        """Yield how often each patient was drawn, (draws, patients) chunk by chunk."""
        generator = np.random.default_rng(self.seed)
        rows = max(1, CHUNK_COUNTS // self.count)
        for start in range(0, self.draws, rows):
            number = min(rows, self.draws - start)
            # The generator gives each draw as a whole, so that the size of the chunks changes nothing.
            drawn = generator.integers(0, self.count, (number, self.count))
            cells = np.arange(number)[:, None] * self.count + drawn
            counts = np.bincount(cells.ravel(), minlength=number * self.count)
            yield counts.reshape(number, self.count).astype(np.float64)


def error_of(draws: npt.ArrayLike) -> float:
    """Return the standard deviation of ``draws``; NaN if more than a tenth of them have no value (NaN).

    A metric that needs both classes has no value in a draw with one class. Leaving out many such draws would make the
    interval of a rare label too narrow.
    """
    values = np.asarray(draws, dtype=np.float64)
    known = values[~np.isnan(values)]
    return float(known.std(ddof=1)) if len(known) >= max(2, MIN_SHARE * len(values)) else float("nan")


def student_interval(
    value: npt.ArrayLike, error: npt.ArrayLike, freedom: npt.ArrayLike, scale: str = "plain", level: float = LEVEL
) -> tuple[Array, Array]:
    """Return low and high of Student's interval of ``value`` on a ``scale``: plain, log (above 0) or share (0 to 1).

    ``error`` and ``freedom`` broadcast with ``value``. The interval of a share is Wilson's (1927) for as many
    independent cases as would have this error. At 0 and 1 no error can be seen; the number of cases is then the degrees
    of freedom plus one.
    """
    middle, spread = np.asarray(value, dtype=np.float64), np.asarray(error, dtype=np.float64)
    times = stdtrit(freedom, (1 + level) / 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        if scale == "plain":
            return middle - times * spread, middle + times * spread
        if scale == "log":
            factor = np.exp(np.minimum(times * spread / middle, LARGEST_LOG))
            return middle / factor, middle * factor
        single = middle * (1 - middle)  # the variance of one case
        doubt = np.where(single > 0, (times * spread) ** 2 / single, times**2 / (np.asarray(freedom) + 1) + 0 * spread)
    centre, half = (middle + doubt / 2) / (1 + doubt), np.sqrt(doubt * single + doubt**2 / 4) / (1 + doubt)
    return np.minimum(centre - half, middle), np.maximum(centre + half, middle)


def mean_interval(
    bootstrap: PatientBootstrap,
    values: npt.ArrayLike,
    positive: npt.ArrayLike,
    scale: str = "plain",
    weights: npt.ArrayLike = 1.0,
) -> tuple[float, float, Evidence]:
    """Return low and high of the mean Σ ``values`` / Σ ``weights`` (both (N,)), and its evidence.

    ``positive`` (N,) marks positive images. If all images are of one class, only the number of patients counts. An
    image without any label has the value and the weight 0.
    """
    numbers, truth = np.asarray(values, dtype=np.float64), np.asarray(positive, dtype=bool)
    parts = np.broadcast_to(np.asarray(weights, dtype=np.float64), numbers.shape)
    known = parts > 0
    sums, counts = bootstrap.by_patient(np.column_stack([numbers, parts])).T
    one_class = truth[known].all() or not truth.any()
    evidence = Evidence.of_one_side(counts) if one_class else bootstrap.evidence(truth, known)
    mean = float(numbers.sum() / parts.sum())
    return *evidence.mean_interval(mean, (sums - mean * counts) / parts.sum(), scale), evidence


def verdict(low: float, high: float, *, smaller_is_better: bool) -> str:
    """Say what a difference's interval shows: ``better``, ``worse``, or ``no difference shown`` if it holds 0.

    Empty without an interval (NaN): then nothing is known, not even that no difference was shown.
    """
    if np.isnan(low) or np.isnan(high):
        return ""
    if not (high < 0 or low > 0):
        return "no difference shown"
    return "better" if (high < 0) == smaller_is_better else "worse"
