"""Heat: the places of a picture that raised a class, from a feature map of the network and the class's slopes by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from common.errors import UsageError

# Along each side of a map, where the network has such maps: cells of a centimetre of a head. Of the maps that
# benchmarks/heat.py compares the finest are the best, but on a phantom, whose background is clean: on real images a
# network's first maps know edges and little else.
FEWEST_CELLS = 24


def grad_cam(features: Tensor, slopes: Tensor) -> Tensor:
    """Grad-CAM (Selvaraju et al. 2017, equations 1 and 2): each channel by the mean of its slopes."""
    return (slopes.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1).relu()


def hires_cam(features: Tensor, slopes: Tensor) -> Tensor:
    """HiResCAM (Draelos and Carin 2020): each cell of a channel by its own slope."""
    return (slopes * features).sum(dim=1).relu()


def layer_cam(features: Tensor, slopes: Tensor) -> Tensor:
    """LayerCAM (Jiang et al. 2021, equations 5 and 6): as HiResCAM, but cells of negative slope count nothing."""
    return (slopes.relu() * features).sum(dim=1).relu()


METHODS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Grad-CAM": grad_cam,
    "HiResCAM": hires_cam,
    "LayerCAM": layer_cam,
}
METHOD = "LayerCAM"  # of all pictures: benchmarks/heat.py compares them


def heat(
    model: nn.Module, pictures: Tensor, class_index: int, method: str = METHOD, fewest: int = FEWEST_CELLS
) -> Tensor:
    """Return the maps (B, h, w) float32 of timm's ``model`` for ``pictures`` (B, C, H, W), at least 0.

    They are of the network's deepest feature map of ``fewest`` × ``fewest`` cells or more, or else of its finest one.
    0: its last map; a number of H: the pictures themselves, so that HiResCAM is gradient × input. Values have the
    logit's unit and are not scaled. The model runs in evaluation mode; its weights and their gradients don't change.
    Under autocast the features may be of another type; the slopes are always float32. UsageError if the features are
    not a map.
    """
    if not hasattr(model, "forward_features") or not hasattr(model, "forward_head"):
        raise UsageError(f"{type(model).__name__}: gives no features to its head from which heat could be made")
    stage, channels = _stage(model, min(pictures.shape[2:]), fewest)
    with _undisturbed(model), torch.no_grad(), _leaf_of(stage) as leaves:
        if stage is None:
            pictures = _leaf(leaves, pictures)
        features = model.forward_features(pictures)
        if stage is model:
            features = _leaf(leaves, features)
        logits = model.forward_head(features)
    (slopes,) = torch.autograd.grad(logits[:, class_index].sum(), leaves[-1:])
    maps = (_channels_first(model, tensor, channels) for tensor in (leaves[-1].detach(), slopes))
    return METHODS[method](*maps)


def _stage(model: nn.Module, side: int, fewest: int) -> tuple[nn.Module | None, int]:
    """Return the module whose output is the deepest map of enough cells, or else the finest, and its channels.

    None: the pictures have no more cells than that. The model itself: its last features are that map, or timm names no
    others. A head that reads the class token alone gives the last block's other tokens no slope; the block before it
    then counts as the last.
    """
    if fewest >= side:
        return None, 0
    from_token = getattr(model, "global_pool", "") == "token" and getattr(model, "num_prefix_tokens", 0) > 0
    stages = list(getattr(model, "feature_info", ()))[: -1 if from_token else None]
    finest = min((stage["reduction"] for stage in stages), default=0)
    fine = [stage for stage in stages if side // stage["reduction"] >= fewest or stage["reduction"] == finest]
    names = dict(model.named_modules())
    if not fine or fine[-1] is model.feature_info[-1] or fine[-1]["module"] not in names:
        return model, model.num_features
    return names[fine[-1]["module"]], fine[-1]["num_chs"]


def _leaf(leaves: list[Tensor], tensor: Tensor) -> Tensor:
    """Begin the gradients at a tensor: nothing before it needs to be kept. The copy may be changed in place."""
    if not isinstance(tensor, Tensor):
        raise UsageError("a stage of the network gives no map, so that there is no heat")
    leaves.append(tensor.detach().float().requires_grad_())
    torch.set_grad_enabled(True)  # up to the end of the forward pass, see no_grad in heat()
    return leaves[-1].clone()


@contextmanager
def _leaf_of(stage: nn.Module | None) -> Iterator[list[Tensor]]:
    leaves: list[Tensor] = []
    if stage is None or hasattr(stage, "forward_head"):
        yield leaves
        return
    hook = stage.register_forward_hook(lambda _module, _given, output: _leaf(leaves, output))
    try:
        yield leaves
    finally:
        hook.remove()


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _channels_first(model: nn.Module, features: Tensor, channels: int) -> Tensor:
    """Return features as (B, K, h, w), from maps, maps with channels last, or tokens (without class and registers)."""
    if features.ndim == 3:
        grid = getattr(getattr(model, "patch_embed", None), "grid_size", (0, 0))
        tokens = features[:, getattr(model, "num_prefix_tokens", 0) :]
        if tokens.shape[1] != grid[0] * grid[1]:
            raise UsageError(f"{type(model).__name__}: its last features are no map, so that there is no heat")
        return tokens.reshape(len(tokens), *grid, -1).permute(0, 3, 1, 2)
    if features.ndim != 4:
        raise UsageError(f"{type(model).__name__}: its last features are no map, so that there is no heat")
    last = channels not in (0, features.shape[1]) and features.shape[3] == channels
    return features.permute(0, 3, 1, 2) if last else features
