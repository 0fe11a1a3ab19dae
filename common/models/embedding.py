"""Embeddings of pictures: the inputs of a classifier's head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from common.errors import UsageError


@contextmanager
def head_input(model: nn.Module) -> Iterator[list[Tensor]]:
    """Yield a list to which each forward pass of timm's ``model`` adds the head's input, (B, num_features).

    In evaluation mode this is timm's ``forward_head(forward_features(x), pre_logits=True)``, from which the head's
    weights make the logits. UsageError for a model whose head is not a linear layer.
    """
    head = model.get_classifier() if hasattr(model, "get_classifier") else None
    if not isinstance(head, nn.Linear):
        kind = type(head).__name__
        raise UsageError(f"{type(model).__name__}: its head is no linear layer ({kind}), so that it has no embedding")
    seen: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    try:
        yield seen
    finally:
        hook.remove()
