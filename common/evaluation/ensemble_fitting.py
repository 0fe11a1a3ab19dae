"""Fit an ensemble's weights to known labels, and judge them on patients that the fit did not see.

``linked``: the members' predictions after a link's ``forward`` (members M, images N, classes C). ``targets``: 0 or 1
(N, C), NaN where a label is missing. ``scale`` (C,): the classes' shares of the loss; they sum to 1.
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
from common.evaluation.metrics import CLIP, binary_log_losses, mean_log_loss

FOLDS = 5
ROUNDS = 100
PATIENCE = 10  # rounds without a lower loss that end the greedy selection
# With so many positive images a label's own weights count as much as those of all labels. With 30 or 300 instead,
# benchmarks/ensemble.py gives nearly the same where members are good at different labels; where they are not and
# patients are few, 30 loses more (0.2 % against 0.1 %).
RARE = 100
Fit = Callable[[Array, Array, Link, Array], Array]


def weighted_loss(probabilities: Array, targets: Array, scale: Array) -> float:
    """Return the weighted log loss of probabilities (N, C) over the labels that are there."""
    return mean_log_loss(binary_log_losses(probabilities, targets), scale)


def fit_weights(linked: Array, targets: Array, link: Link, scale: Array) -> Array:
    """Return the weights (M,) with the lowest loss, at least 0, of sum 1. The problem is convex for mean and logit.

    The method is sequential quadratic programming (scipy's SLSQP) from equal weights, with the exact gradient.
    """
    members = len(linked)
    flat = linked.reshape(members, -1)
    known = ~np.isnan(targets)
    cells = np.where(known, scale, 0) / (known @ scale).sum()

    def loss(weights: Array) -> tuple[float, Array]:
        mean = np.tensordot(weights, linked, axes=1)
        values = np.clip(link.inverse(mean), CLIP, 1 - CLIP)
        by_value = cells * (values - np.where(known, targets, 0)) / (values * (1 - values))
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
    # If the search went astray, its start is better.
    good = np.isfinite(total) and total > 0 and loss(weights / total)[0] <= loss(equal)[0]
    return weights / total if good else equal


def fit_weights_per_label(linked: Array, targets: Array, link: Link, scale: Array) -> Array:
    """Return weights (M, C): each label's own ones of the lowest loss, drawn towards those of all labels.

    A label with n images of its rarer class takes n / (n + 100) of its own weights and the rest of the shared ones,
    which :func:`fit_weights` finds. So a rare label, such as epidural, does not follow a handful of images.
    """
    shared = fit_weights(linked, targets, link, scale)
    columns = []
    for label in range(targets.shape[1]):
        one = slice(label, label + 1)
        rarer = min(np.nansum(targets[:, label]), np.nansum(1 - targets[:, label]))
        own = fit_weights(linked[..., one], targets[:, one], link, np.ones(1)) if rarer else shared
        share = rarer / (rarer + RARE)
        columns.append(share * own + (1 - share) * shared)
    return np.stack(columns, axis=1)


def greedy_weights(linked: Array, targets: Array, link: Link, scale: Array) -> Array:
    """Return the weights (M,) that greedy selection with replacement gives (Caruana et al. 2004, section 2.1).

    Each of at most 100 rounds adds the member that gives the ensemble the lowest loss. A member's weight is how often
    it was added up to the best round. The selection ends 10 rounds after that.
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
    """Weights (M,) or (M, C) fitted to all images, and those of each outer fold (folds, M[, C]) without its images.

    ``held`` (N,): the outer fold of each image. ``predictions`` (N, C): each image's, by the weights of its outer fold.
    """

    weights: Array
    fold_weights: Array
    held: npt.NDArray[np.int64]
    predictions: Array


def outer_folds(patients: npt.ArrayLike, flag: str, folds: int = FOLDS) -> npt.NDArray[np.int64]:
    """Divide whole patients into at most ``folds`` folds of similar size; return each image's fold (N,), from 0.

    A fit without a fold is judged on that fold. Raises WorkError, naming ``flag``, for fewer than two patients.
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

    Each outer fold repeats the whole fit without the fold's patients. Raises WorkError for fewer than two patients.
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
    """Return Pearson's correlation of the logits of members (M, N, C), averaged over the classes: (M, M).

    A class is left out if a member predicts the same for all images; NaN if no class is left.
    """
    logits = np.moveaxis(clipped_logits(stack), 2, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        tables = np.stack([np.atleast_2d(np.corrcoef(table)) for table in logits])
    known = ~np.isnan(tables)
    counts = known.sum(axis=0)
    return np.where(counts, np.where(known, tables, 0).sum(axis=0) / np.maximum(counts, 1), np.nan)
