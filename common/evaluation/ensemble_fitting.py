"""Weights of an ensemble fitted to known labels, and what they are worth on patients that they were not fitted to.

``linked`` are the members' predictions behind a link's ``forward`` (members M, images N, classes C), ``targets`` are
0 or 1 (N, C), ``scale`` (C,) the classes' shares of the loss, which sum to 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from sklearn.model_selection import GroupKFold

from common.cli.choices import choose, load
from common.errors import WorkError
from common.evaluation.ensemble_choices import FITS
from common.evaluation.ensembling import Array, Link, clipped_logits, weighted_mean
from common.evaluation.metrics import CLIP, binary_log_losses

FOLDS = 5
ROUNDS = 100
PATIENCE = 10  # rounds of the greedy selection without a lower loss
Fit = Callable[[Array, Array, Link, Array], Array]


def weighted_loss(probabilities: Array, targets: Array, scale: Array) -> float:
    """Return the weighted log loss of probabilities (N, C)."""
    return float(scale @ binary_log_losses(probabilities, targets).mean(axis=0))


def fit_weights(linked: Array, targets: Array, link: Link, scale: Array) -> Array:
    """Return the weights (M,), at least 0 and of sum 1, with the lowest loss; the problem is convex for mean and logit.

    Sequential quadratic programming (scipy's SLSQP) with the exact gradient, from equal weights.
    """
    members = len(linked)
    flat = linked.reshape(members, -1)

    def loss(weights: Array) -> tuple[float, Array]:
        mean = np.tensordot(weights, linked, axes=1)
        values = np.clip(link.inverse(mean), CLIP, 1 - CLIP)
        by_value = scale * (values - targets) / (values * (1 - values)) / len(targets)
        return weighted_loss(values, targets, scale), flat @ (by_value * link.slope(mean)).ravel()

    equal = np.full(members, 1 / members)
    found = minimize(
        loss,
        equal,
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * members,
        constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-10, "maxiter": 200},
    )
    weights = np.where(found.x < 1e-9, 0.0, found.x)
    total = weights.sum()
    # A search that went astray is no reason to be worse than its start.
    good = np.isfinite(total) and total > 0 and loss(weights / total)[0] <= loss(equal)[0]
    return weights / total if good else equal


def greedy_weights(linked: Array, targets: Array, link: Link, scale: Array) -> Array:
    """Return the weights (M,) that greedy selection with replacement gives (Caruana et al. 2004, section 2.1).

    Each of at most 100 rounds adds the member with which the ensemble's loss is lowest; a member's weight is how often
    it was taken, up to the round with the lowest loss of all. It ends 10 rounds after that one.
    """
    counts = np.zeros(len(linked))
    total = np.zeros(linked.shape[1:])
    best, lowest = counts, np.inf
    for size in range(1, ROUNDS + 1):
        losses = [weighted_loss(np.clip(link.inverse((total + one) / size), 0, 1), targets, scale) for one in linked]
        taken = int(np.argmin(losses))
        total += linked[taken]
        counts[taken] += 1
        if losses[taken] < lowest:
            best, lowest = counts.copy(), losses[taken]
        elif size - best.sum() >= PATIENCE:
            break
    return best / best.sum()


@dataclass(frozen=True)
class FittedEnsemble:
    """Weights (M,) fitted to all images, those of each outer fold (folds, M), and what the latter predict.

    ``held`` (N,): the outer fold of each image; ``predictions`` (N, C): by the weights that were fitted without that.
    """

    weights: Array
    fold_weights: Array
    held: npt.NDArray[np.int64]
    predictions: Array


def outer_folds(patients: npt.ArrayLike, flag: str, folds: int = FOLDS) -> npt.NDArray[np.int64]:
    """Return the outer fold (N,), from 0, that each image is in: whole patients, in at most ``folds`` of like size.

    What is fitted without a fold is judged by it. Raises WorkError, naming ``flag``, for fewer than two patients.
    """
    groups = np.asarray(patients)
    count = min(folds, len(np.unique(groups)))
    if count < 2:
        raise WorkError(f"--{flag}: all images are of one patient; what is fitted needs others to be judged by")
    held = np.empty(len(groups), np.int64)
    for number, (_, test) in enumerate(GroupKFold(count).split(groups, groups=groups)):
        held[test] = number
    return held


def fit_nested(
    linked: Array, targets: Array, patients: npt.ArrayLike, link: Link, scale: Array, method: str, folds: int = FOLDS
) -> FittedEnsemble:
    """Fit weights by a name in :data:`FITS`, and judge them by cross-validation over ``patients`` (N,).

    All that the fit chooses is chosen again in each outer fold without that fold's patients. Raises WorkError for
    fewer than two patients.
    """
    fit: Fit = load(choose("ens_fit", method, FITS).path)
    held = outer_folds(patients, "ens_fit", folds)
    predictions, fold_weights = np.empty(targets.shape), []
    for number in range(held.max() + 1):
        own = held == number
        weights = fit(linked[:, ~own], targets[~own], link, scale)
        predictions[own] = weighted_mean(linked[:, own], weights, link)
        fold_weights.append(weights)
    return FittedEnsemble(fit(linked, targets, link, scale), np.stack(fold_weights), held, predictions)


def logit_correlations(stack: Array) -> Array:
    """Return how alike members (M, N, C) are, (M, M): Pearson's correlation of their logits, the classes' mean.

    A class in which a member says the same of all images is left out; NaN where none is left.
    """
    logits = np.moveaxis(clipped_logits(stack), 2, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        tables = np.stack([np.atleast_2d(np.corrcoef(table)) for table in logits])
    known = ~np.isnan(tables)
    counts = known.sum(axis=0)
    return np.where(counts, np.where(known, tables, 0).sum(axis=0) / np.maximum(counts, 1), np.nan)
