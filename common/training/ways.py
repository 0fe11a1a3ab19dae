"""Table of the ways to compute a model on a CPU: memory format and precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.cli.choices import Row, table

if TYPE_CHECKING:
    import torch

AUTO = "auto"  # the way that measures quickest


@dataclass(frozen=True)
class Way(Row):
    """``channels_last``: torch.channels_last memory format. ``amp``: autocast in bfloat16."""

    channels_last: bool
    amp: bool

    def context(self) -> torch.autocast:
        """Return the context to compute in."""
        import torch

        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.amp)


# The plainest first: of two equally quick ways the first is taken.
WAYS: dict[str, Way] = table(
    (
        Way("float32", "float32, pictures channel after channel", channels_last=False, amp=False),
        Way("channels_last", "float32, channel by channel within a pixel", channels_last=True, amp=False),
        Way("bfloat16", "bfloat16 by autocast, channel by channel within a pixel", channels_last=True, amp=True),
    )
)
