"""A slice network and a sequence model in one: maps pictures of whole series to logits of slices and study."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from common.models.layers import has_own_head
from common.models.sequence_layers import ForExport, SequenceModel, SequenceOutput, in_series


class StudyNetwork(nn.Module):
    """timm's network ``slices`` sees each picture, ``sequence`` its outputs. Both learn, or the sequence model alone.

    The pictures go through in chunks. The backward pass computes a chunk's activations again instead of keeping them,
    so that memory grows with the chunk, not with the series. Batch norms keep their running statistics, since the
    slices of a few heads don't represent all. A slice network that is not trained also has no dropout.
    """

    def __init__(self, slices: nn.Module, sequence: SequenceModel, chunk: int) -> None:
        """``slices`` has a linear head and takes ``chunk`` pictures at once."""
        super().__init__()
        self.slices = slices
        self.sequence = sequence
        self.chunk = chunk
        self.own_head = has_own_head(slices)

    def forward(
        self, image: Tensor, position_mm: Tensor, mask: Tensor, places: Tensor, lengths: Sequence[int] | None = None
    ) -> SequenceOutput:
        """``image`` (N, C, H, W) of all series, one after another. ``position_mm`` and ``mask`` (B, L), with N true.

        ``places`` (N,) of the pictures among the B · L. ``lengths``: see :class:`SequenceModel`.
        """
        learns = torch.is_grad_enabled() and self.learns_slices
        with torch.set_grad_enabled(learns):
            parts = [self._chunk(part, learns) for part in image.split(self.chunk)]
        features, logits = (torch.cat(found) for found in zip(*parts, strict=True))
        features, logits = (in_series(found, places, mask.shape) for found in (features, logits))
        return self.sequence(features, logits, position_mm, mask, lengths)

    @property
    def learns_slices(self) -> bool:
        """Whether a weight of the slice network is trained."""
        return any(parameter.requires_grad for parameter in self.slices.parameters())

    def train(self, mode: bool = True) -> StudyNetwork:
        """Set the mode; see the class for what stays in evaluation mode."""
        super().train(mode)
        for module in self.slices.modules():
            if not self.learns_slices or isinstance(module, _BatchNorm):
                module.training = False
        return self

    def get_classifier(self) -> list[nn.Module]:
        """Return the sequence model, so that its learning rate may differ."""
        return [self.sequence]

    def _chunk(self, pictures: Tensor, learns: bool) -> tuple[Tensor, Tensor]:
        return checkpoint(self.see, pictures, use_reentrant=False) if learns else self.see(pictures)

    def see(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Return embeddings (n, F) and logits (n, C) of pictures, float32 in any precision of the network."""
        maps = self.slices.forward_features(pictures)
        features = self.slices.forward_head(maps, pre_logits=True)
        logits = self.slices.forward_head(maps) if self.own_head else self.slices.get_classifier()(features)
        return features.float(), logits.float()


class StudyForExport(nn.Module):
    """A study network for series padded to one length. Its outputs are plain tensors, 0 in padding."""

    def __init__(self, model: StudyNetwork) -> None:
        super().__init__()
        self.slices = model
        self.series = ForExport(model.sequence)

    def forward(self, image: Tensor, position_mm: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of the slices (B, L, K) and of the study (B, K).

        ``image`` (B, L, C, H, W) goes through at once. ``position_mm`` and ``mask`` (B, L).
        """
        features, logits = (found.unflatten(0, mask.shape) for found in self.slices.see(image.flatten(0, 1)))
        return self.series(features, logits, position_mm, mask)
