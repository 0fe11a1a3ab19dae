"""Rank, world size, and exchange over torch.distributed; one process is the trivial case, in which nothing is sent.

Processes are started by torchrun, which tells each of them its place by environment variables.
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

TIMEOUT = timedelta(minutes=30)  # rank 0 may validate, save or make folders for so long while the others wait


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number among them, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this is the process that writes files and talks."""
    return rank() == 0


def local_rank() -> int:
    """This process's number on its machine: that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_processes() -> int:
    """Processes on this machine, which share its cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def restarts() -> int:
    """How often torchrun has started the processes again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def launch_id() -> str | None:
    """Return what the restarts of one torchrun have in common; None without torchrun. A hash: it names no machine."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    parts = (os.environ["TORCHELASTIC_RUN_ID"], socket.gethostname(), os.getppid())
    return f"{stable_hash('launch', *parts):x}"


@contextmanager
def process_group() -> Iterator[None]:
    """Within this context the processes of a torchrun are connected; without one nothing happens.

    A connection that breaks becomes one line: the process that failed has told why.
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
        # torchrun's store outlives a restart, and the addresses of the processes before would be found in it. (Several
        # machines don't count restarts alike: see docs/sweeps.md.)
        store = dist.PrefixStore(f"restart_{restarts()}", store)
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=TIMEOUT)
    failed = True
    try:
        with warnings.catch_warnings():
            if rank():
                warnings.simplefilter("ignore")  # the first process's stand for all
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
        # Gloo's threads may need Python's lock to let go of a last result. The group's own end, in torch 2.11, waits
        # for them while it holds that lock: forever, if they don't get it before.
        time.sleep(0.1)
        if not (failed and gpus):  # nccl would wait for what the others sent, and its process ends anyway
            dist.destroy_process_group()


def main_first(function: Callable[[], T]) -> T:
    """Call ``function`` in the main process alone and return its result, or raise its UserError, in all."""
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
    """Return in all processes whether ``flag`` is set in one of them."""
    if world_size() == 1:
        return flag
    value = torch.tensor([int(flag)])
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return bool(value.item())


def mean(value: float) -> float:
    """Return the mean of the processes' values."""
    if world_size() == 1:
        return value
    total = torch.tensor([value], dtype=torch.float64)
    dist.all_reduce(total)
    return total.item() / world_size()


def maximum_(flags: Tensor) -> Tensor:
    """Replace each element, on the device, by its maximum over the processes; returns ``flags`` of the same type."""
    if world_size() == 1:
        return flags
    numbers = flags.to(torch.uint8)
    dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return numbers.to(flags.dtype)


def gather(value: T) -> list[T]:
    """Return the processes' values (plain types, arrays and tensors on the CPU), by rank, in all of them."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def data_parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """Return ``model`` such that its gradients are the mean over the processes; one process: as it is."""
    if world_size() == 1:
        return model
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


def check_synchronized_norms(model: nn.Module) -> None:
    """Raise UsageError where batch norms can't count the images of all processes: torch has no kernel for a CPU."""
    if not torch.cuda.is_available() or world_size() == 1:
        raise UsageError("--tr_sync_bn=1 needs several GPUs, a process of torchrun for each; use --tr_sync_bn=0")
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        raise UsageError("--tr_sync_bn=1: the model has no batch norms; use --tr_sync_bn=0")


def synchronized_norms(model: nn.Module) -> nn.Module:
    """Return ``model``, its weights under the same names, with batch norms that count the images of all processes."""
    from timm.layers import convert_sync_batchnorm  # torch's own leaves timm's norms with an activation alone

    return convert_sync_batchnorm(model)


@contextmanager
def gradients_exchanged(model: nn.Module, exchanged: bool) -> Iterator[None]:
    """Within this context a backward pass of a :func:`data_parallel` model exchanges gradients, or only adds them."""
    with nullcontext() if exchanged or not isinstance(model, DistributedDataParallel) else model.no_sync():
        yield


def share_buffers(model: nn.Module) -> None:
    """Give all processes the main one's buffers, such as a batch norm's running statistics."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def tell(lines: Iterable[str]) -> None:
    """Print lines on stderr, by the main process alone, and log them."""
    for line in lines if is_main() else ():
        console.tell(line)
        logger.info("%s", line, extra={FILE_ONLY: True})
