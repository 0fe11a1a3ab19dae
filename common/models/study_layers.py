"""A slice network and a sequence model as one, from the pictures of whole series to logits of slices and study."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from common.models.sequence_layers import ForExport, SequenceModel, SequenceOutput, in_series


class StudyNetwork(nn.Module):
    """timm's ``slices`` see each picture, ``sequence`` what they saw; both learn, or the sequence model alone.

    The pictures go through in chunks. Of a chunk no activations are kept for the backward pass, which computes them
    again: memory grows with a chunk and not with the series. Batch norms keep their running statistics, since the
    slices of a few heads are no sample of all. Where no weight of the slice network is trained it also drops nothing.
    """

    def __init__(self, slices: nn.Module, sequence: SequenceModel, chunk: int) -> None:
        """``slices`` has a linear head; ``chunk``: pictures that go through it at once."""
        super().__init__()
        self.slices = slices
        self.sequence = sequence
        self.chunk = chunk

    def forward(
        self, image: Tensor, position_mm: Tensor, mask: Tensor, places: Tensor, lengths: Sequence[int] | None = None
    ) -> SequenceOutput:
        """``image`` (N, C, H, W) of all series, one after another; ``position_mm`` and ``mask`` (B, L), N true.

        ``places`` (N,): where the pictures lie among the B · L; ``lengths`` as of :class:`SequenceModel`.
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
        """Return what is not the slice network, so that its rate may differ."""
        return [self.sequence]

    def _chunk(self, pictures: Tensor, learns: bool) -> tuple[Tensor, Tensor]:
        return checkpoint(self.see, pictures, use_reentrant=False) if learns else self.see(pictures)

    def see(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Return embeddings (n, F) and logits (n, C) of pictures, float32 whatever the network computes in."""
        features = self.slices.forward_head(self.slices.forward_features(pictures), pre_logits=True)
        return features.float(), self.slices.get_classifier()(features).float()


class StudyForExport(nn.Module):
    """A study network for series that are padded to one length; its outputs are plain tensors, and 0 in padding."""

    def __init__(self, model: StudyNetwork) -> None:
        super().__init__()
        self.slices = model
        self.series = ForExport(model.sequence)

    def forward(self, image: Tensor, position_mm: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of slices (B, L, K) and of the study (B, K).

        ``image`` (B, L, C, H, W), all of which go through at once; ``position_mm`` and ``mask`` (B, L).
        """
        features, logits = (found.unflatten(0, mask.shape) for found in self.slices.see(image.flatten(0, 1)))
        return self.series(features, logits, position_mm, mask)
