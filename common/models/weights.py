"""Loads trained weights into a model, all or none."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from common.checkpoint import load_checkpoint, load_weights_file
from common.errors import UsageError, UserError, WorkError
from common.foreign import MOST_BYTES, Unreadable, check_written, parse_json
from common.models.layers import head_parameters

# Prefixes that DistributedDataParallel, AveragedModel, torch.compile, Lightning and common training scripts put before
# a model's names. Keys beside these (a loss's weights, a counter) don't belong to the model.
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.")
COUNTER = "num_batches_tracked"  # of a batch norm; weights from before torch 0.4.1 lack it
NAMED = 3  # keys of a kind that an error names


def load_weights(
    model: nn.Module,
    weights: Path | Mapping[str, torch.Tensor],
    source: str | None = None,
    model_name: str | None = None,
    adapt: bool = False,
) -> list[str]:
    """Load ``weights`` into ``model``: a state dict, or a file (ours, timm's, torchvision's, a plain state dict).

    ``source`` names the weights in errors; None: a file's path. ``model_name`` is the model that was asked for; an
    error says so if the file's configuration records another. The model's own filter translates names to timm's. Keys,
    shapes and kinds of numbers must all agree. With ``adapt`` a head for another number of classes stays fresh, and a
    first layer for other input channels is adapted. Returns lines that say what of the file was left out, what it
    lacked, and what was adapted.

    Raises UsageError if they don't agree, naming up to three of each kind and their counts, and if there is no such
    file. Raises WorkError for a file that is damaged, not ours, or holds Python objects (nothing is unpickled).
    """
    state = read_weights(weights) if isinstance(weights, Path) else weights
    described = source or (str(weights) if isinstance(weights, Path) else "weights")
    state, said = to_our_names(model, state)
    adapted, notes = adapt_weights(model, state)
    if adapt:
        state = adapted
    difference = compare(model.state_dict(), state)
    if difference:
        recorded = _recorded_model(weights) if isinstance(weights, Path) else None
        hint = ""
        if not compare(model.state_dict(), adapted):
            hint = f"; --net_weight_adapt=1 would adapt it: {'; '.join(notes)}"
        raise UsageError(f"{described}: {_whose(recorded, model_name)}: {difference}{hint}")
    if next(model.parameters()).is_meta:  # only compare: see build_within
        return []
    model.load_state_dict(state)
    return said + (notes if adapt else [])


def build_within(
    build: Callable[[], nn.Module], state: Mapping[str, torch.Tensor], source: str, model_name: str | None = None
) -> nn.Module:
    """Return the model that a checkpoint describes, with its weights; errors as :func:`load_weights`.

    Names and shapes are compared before the model takes memory: a small file may name a model of a billion parameters.
    """
    try:
        with torch.device("meta"):
            described = build()
    except (RuntimeError, UserError):  # a model may compute with numbers while it is built
        described = None
    if described is not None:
        load_weights(described, state, source, model_name)
    model = build()
    load_weights(model, state, source, model_name)
    return model


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict from a safetensors file, a checkpoint of this project or a plain file of torch."""
    if path.suffix != ".safetensors":
        return load_weights_file(path)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UsageError(f"{path}: no such weight file")
    try:
        _check_header(path)
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise WorkError(
            f"{path}: cut, damaged or no safetensors file ({' '.join(str(error).split())[:200]})"
        ) from error


def _check_header(path: Path) -> None:
    """Raise Unreadable if the header of a safetensors file, which the library reads as a whole, exceeds the limits.

    Eight bytes hold the header's length, then comes JSON. The library checks that the tensors lie within the file.
    """
    check_written(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MOST_BYTES:
            raise Unreadable(f"a header of more than {MOST_BYTES:,} bytes")
        parse_json(file.read(length))


def to_our_names(model: nn.Module, state: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return ``state`` under the names of ``model``, and lines that say what was left out and what was missing.

    Wrappers' prefixes and keys beside the wrapped model are removed. Batch norms without a count of batches begin at 0.
    Names go through timm's filter, by which timm reads the files of torchvision and of papers' authors.
    """
    own, said = model.state_dict(), []
    state, beside = _unwrapped(state, own)
    if beside:
        said.append(f"left out, since it is none of the model's: {_listing(beside)}")
    counters = [key for key in own if key.endswith(COUNTER) and key not in state]
    if counters and len(counters) == sum(key.endswith(COUNTER) for key in own):
        state |= {key: torch.zeros_like(own[key], device="cpu") for key in counters}
        said.append(f"{len(counters)} batch norms have no {COUNTER}: they begin at 0")
    return (state if set(state) == set(own) else _filtered(model, state)), said


def _unwrapped(
    state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return ``state`` without wrappers' prefixes, and the keys that stood beside the wrapped model."""
    state, beside = dict(state), []
    while not set(own) & set(state):
        prefix = next((one for one in WRAPPERS if any(key.startswith(one) for key in state)), None)
        if prefix is None:
            break
        beside += [key for key in state if not key.startswith(prefix)]
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return state, beside


def _filtered(model: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return ``state`` translated by the model's own filter of timm, if there is one that knows the names."""
    module = sys.modules[type(model).__module__]
    convert = getattr(module, "checkpoint_filter_fn", None) or getattr(module, "_filter_fn", None)
    if convert is None:
        return state
    arguments = (dict(state), model)[: len(inspect.signature(convert).parameters)]
    try:
        converted = convert(*arguments)
    except (RuntimeError, ValueError, TypeError, AssertionError, KeyError, AttributeError, IndexError):
        return state  # the filter doesn't know this file; the comparison that follows names the differences
    return {key: value for key, value in converted.items() if isinstance(value, torch.Tensor)}


def adapt_weights(model: nn.Module, state: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return ``state`` with a fresh head and a fitting first layer if these differ, and lines that say so.

    As in timm, the first layer's weights are repeated over the channels and scaled, so that a picture repeated in all
    channels gives the same output as before.
    """
    own, adapted, notes = model.state_dict(), dict(state), []
    head = head_parameters(model) if hasattr(model, "get_classifier") else frozenset()
    differing = [key for key in sorted(head) if key in state and _shape(state[key]) != _shape(own[key])]
    if differing or any(key not in state for key in head):
        for key in head:
            adapted[key] = own[key]
        for key in [key for key in state if key not in own and key.rpartition(".")[0] in _parents(head)]:
            del adapted[key]
        notes.append(
            f"head {', '.join(sorted(head))}: starts fresh"
            + "".join(f" ({_shape(state[key])} in the file, {_shape(own[key])} here)" for key in differing[:1])
        )
    layers = (getattr(model, "pretrained_cfg", None) or {}).get("first_conv") or ()
    for layer in (layers,) if isinstance(layers, str) else layers:
        key = f"{layer}.weight"
        if key not in state or key not in own or state[key].ndim != 4 or own[key].ndim != 4:
            continue
        found, wanted = state[key].shape[1], own[key].shape[1]
        if found != wanted and state[key].shape[0] == own[key].shape[0] and state[key].shape[2:] == own[key].shape[2:]:
            repeats = -(-wanted // found)
            adapted[key] = state[key].repeat(1, repeats, 1, 1)[:, :wanted] * (found / wanted)
            notes.append(f"first layer {key}: {found} input channels in the file, {wanted} here; repeated and scaled")
    return adapted, notes


def _parents(keys: Iterable[str]) -> set[str]:
    return {key.rpartition(".")[0] for key in keys}


def compare(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> str:
    """Describe how the keys and shapes of ``found`` differ from ``expected``; "" if they agree."""
    missing = [key for key in expected if key not in found]
    unexpected = [str(key) for key in found if key not in expected]
    shapes = [
        f"{key} {_shape(found[key])} instead of {_shape(expected[key])}"
        for key in expected
        if key in found and _shape(found[key]) != _shape(expected[key])
    ]
    kinds = [
        f"{key} {_kind(found[key])} instead of {_kind(expected[key])}"
        for key in expected
        if key in found and _shape(found[key]) == _shape(expected[key]) and _kind(found[key]) != _kind(expected[key])
    ]
    parts = (
        _describe("missing", missing),
        _describe("unexpected", unexpected),
        _describe("of another shape", shapes),
        _describe("of another kind of numbers", kinds),
    )
    return ", ".join(part for part in parts if part)


def _whose(recorded: str | None, asked: str | None) -> str:
    if recorded and asked and recorded != asked:
        return f"holds weights of {recorded}, not of {asked}"
    return f"holds weights of another model than {asked}" if asked else "holds weights of another model"


def _describe(kind: str, items: Sequence[str]) -> str:
    if not items:
        return ""
    return f"{len(items)} {kind} ({_listing(items)})"


def _listing(items: Sequence[str]) -> str:
    return ", ".join(items[:NAMED]) + (", ..." if len(items) > NAMED else "")


def _kind(value: torch.Tensor) -> str:
    """Return the kind of a tensor's numbers. Loading converts between types of one kind."""
    return "complex" if value.is_complex() else "floating point" if value.is_floating_point() else "whole"


def _shape(value: object) -> str:
    return "x".join(str(size) for size in value.shape) or "scalar" if isinstance(value, torch.Tensor) else "no tensor"


def _recorded_model(path: Path) -> str | None:
    """Return the model that a checkpoint's configuration names, or None for a plain state dict."""
    try:
        return load_checkpoint(path)["config"].get("net_model")
    except WorkError:
        return None
