"""Finds a learning rate and the largest batch that fits, by short trials that leave the network as it was."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, pairwise
from typing import TYPE_CHECKING

import torch

from common.errors import WorkError
from common.models.freezing import train_mode
from common.networks.guard import Evidence
from common.networks.network import evaluation_mode
from common.training import distributed
from common.training.arrival import AHEAD
from common.training.memory import is_out_of_memory

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from common.datasets.batch import Batch
    from common.networks.network import AbstractNetwork

SMOOTHING = 0.9
DIVERGED = 4.0  # times the lowest loss
MARGIN = 5  # points left out at both ends: their slopes come from the smoothing


@dataclass(frozen=True)
class RateCurve:
    """Rates tried in rising order, the smoothed loss at each, and the rate at which the loss fell fastest."""

    rates: list[float]
    losses: list[float]
    suggestion: float


def find_learning_rate(
    network: AbstractNetwork, lowest: float = 1e-6, highest: float = 1.0, steps: int = 100
) -> RateCurve:
    """Train ``steps`` batches at exponentially rising rates (Smith, "Cyclical Learning Rates", 2017).

    The search ends early if the loss diverges. Parameter groups keep their proportions; the returned rates are those
    of the highest group. Weights, optimizer, schedule, averages and random numbers are restored afterwards. Raises
    WorkError if the loss never falls.
    """
    groups = network.training.optimizer.param_groups
    with restored(network):
        proportions = [group.get("initial_lr", group["lr"]) for group in groups]
        proportions = [value / (max(proportions) or 1.0) for value in proportions]
        rates: list[float] = []
        losses: list[float] = []
        average = 0.0
        for number, batch in zip(range(steps), training_batches(network), strict=False):
            rate = lowest * (highest / lowest) ** (number / max(steps - 1, 1))
            for group, proportion in zip(groups, proportions, strict=True):
                group["lr"] = rate * proportion
            loss = train_once(network, batch)
            average = SMOOTHING * average + (1 - SMOOTHING) * loss
            smoothed = average / (1 - SMOOTHING ** (number + 1))
            if not math.isfinite(loss) or smoothed > DIVERGED * min(losses, default=math.inf):
                break
            rates.append(rate)
            losses.append(smoothed)
    slopes = [after - before for before, after in pairwise(losses)]
    inner = range(MARGIN, len(slopes) - MARGIN)
    steepest = min(inner, key=slopes.__getitem__, default=None)
    if steepest is None or slopes[steepest] >= -1e-6 * abs(losses[0]):  # no more than rounding
        raise WorkError(
            f"--tr_lr_find: the loss fell at no rate from {lowest:g} to {highest:g}; check labels and transforms, or "
            "the model's norms and weights"
        )
    return RateCurve(rates, losses, rates[steepest])


def find_batch_size(network: AbstractNetwork, limit: int) -> int:
    """Return the largest power of two, at most ``limit``, that fits into memory as a batch size.

    The search begins at two images: a batch norm refuses a batch of one whose feature map is a single pixel. Raises
    WorkError if not even two fit. Everything is restored as for :func:`find_learning_rate`.
    """
    found, size = 0, min(2, limit)
    with restored(network):
        while size <= limit:
            try:
                try_batch_size(network, size)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                break
            found, size = size, 2 * size
    if network.device.type == "cuda":
        torch.cuda.empty_cache()
    if not found:
        raise WorkError("not even two images fit into memory; lower --data_image_size or use a smaller --net_model")
    return found


def try_batch_size(network: AbstractNetwork, size: int) -> None:
    """Update, average and validate as a run does, with as many batches on the device as a run has there."""
    training = network.training
    batch = first_batch(training.train_loader, size)
    ahead = [network.prepare_batch(batch) for _ in range(AHEAD)]
    for _ in range(2):  # the first allocates the optimizer's state, the second needs it beside its activations
        train_once(network, batch)
    for average in training.averages.values():
        average.update(network.model, training.step_num)
    del ahead
    batch = first_batch(training.valid_loader, size)
    ahead = [network.prepare_batch(batch) for _ in range(1 + AHEAD)]
    models = [network.model, *(average.model for average in training.averages.values())]
    with evaluation_mode(models), torch.inference_mode(), network.autocast():
        for model in models:
            network.prediction_step(model, ahead[0])


def first_batch(loader: DataLoader, size: int) -> Batch:
    """Return a batch of the first ``size`` samples; a smaller dataset repeats."""
    return loader.collate_fn([loader.dataset[index % len(loader.dataset)] for index in range(size)])


@contextmanager
def restored(network: AbstractNetwork) -> Iterator[None]:
    """Let the network be trained within this context, then restore it."""
    state = copy.deepcopy(network.state_dict())
    modes = [(module, module.training) for module in network.model.modules()]
    train_mode(network.model)
    try:
        yield
    finally:
        network.training.optimizer.zero_grad(set_to_none=True)
        network.load_state_dict(state)
        for module, training in modes:
            module.training = training


def training_batches(network: AbstractNetwork) -> Iterator[Batch]:
    """Yield training batches endlessly, epoch after epoch."""
    loader = network.training.train_loader
    for epoch in count():
        loader.sampler.seek(epoch, 0)
        yield from loader


def train_once(network: AbstractNetwork, batch: Batch) -> float:
    """Make one optimizer step on a batch as a run does, but without counters, schedule or callbacks.

    A step that is not finite changes nothing. Return the loss, the mean over the processes, so that all decide alike.
    """
    optimizer = network.training.optimizer
    optimizer.zero_grad(set_to_none=True)
    with network.autocast():
        output = network.training_step(network.training_model, network.prepare_batch(batch))
    loss = output.loss.detach()
    network.scaler.scale(output.loss).backward()
    network.guard.attempt([Evidence(network.iteration, output.image_ids, loss, output.logits.detach())])
    network.guard.read_flags()  # not settle(): a trial does not count
    return distributed.mean(float(loss))


def rate_picture(curve: RateCurve) -> str:
    """Return the curve as an SVG picture: loss over the rate's logarithm, the suggestion as a dashed line."""
    width, height, margin = 720, 420, 60
    low, high = math.log10(curve.rates[0]), math.log10(curve.rates[-1])
    bottom, top = min(curve.losses), max(curve.losses)

    def x(rate: float) -> float:
        return margin + (math.log10(rate) - low) / max(high - low, 1e-9) * (width - 2 * margin)

    def y(loss: float) -> float:
        return height - margin - (loss - bottom) / max(top - bottom, 1e-9) * (height - 2 * margin)

    points = " ".join(f"{x(r):.1f},{y(v):.1f}" for r, v in zip(curve.rates, curve.losses, strict=True))
    parts = [
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<polyline points="{points}" fill="none" stroke="#1f5fa8" stroke-width="2"/>',
        f'<line x1="{x(curve.suggestion):.1f}" x2="{x(curve.suggestion):.1f}" y1="{margin}" y2="{height - margin}" '
        'stroke="#b03030" stroke-dasharray="6 4"/>',
        f'<text x="{x(curve.suggestion) + 6:.1f}" y="{margin + 14}">--optim_lr={curve.suggestion:.2g}</text>',
    ]
    for power in range(math.ceil(low), math.floor(high) + 1):
        place = f"{x(10**power):.1f}"
        parts.append(f'<line x1="{place}" x2="{place}" y1="{margin}" y2="{height - margin}" stroke="#ddd"/>')
        parts.append(f'<text x="{place}" y="{height - margin + 20}" text-anchor="middle">1e{power}</text>')
    for value in (bottom, (bottom + top) / 2, top):
        parts.append(f'<text x="{margin - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3f}</text>')
    parts.append(f'<text x="{width / 2}" y="{height - 12}" text-anchor="middle">learning rate</text>')
    parts.append(f'<text x="{margin}" y="{margin - 20}">training loss, smoothed</text>')
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="13">\n{body}\n</svg>\n'
    )
