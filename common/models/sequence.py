"""Models over a series: they turn each slice's embedding and logits into better logits, and one of the study.

A model takes slices in geometric order and never sees padding: values behind a sequence's end change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.cli.arguments import option
from common.cli.choices import Row, choose, settings, table
from common.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

# (values of the options) -> a module that maps x (B, L, width) and mask (B, L) to (B, L, width)
EncoderBuilder = Callable[[Mapping[str, Any]], "nn.Module"]


@dataclass(frozen=True)
class SequenceRow(Row):
    """One kind of sequence model. ``build`` makes its encoder from its options' values."""

    build: EncoderBuilder


def build_gru(values: Mapping[str, Any]) -> nn.Module:
    """Bidirectional GRU."""
    from common.models.sequence_layers import Recurrent

    return Recurrent("GRU", values["seq_width"], values["seq_layers"], values["seq_drop"])


def build_lstm(values: Mapping[str, Any]) -> nn.Module:
    """Bidirectional LSTM."""
    from common.models.sequence_layers import Recurrent

    return Recurrent("LSTM", values["seq_width"], values["seq_layers"], values["seq_drop"])


def build_transformer(values: Mapping[str, Any]) -> nn.Module:
    """Transformer encoder. UsageError if the heads don't divide the width."""
    from common.models.sequence_layers import Attention

    if values["seq_width"] % values["seq_heads"]:
        raise UsageError(f"--seq_width={values['seq_width']} is not a multiple of --seq_heads={values['seq_heads']}")
    return Attention(values["seq_width"], values["seq_layers"], values["seq_heads"], values["seq_drop"])


def build_conv(values: Mapping[str, Any]) -> nn.Module:
    """Residual 1-D convolutions. UsageError for an even kernel, which has no middle."""
    from common.models.sequence_layers import Convolutions

    if values["seq_kernel"] % 2 == 0:
        raise UsageError(f"--seq_kernel={values['seq_kernel']} must be odd")
    return Convolutions(values["seq_width"], values["seq_layers"], values["seq_kernel"], values["seq_drop"])


COMMON = {
    "seq_inputs": "both",
    "seq_width": 128,
    "seq_layers": 2,
    "seq_drop": 0.2,
    "seq_reverse": 0.5,
    "seq_study": "max",
    "seq_study_weight": 0.1,
}

SEQUENCE_MODELS: dict[str, SequenceRow] = table(
    (
        SequenceRow("gru", "bidirectional GRU", build_gru, parameters=COMMON),
        SequenceRow("lstm", "bidirectional LSTM", build_lstm, parameters=COMMON),
        SequenceRow(
            "transformer", "transformer encoder, norms first", build_transformer, parameters=COMMON | {"seq_heads": 4}
        ),
        SequenceRow("conv", "residual 1-D convolutions", build_conv, parameters=COMMON | {"seq_kernel": 5}),
    )
)


@dataclass(frozen=True, kw_only=True)
class SequenceOptions:
    """Sequence models (--net_kind=sequence or study). Where an option says "none", the model's own value holds."""

    seq_features: str | None = option(
        None,
        "experiment (id or folder) of a cross-validation; the model learns from its out-of-fold features",
        changeable=True,
    )
    seq_model: str = option(
        "gru",
        "type of sequence model; --list=seq describes each and its options",
        choices=tuple(SEQUENCE_MODELS),
        own_rows=True,
    )
    seq_inputs: str | None = option(
        None,
        "what the model sees of each slice besides its position: features, logits or both",
        choices=("both", "features", "logits"),
    )
    seq_width: int | None = option(None, "width of the layers", minimum=1, maximum=8192)
    seq_layers: int | None = option(None, "number of layers", minimum=1, maximum=64)
    seq_heads: int | None = option(None, "transformer: number of attention heads", minimum=1, maximum=64)
    seq_kernel: int | None = option(None, "conv: kernel size in slices, odd", minimum=1, maximum=99)
    seq_drop: float | None = option(None, "dropout rate", minimum=0, maximum=0.99)
    seq_reverse: float | None = option(None, "probability of reversing a training series", minimum=0, maximum=1)
    seq_study: str | None = option(
        None,
        "logit of the study. max: highest of the slices. noisy_or: that at least one slice is positive. learned: "
        "max plus a layer on slices weighted by attention",
        choices=("max", "noisy_or", "learned"),
    )
    seq_study_weight: float | None = option(None, "weight of the studies' loss relative to the slices'", minimum=0)


def sequence_settings(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the option values of the sequence model called ``name``. UsageError for unknown names and options."""
    return settings("seq_model", choose("seq_model", name, SEQUENCE_MODELS), given)


def build_sequence_model(name: str, given: Mapping[str, Any], num_features: int, num_classes: int) -> nn.Module:
    """Build the sequence model called ``name`` for embeddings of ``num_features`` and ``num_classes`` logits.

    ``given`` are the ``seq_…`` options, None if not given. Raises UsageError as :func:`sequence_settings`.
    """
    from common.models.sequence_layers import SequenceModel

    values = sequence_settings(name, given)
    encoder = choose("seq_model", name, SEQUENCE_MODELS).build(values)
    width, drop = values["seq_width"], values["seq_drop"]
    return SequenceModel(encoder, num_features, num_classes, width, drop, values["seq_inputs"], values["seq_study"])
