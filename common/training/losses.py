"""Training losses by name. The metric is separate and never changes with them.

Each is the mean over images of a weighted sum over labels of the loss of one logit. The weights sum to 1. A target that
is NaN is a missing label, which adds nothing. A label that is there weighs the same whatever else its batch holds, so
that accumulated batches and several processes give the update of one large batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.cli.arguments import option
from common.cli.choices import Row, choose, settings, table
from common.cli.values import format_numbers, parse_numbers
from common.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# (logits (N, C) float32, targets (N, C) float32 in 0..1) -> losses (N, C)
ElementLoss = Callable[["Tensor", "Tensor"], "Tensor"]


@dataclass(frozen=True)
class LossRow(Row):
    """One loss. ``build`` makes it from its options' values, the number of labels and the device."""

    build: Callable[[Mapping[str, Any], int, torch.device | None], ElementLoss]


def build_bce(values: Mapping[str, Any], labels: int, device: torch.device | None) -> ElementLoss:
    """Binary cross entropy. ``loss_positive_weights`` multiply the term of the positives."""
    import torch
    from torch.nn import functional

    weights = per_label("loss_positive_weights", values["loss_positive_weights"], labels)
    positive = torch.tensor(weights, dtype=torch.float32, device=device)

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none", pos_weight=positive)

    return smoothed(loss, values["loss_smoothing"])


def build_focal(values: Mapping[str, Any], labels: int, device: torch.device | None) -> ElementLoss:
    """Focal loss (Lin et al., "Focal Loss for Dense Object Detection", 2017): α_t · (1 − p_t)^γ · BCE.

    α is the weight of positives and 1 − α that of negatives, as in torchvision. Without α both are 1.
    """
    import torch
    from torch.nn import functional

    gamma, alpha = values["loss_gamma"], values["loss_alpha"]

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        entropy = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        wrong = targets * (-logits).sigmoid() + (1 - targets) * logits.sigmoid()  # 1 - p_t, also for soft targets
        # 0 ** gamma has no finite slope for a gamma below 1, and the gradient of a perfect prediction would be NaN.
        focused = entropy * wrong.clamp_min(torch.finfo(wrong.dtype).tiny) ** gamma
        return focused if alpha < 0 else focused * (alpha * targets + (1 - alpha) * (1 - targets))

    return smoothed(loss, values["loss_smoothing"])


def smoothed(loss: ElementLoss, smoothing: float) -> ElementLoss:
    """Return ``loss`` with smoothed targets: y (1 − s) + s / 2."""
    if smoothing == 0:
        return loss
    return lambda logits, targets: loss(logits, targets * (1 - smoothing) + smoothing / 2)


# None: the metric's own weights.
COMMON = {"loss_label_weights": None, "loss_smoothing": 0.0}

LOSSES: dict[str, LossRow] = table(
    (
        LossRow(
            "bce",
            "binary cross entropy, labels weighted",
            build_bce,
            parameters={**COMMON, "loss_positive_weights": (1.0,)},
        ),
        LossRow(
            "focal",
            "focal loss: what is predicted well already counts less",
            build_focal,
            parameters={**COMMON, "loss_gamma": 2.0, "loss_alpha": -1.0},
        ),
    )
)


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """Loss. The metric never changes with it."""

    loss: str = option(
        "bce",
        "training loss; --list=loss describes each and its options",
        choices=tuple(LOSSES),
        own_rows=True,
    )
    loss_label_weights: tuple[float, ...] | None = option(
        None,
        "one weight for each label, as in 1,1,1,1,1,2; scaled to a sum of 1. none: the metric's weights",
        parse=parse_numbers,
        form=format_numbers,
    )
    loss_positive_weights: tuple[float, ...] | None = option(
        None,
        "bce: weight of positives, one number or one for each label",
        parse=parse_numbers,
        form=format_numbers,
    )
    loss_smoothing: float | None = option(
        None, "label smoothing s: targets become y (1 - s) + s / 2", minimum=0, maximum=1
    )
    loss_gamma: float | None = option(None, "focal: exponent that reduces the weight of easy labels", minimum=0)
    loss_alpha: float | None = option(
        None, "focal: weight of positives; negatives get 1 minus it. below 0: both weigh 1", minimum=-1, maximum=1
    )


def per_label(option: str, numbers: Sequence[float], labels: int) -> list[float]:
    """Return a number for each label: those given, or a single one repeated. UsageError for another count."""
    if len(numbers) not in (1, labels):
        raise UsageError(f"--{option} has {len(numbers)} numbers for {labels} labels; give one, or one for each")
    return list(numbers) * (labels if len(numbers) == 1 else 1)


def build_loss(
    name: str, given: Mapping[str, Any], label_weights: Sequence[float], device: torch.device | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """Build the loss called ``name``: (logits (N, C), targets (N, C), NaN where a label is missing) → scalar.

    ``given`` are the ``loss_…`` options, None where not given; ``loss_label_weights`` among them replace
    ``label_weights`` (C,), which are relative. ``device``: where logits and targets will be; None: on the CPU. What the
    loss needs is put there now: a copy in each iteration would let the host wait for the device. Raises UsageError for
    another name, an option the loss doesn't know, and another number of weights.
    """
    import torch

    row = choose("loss", name, LOSSES)
    values = settings("loss", row, given)
    own = values.get("loss_label_weights")  # a loss of the user's own may not know it
    count = len(label_weights)
    chosen = per_label("loss_label_weights", label_weights if own is None else own, count)
    weights = torch.tensor(chosen, dtype=torch.float64)
    if weights.sum() == 0:
        raise UsageError("--loss_label_weights must not all be 0")
    weights = (weights / weights.sum()).float().to(device=device)
    each = row.build(values, count, device)

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        known = ~targets.isnan()
        losses = each(logits, targets.where(known, 0))
        return (losses.where(known, 0) * weights).sum(dim=1).mean()

    return loss
