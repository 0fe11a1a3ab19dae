"""From a configuration to a model: timm's networks with six logits, or a sequence model over what they give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from common.cli.arguments import given_options
from common.errors import UsageError
from common.models.backbone import create_model
from common.models.freezing import freeze
from common.models.sequence import build_sequence_model
from common.models.study_layers import StudyNetwork
from common.models.weights import load_weights
from common.training import distributed
from common.training.computing import describe, measure_ways, quickest
from common.training.hardware import arrange_model
from common.training.ways import WAYS
from config import SEQUENCE, STUDY, TrainConfig
from rsna_dataset import LABELS

MEASURED_PIXELS = 2**19  # two pictures of 512 x 512


def model_name(config: TrainConfig) -> str:
    """Return what a configuration's network is called: timm's name, the sequence model's, or both."""
    names = {SEQUENCE: config.seq_model, STUDY: f"{config.net_model} and {config.seq_model}"}
    return names.get(config.net_kind, config.net_model)


def build_model(config: TrainConfig, channels: int, *, starting_weights: bool = True) -> nn.Module:
    """Build the timm model with six logits and, unless a checkpoint will bring them, its starting weights.

    What is not trained is frozen.
    """
    if config.net_kind == SEQUENCE:
        return build_architecture(config, channels)
    slices = build_slice_network(config, channels, starting_weights)
    if config.net_kind == STUDY:
        if config.net_freeze == "backbone":
            slices.requires_grad_(False)  # with its head, whose logits the sequence model begins with
        return join_networks(config, slices)
    return arrange_model(
        slices,
        channels_last=config.tr_channels_last,
        grad_checkpoint=config.tr_grad_checkpoint,
        compile_mode=config.tr_compile,
    )


def build_slice_network(config: TrainConfig, channels: int, starting_weights: bool) -> nn.Module:
    """Build the timm model with its starting weights, where asked for, and what is not trained frozen."""
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
    if config.net_weight_file is not None and starting_weights:
        notes = load_weights(model, config.net_weight_file, model_name=config.net_model, adapt=config.net_weight_adapt)
        distributed.tell(f"{config.net_weight_file}: {line}" for line in notes)
    freeze(model, config.net_freeze)
    return model


def build_architecture(config: TrainConfig, channels: int) -> nn.Module:
    """Build the model of a configuration for so many channels, or a sequence model for so many features."""
    if config.net_kind == SEQUENCE:
        return build_sequence(config, channels)
    model = build_timm_model(config, channels)
    return join_networks(config, model) if config.net_kind == STUDY else model


def join_networks(config: TrainConfig, slices: nn.Module) -> nn.Module:
    """Return the slice network with a sequence model over it; UsageError where its head is no linear layer."""
    head = slices.get_classifier()
    if not isinstance(head, nn.Linear):
        raise UsageError(
            f"--net_kind=study: the head of {config.net_model} is no linear layer, so that it can't be used"
        )
    return StudyNetwork(slices, build_sequence(config, head.in_features), config.study_chunk)


def build_sequence(config: TrainConfig, num_features: int) -> nn.Module:
    """Build the sequence model of a configuration."""
    given = given_options(config, "seq_", "seq_model", "seq_features")
    return build_sequence_model(config.seq_model, given, num_features, len(LABELS))


def build_timm_model(config: TrainConfig, channels: int, pretrained: bool = False) -> nn.Module:
    """Build the timm model of a configuration for so many channels."""
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
    """Return a training's options with those of a way to compute, of :data:`common.training.computing.WAYS`."""
    chosen = WAYS[way]
    amp_dtype = "bfloat16" if chosen.amp else TrainConfig.tr_amp_dtype
    return replace(config, tr_channels_last=chosen.channels_last, tr_use_amp=chosen.amp, tr_amp_dtype=amp_dtype)


def way_of(config: TrainConfig) -> str:
    """Return the way that :func:`computed_by` put into options."""
    return next(name for name in WAYS if computed_by(config, name) == config)


def quickest_way(config: TrainConfig, model: nn.Module, shape: Sequence[int], *, training: bool) -> str:
    """Measure in which way this machine's CPU computes ``model`` quickest for pictures of ``shape`` (C, H, W); say so.

    Whole batches are measured where the pictures are small. The processes of torchrun take what the first one found.
    """
    count = min(config.tr_batch_size, max(MEASURED_PIXELS // (shape[1] * shape[2]), 2 if training else 1))
    pictures = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))
    times = distributed.main_first(lambda: measure_ways(model, pictures, training=training))
    chosen = quickest(times)
    distributed.tell([describe(times, chosen, count)])
    return chosen
