"""Rank, world size and exchange between processes over torch.distributed. A single process sends nothing.

torchrun starts the processes and tells each its place by environment variables.
"""

from __future__ import annotations

import logging
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from common.cli import console
from common.cli.console import FILE_ONLY
from common.errors import UsageError, UserError, WorkError
from common.hashing import stable_hash

logger = logging.getLogger(__name__)

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)  # the others wait so long while rank 0 validates, saves or makes folders


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number among those that train together, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this is the process that writes files and prints."""
    return rank() == 0


def local_rank() -> int:
    """This process's number on its machine, which is also its GPU's."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_processes() -> int:
    """Processes on this machine, which share its cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def restarts() -> int:
    """How often torchrun has started the processes again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def launch_id() -> str | None:
    """Return an id shared by all restarts of one torchrun; None without torchrun. A hash, so it names no machine."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    parts = (os.environ["TORCHELASTIC_RUN_ID"], socket.gethostname(), os.getppid())
    return f"{stable_hash('launch', *parts):x}"


@contextmanager
def process_group() -> Iterator[None]:
    """Connect the processes of a torchrun within this context. Without torchrun nothing happens.

    A broken connection becomes a WorkError of one line, since the process that failed has said why.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    gpus = torch.cuda.is_available()
    if gpus:
        count = torch.cuda.device_count()
        if max(local_processes(), local_rank() + 1) > count:
            raise UsageError(
                f"torchrun started {local_processes()} processes on this machine, which has {count} GPU(s) to use: "
                f"start as many, --nproc_per_node={count}"
            )
        torch.cuda.set_device(local_rank())
    store, number, size = next(iter(dist.rendezvous("env://", timeout=TIMEOUT)))
    if local_processes() == size:
        # torchrun's store outlives a restart and still holds the addresses of the old processes. (Several machines
        # don't count restarts alike: see docs/sweeps.md.)
        store = dist.PrefixStore(f"restart_{restarts()}", store)
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=TIMEOUT)
    failed = True
    try:
        with warnings.catch_warnings():
            if rank():
                warnings.simplefilter("ignore")  # those of the first process are enough
            yield
        failed = False
    except (dist.DistError, RuntimeError) as error:
        text = " ".join(str(error).split())
        broken = isinstance(error, dist.DistError) or "onnection" in text or "gloo" in text
        if not broken:
            raise
        raise WorkError(
            f"process {rank()}: the connection to another process broke, which ended before; its own message says why "
            f"({text[:100]})"
        ) from error
    finally:
        # Gloo's threads may need Python's lock to release a last result. destroy_process_group of torch 2.11 holds that
        # lock while it waits for them: forever, unless they got it before.
        time.sleep(0.1)
        if not (failed and gpus):  # nccl would wait for the other processes, and this one ends anyway
            dist.destroy_process_group()


def main_first(function: Callable[[], T]) -> T:
    """Call ``function`` in the main process alone. All processes return its result or raise its UserError."""
    if world_size() == 1:
        return function()
    outcome: list[Any] = [None]
    if is_main():
        try:
            outcome = [(function(), None)]
        except UserError as error:
            outcome = [(None, error)]
    dist.broadcast_object_list(outcome, src=0, device=torch.device("cpu"))
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


def any_process(flag: bool) -> bool:
    """Return, in all processes, whether ``flag`` is set in any."""
    if world_size() == 1:
        return flag
    value = torch.tensor([int(flag)])
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return bool(value.item())


def mean(value: float) -> float:
    """Return the mean of ``value`` over the processes."""
    if world_size() == 1:
        return value
    total = torch.tensor([value], dtype=torch.float64)
    dist.all_reduce(total)
    return total.item() / world_size()


def maximum_(flags: Tensor) -> Tensor:
    """Return the maximum of each element over the processes, on the device and of the type of ``flags``."""
    if world_size() == 1:
        return flags
    numbers = flags.to(torch.uint8)
    dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return numbers.to(flags.dtype)


def gather(value: T) -> list[T]:
    """Return, in all processes, the values of all by rank: plain types, arrays, tensors on the CPU."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def data_parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """Wrap ``model`` so that gradients are averaged over the processes. A single process gets it unwrapped."""
    if world_size() == 1:
        return model
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


def check_synchronized_norms(model: nn.Module) -> None:
    """Raise UsageError where batch norms can't see the images of all processes: torch has no CPU kernel for it."""
    if not torch.cuda.is_available() or world_size() == 1:
        raise UsageError("--tr_sync_bn=1 needs several GPUs, a process of torchrun for each; use --tr_sync_bn=0")
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        raise UsageError("--tr_sync_bn=1: the model has no batch norms; use --tr_sync_bn=0")


def synchronized_norms(model: nn.Module) -> nn.Module:
    """Return ``model`` with batch norms that see the images of all processes. Its weights keep their names."""
    from timm.layers import convert_sync_batchnorm  # torch's own skips timm's norms with an activation

    return convert_sync_batchnorm(model)


@contextmanager
def gradients_exchanged(model: nn.Module, exchanged: bool) -> Iterator[None]:
    """Let backward passes of a :func:`data_parallel` model exchange gradients, or only accumulate them."""
    with nullcontext() if exchanged or not isinstance(model, DistributedDataParallel) else model.no_sync():
        yield


def share_buffers(model: nn.Module) -> None:
    """Copy the main process's buffers, such as running statistics of batch norms, to all processes."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def tell(lines: Iterable[str]) -> None:
    """Print lines on stderr and log them, in the main process alone."""
    for line in lines if is_main() else ():
        console.tell(line)
        logger.info("%s", line, extra={FILE_ONLY: True})
