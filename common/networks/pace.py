"""Measures how fast a network trains and validates, and how many iterations a time has room for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import torch

from common.callbacks.callback import Callback
from common.checkpoint import RAW
from common.training import distributed

if TYPE_CHECKING:
    from common.datasets.batch import Batch
    from common.networks.network import AbstractNetwork

WARM_UP = 3  # the fewest steps before measuring: the first ones start processes, compile and try kernels
MEASURED = 5  # the fewest steps that are measured
WARM_UP_SHARE = 0.25  # of the time of the measurement, before it: what was loaded ahead is then used up
ENDLESS = 10**9


@dataclass(frozen=True)
class Pace:
    """Seconds of one iteration, of one whole validation, and that the first iterations need on top of that."""

    iteration: float
    validation: float
    warm_up: float = 0.0

    def seconds(self, iterations: int, interval: int) -> float:
        """Return the time of a run of ``iterations`` that validates every ``interval`` and at its end."""
        return self.warm_up + iterations * self.iteration + math.ceil(iterations / interval) * self.validation

    def iterations(self, seconds: float, interval: int, multiple: int = 1) -> int:
        """Return the most iterations, a multiple of ``multiple``, that take at most ``seconds``; 0 if none do.

        ``interval`` is as in :meth:`seconds`, and a multiple of ``multiple``.
        """
        left = seconds - self.warm_up
        whole = max(0, math.floor(left / (interval * self.iteration + self.validation)))
        left -= whole * (interval * self.iteration + self.validation)
        rest = max(0, math.floor((left - self.validation) / self.iteration))
        return whole * interval + min(rest, interval - 1) // multiple * multiple


class Stopwatch(Callback):
    """Times iterations, and ends the run after enough of them. Several processes end at the same step."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        """Measure for about ``seconds`` of ``clock``."""
        self.seconds = seconds
        self.clock = clock
        self.steps = 0
        self.marks: list[tuple[float, int]] = []  # time and iteration: the start, the end of warming up, the end

    def on_train_begin(self, network: AbstractNetwork) -> None:
        """Start the watch."""
        self._mark(network)

    def on_step_end(self, network: AbstractNetwork) -> None:
        """Note the time where a part is over; every part has a fewest number of steps and a shortest time."""
        self.steps += 1
        steps, share = (WARM_UP, WARM_UP_SHARE) if len(self.marks) == 1 else (MEASURED, 1.0)
        over = self.clock() - self.marks[-1][0] >= share * self.seconds
        if self.steps >= steps and distributed.main_first(lambda: over):
            self._mark(network)
            network.should_stop = len(self.marks) == 3

    def _mark(self, network: AbstractNetwork) -> None:
        if network.device.type == "cuda":
            torch.cuda.synchronize(network.device)
        self.marks.append((self.clock(), network.iteration))
        self.steps = 0


def measure_pace(network: AbstractNetwork, seconds: float, clock: Callable[[], float] = time.perf_counter) -> Pace:
    """Train for about ``seconds`` after warming up, then validate for about as long or once; return the pace.

    The network is trained by it and must not be used afterwards. Nothing is saved, and no callback of its own is
    called.
    """
    watch = Stopwatch(seconds, clock)
    training = replace(
        network.training,
        callbacks=(watch,),
        iteration_num=ENDLESS * network.training.accumulation_step,
        iteration_valid=ENDLESS * network.training.accumulation_step,
    )
    network.training = training
    network.fit()
    (began, _), (warm, first), (ended, last) = watch.marks
    iteration = (ended - warm) / (last - first)
    averages = {name: average.model for name, average in training.averages.items() if average.started(network.step)}
    loader, models, seen = training.valid_loader, {RAW: network.model, **averages}, 0

    def for_a_while() -> Iterator[Batch]:
        nonlocal seen
        for batch in loader:
            yield batch
            seen += 1
            if clock() - began >= seconds:
                return

    network.predict_by_each(islice(loader, 1), models)  # starts the loading processes
    began = clock()
    network.predict_by_each(for_a_while(), models)
    validation = (clock() - began) / seen * len(loader)
    return Pace(iteration, validation, max(0.0, warm - watch.marks[0][0] - first * iteration))
