"""Ways for a model to compute on a CPU, by name: memory format and precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.cli.choices import Row, table

if TYPE_CHECKING:
    import torch

AUTO = "auto"  # as a way: the one that measures quickest


@dataclass(frozen=True)
class Way(Row):
    """``channels_last``: kernels and pictures in memory channel by channel; ``amp``: autocast, in bfloat16."""

    channels_last: bool
    amp: bool

    def context(self) -> torch.autocast:
        """Return the context to compute in."""
        import torch

        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.amp)


# The plainest first: of two that are equally quick the first is taken.
WAYS: dict[str, Way] = table(
    (
        Way("float32", "float32, pictures channel after channel", channels_last=False, amp=False),
        Way("channels_last", "float32, channel by channel within a pixel", channels_last=True, amp=False),
        Way("bfloat16", "bfloat16 by autocast, channel by channel within a pixel", channels_last=True, amp=True),
    )
)
