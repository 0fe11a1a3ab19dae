"""DataLoaders whose batches don't depend on how many processes load them."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from common import distributed
from common.datasets.batch import Batch, collate
from common.datasets.samplers import EpochSampler
from common.datasets.shards import ShardedSampler
from common.errors import WorkError
from common.interruption import ignore_signals
from common.reproducibility import loader_generator

DYING_S = 1.0  # from a broken connection to the end of the process that broke it
PRELOADED = ["torch", "cv2", "albumentations"]


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
    """Return a loader of :class:`Batch`; ``workers`` processes load, 0: the calling one. Under torchrun: of this rank.

    ``collate`` makes a batch of the dataset's samples; ``rows`` (N,): predictions that each of them gives, None: one.

    Workers come from a fork server that has the heavy packages loaded: a plain fork would copy the threads' locks and
    the buffers of trackers. They live as long as the loader.
    """
    context = None
    if workers:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([*PRELOADED, type(dataset).__module__])
    shard: EpochSampler | ShardedSampler = sampler
    if distributed.world_size() > 1 and not drop_last:  # a training's sampler knows of the processes
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
    """A DataLoader whose persistent processes are ended before Python waits for them at its exit.

    They leave SIGTERM to the trainer, and that is all that torch and Python have for them where something still holds
    the loader then: the traceback of an error, a script's variable. Python would wait for them for good.
    """

    guarded = False

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches; the first call starts the processes. WorkError where one of them is killed."""
        iterator = super().__iter__()
        if self.num_workers and not self.guarded:
            self.guarded = True
            atexit.register(_end_workers, weakref.ref(iterator), iterator._workers)  # torch's own come after it
        try:
            yield from iterator
        except (RuntimeError, OSError, EOFError) as error:  # torch's own; or it died while it handed a batch over
            if not self.num_workers or not wait([worker.sentinel for worker in iterator._workers], timeout=DYING_S):
                raise
            raise WorkError(
                "a process that loads images was killed, most likely for want of memory; make some free, or let fewer "
                "processes load (--n_jobs), and start again"
            ) from error


def _end_workers(iterator: weakref.ref, workers: Sequence[BaseProcess]) -> None:
    """End the processes, by force where they don't."""
    if (alive := iterator()) is not None:
        alive._shutdown_workers()
    for worker in workers:
        if worker.is_alive():
            worker.kill()


def start_worker(worker: int) -> None:
    """Keep a worker to its core, since the processes are the parallelism; it leaves signals to the trainer."""
    ignore_signals()
    threading.Thread(target=_end_with_trainer, daemon=True).start()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _end_with_trainer() -> None:
    """End this worker when the process that made the loader ends, however that was killed.

    torch's own watchdog looks at the parent, which here is the fork server, and that lives as long as its workers:
    without this each killed run would leave half a gigabyte for every worker, for good.
    """
    multiprocessing.parent_process().join()
    os._exit(1)
