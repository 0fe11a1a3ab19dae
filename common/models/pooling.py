"""Table of global poolings, which replace a timm model's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.cli.choices import Row, table

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class PoolRow(Row):
    """One pooling. ``build`` makes it, (N, C, H, W) → (N, C), for C channels.

    ``tokens`` is timm's name of it for models of tokens, "" if they don't have it.
    """

    build: Callable[[int], nn.Module]
    tokens: str


def build_average(channels: int) -> nn.Module:
    """The mean of all places."""
    from common.models.pool_layers import GlobalAverage

    return GlobalAverage()


def build_maximum(channels: int) -> nn.Module:
    """The maximum of all places."""
    from common.models.pool_layers import GlobalMaximum

    return GlobalMaximum()


def build_gem(channels: int) -> nn.Module:
    """The generalized mean with a learnt power."""
    from common.models.pool_layers import GeneralizedMean

    return GeneralizedMean()


def build_attention(channels: int) -> nn.Module:
    """A mean weighted by a learnt score of each place."""
    from common.models.pool_layers import AttentionMean

    return AttentionMean(channels)


POOLS: dict[str, PoolRow] = table(
    (
        PoolRow("avg", "mean of all places", build_average, "avg"),
        PoolRow("max", "maximum of all places", build_maximum, "max"),
        PoolRow("gem", "generalized mean with a learnt power, from 3", build_gem, ""),
        PoolRow("attention", "mean weighted by a learnt score of each place", build_attention, "map"),
    )
)
