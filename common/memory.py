"""One line of advice where a run is out of memory, in place of a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from common.errors import WorkError

# What torch's allocator on the CPU says; it has no class of its own.
CPU_MESSAGES = ("can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was no memory left, on a GPU or on the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in CPU_MESSAGES)


@contextmanager
def out_of_memory_advice(batch_size: int, device: torch.device) -> Iterator[None]:
    """Within this context running out of memory is a :class:`WorkError` that says what to lower."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        place = "GPU" if device.type == "cuda" else "host"
        hint = "; --tr_batch_find=1 tells what fits" if device.type == "cuda" else ""
        raise WorkError(
            f"out of {place} memory at --tr_batch_size={batch_size}: lower it (and raise --tr_accumulation_step as "
            "much for the same steps), or lower --data_image_size, or use --tr_use_amp=1 or a smaller --net_model"
            f"{hint}"
        ) from error
