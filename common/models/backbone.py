"""Builds timm's models by name, with a head for our number of classes and errors of one line."""

from __future__ import annotations

import importlib
from typing import Any

import timm
import torch
from torch import nn

from common.cli.choices import own_file
from common.errors import UsageError, WorkError, nearest
from common.models.pool_layers import replace_pool
from common.models.pooling import POOLS
from common.models.pretrained import find_weights, pretrained_config

# What timm and its models raise for an option or a file that they can't take. They have no common base class.
MODEL_ERRORS = (RuntimeError, ValueError, TypeError, AssertionError, KeyError, AttributeError, IndexError)


def create_model(
    name: str,
    num_classes: int = 6,
    in_channels: int = 3,
    pretrained: bool = False,
    image_size: int = 0,
    *,
    drop: float = 0.0,
    drop_path: float = 0.0,
    pool: str | None = None,
) -> nn.Module:
    """Return timm's model ``name`` (``resnet18``, or with a weight tag ``resnet18.a1_in1k``), ready to be trained.

    The model maps (N, in_channels, height, width) to logits (N, num_classes). Its ``num_features`` is the width of the
    head's input. ``pretrained`` loads timm's weights from the local cache or the network (see
    :mod:`common.models.pretrained`), all of them or none. The head is then replaced by a fresh one, and timm adapts the
    first layer to other than 3 channels. Models built for one size, as most transformers are, get ``image_size`` in
    pixels (0: not known). The model is tried on one empty image of that size.

    ``drop`` (before the head) and ``drop_path`` (stochastic depth) are rates. ``pool`` is a row of
    :data:`common.models.pooling.POOLS`; None: the model's own pooling.

    Raises UsageError for an unknown name, for rates or a pooling that the model doesn't know, for weights that don't
    exist or can't be reached, and for a size or number of channels that the model can't take. Raises WorkError for a
    weight file that can't be read or belongs to another model.
    """
    name = registered_name(name)
    check_model_name(name)
    options: dict[str, Any] = {"in_chans": in_channels}
    options |= {key: rate for key, rate in (("drop_rate", drop), ("drop_path_rate", drop_path)) if rate}
    config = pretrained_config(name)
    if config is not None and config.fixed_input_size and image_size:
        options["img_size"] = image_size
    replaced = pool is not None and not _has_tokens(name)
    if pool is not None and not replaced:
        options["global_pool"] = _token_pool(name, pool)
    model = _pretrained_model(name, options) if pretrained else _build(name, {**options, "num_classes": num_classes})
    if pretrained:
        # The file was loaded strictly, with its own head, so that no other part can stay random.
        model.reset_classifier(num_classes)
    check_rates(model, name, drop, drop_path)
    if pool is not None and replaced:
        replace_pool(model, name, pool, POOLS[pool].build, in_channels, image_size or config.input_size[-1])
    if image_size:
        check_image_size(model, name, in_channels, image_size)
    return model


def check_rates(model: nn.Module, name: str, drop: float, drop_path: float) -> None:
    """Raise UsageError for a rate that no layer of the model has taken: timm's models may ignore it."""
    modules = list(model.modules())
    rates = [module.p for module in modules if isinstance(module, nn.Dropout)]
    rates += [getattr(module, "drop_rate", 0.0) for module in modules]
    if drop and drop not in rates:
        raise UsageError(f"--net_drop={drop:g}: {name} has no dropout before its head")
    if drop_path and not any(getattr(module, "drop_prob", 0.0) for module in modules):
        raise UsageError(f"--net_drop_path={drop_path:g}: {name} has no stochastic depth")


def _has_tokens(name: str) -> bool:
    """Whether the model pools tokens (its pooling is an argument and no layer), as vision transformers do."""
    with torch.device("meta"):
        return isinstance(getattr(_build(name, {}), "global_pool", None), str)


def _token_pool(name: str, pool: str) -> str:
    if not POOLS[pool].tokens:
        known = ", ".join(row.name for row in POOLS.values() if row.tokens)
        raise UsageError(f"--net_pool={pool}: {name} pools tokens and knows {known}")
    return POOLS[pool].tokens


def registered_name(name: str) -> str:
    """Return timm's name of a model. One of your own, ``examples.model.my_model``, is imported, which registers it."""
    module, _, own = name.rpartition(".")
    if module and own_file(module).is_file():
        importlib.import_module(module)
        return own
    return name


def check_model_name(name: str) -> None:
    """Raise UsageError, with the nearest names, if timm has no model ``name`` or the model has no such tag."""
    architecture, _, tag = name.partition(".")
    known = timm.list_models()
    if architecture not in known and not timm.is_model(architecture):
        hint = nearest(architecture, known, count=3) or "; timm.list_models() lists them all"
        raise UsageError(f"--net_model={name}: timm {timm.__version__} has no such model{hint}")
    tags = [full.partition(".")[2] for full in timm.list_models(f"{architecture}.*", pretrained=True)]
    if tag and tag not in tags:
        listing = f"its weight tags are {', '.join(tags)}" if tags else "it has no weight tags"
        raise UsageError(f"--net_model={name}: {architecture} has no weights called {tag!r}; {listing}")


def check_image_size(model: nn.Module, name: str, in_channels: int, image_size: int) -> None:
    """Run ``model`` on one empty image of ``image_size`` pixels. UsageError if it can't take that size."""
    was_training = model.training
    model.eval()  # no dropout, no batch statistics: this changes neither weights nor random numbers
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            model(torch.zeros(1, in_channels, image_size, image_size, device=device))
    except MODEL_ERRORS as error:
        raise UsageError(
            f"--data_image_size={image_size}: {name} can't take pictures of this size ({one_line(error)}); "
            "try a multiple of 32, or another --net_model"
        ) from error
    finally:
        model.train(was_training)


def one_line(error: Exception) -> str:
    """Return an error's message in one line of at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."


def _build(name: str, options: dict[str, Any]) -> nn.Module:
    try:
        return timm.create_model(name, **options)
    except MODEL_ERRORS as error:
        settings = ", ".join(f"{option}={value}" for option, value in options.items())
        raise UsageError(f"--net_model={name}: timm can't build it with {settings} ({one_line(error)})") from error


def _pretrained_model(name: str, options: dict[str, Any]) -> nn.Module:
    path = find_weights(name)
    # Files of the hub are state dicts. JAX's .npz files are read by the model itself.
    overlay = {"file": str(path), "custom_load": path.suffix == ".npz"}
    _check_first_layer(name, options)
    try:
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    except Exception as error:  # safetensors, pickle, zip and torch each raise classes of their own
        raise WorkError(
            f"{path}: cannot be loaded as the pretrained weights of {name} ({one_line(error)}); "
            "delete the file to fetch it again, or use --net_pretrained=0"
        ) from error


def _check_first_layer(name: str, options: dict[str, Any]) -> None:
    """Refuse channels to which timm can't adapt pretrained weights: the first layer would stay random."""
    channels = options["in_chans"]
    if channels == 3:
        return
    with torch.device("meta"):
        model = _build(name, options)
    layers = model.pretrained_cfg.get("first_conv") or ()
    for layer_name in (layers,) if isinstance(layers, str) else layers:
        layer = model.get_submodule(layer_name)
        if not isinstance(layer, nn.Conv2d) or (channels > 1 and layer.in_channels != channels):
            raise UsageError(
                f"--net_pretrained=1: the first layer of {name} can't be adapted from 3 to {channels} channels; "
                "use 3 windows, --net_pretrained=0, or another --net_model"
            )
