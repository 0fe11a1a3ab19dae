"""Averages of the trained weights: an exponential one (EMA) and an equal one over the end of the run (SWA)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel

from common.errors import UsageError
from common.networks.network import Average
from common.tables import Row, settings, table


class ExponentialAverage:
    """timm's exponential moving average: a ← d · a + (1 − d) · w after each update, buffers too.

    The decay warms up, so that the random weights of the begin are forgotten: update number n has
    the decay min(decay, 1 − n ** −2/3): 0 for the first, 0.95 for the 90th, 0.999 from the 31,623rd on.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Begin at the weights of ``model``, which is copied."""
        self.ema = ModelEmaV3(model, decay=decay, use_warmup=True, warmup_power=2 / 3)
        self.ema.module.requires_grad_(False)
        self.model = self.ema.module
        self.updates = 0

    @property
    def started(self) -> bool:
        """Whether there was an update."""
        return self.updates > 0

    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights of ``model``."""
        self.updates += 1
        self.ema.update(model, step=self.updates)

    def state_dict(self) -> dict[str, Any]:
        """Return the averaged weights and the number of updates."""
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self.model.load_state_dict(state["model"])
        self.updates = state["updates"]


class EqualAverage:
    """Stochastic weight averaging (Izmailov et al., 2018) by torch: the mean of the weights after each update.

    Only the updates from a given step on count. Buffers, the running statistics of batch norms among them, are averaged
    too, which spares a pass over the training images at each validation.
    """

    def __init__(self, model: nn.Module, first_step: int) -> None:
        """``first_step``: number of the first optimizer update (from 1) that counts; ``model`` is copied."""
        self.averaged = AveragedModel(model, use_buffers=True)
        self.averaged.requires_grad_(False)
        self.model = self.averaged.module
        self.first_step = first_step

    @property
    def started(self) -> bool:
        """Whether an update counted."""
        return int(self.averaged.n_averaged) > 0

    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights of ``model`` after update number ``step``."""
        if step >= self.first_step:
            self.averaged.update_parameters(model)

    def state_dict(self) -> dict[str, Any]:
        """Return the averaged weights and how many there were."""
        return {"model": self.model.state_dict(), "count": int(self.averaged.n_averaged)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self.model.load_state_dict(state["model"])
        self.averaged.n_averaged.fill_(state["count"])


@dataclass(frozen=True)
class AverageRow(Row):
    """One kind of average, and how it is built: model, the run's steps, and the values of its options."""

    build: Callable[[nn.Module, int, Mapping[str, Any]], Average]


def build_ema(model: nn.Module, steps: int, values: Mapping[str, Any]) -> Average:
    """An exponential average."""
    return ExponentialAverage(model, values["tr_ema_decay"])


def build_swa(model: nn.Module, steps: int, values: Mapping[str, Any]) -> Average:
    """An equal average from ``tr_swa_start``, a share of the run, on."""
    return EqualAverage(model, min(int(values["tr_swa_start"] * steps) + 1, steps))


AVERAGES: dict[str, AverageRow] = table(
    (
        AverageRow("ema", "exponential moving average of the weights", build_ema, parameters={"tr_ema_decay": 0.999}),
        AverageRow(
            "swa", "equal average of the weights over the end of the run", build_swa, parameters={"tr_swa_start": 0.75}
        ),
    )
)


def check_averages(chosen: Mapping[str, bool], given: Mapping[str, Any]) -> None:
    """Raise UsageError where an option of an average is given that is not asked for."""
    for name, row in AVERAGES.items():
        for option in row.parameters:
            if given.get(option) is not None and not chosen[name]:
                raise UsageError(f"--{option} needs --tr_{name}=1")


def build_averages(
    model: nn.Module, steps: int, chosen: Mapping[str, bool], given: Mapping[str, Any]
) -> dict[str, Average]:
    """Build the averages that are ``chosen`` for a run of ``steps`` optimizer updates; UsageError as check_averages."""
    check_averages(chosen, given)
    return {
        name: row.build(model, steps, settings(f"tr_{name}", row, {key: given.get(key) for key in row.parameters}))
        for name, row in AVERAGES.items()
        if chosen[name]
    }
