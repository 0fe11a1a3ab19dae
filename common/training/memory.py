"""Turns running out of memory into one line of advice instead of a traceback."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from common.errors import UserError, WorkError
from common.machine import memory_limit

# Messages of libraries without an exception class for this: torch's allocator on the CPU, the driver's error 2, cuDNN 8
# and 9, cuBLAS and its kin (which make their handles late, on a full device), NCCL, OpenCV, C++.
MESSAGES = re.compile(
    r"can't allocate memory|not enough memory|cannot allocate memory|out of memory|bad_alloc|insufficient memory"
    r"|ALLOC_FAILED|ALLOCATION_FAILED|CUBLAS_STATUS_NOT_INITIALIZED when calling .?cublasCreate",
    re.IGNORECASE,
)
PREDICTION_ADVICE = "lower --batch_size, or --n_jobs; CUDA_VISIBLE_DEVICES= computes on the CPU"
GPU = re.compile(r"cuda|cudnn|cublas|cusolver|cusparse|cufft|nccl|\bgpu", re.IGNORECASE)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error or its cause says that a GPU or the host has no memory left."""
    if error is None or isinstance(error, UserError):
        return False
    if isinstance(error, MemoryError) or _is_of_torch(error):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    library = isinstance(error, RuntimeError) or type(error).__module__ == "cv2"
    return (library and MESSAGES.search(str(error)) is not None) or is_out_of_memory(error.__cause__)


@contextmanager
def out_of_memory_advice(advice: str) -> Iterator[None]:
    """Turn running out of memory in this context into a :class:`WorkError` that ends with ``advice``: what to lower."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        place = "GPU memory"
        if not (_is_of_torch(error) or GPU.search(str(error))):
            place = "host memory"
            if (limit := memory_limit()) is not None:
                place += f" (the container or job may use {limit / 2**30:.1f} GiB)"
        raise WorkError(f"out of {place}: {advice}") from error


def _is_of_torch(error: BaseException) -> bool:
    """Whether it is torch.OutOfMemoryError. The name tells, so that torch need not be imported."""
    return any(cls.__name__ == "OutOfMemoryError" for cls in type(error).__mro__)
