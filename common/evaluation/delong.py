"""DeLong's test of two models' AUROCs on the same cases; a patient may have several cases."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata, t

from common.evaluation.resampling import effective_number

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DeLong:
    """Both areas, the standard error of ``first - second``, its degrees of freedom, and the two-sided p-value."""

    first: float
    second: float
    standard_error: float
    freedom: float
    p_value: float


def delong_test(
    first: npt.ArrayLike, second: npt.ArrayLike, targets: npt.ArrayLike, patients: npt.ArrayLike | None = None
) -> DeLong:
    """Compare the AUROCs of two scores (N,) for the same N cases of ``patients`` (N,); ``targets`` are 0 or 1.

    The method is that of DeLong, DeLong and Clarke-Pearson 1988, computed by ranks (Sun and Xu 2014). The variance is
    that of Obuchowski 1997 (section 3): cases of one patient may depend on each other, patients are independent.
    ``patients`` None: each case has its own. The difference is compared with Student's t, with the degrees of freedom
    of both sides' patients, as in Welch's test. The papers take the normal distribution, which rejects too often with
    few patients. Raises ValueError if a side has fewer than two patients.
    """
    truth = np.asarray(targets) == 1
    owners = np.arange(len(truth)) if patients is None else np.unique(np.asarray(patients), return_inverse=True)[1]
    sides = [np.bincount(owners, side, owners.max() + 1) for side in (truth, ~truth)]  # cases of each patient
    if min(np.count_nonzero(side) for side in sides) < 2:
        raise ValueError("two patients with positive and two with negative cases are needed at least")
    scores = np.stack([np.asarray(first, np.float64), np.asarray(second, np.float64)])
    areas, shares = [], ([], [])
    for own, other in zip(scores[:, truth], scores[:, ~truth], strict=True):
        ranks = rankdata(np.concatenate([own, other]))
        above = (ranks[: len(own)] - rankdata(own)) / len(other)  # the share of negatives that each positive beats
        below = 1 - (ranks[len(own) :] - rankdata(other)) / len(own)
        areas.append(above.mean())
        for share, side, found in zip(shares, (truth, ~truth), (above, below), strict=True):
            share.append(np.bincount(owners[side], found - above.mean(), owners.max() + 1))
    added = [np.subtract(*share) / side.sum() for share, side in zip(shares, sides, strict=True)]
    variance, freedom = _variance(*added, sides)
    error = float(np.sqrt(max(variance, 0.0)))
    difference = areas[0] - areas[1]
    if difference == 0:
        p_value = 1.0
    elif error == 0:  # all patients agree: the p-value of a sign test over the rarer side's patients
        p_value = float(0.5**freedom)
    else:
        p_value = float(2 * t.sf(abs(difference) / error, freedom))
    return DeLong(float(areas[0]), float(areas[1]), error, freedom, p_value)


def _variance(positive: Array, negative: Array, counts: list[Array]) -> tuple[float, float]:
    """Return a difference's variance and degrees of freedom from what each patient's cases add to it on each side (P,).

    The variance is Obuchowski's S10 / M + S01 / N + 2 S11 / (M N), with her small-sample factors I / (I - 1). Each side
    has its effective number of patients minus one as degrees of freedom; Satterthwaite (1946) combines them.
    """
    number, parts, doubt = len(positive), [], 0.0
    for part, side in zip((positive, negative), counts, strict=True):
        patients = np.count_nonzero(side)
        parts.append(float(part @ part) * patients / (patients - 1))
        doubt += parts[-1] ** 2 / max(effective_number(side) - 1, 1.0)
    least = max(min(effective_number(side) for side in counts) - 1, 1.0)
    freedom = max(sum(parts) ** 2 / doubt, least) if doubt > 0 else least
    return sum(parts) + 2 * float(positive @ negative) * number / (number - 1), freedom
