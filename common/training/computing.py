"""Measures which memory format and precision computes a model quickest on this CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn

from common.models.freezing import train_mode
from common.networks.network import evaluation_mode
from common.training.ways import WAYS, Way

ROUNDS = 3
HOPELESS = 1.5  # a way that takes this multiple of the quickest first time is left out of the rounds
WORTH = 0.95  # a way is taken if it needs less than this share of the time of the ways before it


class InFloat32(nn.Module):
    """Computes a layer in float32, under autocast too."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Return what the layer gives for ``x`` in float32."""
        with torch.autocast(x.device.type, enabled=False):
            return self.layer(x.float())


def keep_ends_exact(model: nn.Module) -> None:
    """Let the first layer and the head of timm's ``model`` compute in float32 under autocast too. This renames them.

    A picture has large areas of one value, mostly air. Rounding it to bfloat16 makes the same error everywhere, which
    doesn't average out. The first layer causes most of what bfloat16 changes, and does little of the work.
    """
    for key in ("first_conv", "classifier"):
        names = getattr(model, "pretrained_cfg", {}).get(key) or ()
        for name in (names,) if isinstance(names, str) else names:
            model.set_submodule(name, InFloat32(model.get_submodule(name)))


def quickest(times: Mapping[str, float]) -> str:
    """Return the way with the lowest time, but prefer a plainer one that is nearly as quick."""
    chosen = next(iter(times))
    for name, seconds in times.items():
        if seconds < WORTH * times[chosen]:
            chosen = name
    return chosen


def measure(
    steps: Mapping[str, Callable[[], None]], clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Return the seconds of each step: the median of interleaved rounds after a first one to warm up.

    A step that is hopeless in the first round is not measured again and keeps that time. Measuring thus costs little if
    one way is far quicker than the others, or very slow.
    """

    def timed(step: Callable[[], None]) -> float:
        started = clock()
        step()
        return clock() - started

    first = {name: timed(step) for name, step in steps.items()}
    left = [name for name, seconds in first.items() if seconds < HOPELESS * min(first.values())]
    if len(left) == 1:
        return first
    rounds: dict[str, list[float]] = {name: [] for name in left}
    for _ in range(ROUNDS):
        for name in left:
            rounds[name].append(timed(steps[name]))
    return first | {name: statistics.median(seconds) for name, seconds in rounds.items()}


def measure_ways(model: nn.Module, pictures: Tensor, *, training: bool) -> dict[str, float]:
    """Return the seconds that ``model`` takes for ``pictures`` (B, C, H, W) by each way.

    ``training`` measures forward and backward, else forward alone. It measures copies of the model and restores the
    random numbers.
    """
    step = _train if training else _predict
    random = torch.get_rng_state()
    formats = {False: torch.contiguous_format, True: torch.channels_last}
    copies = {last: deepcopy(model).to(memory_format=form) for last, form in formats.items()}
    if not training:
        for copy in copies.values():
            keep_ends_exact(copy)
    try:
        return measure({name: partial(step, copies[way.channels_last], pictures, way) for name, way in WAYS.items()})
    finally:
        torch.set_rng_state(random)


def describe(times: Mapping[str, float], chosen: str, images: int) -> str:
    """Describe in one line what was measured and chosen."""
    listing = ", ".join(f"{name} {1000 * seconds / images:.0f}" for name, seconds in times.items())
    return f"computes in the way {chosen}, the quickest here: {listing} ms an image"


def _train(model: nn.Module, pictures: Tensor, way: Way) -> None:
    train_mode(model)
    with way.context():
        logits = model(pictures)
    logits.float().square().mean().backward()


def _predict(model: nn.Module, pictures: Tensor, way: Way) -> None:
    with evaluation_mode([model]), torch.inference_mode(), way.context():
        model(pictures)
