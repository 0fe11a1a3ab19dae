"""Table of learning-rate schedules by name, counted in optimizer steps.

A schedule is a closed formula of the number of attempted steps. A resumed run calls ``on_step(n)`` and replays nothing.
torch's own schedulers count their calls and can't be set to a step exactly. The plateau depends on more than the step
and keeps that in its state.

Lengths (warm-up, distance of drops) are in optimizer steps. A value below 1 is a share of the run's steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.cli.arguments import option
from common.cli.choices import Row, choose, settings, table
from common.cli.values import format_numbers, parse_numbers
from common.errors import UsageError

if TYPE_CHECKING:
    import torch

Shape = Callable[[float, Mapping[str, Any], int], float]


def in_steps(length: float, total_steps: int) -> int:
    """Return a length in whole steps: below 1 that share of the run, rounded down, else the number itself."""
    # A share such as 0.07 times 100 is 7.000000000000001, and 0.29 times 100 is 28.999999999999996.
    return math.floor(length * total_steps + 1e-6) if length < 1 else int(length)


class Schedule:
    """Multiplies each parameter group's initial learning rate by a factor: linear warm-up, then the row's shape.

    With W warm-up steps the factor after n attempted steps is (n + 1) / W for n < W, then the shape's value. The
    constructor sets the rate of the first step, ``on_step(n)`` that of the step after ``n`` attempted ones. A step that
    the gradient scaler skipped counts as attempted.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        total_steps: int,
        shape: Callable[[int], float],
        warmup_steps: int = 0,
    ) -> None:
        """``shape`` gives the factor after a number of attempted steps, from ``warmup_steps`` on."""
        if total_steps < 1:
            raise ValueError(f"a schedule needs at least 1 step, got {total_steps}")
        self.optimizer = optimizer
        self.total_steps = total_steps
        self.shape = shape
        self.warmup_steps = warmup_steps
        # Keep the initial rate in the group, as torch's schedulers do, so that the optimizer's state saves it. A
        # schedule that is made after that state was loaded then doesn't take a decayed rate for the initial one.
        self.base_lrs = [float(group.setdefault("initial_lr", group["lr"])) for group in optimizer.param_groups]
        self.on_step(0)

    def factor(self, step: int) -> float:
        """Return the factor of the initial learning rate for the step after ``step`` attempted ones."""
        return (step + 1) / self.warmup_steps if step < self.warmup_steps else self.shape(step)

    def on_step(self, step: int) -> None:
        """Set the learning rate of the next step, given the number of steps attempted so far."""
        if step < 0:
            raise ValueError(f"the number of attempted steps can't be negative, got {step}")
        self.step = step
        factor = self.factor(step)
        for group, base_lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base_lr * factor

    def on_metric(self, value: float) -> None:
        """Take the monitored validation metric. Only the plateau uses it."""

    @property
    def lr(self) -> float:
        """The current learning rate, the highest of all groups."""
        return max(float(group["lr"]) for group in self.optimizer.param_groups)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain numbers: attempted steps and the initial learning rates."""
        return {"step": self.step, "base_lrs": list(self.base_lrs)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state and set the learning rate that follows from it. ValueError if the groups differ."""
        base_lrs = [float(value) for value in state["base_lrs"]]
        if len(base_lrs) != len(self.base_lrs):
            raise ValueError(f"{len(self.base_lrs)} parameter groups expected, the state holds {len(base_lrs)}")
        self.base_lrs = base_lrs
        for group, base_lr in zip(self.optimizer.param_groups, base_lrs, strict=True):
            group["initial_lr"] = base_lr
        self.on_step(int(state["step"]))


class PlateauSchedule(Schedule):
    """Lowers the rate when the monitored metric stops falling, as torch's ReduceLROnPlateau does.

    A validation is better if its value is below (1 − threshold) × the best one. After more than ``patience``
    validations in a row that are not better, the factor is multiplied by ``gamma``, down to ``lowest``, and counting
    restarts. Validations during the warm-up count too.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        total_steps: int,
        warmup_steps: int,
        gamma: float,
        patience: int,
        threshold: float,
        lowest: float,
    ) -> None:
        """``lowest`` is the lowest factor of the initial rate."""
        self.gamma, self.patience, self.threshold, self.lowest = gamma, patience, threshold, lowest
        self.level = 1.0
        self.best = math.inf
        self.bad = 0
        super().__init__(optimizer, total_steps, lambda step: self.level, warmup_steps)

    def on_metric(self, value: float) -> None:
        """Count a validation. When the patience ends, lower the rate from the next step on."""
        if value < self.best * (1 - self.threshold):
            self.best, self.bad = value, 0
        else:
            self.bad += 1
        if self.bad > self.patience:
            self.level, self.bad = max(self.level * self.gamma, self.lowest), 0
            self.on_step(self.step)

    def state_dict(self) -> dict[str, Any]:
        """Return the base's state, the current level, the best value and the number of worse validations since."""
        return {**super().state_dict(), "level": self.level, "best": self.best, "bad": self.bad}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state and set the learning rate that follows from it."""
        self.level, self.best, self.bad = float(state["level"]), float(state["best"]), int(state["bad"])
        super().load_state_dict(state)


def constant(progress: float, values: Mapping[str, Any], total: int) -> float:
    """1."""
    return 1.0


def cosine(progress: float, values: Mapping[str, Any], total: int) -> float:
    """Cosine from 1 to ``sched_min``, in ``sched_cycles`` cycles (Loshchilov and Hutter, "SGDR", 2017).

    Each cycle is ``sched_cycle_length`` times as long and ``sched_cycle_height`` times as high as the one before.
    """
    cycles, growth = values["sched_cycles"], values["sched_cycle_length"]
    lengths = [growth**cycle for cycle in range(cycles)]
    place = min(progress, 1.0) * sum(lengths)
    cycle = 0
    while cycle < cycles - 1 and place >= lengths[cycle] - 1e-12:
        place -= lengths[cycle]
        cycle += 1
    height = values["sched_cycle_height"] ** cycle
    wave = (1.0 + math.cos(math.pi * min(max(place, 0.0) / lengths[cycle], 1.0))) / 2.0
    return values["sched_min"] + (height - values["sched_min"]) * wave


def polynomial(progress: float, values: Mapping[str, Any], total: int) -> float:
    """(1 − progress) ** ``sched_power`` from 1 down to ``sched_min``."""
    return values["sched_min"] + (1 - values["sched_min"]) * (1.0 - min(progress, 1.0)) ** values["sched_power"]


@dataclass(frozen=True)
class ScheduleRow(Row):
    """One schedule. ``build`` makes it from the optimizer, the run's steps and its options' values."""

    build: Callable[[torch.optim.Optimizer, int, Mapping[str, Any]], Schedule]


def over_progress(shape: Shape) -> Callable[[torch.optim.Optimizer, int, Mapping[str, Any]], Schedule]:
    """Return a builder of a warm-up followed by ``shape``, a function of the progress after it, 0 to 1."""

    def build(optimizer: torch.optim.Optimizer, total: int, values: Mapping[str, Any]) -> Schedule:
        warmup = min(in_steps(values["sched_warmup"], total), total)
        rest = max(total - warmup, 1)
        return Schedule(optimizer, total, lambda step: shape((step - warmup) / rest, values, total), warmup)

    return build


def build_steps(optimizer: torch.optim.Optimizer, total: int, values: Mapping[str, Any]) -> Schedule:
    """A drop by ``sched_gamma`` every ``sched_step``, counted from the start of the run."""
    distance = max(in_steps(values["sched_step"], total), 1)
    gamma, warmup = values["sched_gamma"], in_steps(values["sched_warmup"], total)
    return Schedule(optimizer, total, lambda step: gamma ** (step // distance), warmup)


def build_milestones(optimizer: torch.optim.Optimizer, total: int, values: Mapping[str, Any]) -> Schedule:
    """A drop by ``sched_gamma`` at each of ``sched_milestones``."""
    places = [in_steps(milestone, total) for milestone in values["sched_milestones"]]
    gamma, warmup = values["sched_gamma"], in_steps(values["sched_warmup"], total)
    return Schedule(optimizer, total, lambda step: gamma ** sum(step >= place for place in places), warmup)


def build_one_cycle(optimizer: torch.optim.Optimizer, total: int, values: Mapping[str, Any]) -> Schedule:
    """Up from ``sched_start`` to 1 over ``sched_warmup``, then down to ``sched_min``, each as half a cosine.

    Smith and Topin, "Super-convergence", 2018, with the defaults of fastai and torch. Momentum is not cycled.
    """
    start, lowest = values["sched_start"], values["sched_min"]
    # torch's points: the top is at share * total - 1, the bottom at total - 1.
    top = max(values["sched_warmup"] * total if values["sched_warmup"] < 1 else values["sched_warmup"], 1) - 1
    bottom = total - 1

    def blend(first: float, second: float, share: float) -> float:
        return second + (first - second) * (1.0 + math.cos(math.pi * min(max(share, 0.0), 1.0))) / 2.0

    def shape(step: int) -> float:
        if step < top:
            return blend(start, 1.0, step / top)
        return blend(1.0, lowest, (step - top) / (bottom - top) if bottom > top else 0.0)

    return Schedule(optimizer, total, shape)


def build_plateau(optimizer: torch.optim.Optimizer, total: int, values: Mapping[str, Any]) -> Schedule:
    """See :class:`PlateauSchedule`."""
    return PlateauSchedule(
        optimizer,
        total,
        in_steps(values["sched_warmup"], total),
        values["sched_gamma"],
        values["sched_patience"],
        values["sched_threshold"],
        values["sched_min"],
    )


SCHEDULES: dict[str, ScheduleRow] = table(
    (
        ScheduleRow("constant", "the rate stays as it is", over_progress(constant), parameters={"sched_warmup": 0.0}),
        ScheduleRow(
            "step",
            "a drop after every so many steps",
            build_steps,
            parameters={"sched_warmup": 0.0, "sched_step": 0.3, "sched_gamma": 0.1},
        ),
        ScheduleRow(
            "multistep",
            "drops at given steps",
            build_milestones,
            parameters={"sched_warmup": 0.0, "sched_milestones": (0.5, 0.75), "sched_gamma": 0.1},
        ),
        ScheduleRow(
            "cosine",
            "half a cosine, or several with warm restarts",
            over_progress(cosine),
            parameters={
                "sched_warmup": 0.05,
                "sched_min": 0.0,
                "sched_cycles": 1,
                "sched_cycle_length": 1.0,
                "sched_cycle_height": 1.0,
            },
        ),
        ScheduleRow(
            "onecycle",
            "one cycle: up, then down far below the start",
            build_one_cycle,
            parameters={"sched_warmup": 0.3, "sched_start": 0.04, "sched_min": 4e-6},
        ),
        ScheduleRow(
            "poly",
            "polynomial; power 1 is a straight line",
            over_progress(polynomial),
            parameters={"sched_warmup": 0.05, "sched_min": 0.0, "sched_power": 1.0},
        ),
        ScheduleRow(
            "plateau",
            "a drop where the validation metric has stopped to fall",
            build_plateau,
            parameters={
                "sched_warmup": 0.0,
                "sched_gamma": 0.1,
                "sched_patience": 2,
                "sched_threshold": 1e-4,
                "sched_min": 0.0,
            },
        ),
    )
)


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions:
    """Schedule, in optimizer steps. Where an option says "none", the schedule's own value holds."""

    sched: str = option(
        "cosine",
        "schedule of the learning rate; --list=sched describes each and its options",
        choices=tuple(SCHEDULES),
        own_rows=True,
    )
    sched_warmup: float | None = option(
        None, "number of linear warm-up steps; below 1: a share of the run", minimum=0, maximum=1e9
    )
    sched_min: float | None = option(None, "lowest rate, as a share of the highest", minimum=0, maximum=1)
    sched_start: float | None = option(None, "onecycle: first rate, as a share of the highest", minimum=0, maximum=1)
    sched_gamma: float | None = option(
        None, "step, multistep, plateau: factor of the rate at each drop", minimum=0, maximum=1
    )
    sched_step: float | None = option(
        None, "step: steps between drops; below 1: a share of the run", minimum=0, maximum=1e9
    )
    sched_milestones: tuple[float, ...] | None = option(
        None,
        "multistep: steps at which the rate drops; below 1, as in 0.5,0.75: shares of the run",
        parse=parse_numbers,
        form=format_numbers,
    )
    sched_cycles: int | None = option(None, "cosine: number of cycles in the run", minimum=1, maximum=1000)
    sched_cycle_length: float | None = option(
        None, "cosine: length of each cycle as a multiple of the one before", minimum=0.01, maximum=100
    )
    sched_cycle_height: float | None = option(
        None, "cosine: height of each cycle as a multiple of the one before", minimum=0, maximum=1
    )
    sched_power: float | None = option(None, "poly: exponent of the curve", minimum=0.01, maximum=100)
    sched_patience: int | None = option(
        None, "plateau: number of validations without a better value before the rate drops", minimum=0
    )
    sched_threshold: float | None = option(
        None, "plateau: relative improvement that counts as better", minimum=0, maximum=1
    )


def check_schedule(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the option values of the schedule called ``name``. UsageError for unknown names and options."""
    values = settings("sched", choose("sched", name, SCHEDULES), given)
    milestones = values.get("sched_milestones", ())
    if list(milestones) != sorted(set(milestones)):
        raise UsageError(f"--sched_milestones={','.join(f'{place:g}' for place in milestones)}: must rise")
    return values


def build_schedule(
    name: str, optimizer: torch.optim.Optimizer, total_steps: int, given: Mapping[str, Any] | None = None
) -> Schedule:
    """Build the schedule called ``name`` for a run of ``total_steps`` optimizer steps.

    ``given`` are the ``sched_…`` options, None if not given. Raises UsageError for an unknown name, an option that the
    schedule doesn't know, and a warm-up that is not shorter than the run.
    """
    values = check_schedule(name, given or {})
    warmup = values["sched_warmup"]
    if warmup >= 1 and warmup >= total_steps > 1:
        raise UsageError(f"--sched_warmup={warmup:g}: is not below the run's {total_steps} optimizer steps")
    return choose("sched", name, SCHEDULES).build(optimizer, total_steps, values)
