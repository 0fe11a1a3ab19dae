"""Sets precision, determinism, memory layout and compilation of the device. What it can't do is an error."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from common.errors import UsageError
from common.machine import usable_cores
from common.training import distributed

logger = logging.getLogger(__name__)

DEVICE_FILES = Path("/dev")
DRIVER_FILE = Path("/proc/driver/nvidia/version")
GRAPH_MODES = ("reduce-overhead", "max-autotune")  # modes in which torch.compile records CUDA graphs
LOADING_PROCESSES = 16  # at most in a run: each takes half a gigabyte, and 16 feed any GPU


def cpu_cores(n_jobs: int) -> int:
    """Return how many CPU cores to use: ``n_jobs``, or for 0 this process's share of the usable ones."""
    return n_jobs or max(1, usable_cores() // distributed.local_processes())


def loader_workers(n_jobs: int, device: torch.device) -> int:
    """Return the number of loading processes: one per core beside a GPU, one if the CPU computes, none on one core.

    At most LOADING_PROCESSES. Results don't depend on the number.
    """
    cores = cpu_cores(n_jobs)
    return 0 if cores == 1 else 1 if device.type == "cpu" else min(cores, LOADING_PROCESSES)


def training_loader_workers(n_jobs: int, device: torch.device) -> tuple[int, int]:
    """Return the numbers of loading processes for training and for validation, which gets a quarter as many.

    Both live as long as the run. Together they are at most LOADING_PROCESSES.
    """
    workers = loader_workers(n_jobs, device)
    validation = min(workers, max(1, workers // 4))
    return min(workers, LOADING_PROCESSES - validation), validation


def this_device() -> torch.device:
    """Return this process's GPU if there is one, else the CPU."""
    return torch.device("cuda", distributed.local_rank()) if torch.cuda.is_available() else torch.device("cpu")


def select_device(n_jobs: int, *, tf32: bool, deterministic: bool) -> torch.device:
    """Return :func:`this_device`, set to compute as asked. Raises UsageError if it can't.

    A GPU that torch doesn't use gets a line of warning.
    """
    torch.set_num_threads(cpu_cores(n_jobs))
    device = this_device()
    if device.type == "cuda":
        check_architecture(device)
    elif (line := unused_gpu()) is not None:
        logger.warning("%s", line)
    set_computation(device, tf32=tf32, deterministic=deterministic)
    return device


def check_architecture(device: torch.device) -> None:
    """Raise UsageError for a GPU that this build of torch has no kernels for. The first kernel would end the run.

    Kernels such as sm_80 run on the newer GPUs of the same generation (8.0 to 8.9). Those such as sm_90a run on that
    GPU alone. compute_90 is code that any newer GPU translates.
    """
    capability = torch.cuda.get_device_capability(device)
    built = torch.cuda.get_arch_list()
    known = [match for name in built if (match := re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name))]
    for kind, major, minor, suffix in (match.groups() for match in known):
        wanted = (int(major), int(minor))
        if wanted == capability or (kind == "compute" and not suffix and wanted < capability):
            return
        if suffix != "a" and wanted[0] == capability[0] and wanted < capability:
            return
    if known:
        raise UsageError(
            f"{torch.cuda.get_device_name(device)} is an sm_{capability[0]}{capability[1]} and torch "
            f"{torch.__version__} is built for {', '.join(built)}: install a build of torch for this GPU "
            "(pytorch.org), or compute on the CPU by CUDA_VISIBLE_DEVICES="
        )


def unused_gpu() -> str | None:
    """Say why torch doesn't use this machine's NVIDIA GPU; None if there is none or the user hides it."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and not re.match(r"\s*(\d|GPU-|MIG-)", hidden):
        return None
    if not any(_can_open(path) for path in DEVICE_FILES.glob("nvidia[0-9]*")):
        return None
    try:
        found = re.search(r"Module\s+(?:for \S+\s+)?([\d.]+)", DRIVER_FILE.read_text(encoding="utf-8"))
    except OSError:
        found = None
    driver = f"driver {found[1]}" if found else "driver"
    if torch.version.cuda is None:
        reason = f"torch {torch.__version__} is built without CUDA; install a build that has it (pytorch.org)"
    else:
        reason = (
            f"its {driver} doesn't serve torch {torch.__version__}, which is built for CUDA {torch.version.cuda}; "
            "nvidia-smi tells the newest CUDA that it serves: update it, or install a torch for that CUDA (pytorch.org)"
        )
    return f"there is a GPU here and this computes on the CPU: {reason}. CUDA_VISIBLE_DEVICES= hides the GPU"


def _can_open(path: Path) -> bool:
    """Whether a device file can be opened. A cluster job without a GPU may see the files of others' GPUs."""
    try:
        os.close(os.open(path, os.O_RDWR))
    except OSError:
        return False
    return True


def select_amp_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the type of mixed precision (auto, bfloat16, float16). Raises UsageError if the device lacks it."""
    if name == "float16" and device.type == "cpu":
        raise UsageError("--tr_amp_dtype=float16 needs a GPU and there is none here; use bfloat16")
    has_bfloat16 = device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "bfloat16" and not has_bfloat16:
        raise UsageError("--tr_amp_dtype=bfloat16: this GPU has no bfloat16; use float16")
    if name == "auto":
        return torch.bfloat16 if has_bfloat16 else torch.float16
    return getattr(torch, name)


def has_tf32(device: torch.device) -> bool:
    """Whether a device can compute products in TF32."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def set_computation(device: torch.device, *, tf32: bool, deterministic: bool) -> None:
    """Choose exact or TF32 products of float32, and the fastest or repeatable kernels.

    Raises UsageError for TF32 on a device without it. With ``deterministic`` an operation without a repeatable kernel
    raises an error when the run reaches it.
    """
    if tf32 and not has_tf32(device):
        raise UsageError("--tr_tf32=1 needs a GPU with TF32 (Ampere or newer) and there is none here; use --tr_tf32=0")
    # Set both of torch's interfaces. With the newer alone, the older one's getters raise, which Inductor, torch.export
    # and torch.backends.cudnn.flags call. The older can't tell recurrent layers from convolutions.
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    for place in (matmul, cudnn):
        place.allow_tf32 = tf32
    for place in (matmul, cudnn, cudnn.conv, cudnn.rnn):  # torch's default for the last two is tf32
        place.fp32_precision = "tf32" if tf32 else "ieee"
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first product is computed
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic


def arrange_model(
    model: nn.Module, *, channels_last: bool = False, grad_checkpoint: bool = False, compile_mode: str = "none"
) -> nn.Module:
    """Return ``model`` with what was asked for; its parameters keep their names. Raises UsageError if it can't."""
    if channels_last:
        model.to(memory_format=torch.channels_last)
    if grad_checkpoint:
        _checkpoint_gradients(model)
    if compile_mode != "none":
        check_compiler()
        model.compile(mode=compile_mode)
        if compile_mode in GRAPH_MODES:
            model._compiled_call_impl = _with_own_outputs(model._compiled_call_impl)
    return model


def check_graphs(compile_mode: str, accumulation_step: int, device: torch.device) -> None:
    """Raise UsageError where CUDA graphs would accumulate gradients: the next graph overwrites the first's.

    torch then ends the run, or silently returns a part of the sum (its issues 169545 and 96693).
    """
    if compile_mode in GRAPH_MODES and accumulation_step > 1 and device.type == "cuda":
        raise UsageError(
            f"--tr_compile={compile_mode} records CUDA graphs, in which torch can't add up the gradients of "
            f"--tr_accumulation_step={accumulation_step} batches; use --tr_compile=default, or a step of 1"
        )


def _with_own_outputs(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Let a compiled model return copies of its outputs: a CUDA graph writes each into the same memory."""

    def call(*args: Any, **kwargs: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return tree_map_only(torch.Tensor, torch.clone, compiled(*args, **kwargs))

    return call


def _checkpoint_gradients(model: nn.Module) -> None:
    refusal = "--tr_grad_checkpoint=1: this model has no gradient checkpointing; use 0 or another --net_model"
    if not hasattr(model, "set_grad_checkpointing"):
        raise UsageError(refusal)
    try:
        model.set_grad_checkpointing(True)
    except (AssertionError, NotImplementedError):  # how timm's models say so
        raise UsageError(refusal) from None


def check_compiler() -> None:
    """Raise UsageError unless a small function can be compiled. C++ compiler or Triton may be missing."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(4, device=device))
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"--tr_compile: torch can't compile here ({reason[:200]}); use --tr_compile=none") from error
