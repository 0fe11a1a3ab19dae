"""Table of the orders of training images, for ``--data_sampler``. A new order is a class and a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from common.cli.arguments import option
from common.cli.choices import Row, choose, load, settings, table

if TYPE_CHECKING:
    from common.datasets.samplers import EpochSampler, TrainingImages


@dataclass(frozen=True)
class SamplerRow(Row):
    """One order. ``path`` names its builder, a function of the training images and the order's option values."""

    path: str = field(kw_only=True)


SAMPLERS: dict[str, SamplerRow] = table(
    (
        SamplerRow(
            "random",
            "each image once in an epoch, in random order",
            path="common.datasets.samplers.build_random",
        ),
        SamplerRow(
            "sequential",
            "each image once in an epoch, in the dataset's order",
            path="common.datasets.samplers.build_sequential",
        ),
        SamplerRow(
            "balanced",
            "a target share of the images is positive for a label; positives repeat, negatives are thinned out",
            path="common.datasets.samplers.build_balanced",
            parameters={"sampler_label": "any", "sampler_share": 0.5},
        ),
        SamplerRow(
            "study",
            "the same number of images of every study",
            path="common.datasets.samplers.build_study",
            parameters={"sampler_slices": 8},
        ),
        SamplerRow(
            "hard",
            "images with a high last loss come more often; a share is drawn evenly",
            path="common.datasets.samplers.build_hard",
            parameters={"sampler_power": 1.0, "sampler_floor": 0.3},
        ),
    )
)


@dataclass(frozen=True, kw_only=True)
class SamplerOptions:
    """Order of the training images. Where an option says "none", the sampler's own value holds."""

    data_sampler: str = option(
        "random",
        "order of the training images; --list=sampler describes each and its --sampler_... options",
        choices=tuple(SAMPLERS),
        own_rows=True,
    )
    sampler_label: str | None = option(None, "balanced: label to balance by")
    sampler_share: float | None = option(None, "balanced: share of positive images", minimum=0, maximum=1)
    sampler_slices: int | None = option(
        None, "study: number of images from each study in an epoch", minimum=1, maximum=10_000
    )
    sampler_power: float | None = option(
        None, "hard: an image is drawn in proportion to its loss raised to this power", minimum=0
    )
    sampler_floor: float | None = option(None, "hard: share of an epoch that is drawn evenly", minimum=0, maximum=1)


def build_sampler(name: str, given: Mapping[str, Any], images: TrainingImages) -> EpochSampler:
    """Build the sampler called ``name``; ``given`` are the ``sampler_…`` options, None where not given."""
    row = choose("data_sampler", name, SAMPLERS)
    return load(row.path)(images, settings("data_sampler", row, given))
