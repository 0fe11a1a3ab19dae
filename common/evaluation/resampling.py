"""Bootstrap over patients: sums over random samples of whole patients, and the intervals that follow from them.

An interval is Student's on a scale where the metric has no ends: value ± t · error, the error being the draws' standard
deviation. Percentiles of the draws cover too seldom where patients are few, the more so the rarer the label is: what a
handful of positive patients share by chance is in every draw. The degrees of freedom are those of the positive
patients. `benchmarks/coverage.py` shows what that covers, and from how many patients on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit
from scipy.stats import t

Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

CHUNK_COUNTS = 2**23  # of a chunk of draws: 64 MiB of how often each patient was drawn
LEVEL = 0.95
MIN_SHARE = 0.9  # of the draws that must have a value
LARGEST_LOG = 700.0  # whose exponential is a number
FEWEST_PATIENTS = 20  # below these benchmarks/coverage.py finds no interval that holds its level and says something
FEWEST_OF_A_SIDE = 5


def effective_number(counts: npt.ArrayLike) -> float:
    """Return how many patients of equal weight tell as much as these do: (Σ n)² / Σ n² of their ``counts`` (P,).

    Of 5 patients of whom one has nearly all positive slices it is hardly more than 1 (Kish 1965). 0 for no counts.
    """
    values = np.asarray(counts, dtype=np.float64)
    squares = float(values @ values)
    return float(values.sum() ** 2 / squares) if squares else 0.0


@dataclass(frozen=True)
class Evidence:
    """Who is behind a number: ``patients``, those with a ``positive`` and those with a ``negative`` image.

    ``effective`` is the rarer side's effective number. None for a side: it is not asked for, see :meth:`of_one_side`.
    """

    patients: int
    positive: int | None
    negative: int | None
    effective: float

    @classmethod
    def of_one_side(cls, counts: npt.ArrayLike) -> Evidence:
        """Return the evidence of a number that is of positive images only, or of negative ones; ``counts`` (P,)."""
        return cls(int(np.count_nonzero(counts)), None, None, effective_number(counts))

    @property
    def reason(self) -> str:
        """Why there is no interval, in words; empty where there is one."""
        if self.patients < FEWEST_PATIENTS:
            return f"{_counted(self.patients, 'patient')}, and an interval needs {FEWEST_PATIENTS}"
        for number, what in ((self.positive, "positive patient"), (self.negative, "negative patient")):
            if number is not None and number < FEWEST_OF_A_SIDE:
                return f"{_counted(number, what)}, and an interval needs {FEWEST_OF_A_SIDE}"
        return ""

    @property
    def freedom(self) -> float:
        """Degrees of freedom of what the rarer side's patients decide; at least 1."""
        return max(self.effective - 1, 1.0)

    @property
    def text(self) -> str:
        """The number of patients, and of positive ones where that is known."""
        positive = "" if self.positive is None else f", {self.positive} positive"
        return f"{_counted(self.patients, 'patient')}{positive}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)


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

    def evidence(self, positive: npt.ArrayLike) -> Evidence:
        """Return who is behind a number of these images, of which ``positive`` (N,) are."""
        truth = np.asarray(positive, dtype=bool)
        with_positive, with_negative = (np.bincount(self.place, side, self.count) for side in (truth, ~truth))
        return Evidence(
            self.count,
            int(np.count_nonzero(with_positive)),
            int(np.count_nonzero(with_negative)),
            min(effective_number(with_positive), effective_number(with_negative)),
        )

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


def error_of(draws: npt.ArrayLike) -> float:
    """Return the standard deviation of ``draws``; NaN where more than a tenth of them have no value (NaN).

    A metric that needs both classes has none where a draw lacks one. Leaving out many such draws would make the
    interval of a rare label look narrower than it is.
    """
    values = np.asarray(draws, dtype=np.float64)
    known = values[~np.isnan(values)]
    return float(known.std(ddof=1)) if len(known) >= max(2, MIN_SHARE * len(values)) else float("nan")


def few_cases(effective: npt.ArrayLike) -> Array:
    """Return by what the draws' standard deviation of an AUROC is too small: draws of n patients vary by n − 1 of n."""
    number = np.maximum(np.asarray(effective, dtype=np.float64), 2.0)
    return np.sqrt(number / (number - 1))


def student_interval(
    value: npt.ArrayLike, error: npt.ArrayLike, freedom: npt.ArrayLike, scale: str = "plain", level: float = LEVEL
) -> tuple[Array, Array]:
    """Return low and high of Student's interval of ``value`` on a ``scale``: plain, log (above 0) or logit (0 to 1).

    ``error`` and ``freedom`` broadcast with ``value``. At an end of the scale, where an AUROC of 1 has no error to be
    seen, it is Wilson's interval (1927) of as many independent cases as there are degrees of freedom, and one.
    """
    middle, spread = np.asarray(value, dtype=np.float64), np.asarray(error, dtype=np.float64)
    times = t.ppf((1 + level) / 2, freedom)
    with np.errstate(divide="ignore", invalid="ignore"):
        if scale == "plain":
            return middle - times * spread, middle + times * spread
        if scale == "log":
            factor = np.exp(np.minimum(times * spread / middle, LARGEST_LOG))
            return middle / factor, middle * factor
        half = times * spread / (middle * (1 - middle))
        low, high = expit(logit(middle) - half), expit(logit(middle) + half)
    cases = np.asarray(freedom) + 1
    low = np.where(middle >= 1, cases / (cases + times**2), np.where(middle <= 0, 0.0, low))
    high = np.where(middle <= 0, times**2 / (cases + times**2), np.where(middle >= 1, 1.0, high))
    known = ~np.isnan(middle + spread)
    return np.where(known, low, np.nan), np.where(known, high, np.nan)


def interval(
    value: float,
    draws: npt.ArrayLike,
    evidence: Evidence,
    scale: str = "plain",
    freedom: float | None = None,
    widened: float = 1.0,
) -> tuple[float, float]:
    """Return the 95 % interval of ``value``, whose bootstrap gave ``draws`` (D,); NaN where the evidence has a reason.

    ``freedom`` None: the evidence's; ``widened``: what the draws' error is multiplied by. For ``scale`` see
    :func:`student_interval`. NaN too where too many draws have no value (:func:`error_of`).
    """
    if evidence.reason:
        return float("nan"), float("nan")
    error = widened * error_of(draws)
    low, high = student_interval(value, error, evidence.freedom if freedom is None else freedom, scale)
    return float(low), float(high)


def freedom_of_sums(parts: Array, positive: Bools, effective: float) -> Array:
    """Return the degrees of freedom (K,) of the variance of sums of patients' ``parts`` (P, K), centred on 0.

    Satterthwaite's (1946): positive patients differ among themselves, with one degree less than their ``effective``
    number; so do the others; and the number of positive ones is itself drawn, which moves a mean loss as much. At least
    ``effective`` - 1, where the positive patients decide all.
    """
    least = max(effective - 1, 1.0)
    number = int(positive.sum())
    if not 1 < number < len(positive) - 1:
        return np.full(parts.shape[1], least)
    inside = [parts[side] - parts[side].mean(axis=0) for side in (positive, ~positive)]
    own, others = ((side**2).sum(axis=0) for side in inside)
    between = (parts**2).sum(axis=0) - own - others
    rest = len(positive) - number
    doubt = own**2 / least + others**2 / (rest - 1)
    pairs = number * rest / len(positive)  # between = pairs · (difference of the sides' means)²
    doubt += (
        between**2 * (rest - number) ** 2 / (2 * pairs * len(positive) ** 2)
    )  # as the number of positive ones varies
    doubt += 2 * between * pairs * (own / number**2 + others / rest**2)  # as the difference of the means does
    with np.errstate(divide="ignore", invalid="ignore"):
        found = (own + others + between) ** 2 / doubt
    return np.maximum(np.nan_to_num(found, nan=least, posinf=least), least)


def mean_interval(
    bootstrap: PatientBootstrap, values: npt.ArrayLike, positive: npt.ArrayLike, scale: str = "plain"
) -> tuple[float, float, Evidence]:
    """Return low and high of the mean of ``values`` (N,) over images of which ``positive`` (N,) are, and who is behind.

    Where all images are of one class the patients alone are asked for.
    """
    numbers, truth = np.asarray(values, dtype=np.float64), np.asarray(positive, dtype=bool)
    sums = bootstrap.by_patient(np.column_stack([numbers, np.ones(len(numbers))]))
    one_class = truth.all() or not truth.any()
    evidence = Evidence.of_one_side(sums[:, 1]) if one_class else bootstrap.evidence(truth)
    totals = bootstrap.totals(sums)
    mean = float(numbers.mean())
    with_positive = bootstrap.by_patient(truth[:, None])[:, 0] > 0
    freedom = freedom_of_sums(sums[:, :1] - mean * sums[:, 1:], with_positive, evidence.effective)
    return *interval(mean, totals[:, 0] / totals[:, 1], evidence, scale, float(freedom[0])), evidence


def verdict(low: float, high: float, *, smaller_is_better: bool) -> str:
    """Say what a difference's interval shows: ``better``, ``worse``, or ``no difference shown`` where it holds 0.

    Empty where there is no interval (NaN): nothing is known, not even that nothing was shown.
    """
    if np.isnan(low) or np.isnan(high):
        return ""
    if not (high < 0 or low > 0):
        return "no difference shown"
    return "better" if (high < 0) == smaller_is_better else "worse"
