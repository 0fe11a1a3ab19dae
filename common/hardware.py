"""How the device computes: precision, determinism, memory layout, compilation. Asked for and impossible is an error."""

from __future__ import annotations

import os

import torch
from torch import nn

from common.errors import UsageError


def set_computation(device: torch.device, *, tf32: bool, deterministic: bool) -> None:
    """Choose between exact and TF32 products of float32, and between the fastest and repeatable kernels.

    Raises UsageError for TF32 where the device has none. With ``deterministic`` an operation that has no repeatable
    kernel is an error when it is reached.
    """
    if tf32 and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0)):
        raise UsageError("--tr_tf32=1 needs a GPU with TF32 (Ampere or newer) and there is none here; use --tr_tf32=0")
    precision = "tf32" if tf32 else "ieee"
    torch.backends.cuda.matmul.fp32_precision = precision
    torch.backends.cudnn.conv.fp32_precision = precision  # torch's own default is tf32
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first product is computed
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic


def arrange_model(model: nn.Module, *, channels_last: bool, grad_checkpoint: bool, compile_mode: str) -> nn.Module:
    """Return ``model`` with what was asked for; its parameters keep their names. UsageError where it can't be."""
    if channels_last:
        model.to(memory_format=torch.channels_last)
    if grad_checkpoint:
        _checkpoint_gradients(model)
    if compile_mode != "none":
        check_compiler()
        model.compile(mode=compile_mode)
    return model


def _checkpoint_gradients(model: nn.Module) -> None:
    refusal = "--tr_grad_checkpoint=1: this model has no gradient checkpointing; use 0 or another --net_model"
    if not hasattr(model, "set_grad_checkpointing"):
        raise UsageError(refusal)
    try:
        model.set_grad_checkpointing(True)
    except (AssertionError, NotImplementedError):  # how timm's models say so
        raise UsageError(refusal) from None


def check_compiler() -> None:
    """Raise UsageError unless a function of one line can be compiled: there may be no C++ compiler or no Triton."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(4, device=device))
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"--tr_compile: torch can't compile here ({reason[:200]}); use --tr_compile=none") from error
