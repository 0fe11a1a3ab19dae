"""DataLoaders whose batches don't depend on how many processes load them."""

from __future__ import annotations

import atexit
import errno
import functools
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from common.cli.interruption import ignore_signals
from common.datasets.batch import Batch, LoadingFailed, collate
from common.datasets.samplers import EpochSampler
from common.datasets.shards import ShardedSampler
from common.training import distributed
from common.training.reproducibility import loader_generator
from common.waiting import LIMIT_S, Stalled, Watchdog, start_failed

SHARED_MEMORY = Path("/dev/shm")  # torch's processes hand tensors over there
SHARED_MEMORY_FULL = errno.ENOSPC  # how a worker ends that found no space
IN_HAND = 3  # batches that the trainer holds: trained on, copied, pinned
DYING_S = 1.0  # between a broken connection and the end of the process that broke it
PRELOADED = ["common.datasets.forkserver", "torch", "cv2", "albumentations"]


def make_loader(
    dataset: Dataset,
    sampler: EpochSampler,
    batch_size: int,
    workers: int,
    *,
    drop_last: bool,
    seed: int,
    collate: Callable[[Sequence[Any]], Batch] = collate,
    rows: np.ndarray | None = None,
) -> DataLoader:
    """Return a loader of :class:`Batch` with ``workers`` processes, 0: none. Under torchrun it loads this rank's part.

    ``collate`` makes a batch from samples. ``rows`` (N,) counts the predictions of each sample; None: one each.

    Workers come from a fork server that has imported the heavy packages: a plain fork would copy the threads' locks and
    the buffers of trackers. They live as long as the loader.
    """
    context = None
    if workers:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([*PRELOADED, type(dataset).__module__])
    shard: EpochSampler | ShardedSampler = sampler
    if distributed.world_size() > 1 and not drop_last:  # a training sampler splits its order itself
        shard = ShardedSampler(sampler, batch_size, distributed.rank(), distributed.world_size(), rows)
    return Loader(
        dataset,
        batch_size,
        sampler=shard,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        drop_last=drop_last,
        worker_init_fn=start_worker,
        multiprocessing_context=context,
        generator=loader_generator(seed, type(sampler).__name__),
        persistent_workers=workers > 0,
    )


class Loader(DataLoader):
    """A DataLoader that ends its persistent processes at Python's exit, before Python waits for them.

    The processes ignore SIGTERM, and torch and Python send nothing else while something still holds the loader, such as
    a traceback or a script's variable. Python would wait for them forever.
    """

    guarded = False
    limit_s = LIMIT_S  # for a batch

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches; the first call starts the processes. Raises LoadingFailed if one dies or none answers."""
        if not self.num_workers:
            yield from super().__iter__()
            return
        waits = f"the run waits for a batch of {self.num_workers} loading processes"
        try:
            with Watchdog(waits, lambda: _kill(self._iterator._workers), self.limit_s) as watchdog:
                iterator = watchdog.wait(super().__iter__) if self.guarded else self._started()
                while (batch := watchdog.wait(lambda: next(iterator, None))) is not None:
                    yield batch.batch() if isinstance(batch, Packed) else batch
        except Stalled as stalled:
            raise LoadingFailed(
                f"{stalled}; they were ended: look at the disk that the images lie on, and start again"
            ) from None
        except (RuntimeError, OSError, EOFError) as error:  # from torch, or a process died while handing over a batch
            workers = self._iterator._workers
            if not wait([worker.sentinel for worker in workers], timeout=DYING_S):
                raise
            if {SHARED_MEMORY_FULL, -signal.SIGBUS} & {worker.exitcode for worker in workers}:
                raise LoadingFailed(
                    f"a process that loads images found no space in {SHARED_MEMORY}: give it more (docker run "
                    "--shm-size=8g), or let fewer processes load (--n_jobs), and start again"
                ) from error
            raise LoadingFailed(
                "a process that loads images was killed, most likely for want of memory; make some free, or let fewer "
                "processes load (--n_jobs), and start again"
            ) from error

    def _started(self) -> Iterator[Batch]:
        """Start the processes. If /dev/shm is too small for their batches, print a line and use pipes."""
        own, wanted, free = self.collate_fn, self._shared_bytes(), free_shared_bytes()
        if wanted > free:
            _tell_once(
                f"{SHARED_MEMORY} has {free / 1e6:.0f} MB free and the batches of {self.num_workers} loading processes "
                f"want {wanted / 1e6:.0f}: they come through pipes, which takes longer; more space (docker run "
                f"--shm-size={-(-2 * wanted // 10**9)}g) or a smaller --n_jobs spares that"
            )
            self.collate_fn = Packing(own)
        before = multiprocessing.active_children()
        try:
            iterator = super().__iter__()
        except (OSError, EOFError, RuntimeError) as error:  # no process or thread is left, here or in the fork server
            _kill(set(multiprocessing.active_children()).difference(before))
            ended = "the process that starts them ended, and what it said stands above"
            words = ended if isinstance(error, EOFError) else str(error)
            raise start_failed(f"{self.num_workers} processes that load images", words) from error
        finally:
            self.collate_fn = own
        self.guarded = True
        atexit.register(_end_workers, weakref.ref(iterator), iterator._workers)  # runs before torch's own
        return iterator

    def _shared_bytes(self) -> int:
        """Return how many bytes lie in /dev/shm at once: batches loaded ahead, under way, and with the trainer."""
        try:
            one = len(pickle.dumps(self.collate_fn([self.dataset[0]])))
        except Exception:  # a loading process meets it too and reports it better
            return 0
        batches = self.num_workers * self.prefetch_factor + IN_HAND
        return one * self.batch_size * batches * distributed.local_processes()


@dataclass(frozen=True)
class Packed:
    """A batch as bytes, which go through a pipe; tensors would go through /dev/shm."""

    content: bytes

    def batch(self) -> Batch:
        """Return the batch."""
        return pickle.loads(self.content)

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory; DataLoader calls it."""
        return self.batch().pin_memory()


@dataclass(frozen=True)
class Packing:
    """A collate function that packs the batch made by ``collate``."""

    collate: Callable[[Sequence[Any]], Batch]

    def __call__(self, samples: Sequence[Any]) -> Packed:
        return Packed(pickle.dumps(self.collate(samples)))


@functools.cache
def _tell_once(line: str) -> None:
    """Print a line once, even if several loaders have cause to."""
    distributed.tell([line])


def free_shared_bytes() -> float:
    """Return the free space in /dev/shm in bytes. Infinite if there is no /dev/shm: shared memory is then elsewhere."""
    try:
        state = os.statvfs(SHARED_MEMORY)
    except OSError:
        return float("inf")
    return state.f_bavail * state.f_frsize


def _end_workers(iterator: weakref.ref, workers: Sequence[BaseProcess]) -> None:
    """End the processes, by force if they don't end."""
    if (alive := iterator()) is not None:
        alive._shutdown_workers()
    _kill(workers)


def _kill(workers: Iterable[BaseProcess]) -> None:
    for worker in workers:
        if worker.is_alive():
            worker.kill()


def start_worker(worker: int) -> None:
    """Keep a worker to one core, since processes are the parallelism, and leave signals to the trainer."""
    ignore_signals()
    threading.Thread(target=_end_with_trainer, daemon=True).start()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    Queue._on_queue_feeder_error = staticmethod(_end_without_batch)


def _end_without_batch(error: Exception, batch: object) -> None:
    """End a worker that can't hand over a batch: Python would drop the batch, and the trainer would wait forever."""
    if isinstance(error, (RuntimeError, OSError)) and "No space left" in str(error):
        os._exit(SHARED_MEMORY_FULL)
    traceback.print_exception(error)
    os._exit(1)


def _end_with_trainer() -> None:
    """End this worker when the process that made the loader ends, however it was killed.

    torch's own watchdog looks at the parent, here the fork server, which lives as long as its workers. Without this,
    a killed run would leave half a gigabyte behind for every worker.
    """
    multiprocessing.parent_process().join()
    os._exit(1)
