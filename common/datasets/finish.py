"""Transforms a whole batch at once in torch, on the device that computes.

The loading processes draw each picture's steps as numbers. :func:`collect` joins the steps of a batch into a plan and
:func:`execute` does them. The same code runs on a GPU and on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from common.datasets.noise import TABLE_SIZE, normal_table
from common.datasets.steps import CONSTANT, REFLECT, REFLECT_101, REPLICATE, Step
from common.errors import UsageError


@dataclass(frozen=True)
class Group:
    """Equal steps of several pictures, done together. ``arrays``: the start in the plan's numbers, and the shape.

    The first dimension of each shape is the pictures. ``index`` locates their places in the batch in the same way;
    None: the whole batch.
    """

    kind: str
    constants: tuple[Any, ...]
    arrays: dict[str, tuple[int, tuple[int, ...]]]
    index: tuple[int, tuple[int, ...]] | None


@dataclass(frozen=True)
class Plan:
    """All steps of a batch. ``numbers`` float64 (N,) is one tensor, so that one copy brings it to the device.

    ``size`` is the (height, width) of the finished pictures.
    """

    groups: tuple[Group, ...]
    numbers: Tensor
    size: tuple[int, int]

    def map(self, function: Callable[[Tensor], Tensor]) -> Plan:
        """Return the plan with ``function`` applied to its numbers."""
        return replace(self, numbers=function(self.numbers))


def collect(steps: Sequence[Sequence[Step]], size: tuple[int, int]) -> Plan:
    """Return the plan of a batch from the ordered ``steps`` of each picture. All pictures end with ``size``."""
    found: dict[tuple[Any, ...], list[tuple[int, Step]]] = {}
    for position, one in enumerate(steps):
        for step in one:
            found.setdefault(step.key, []).append((position, step))
    parts: list[np.ndarray] = []
    length = 0

    def place(values: np.ndarray) -> tuple[int, tuple[int, ...]]:
        nonlocal length
        parts.append(np.asarray(values, dtype=np.float64).ravel())
        length += values.size
        return length - values.size, values.shape

    groups = []
    for _, members in sorted(found.items(), key=lambda item: item[0][0]):
        positions, same = zip(*members, strict=True)
        arrays = {name: place(np.stack([step.numbers[name] for step in same])) for name in same[0].numbers}
        index = None if len(positions) == len(steps) else place(np.array(positions))
        groups.append(Group(same[0].kind, same[0].constants, arrays, index))
    numbers = torch.from_numpy(np.concatenate(parts) if parts else np.zeros(0))
    return Plan(tuple(groups), numbers, size)


def execute(plan: Plan, pictures: Tensor) -> Tensor:
    """Apply all steps to ``pictures`` (B, K, H, W), int16 HU or float32; return float32 (B, C, *``plan.size``).

    Plan and pictures must be on the same device. A picture smaller than (H, W) lies at the top left.
    """
    return _apply(plan, pictures, KERNELS).float().contiguous()


def execute_masks(plan: Plan, masks: Tensor) -> Tensor:
    """Move ``masks``, uint8 (B, 1, H, W), as :func:`execute` moves their pictures; return (B, 1, *``plan.size``).

    Each pixel takes the nearest one. Beyond a constant border is 0. Raises UsageError for a step that doesn't say what
    it does to masks.
    """
    return _apply(plan, masks, MASK_KERNELS).contiguous()


def _apply(plan: Plan, pictures: Tensor, kernels: Mapping[str, Callable[..., Tensor]]) -> Tensor:
    def array(place: tuple[int, tuple[int, ...]]) -> Tensor:
        start, shape = place
        return plan.numbers[start : start + math.prod(shape)].view(shape)

    for group in plan.groups:
        kernel = kernels.get(group.kind)
        if kernel is None:
            raise UsageError(f"the transform step {group.kind} doesn't say how it moves masks")
        numbers = {name: array(place) for name, place in group.arrays.items()}
        if group.index is None:
            pictures = kernel(pictures, numbers, *group.constants)
        else:
            index = array(group.index).long()
            changed = kernel(pictures.index_select(0, index), numbers, *group.constants)
            height, width = (max(sides) for sides in zip(pictures.shape[2:], changed.shape[2:], strict=True))
            pictures, changed = _padded(pictures, height, width), _padded(changed, height, width)
            pictures = pictures.to(changed.dtype).index_copy(0, index, changed)
    height, width = plan.size
    return pictures[..., :height, :width]


def _padded(pictures: Tensor, height: int, width: int) -> Tensor:
    return F.pad(pictures, (0, width - pictures.shape[3], 0, height - pictures.shape[2]))


def window(pictures: Tensor, numbers: Mapping[str, Tensor]) -> Tensor:
    """Map HU (B, K, H, W) by ``windows`` (B, C, 2), centre and width, to (B, K · C, H, W) in 0..1, slice by slice."""
    center, width = numbers["windows"].unbind(dim=-1)
    low, width = (values.float()[:, None, :, None, None] for values in (center - width / 2, width))
    return ((pictures.float().unsqueeze(2) - low) / width).clamp_(0, 1).flatten(1, 2)


def flip(pictures: Tensor, numbers: Mapping[str, Tensor], horizontal: bool, vertical: bool) -> Tensor:
    """Flip pictures horizontally, vertically or both. ``size`` (B, 2) gives their heights and widths."""
    for axis, wanted in ((3, horizontal), (2, vertical)):
        if wanted:
            end = numbers["size"][:, axis - 2, None].long() - 1
            places = (end - torch.arange(pictures.shape[axis], device=pictures.device)).clamp_(min=0)
            places = places[:, None, None, :] if axis == 3 else places[:, None, :, None]
            pictures = pictures.gather(axis, places.expand_as(pictures))
    return pictures


def sample(
    pictures: Tensor,
    numbers: Mapping[str, Tensor],
    links: tuple[str, ...],
    size: tuple[int, int],
    interpolation: int,
    border: int,
    fill: float | tuple[float, ...],
) -> Tensor:
    """Resample pictures at the source places of a chain of links (``common.transforms.joining``), linearly.

    Link i has ``matrix i`` (B, 2, 3), or ``columns i`` (B, W) and ``rows i`` (B, H). ``frame`` (B, 4) holds the first
    and last pixel of the source: left, top, right, bottom. ``border`` says what lies beyond; CONSTANT takes ``fill``.
    """
    device = pictures.device
    x, y = _source_places(pictures, numbers, links, size, border)
    right, bottom = numbers["frame"].float()[:, 2:, None, None].unbind(dim=1)
    height, width = pictures.shape[2:]
    places = torch.stack([x * (2 / max(width - 1, 1)) - 1, y * (2 / max(height - 1, 1)) - 1], dim=-1)
    pictures = pictures.float()
    if border != CONSTANT:
        return F.grid_sample(pictures, places, padding_mode="border", align_corners=True)
    filling = torch.tensor(fill, dtype=torch.float32).to(device, non_blocking=True).reshape(-1, 1, 1)
    columns, rows = torch.arange(width, device=device), torch.arange(height, device=device)[:, None]
    within = (columns <= right) & (rows <= bottom)
    difference = (pictures - filling) * within[:, None]
    return F.grid_sample(difference, places, padding_mode="zeros", align_corners=True) + filling


def _source_places(
    pictures: Tensor, numbers: Mapping[str, Tensor], links: tuple[str, ...], size: tuple[int, int], border: int
) -> tuple[Tensor, Tensor]:
    """Return x and y of the source, float32 (B, H, W), for each pixel of a target of ``size``; see :func:`sample`."""
    device = pictures.device
    x = torch.arange(size[1], device=device, dtype=torch.float32).expand(len(pictures), 1, -1)
    y = torch.arange(size[0], device=device, dtype=torch.float32)[:, None].expand(len(pictures), -1, 1)
    for number, link in reversed(list(enumerate(links))):
        if link == "grid":
            x, y = _look_up(numbers[f"columns {number}"], x), _look_up(numbers[f"rows {number}"], y)
        else:
            rows = numbers[f"matrix {number}"].float()[..., None, None].unbind(dim=1)
            x, y = (row[:, 0] * x + row[:, 1] * y + row[:, 2] for row in rows)
    left, top, right, bottom = numbers["frame"].float()[..., None, None].unbind(dim=1)
    return _inside(x, left, right, border), _inside(y, top, bottom, border)


def sample_masks(
    masks: Tensor,
    numbers: Mapping[str, Tensor],
    links: tuple[str, ...],
    size: tuple[int, int],
    interpolation: int,
    border: int,
    fill: float | tuple[float, ...],
) -> Tensor:
    """Take the pixels of masks that are nearest to the places of :func:`sample`; beyond a constant border 0."""
    height, width = masks.shape[2:]
    places = _source_places(masks, numbers, links, size, border)
    # Halves are common, as in a crop reduced by 2: all go to the next pixel, whatever float32 makes of them.
    x, y = ((one + (0.5 + 2**-8)).floor().long() for one in places)
    index = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    taken = masks.flatten(2).gather(2, index.flatten(1)[:, None].expand(-1, masks.shape[1], -1))
    taken = taken.view(*masks.shape[:2], *size)
    if border != CONSTANT:
        return taken
    left, top, right, bottom = numbers["frame"][..., None, None].unbind(dim=1)
    return taken * ((x >= left) & (x <= right) & (y >= top) & (y <= bottom))[:, None]


def crop_masks(masks: Tensor, numbers: Mapping[str, Tensor], size: tuple[int, int], interpolation: int) -> Tensor:
    """Crop masks as :func:`crop` does pictures, by the nearest pixels."""
    return sample_masks(masks, numbers, ("affine",), size, interpolation, REPLICATE, 0.0)


def unmoved(masks: Tensor, numbers: Mapping[str, Tensor], *constants: Any) -> Tensor:
    """Return masks as they are: the step changes values only."""
    return masks


def crop(pictures: Tensor, numbers: Mapping[str, Tensor], size: tuple[int, int], interpolation: int) -> Tensor:
    """Crop to the ``frame`` (B, 4) of :func:`sample` and resize it to ``size`` by ``matrix 0``."""
    return sample(pictures, numbers, ("affine",), size, interpolation, REPLICATE, 0.0)


def _look_up(table: Tensor, places: Tensor) -> Tensor:
    """Interpolate a table (B, N) linearly at places (B, H, W); beyond its ends extrapolate."""
    table = table.float()
    start = places.floor().clamp(0, table.shape[1] - 2)
    index = start.long().flatten(1)
    first, second = (table.gather(1, one).view(places.shape) for one in (index, index + 1))
    return first + (places - start) * (second - first)


def _inside(places: Tensor, first: Tensor, last: Tensor, border: int) -> Tensor:
    """Map places beyond the first and last pixel to those where the border rule takes its value."""
    if border == CONSTANT:
        return places
    if border == REFLECT_101:
        span = (last - first).clamp(min=0.5)
        places = last - ((places - first).remainder(2 * span) - span).abs()
    elif border == REFLECT:
        span = last - first + 1
        places = last + 0.5 - ((places - first + 0.5).remainder(2 * span) - span).abs()
    return torch.minimum(torch.maximum(places, first), last)


def holes(pictures: Tensor, numbers: Mapping[str, Tensor], fill: float) -> Tensor:
    """Fill ``boxes`` (B, N, 4): left, top, right, bottom."""
    left, top, right, bottom = numbers["boxes"].unsqueeze(3).unbind(dim=2)  # (B, N, 1) each
    columns, rows = (torch.arange(side, device=pictures.device) for side in (pictures.shape[3], pictures.shape[2]))
    across, down = (columns >= left) & (columns < right), (rows >= top) & (rows < bottom)
    counts = down.transpose(1, 2).float() @ across.float()
    return pictures.float().masked_fill(counts[:, None] > 0, fill)


def noise(pictures: Tensor, numbers: Mapping[str, Tensor]) -> Tensor:
    """Add the noise of ``common.datasets.noise`` and clip to 0..1.

    All (B,): ``start`` in the table, ``std`` with the sign, ``mean``, and the picture's ``width``.
    """
    channels, height, width = pictures.shape[1:]
    columns, rows = (torch.arange(side, device=pictures.device) for side in (width, height))
    start, own_width = (numbers[name].long()[:, None, None] for name in ("start", "width"))
    first = start + (rows[:, None] * own_width + columns) * channels  # (B, H, W), of the first channel
    table = _table(pictures.device)
    std, mean = (numbers[name].float()[:, None, None, None] for name in ("std", "mean"))
    field = torch.stack([table[(first + channel) % TABLE_SIZE] for channel in range(channels)], dim=1)
    return field.mul_(std).add_(pictures).add_(mean).clamp_(0, 1)


@lru_cache(maxsize=4)
def _table(device: torch.device) -> Tensor:
    return torch.from_numpy(normal_table()).to(device)


def normalize(pictures: Tensor, numbers: Mapping[str, Tensor]) -> Tensor:
    """Multiply by ``scale`` (B, C) and add ``offset`` (B, C)."""
    scale, offset = (numbers[name].float()[..., None, None] for name in ("scale", "offset"))
    return torch.addcmul(offset, pictures.float(), scale)


KERNELS: dict[str, Callable[..., Tensor]] = {
    "window": window,
    "flip": flip,
    "crop": crop,
    "sample": sample,
    "holes": holes,
    "noise": noise,
    "normalize": normalize,
}
"""The steps for batches by kind: functions of pictures (B, C, H, W), numbers by name (B first), and constants."""

MASK_KERNELS: dict[str, Callable[..., Tensor]] = {
    "flip": flip,
    "crop": crop_masks,
    "sample": sample_masks,
} | dict.fromkeys(("window", "holes", "noise", "normalize"), unmoved)
"""What the steps do to masks (B, 1, H, W), uint8."""
