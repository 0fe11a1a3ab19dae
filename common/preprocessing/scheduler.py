"""Let the workers of a dask cluster convert files."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import UsageError, WorkError

if TYPE_CHECKING:
    from distributed import Client

PROJECT = str(Path(__file__).resolve().parent.parent.parent)
CONNECT_SECONDS = 15
LOST_WORKERS = 10  # lost workers that a chunk of files survives


@contextmanager
def dask_cluster(address: str | None, jobs: int) -> Iterator[int]:
    """Let joblib use the cluster at ``address``, or a new one of ``jobs`` processes here. Yield its number of workers.

    Raises UsageError if dask is not installed, no scheduler answers, there are no workers, a worker has several threads
    (pydicom's settings belong to a process), or the workers can't import this project. Raises WorkError if so many
    workers are lost that the work makes no progress.
    """
    try:
        import dask
        import joblib
        from distributed import LocalCluster
        from distributed.scheduler import KilledWorker
    except ImportError:
        raise UsageError("--pre_scheduler=dask needs the package distributed: pip install distributed") from None
    logging.getLogger("distributed").setLevel(
        logging.ERROR
    )  # don't report a lost worker: its files are converted again
    settings = {"distributed.scheduler.allowed-failures": LOST_WORKERS, "distributed.logging.distributed": "error"}
    with dask.config.set(settings):
        if address is None:
            cluster = LocalCluster(
                n_workers=jobs, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=logging.ERROR
            )
        else:
            cluster = None
        try:
            with _connect(cluster or address) as client:
                workers = _prepare(client, address)
                with joblib.parallel_config(backend="dask", client=client, wait_for_workers_timeout=CONNECT_SECONDS):
                    yield workers
        except KilledWorker:
            raise WorkError(
                f"the dask workers that converted some files were lost {LOST_WORKERS} times; look at their memory and "
                "start the same command again to go on"
            ) from None
        finally:
            if cluster is not None:
                cluster.close()


def _connect(where: object) -> Client:
    from distributed import Client

    try:
        return Client(where, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"--pre_dask_address={where}: no dask scheduler answers ({type(error).__name__})") from None


def _prepare(client: Client, address: str | None) -> int:
    """Make this project importable for the scheduler and all workers, also later ones. Return the number of workers."""

    def find_project(path: str = PROJECT) -> None:
        if path not in sys.path:
            sys.path.insert(0, path)
        import common.preprocessing.workers  # noqa: F401

    try:
        client.wait_for_workers(1, timeout=CONNECT_SECONDS)
        client.run_on_scheduler(find_project)  # the scheduler unpickles calls before it sends them on
        client.register_worker_callbacks(find_project)
        client.run(find_project)
    except TimeoutError:
        raise UsageError(f"--pre_dask_address={address}: the scheduler has no workers") from None
    except ImportError as error:
        raise UsageError(
            f"--pre_dask_address={address}: the cluster can't import this project from {PROJECT} ({error}); it "
            "must lie there for them too, and they need the packages of requirements.txt"
        ) from None
    threads = client.nthreads()
    if max(threads.values()) > 1:
        raise UsageError(f"--pre_dask_address={address}: start its workers with --nthreads 1 (and several --nworkers)")
    return len(threads)
