"""Learning-rate schedules by name, counted in optimizer steps: one table, a row for each.

A schedule is a closed formula of the number of attempted steps, so that resuming a run is ``on_step(n)`` and nothing
has to be replayed. torch's own schedulers count their calls instead, and can't be set to a step exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from common.errors import UsageError, nearest


class Schedule:
    """Base of all schedules: multiplies each parameter group's initial learning rate by :meth:`factor`.

    The learning rate of the first step is set at construction; ``on_step(n)`` sets the one of the step that follows
    after ``n`` attempted steps (a step that a gradient scaler skipped counts as attempted).
    """

    def __init__(self, optimizer: torch.optim.Optimizer, total_steps: int) -> None:
        if total_steps < 1:
            raise ValueError(f"a schedule needs at least 1 step, got {total_steps}")
        self.optimizer = optimizer
        self.total_steps = total_steps
        # The initial rate is kept inside the group, as torch's schedulers do: it then travels with the optimizer's
        # state, and a schedule made after that was loaded does not take a decayed rate for the initial one.
        self.base_lrs = [float(group.setdefault("initial_lr", group["lr"])) for group in optimizer.param_groups]
        self.on_step(0)

    def factor(self, step: int) -> float:
        """Return what the initial learning rate is multiplied by for the step after ``step`` attempted ones."""
        raise NotImplementedError

    def on_step(self, step: int) -> None:
        """Set the learning rate of the next step, given the number of steps attempted so far."""
        if step < 0:
            raise ValueError(f"the number of attempted steps can't be negative, got {step}")
        self.step = step
        factor = self.factor(step)
        for group, base_lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base_lr * factor

    def on_metric(self, value: float) -> None:
        """Hear the watched validation metric. A schedule of steps alone has nothing to do here."""

    @property
    def lr(self) -> float:
        """The learning rate of the next step (of the first parameter group)."""
        return float(self.optimizer.param_groups[0]["lr"])

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain numbers: attempted steps and the initial learning rates."""
        return {"step": self.step, "base_lrs": list(self.base_lrs)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state and set the learning rate that follows from it; ValueError where the groups differ."""
        base_lrs = [float(value) for value in state["base_lrs"]]
        if len(base_lrs) != len(self.base_lrs):
            raise ValueError(f"{len(self.base_lrs)} parameter groups expected, the state holds {len(base_lrs)}")
        self.base_lrs = base_lrs
        for group, base_lr in zip(self.optimizer.param_groups, base_lrs, strict=True):
            group["initial_lr"] = base_lr
        self.on_step(int(state["step"]))


class ConstantSchedule(Schedule):
    """The learning rate stays as it is."""

    def factor(self, step: int) -> float:
        """Return 1."""
        return 1.0


class CosineSchedule(Schedule):
    """Linear warm-up over the first 5 % of the steps, then half a cosine down to 0 at the end of the run.

    With W = total_steps // 20 warm-up steps and T = total_steps: the factor after n attempted steps is (n + 1) / W for
    n < W, then (1 + cos(π (n − W) / (T − W))) / 2, and 0 from n = T on. Under 20 steps there is no warm-up. The cosine
    is that of Loshchilov and Hutter, "SGDR", 2017, without restarts.
    """

    def factor(self, step: int) -> float:
        """Return the factor of the class's formula."""
        warmup = self.total_steps // 20
        if step < warmup:
            return (step + 1) / warmup
        progress = min((step - warmup) / (self.total_steps - warmup), 1.0)
        return (1.0 + math.cos(math.pi * progress)) / 2.0


@dataclass(frozen=True)
class ScheduleRow:
    """One schedule: its name on the command line, what it does, and how it is built."""

    name: str
    summary: str
    build: Callable[[torch.optim.Optimizer, int], Schedule]


SCHEDULES: dict[str, ScheduleRow] = {
    row.name: row
    for row in (
        ScheduleRow("constant", "the learning rate stays as it is", ConstantSchedule),
        ScheduleRow(
            "cosine", "linear warm-up over the first 5 % of the steps, then half a cosine to 0", CosineSchedule
        ),
    )
}


def build_schedule(name: str, optimizer: torch.optim.Optimizer, total_steps: int) -> Schedule:
    """Build the schedule called ``name`` for a run of ``total_steps`` optimizer steps; UsageError for another name."""
    if name not in SCHEDULES:
        raise UsageError(f"--sched={name}: unknown; choose from {', '.join(SCHEDULES)}{nearest(name, SCHEDULES)}")
    return SCHEDULES[name].build(optimizer, total_steps)
