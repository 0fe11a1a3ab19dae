"""Batches, and how samples are collated into one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from common.datasets.finish import Plan, collect, execute
from common.datasets.images import ImageDataset, Sample
from common.errors import WorkError


@dataclass(frozen=True)
class Batch:
    """``inputs`` by name (``image`` float32 (B, C, H, W)), ``target`` float32 (B, K) or None, B ``image_id``.

    If there is a ``plan``, ``image`` is as it was read, int16 HU or float32 in 0..1, and the plan has the steps to do.
    In a batch of series ``lengths`` counts the slices of each, as plain numbers on the host. ``share`` is the weight of
    this batch's mean loss: the batches of other processes may hold more slices or fewer.
    """

    inputs: dict[str, Tensor]
    target: Tensor | None
    image_id: list[str]
    plan: Plan | None = None
    lengths: tuple[int, ...] | None = None
    share: float = 1.0

    def __len__(self) -> int:
        return len(self.image_id)

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        """Return the batch on ``device``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, from which a copy to a GPU needs no wait; DataLoader calls it."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        inputs = {name: function(tensor) for name, tensor in self.inputs.items()}
        target = None if self.target is None else function(self.target)
        return replace(self, inputs=inputs, target=target, plan=None if self.plan is None else self.plan.map(function))

    def finished(self) -> Batch:
        """Return the batch with the pictures that the network sees. Call it once the batch is on its device."""
        if self.plan is None:
            return self
        return replace(self, inputs={**self.inputs, "image": execute(self.plan, self.inputs["image"])}, plan=None)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples, all with a target or all without. Pictures may differ in size if their steps make them equal.

    Raises WorkError naming two pictures whose final shapes differ.
    """
    first = samples[0]
    for sample in samples:
        if sample.size != first.size or len(sample.image) != len(first.image):
            shapes = [(len(one.image), *one.size) for one in (first, sample)]
            raise WorkError(
                f"images {first.image_id} and {sample.image_id} come out of the transforms with different shapes "
                f"{shapes[0]} and {shapes[1]} and can't stand in one batch; give --data_image_size, "
                "or a transform file that makes them equal"
            )
    targets = [sample.target for sample in samples]
    target = None if targets[0] is None else torch.from_numpy(np.stack(targets))
    plan = None if first.steps is None else collect([sample.steps for sample in samples], first.size)
    return Batch({"image": torch.from_numpy(_stack(samples))}, target, [sample.image_id for sample in samples], plan)


def finished_picture(dataset: ImageDataset, index: int) -> Tensor:
    """Return a picture of a dataset as the network sees it, float32 (C, H, W), transformed here or on the device."""
    return collate([dataset[index]]).finished().inputs["image"][0]


def _stack(samples: Sequence[Sample]) -> np.ndarray:
    """Return all pictures in one array. Smaller ones lie at the top left."""
    shapes = {sample.image.shape for sample in samples}
    if len(shapes) == 1:
        return np.stack([sample.image for sample in samples])
    sides = (max(shape[axis] for shape in shapes) for axis in range(3))
    stacked = np.zeros((len(samples), *sides), dtype=samples[0].image.dtype)
    for place, sample in zip(stacked, samples, strict=True):
        place[tuple(slice(side) for side in sample.image.shape)] = sample.image
    return stacked


class LoadingFailed(WorkError):
    """The processes that load images died or hang. All batches before were complete."""
