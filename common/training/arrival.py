"""Brings results from a GPU to the host, which stays a few batches ahead and never waits for the newest.

The lead is bounded: work in the GPU's queue keeps its memory until it is done, and without a bound the host would queue
a whole set.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

AHEAD = 2  # batches that may be computed while the host handles the one before them

T = TypeVar("T")


def arrived(parts: Iterable[tuple[T, Sequence[Tensor]]]) -> Iterator[tuple[T, list[Tensor]]]:
    """Yield the parts in order with their tensors on the host, while the GPU computes the next parts.

    The host takes :data:`AHEAD` more from ``parts`` before it waits for one. Without a GPU it yields each part at once,
    with its tensors as they are.
    """
    waiting: deque[tuple[T, HostCopy]] = deque()
    for facts, tensors in parts:
        waiting.append((facts, HostCopy(tensors)))
        if len(waiting) > AHEAD or waiting[0][1].event is None:
            facts, copy = waiting.popleft()
            yield facts, copy.wait()
    for facts, copy in waiting:
        yield facts, copy.wait()


class HostCopy:
    """A copy of tensors to pinned memory that the device makes in its queue, while the host goes on."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """Queue the copy. Tensors that are on the host already are kept as they are."""
        self.tensors = list(tensors)
        self.event: torch.cuda.Event | None = None
        if any(tensor.is_cuda for tensor in tensors):
            self.tensors = [
                torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
                for tensor in tensors
            ]
            self.event = torch.cuda.Event()
            self.event.record(torch.cuda.current_stream(tensors[0].device))

    def wait(self) -> list[Tensor]:
        """Wait for the copy and return it."""
        if self.event is not None:
            self.event.synchronize()
        return self.tensors
