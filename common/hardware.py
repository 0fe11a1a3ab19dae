"""How the device computes: precision, determinism, memory layout, compilation. Asked for and impossible is an error."""

from __future__ import annotations

import os

import torch
from torch import nn

from common import distributed
from common.errors import UsageError
from common.machine import usable_cores

LOADING_PROCESSES = 16  # of a run at most: each takes half a gigabyte, and so many feed any GPU


def cpu_cores(n_jobs: int) -> int:
    """Return how many CPU cores to use: ``n_jobs``, or for 0 this process's share of all that it may use."""
    return n_jobs or max(1, usable_cores() // distributed.local_processes())


def loader_workers(n_jobs: int, device: torch.device) -> int:
    """Return the number of loading processes: a core each beside a GPU, one where the CPU computes, none on one core.

    At most LOADING_PROCESSES. Results don't depend on it.
    """
    cores = cpu_cores(n_jobs)
    return 0 if cores == 1 else 1 if device.type == "cpu" else min(cores, LOADING_PROCESSES)


def training_loader_workers(n_jobs: int, device: torch.device) -> tuple[int, int]:
    """Return the numbers of loading processes of a training's two loaders: training, and a quarter for validation.

    Both live as long as the run; together they are at most LOADING_PROCESSES.
    """
    workers = loader_workers(n_jobs, device)
    validation = min(workers, max(1, workers // 4))
    return min(workers, LOADING_PROCESSES - validation), validation


def this_device() -> torch.device:
    """Return the GPU where there is one, else the CPU."""
    return torch.device("cuda", distributed.local_rank()) if torch.cuda.is_available() else torch.device("cpu")


def select_device(n_jobs: int, *, tf32: bool, deterministic: bool) -> torch.device:
    """Return :func:`this_device`, set to compute as asked for; UsageError where it can't."""
    torch.set_num_threads(cpu_cores(n_jobs))
    device = this_device()
    set_computation(device, tf32=tf32, deterministic=deterministic)
    return device


def select_amp_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the type of mixed precision (auto, bfloat16, float16); UsageError where the device can't compute in it."""
    if name == "float16" and device.type == "cpu":
        raise UsageError("--tr_amp_dtype=float16 needs a GPU and there is none here; use bfloat16")
    has_bfloat16 = device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "bfloat16" and not has_bfloat16:
        raise UsageError("--tr_amp_dtype=bfloat16: this GPU has no bfloat16; use float16")
    if name == "auto":
        return torch.bfloat16 if has_bfloat16 else torch.float16
    return getattr(torch, name)


def has_tf32(device: torch.device) -> bool:
    """Say whether a device computes products in TF32."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def set_computation(device: torch.device, *, tf32: bool, deterministic: bool) -> None:
    """Choose between exact and TF32 products of float32, and between the fastest and repeatable kernels.

    Raises UsageError for TF32 where the device has none. With ``deterministic`` an operation that has no repeatable
    kernel is an error when it is reached.
    """
    if tf32 and not has_tf32(device):
        raise UsageError("--tr_tf32=1 needs a GPU with TF32 (Ampere or newer) and there is none here; use --tr_tf32=0")
    # Both of torch's interfaces: after the newer one alone the older one's getters raise, which Inductor, torch.export
    # and torch.backends.cudnn.flags call. The older can't tell recurrent layers from convolutions.
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    for place in (matmul, cudnn):
        place.allow_tf32 = tf32
    for place in (matmul, cudnn, cudnn.conv, cudnn.rnn):  # torch's own default of the last two is tf32
        place.fp32_precision = "tf32" if tf32 else "ieee"
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
