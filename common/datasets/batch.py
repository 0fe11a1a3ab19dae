"""One image's data, and a batch of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from common.datasets.finish import Finish
from common.datasets.images import Sample
from common.errors import WorkError


@dataclass(frozen=True)
class Batch:
    """``inputs`` by name, ``image`` is float32 (B, C, H, W); ``target`` float32 (B, K) or None; ``image_id`` has B.

    With ``finish`` the inputs are something smaller, such as ``image_hu`` int16 (B, K, H, W), from which it makes
    ``image`` on the device.
    """

    inputs: dict[str, Tensor]
    target: Tensor | None
    image_id: list[str]
    finish: Finish | None = None

    def __len__(self) -> int:
        return len(self.image_id)

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        """Return the batch on ``device``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, from which a copy to a GPU need not wait; DataLoader calls it."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        inputs = {name: function(tensor) for name, tensor in self.inputs.items()}
        return replace(self, inputs=inputs, target=None if self.target is None else function(self.target))

    def finished(self) -> Batch:
        """Return the batch with the inputs that the network sees; to be called where it computes."""
        return self if self.finish is None else replace(self, inputs=self.finish(self.inputs), finish=None)


def collate(samples: Sequence[Sample], finish: Finish | None = None) -> Batch:
    """Stack samples, all with a target or all without; ``finish`` is that of their pipeline.

    Raises WorkError naming two whose pictures differ in size."""
    first = samples[0]
    for sample in samples:
        if sample.image.shape != first.image.shape:
            raise WorkError(
                f"images {first.image_id} and {sample.image_id} come out of the transforms with different shapes "
                f"{first.image.shape} and {sample.image.shape} and can't stand in one batch; give --data_image_size, "
                "or a transform file that makes them equal"
            )
    image = torch.from_numpy(np.stack([sample.image for sample in samples]))
    targets = [sample.target for sample in samples]
    target = None if targets[0] is None else torch.from_numpy(np.stack(targets))
    inputs = {"image": image}
    if first.windows is not None:
        inputs = {"image_hu": image, "windows": torch.from_numpy(np.stack([sample.windows for sample in samples]))}
    return Batch(inputs, target, [sample.image_id for sample in samples], finish)
