"""Table of the averages of the trained weights, with their options. A new one is a class, a row and its options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from common.cli.arguments import option
from common.cli.choices import Row, load, settings, table
from common.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from common.networks.network import Average


@dataclass(frozen=True)
class AverageRow(Row):
    """One kind of average. ``path`` names its builder, a function of the model, the run's steps and option values."""

    path: str = field(kw_only=True)


AVERAGES: dict[str, AverageRow] = table(
    (
        AverageRow(
            "ema",
            "exponential moving average of the weights",
            path="common.networks.averages.build_ema",
            parameters={"tr_ema_decay": 0.999},
        ),
        AverageRow(
            "swa",
            "equal average of the weights over the end of the run",
            path="common.networks.averages.build_swa",
            parameters={"tr_swa_start": 0.75},
        ),
    )
)


@dataclass(frozen=True, kw_only=True)
class AveragingOptions:
    """Averages of the weights, validated and saved beside them; best.pt says which were best."""

    tr_ema: bool = option(False, "1: keep an exponential moving average of the weights")
    tr_ema_decay: float | None = option(None, "its decay, after a warm-up", minimum=0, maximum=0.999999)
    tr_swa: bool = option(False, "1: average the weights equally over the end of the run (SWA)")
    tr_swa_start: float | None = option(
        None, "share of the run after which this average begins", minimum=0, maximum=0.999
    )


def check_averages(chosen: Mapping[str, bool], given: Mapping[str, Any]) -> None:
    """Raise UsageError for an option of an average that is not switched on."""
    for name, row in AVERAGES.items():
        for parameter in row.parameters:
            if given.get(parameter) is not None and not chosen[name]:
                raise UsageError(f"--{parameter} needs --tr_{name}=1")


def build_averages(
    model: nn.Module, steps: int, chosen: Mapping[str, bool], given: Mapping[str, Any]
) -> dict[str, Average]:
    """Build the ``chosen`` averages for a run of ``steps`` optimizer updates. Errors as :func:`check_averages`."""
    check_averages(chosen, given)
    built = {}
    for name, row in AVERAGES.items():
        if chosen[name]:
            values = settings(f"tr_{name}", row, {key: given.get(key) for key in row.parameters})
            built[name] = load(row.path)(model, steps, values)
    return built
