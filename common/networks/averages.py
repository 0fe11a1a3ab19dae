"""Averages of the trained weights: an exponential one (EMA) and an equal one over the end of the run (SWA)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from common.networks.network import Average


class RunningAverage:
    """A copy of a model that moves a share of the way to its weights after each update: a ← a + s · (w − a).

    Buffers, such as the running statistics of batch norms, are averaged too. This saves a pass over the training images
    at each validation. Counters are copied. timm's and torch's averages do the same, but can't leave out an update that
    did not land when only the device knows that.
    """

    def __init__(self, model: nn.Module, share: Callable[[int], float], first_step: int = 1) -> None:
        """Copy ``model`` and begin at its weights.

        ``share`` gives s of the n-th update (from 1) that is taken in. Updates before ``first_step`` are left out.
        """
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.share = share
        self.first_step = first_step
        self.before: int | None = None  # finished updates of the run before the first one taken in

    def started(self, step: int) -> bool:
        """Whether the average has taken in an update, after ``step`` finished updates."""
        return self.before is not None and step > self.before

    @torch.no_grad()
    def update(self, model: nn.Module, step: int, landed: Tensor | None = None) -> None:
        """Take in the weights of ``model`` after update number ``step``, unless ``landed`` (on the device) is false."""
        if step < self.first_step:
            return
        if self.before is None:
            self.before = step - 1
        share = self.share(step - self.before)
        by_type: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
        for pair in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            by_type.setdefault(pair[0].dtype, []).append(pair)
        for dtype, pairs in by_type.items():
            own, current = (list(side) for side in zip(*pairs, strict=True))
            if dtype.is_floating_point:
                move(own, current, share, landed)
            else:  # after an update that did not land they are restored already, or count one batch more
                torch._foreach_copy_(own, current)

    def state_dict(self) -> dict[str, Any]:
        """Return the averaged weights and when the average began."""
        return {"model": self.model.state_dict(), "before": self.before}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self.model.load_state_dict(state["model"])
        self.before = state["before"]


def move(own: list[Tensor], current: list[Tensor], share: float, landed: Tensor | None) -> None:
    """Move tensors of one type a ``share`` of the way to ``current``, in a few kernels for all of them.

    If ``landed`` (bool scalar, on the device) is false, they stay as they are, to the bit. torch has no kernel for many
    tensors that takes a share from the device. Below a half three kernels compute lerp's formula, with the same bits.
    From a half on, in the first one or two updates of an average, each tensor takes a kernel of its own.
    """
    if landed is None:
        torch._foreach_lerp_(own, current, share)
    elif share < 0.5:
        ways = torch._foreach_sub(current, own)
        torch._foreach_mul_(ways, landed.to(own[0].dtype))
        torch._foreach_add_(own, ways, alpha=share)
    else:
        for mine, other in zip(own, current, strict=True):
            mine.lerp_(other, landed.to(mine.dtype) * share)


class ExponentialAverage(RunningAverage):
    """An exponential moving average: a ← d · a + (1 − d) · w.

    The decay warms up, so that the average forgets the random weights of the start. Update number n has the decay
    min(decay, 1 − n ** −2/3): 0 for the first, 0.95 for the 90th, 0.999 from the 31,623rd on.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """``decay``: d above, at least 0 and below 1."""
        super().__init__(model, lambda number: 1 - min(decay, 1 - number ** (-2 / 3)))


class EqualAverage(RunningAverage):
    """Stochastic weight averaging (Izmailov et al., 2018): the mean of the weights after each of the later updates."""

    def __init__(self, model: nn.Module, first_step: int) -> None:
        """``first_step``: the first optimizer update (from 1) that counts."""
        super().__init__(model, lambda number: 1 / number, first_step)


def build_ema(model: nn.Module, steps: int, values: Mapping[str, Any]) -> Average:
    """An exponential average."""
    return ExponentialAverage(model, values["tr_ema_decay"])


def build_swa(model: nn.Module, steps: int, values: Mapping[str, Any]) -> Average:
    """An equal average over the rest of the run after ``tr_swa_start``, a share of it."""
    return EqualAverage(model, min(int(values["tr_swa_start"] * steps) + 1, steps))
