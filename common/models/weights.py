"""Loads trained weights into a model, completely or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from common.checkpoint import load_checkpoint, load_weights_file
from common.errors import UsageError, WorkError

NAMED = 3  # how many keys of a kind an error names


def load_weights(
    model: nn.Module,
    weights: Path | Mapping[str, torch.Tensor],
    source: str | None = None,
    model_name: str | None = None,
) -> None:
    """Load ``weights`` into ``model``: a state dict, or a file (a checkpoint of this project or a plain state dict).

    ``source`` names the weights in errors (a file's path where it is None). ``model_name`` is the model that was asked
    for: an error then says so where the file's configuration records another. Keys and shapes must all agree.

    Raises UsageError where they don't, naming up to three of each kind and their counts, and where there is no such
    file; WorkError for a file that is damaged, not ours, or holds Python objects (nothing is unpickled).
    """
    state = load_weights_file(weights) if isinstance(weights, Path) else weights
    described = source or (str(weights) if isinstance(weights, Path) else "weights")
    difference = compare(model.state_dict(), state)
    if difference:
        recorded = _recorded_model(weights) if isinstance(weights, Path) else None
        raise UsageError(f"{described}: {_whose(recorded, model_name)}: {difference}")
    model.load_state_dict(state)


def compare(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> str:
    """Return in words how the keys and shapes of ``found`` differ from ``expected``; empty where they agree."""
    missing = [key for key in expected if key not in found]
    unexpected = [str(key) for key in found if key not in expected]
    shapes = [
        f"{key} {_shape(found[key])} instead of {_shape(expected[key])}"
        for key in expected
        if key in found and _shape(found[key]) != _shape(expected[key])
    ]
    parts = (
        _describe("missing", missing),
        _describe("unexpected", unexpected),
        _describe("of another shape", shapes),
    )
    return ", ".join(part for part in parts if part)


def _whose(recorded: str | None, asked: str | None) -> str:
    if recorded and asked and recorded != asked:
        return f"holds weights of {recorded}, not of {asked}"
    return f"holds weights of another model than {asked}" if asked else "holds weights of another model"


def _describe(kind: str, items: Sequence[str]) -> str:
    if not items:
        return ""
    listing = ", ".join(items[:NAMED]) + (", ..." if len(items) > NAMED else "")
    return f"{len(items)} {kind} ({listing})"


def _shape(value: object) -> str:
    return "x".join(str(size) for size in value.shape) or "scalar" if isinstance(value, torch.Tensor) else "no tensor"


def _recorded_model(path: Path) -> str | None:
    """The model that a checkpoint's configuration names, or None for a plain state dict."""
    try:
        return load_checkpoint(path)["config"].get("net_model")
    except WorkError:
        return None
