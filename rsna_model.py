"""Builds the model of slices, a timm network with six logits, and picks the quickest way to compute it on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy.typing as npt
import torch
from scipy.special import logit
from torch import nn

from common.errors import UsageError
from common.models.backbone import create_model
from common.models.freezing import freeze
from common.models.layers import start_head
from common.models.weights import load_weights
from common.training import distributed
from common.training.computing import describe, measure_ways, quickest
from common.training.hardware import arrange_model
from common.training.ways import WAYS
from config import TrainConfig
from rsna_dataset import LABELS

MEASURED_PIXELS = 2**19  # two pictures of 512 x 512


def build_model(config: TrainConfig, channels: int, prevalences: npt.ArrayLike | None) -> nn.Module:
    """Build the timm model with six logits and, unless a checkpoint will bring them, its starting weights.

    ``prevalences`` as of :func:`build_slice_network`. Parts that are not trained (--net_freeze) are frozen. Other kinds
    of network build their own in ``rsna/kinds``.
    """
    return arrange_model(
        build_slice_network(config, channels, prevalences),
        channels_last=config.tr_channels_last,
        grad_checkpoint=config.tr_grad_checkpoint,
        compile_mode=config.tr_compile,
    )


def build_slice_network(config: TrainConfig, channels: int, prevalences: npt.ArrayLike | None) -> nn.Module:
    """Build the timm model, load its starting weights if asked for, and freeze what is not trained.

    A head that no file brings begins at ``prevalences`` (6,), the share of positives among the training images. None: a
    checkpoint will bring all weights, so that there are no starting weights.
    """
    starting_weights = prevalences is not None
    if config.net_in_chans not in (None, channels):
        raise UsageError(
            f"--net_in_chans={config.net_in_chans}: the pictures have {channels} channels; change the windows "
            f"(--data_windows or the transform files), or give --net_in_chans={channels}"
        )
    if config.net_weight_adapt and config.net_weight_file is None:
        raise UsageError("--net_weight_adapt=1 needs --net_weight_file")
    model = build_timm_model(
        config, channels, config.net_pretrained and config.net_weight_file is None and starting_weights
    )
    if starting_weights and config.net_head_init == "prevalence":
        start_head(model, logit(prevalences))  # before a file is loaded, which may bring a head or not
    if config.net_weight_file is not None and starting_weights:
        notes = load_weights(model, config.net_weight_file, model_name=config.net_model, adapt=config.net_weight_adapt)
        distributed.tell(f"{config.net_weight_file}: {line}" for line in notes)
    freeze(model, config.net_freeze)
    return model


def build_timm_model(config: TrainConfig, channels: int, pretrained: bool = False) -> nn.Module:
    """Build the timm model of a configuration for pictures of ``channels`` channels."""
    return create_model(
        config.net_model,
        len(LABELS),
        channels,
        pretrained,
        config.data_image_size,
        drop=config.net_drop,
        drop_path=config.net_drop_path,
        pool=config.net_pool,
    )


def computed_by(config: TrainConfig, way: str) -> TrainConfig:
    """Return ``config`` with the options of a way to compute, a name of :data:`common.training.ways.WAYS`."""
    chosen = WAYS[way]
    amp_dtype = "bfloat16" if chosen.amp else TrainConfig.tr_amp_dtype
    return replace(config, tr_channels_last=chosen.channels_last, tr_use_amp=chosen.amp, tr_amp_dtype=amp_dtype)


def way_of(config: TrainConfig) -> str:
    """Return the way that :func:`computed_by` put into ``config``."""
    return next(name for name in WAYS if computed_by(config, name) == config)


def quickest_way(config: TrainConfig, model: nn.Module, shape: Sequence[int], *, training: bool) -> str:
    """Measure how this machine's CPU computes ``model`` quickest for pictures of ``shape`` (C, H, W), and print it.

    Small pictures are measured in whole batches. All processes of torchrun take what the first one found.
    """
    count = min(config.tr_batch_size, max(MEASURED_PIXELS // (shape[1] * shape[2]), 2 if training else 1))
    pictures = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))
    times = distributed.main_first(lambda: measure_ways(model, pictures, training=training))
    chosen = quickest(times)
    distributed.tell([describe(times, chosen, count)])
    return chosen
