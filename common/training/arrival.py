"""Results on their way to the host, which is a few batches ahead of a GPU and never waits for the newest.

Without a bound the host would hand over a whole set: what lies in the GPU's queue keeps its memory until it is done.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

AHEAD = 2  # batches that may be computed while the host looks at the one before them

T = TypeVar("T")


def arrived(parts: Iterable[tuple[T, Sequence[Tensor]]]) -> Iterator[tuple[T, list[Tensor]]]:
    """Yield the parts in their order with their tensors on the host; what is asked of ``parts`` is computed meanwhile.

    Of a GPU's parts the host takes :data:`AHEAD` more from ``parts`` before it waits for one; without a GPU each comes
    at once, its tensors as they are.
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
    """A copy of tensors to pinned memory that begins when the device comes to it, while the host goes on."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """Ask for the copy; tensors that are on the host already are taken as they are."""
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
        """Wait until the copy is there; return it."""
        if self.event is not None:
            self.event.synchronize()
        return self.tensors
