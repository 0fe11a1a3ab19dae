"""From a configuration to a model: timm's networks with six logits, or a sequence model over what they give."""

from __future__ import annotations

from torch import nn

from common import distributed
from common.arguments import given_options
from common.errors import UsageError
from common.hardware import arrange_model
from common.models.backbone import create_model
from common.models.freezing import freeze
from common.models.sequence import build_sequence_model
from common.models.weights import load_weights
from config import SEQUENCE, TrainConfig
from rsna_dataset import LABELS


def build_model(config: TrainConfig, channels: int, *, starting_weights: bool = True) -> nn.Module:
    """Build the timm model with six logits and, unless a checkpoint will bring them, its starting weights.

    What is not trained is frozen.
    """
    if config.net_kind == SEQUENCE:
        return build_architecture(config, channels)
    if config.net_in_chans not in (None, channels):
        raise UsageError(
            f"--net_in_chans={config.net_in_chans}: the pictures have {channels} channels; change the windows "
            "(--data_windows or the transform files), or leave --net_in_chans out"
        )
    if config.net_weight_adapt and config.net_weight_file is None:
        raise UsageError("--net_weight_adapt=1 needs --net_weight_file")
    model = build_architecture(
        config, channels, config.net_pretrained and config.net_weight_file is None and starting_weights
    )
    if config.net_weight_file is not None and starting_weights:
        notes = load_weights(model, config.net_weight_file, model_name=config.net_model, adapt=config.net_weight_adapt)
        distributed.tell(f"{config.net_weight_file}: {line}" for line in notes)
    freeze(model, config.net_freeze)
    return arrange_model(
        model,
        channels_last=config.tr_channels_last,
        grad_checkpoint=config.tr_grad_checkpoint,
        compile_mode=config.tr_compile,
    )


def build_architecture(config: TrainConfig, channels: int, pretrained: bool = False) -> nn.Module:
    """Build the timm model of a configuration for so many channels, or its sequence model for so many features."""
    if config.net_kind == SEQUENCE:
        given = given_options(config, "seq_", "seq_model", "seq_features")
        return build_sequence_model(config.seq_model, given, channels, len(LABELS))
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
