"""The layers of sequence models; ``mask`` (B, L) is true for slices and false for padding, which stands at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

WAVELENGTHS_MM = (4.0, 400.0)  # from neighbouring thin slices to more than a head
WAVES = 8


class SequenceOutput(NamedTuple):
    """Logits: ``slices`` (B, L, C), meaningless in padding, and ``study`` (B, C)."""

    slices: Tensor
    study: Tensor


class SequenceModel(nn.Module):
    """Maps embeddings, logits and places of slices to logits of the slices and of the whole sequence.

    It adds a term to each slice's logits that starts at 0: before training it returns the slice network's own logits.
    """

    def __init__(
        self, encoder: nn.Module, num_features: int, num_classes: int, width: int, drop: float, inputs: str, study: str
    ) -> None:
        """``inputs`` of each slice: both, features or logits. ``study``: max, noisy_or or learned."""
        super().__init__()
        self.num_features = num_features
        self.inputs = inputs
        self.study = study
        if inputs != "logits":
            self.norm = nn.LayerNorm(num_features)
            self.project = nn.Linear(num_features, width)
        if inputs != "features":
            self.project_logits = nn.Linear(num_classes, width)
        self.project_place = nn.Linear(2 * WAVES, width)
        self.dropout = nn.Dropout(drop)
        self.encoder = encoder
        self.head = zeroed(nn.Linear(width, num_classes))
        if study == "learned":
            self.attention = nn.Linear(width, 1)
            self.study_head = zeroed(nn.Linear(width, num_classes))

    def forward(
        self,
        features: Tensor,
        logits: Tensor,
        position_mm: Tensor,
        mask: Tensor,
        lengths: Sequence[int] | None = None,
    ) -> SequenceOutput:
        """``features`` (B, L, F), ``logits`` (B, L, C), ``position_mm`` (B, L), ``mask`` bool (B, L).

        ``lengths``: slices in each row of the mask; None: read them from the mask, for which the host waits for a GPU.
        """
        x = self.project_place(place_waves(position_mm).to(self.project_place.weight.dtype))
        if self.inputs != "logits":
            x = x + self.project(self.dropout(self.norm(features)))
        if self.inputs != "features":
            x = x + self.project_logits(logits.clamp(-20, 20) / 5)
        x = self.encoder(self.dropout(functional.gelu(x)) * mask[..., None], mask, lengths)
        slices = logits + self.head(x)
        return SequenceOutput(slices, self._study(slices, x, mask))

    def get_classifier(self) -> list[nn.Module]:
        """Return the layers that give logits, as timm's models do."""
        return [self.head, *([self.study_head] if self.study == "learned" else [])]

    def _study(self, slices: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        if self.study == "noisy_or":
            return noisy_or(slices, mask)
        highest = slices.masked_fill(~mask[..., None], -torch.inf).amax(dim=1)
        if self.study == "max":
            return highest
        scores = self.attention(x).squeeze(-1).masked_fill(~mask, -torch.inf)
        return highest + self.study_head(torch.einsum("bl,blw->bw", scores.softmax(dim=1), x))


def zeroed(layer: nn.Linear) -> nn.Linear:
    """Set a layer to 0, so that it returns 0 until it is trained."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def in_series(values: Tensor, places: Tensor, shape: Sequence[int]) -> Tensor:
    """Scatter ``values`` (N, …) into series of the ``shape`` (B, L), at their ``places`` among the B · L; else 0."""
    padded = values.new_zeros(math.prod(shape), *values.shape[1:])
    return padded.index_copy(0, places, values).unflatten(0, tuple(shape))


def of_slices(values: Tensor, places: Tensor) -> Tensor:
    """Return the rows (N, …) of ``values`` (B, L, …) at the ``places`` (N,) of slices among the B · L."""
    return values.flatten(0, 1).index_select(0, places)


def place_waves(position_mm: Tensor) -> Tensor:
    """Return sines and cosines (B, L, 2 · waves) of places in mm, at wavelengths from 4 to 400 mm."""
    low, high = (math.log(length) for length in WAVELENGTHS_MM)
    lengths = torch.linspace(low, high, WAVES, device=position_mm.device).exp()
    angles = position_mm.float()[..., None] * (2 * math.pi / lengths)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def noisy_or(logits: Tensor, mask: Tensor) -> Tensor:
    """Return the logit (B, C) of 1 − Π (1 − pᵢ), where pᵢ are the probabilities of ``logits`` (B, L, C)."""
    total = functional.softplus(logits.float()).masked_fill(~mask[..., None], 0).sum(dim=1)  # −log Π (1 − pᵢ)
    return total + torch.log(-torch.expm1(-total.clamp_min(1e-30)))


class Recurrent(nn.Module):
    """A bidirectional GRU or LSTM with a residual connection and a norm."""

    def __init__(self, kind: str, width: int, layers: int, drop: float) -> None:
        """``kind``: GRU or LSTM."""
        super().__init__()
        cell = getattr(nn, kind)
        between = drop if layers > 1 else 0.0
        self.cell = cell(width, width, layers, batch_first=True, bidirectional=True, dropout=between)
        self.out = nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Run over each sequence up to its own length."""
        states = stepwise(self.cell, x, mask) if torch.compiler.is_exporting() else packed(self.cell, x, mask, lengths)
        return self.norm(x + self.out(states))


def packed(cell: nn.RNNBase, x: Tensor, mask: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
    """Return the states (B, L, 2 · width) of a bidirectional ``cell``, 0 in padding.

    The sequences are sorted by length on their device. torch would sort unsorted ones on the host and copy the order
    to the GPU, for which the host waits.
    """
    rnn = nn.utils.rnn
    order = mask.sum(dim=1).argsort(descending=True, stable=True)
    falling = sorted(mask.sum(dim=1).tolist() if lengths is None else lengths, reverse=True)
    sequences = rnn.pack_padded_sequence(x.index_select(0, order), falling, batch_first=True)
    states = rnn.pad_packed_sequence(cell(sequences)[0], batch_first=True, total_length=x.shape[1])[0]
    return torch.empty_like(states).index_copy(0, order, states)


def stepwise(cell: nn.RNNBase, x: Tensor, mask: Tensor) -> Tensor:
    """Compute the states of :func:`packed` step by step from the cell's equations, without dropout.

    They are valid where there are slices. Exporters don't know packed sequences and unroll torch's own cells to one
    length. Padding leaves a state as it is, so that the backward direction, which begins there, begins at 0.
    """
    from torch._higher_order_ops.scan import scan  # torch has no public name for it yet

    x, kept = x.transpose(0, 1), mask.transpose(0, 1)[..., None].to(x.dtype)
    next_state = lstm_state if isinstance(cell, nn.LSTM) else gru_state
    for layer in range(cell.num_layers):
        ways = []
        for back in ("", "_reverse"):
            names = (f"weight_ih_l{layer}{back}", f"weight_hh_l{layer}{back}", f"bias_ih_l{layer}{back}")
            into, within, bias = (getattr(cell, name) for name in names)
            own_bias = getattr(cell, f"bias_hh_l{layer}{back}")

            def step(
                states: list[Tensor], now: list[Tensor], within: Tensor = within, own_bias: Tensor = own_bias
            ) -> tuple[list[Tensor], Tensor]:
                given, keep = now
                following = next_state(given, states, within, own_bias)
                states = [old + keep * (new - old) for old, new in zip(states, following, strict=True)]
                return states, states[0].clone()

            start = [x.new_zeros(x.shape[1], cell.hidden_size) for _ in range(2 if isinstance(cell, nn.LSTM) else 1)]
            given = functional.linear(x, into, bias)
            ways.append(scan(step, start, [given, kept], dim=0, reverse=bool(back))[1])
        x = torch.cat(ways, dim=-1)
    return x.transpose(0, 1)


def gru_state(given: Tensor, states: list[Tensor], weight: Tensor, bias: Tensor) -> list[Tensor]:
    """Return a GRU's next state [h], each (B, width), by the equations of torch.nn.GRU; ``given`` (B, 3 · width)."""
    (h,) = states
    (reset, update, new), (own_reset, own_update, own_new) = (
        part.chunk(3, dim=-1) for part in (given, functional.linear(h, weight, bias))
    )
    new = torch.tanh(new + torch.sigmoid(reset + own_reset) * own_new)
    return [new + torch.sigmoid(update + own_update) * (h - new)]


def lstm_state(given: Tensor, states: list[Tensor], weight: Tensor, bias: Tensor) -> list[Tensor]:
    """Return an LSTM's next states [h, c], each (B, width), by the equations of torch.nn.LSTM."""
    h, c = states
    enter, forget, new, show = (given + functional.linear(h, weight, bias)).chunk(4, dim=-1)
    c = torch.sigmoid(forget) * c + torch.sigmoid(enter) * torch.tanh(new)
    return [torch.sigmoid(show) * torch.tanh(c), c]


class ForExport(nn.Module):
    """A sequence model whose outputs are plain tensors, 0 in padding."""

    def __init__(self, model: SequenceModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Tensor, logits: Tensor, position_mm: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of the slices (B, L, C) and of the study (B, C)."""
        found = self.model(features, logits, position_mm, mask)
        return found.slices.masked_fill(~mask[..., None], 0), found.study


class Attention(nn.Module):
    """A transformer encoder, norms first, that never attends to padding."""

    def __init__(self, width: int, layers: int, heads: int, drop: float) -> None:
        """``heads`` must divide ``width``."""
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, drop, functional.gelu, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, x: Tensor, mask: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Attend to the slices."""
        return self.layers(x, src_key_padding_mask=~mask)


class Convolutions(nn.Module):
    """Residual blocks of a norm, a convolution along the slices, and a linear layer over the channels."""

    def __init__(self, width: int, layers: int, kernel: int, drop: float) -> None:
        """``kernel`` slices, odd."""
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.along = nn.ModuleList(nn.Conv1d(width, width, kernel, padding=kernel // 2) for _ in range(layers))
        self.across = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.dropout = nn.Dropout(drop)

    def forward(self, x: Tensor, mask: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Convolve. Beyond a sequence's end count zeros, whatever the padding holds."""
        for norm, along, across in zip(self.norms, self.along, self.across, strict=True):
            inside = norm(x) * mask[..., None]
            x = x + self.dropout(across(functional.gelu(along(inside.transpose(1, 2)).transpose(1, 2))))
        return x
