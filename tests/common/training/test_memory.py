"""Tests of common/training/memory.py."""

from __future__ import annotations

import errno
import traceback

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from common.errors import WorkError
from common.training import memory
from common.training.memory import is_out_of_memory, out_of_memory_advice

# What CUDA and its libraries say, word for word from issue trackers of torch and of projects that use it.
OF_A_GPU = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB"),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
    RuntimeError("NCCL error: unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
]
OTHERS = [
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
    RuntimeError("CUDA error: no kernel image is available for execution on the device"),
    ValueError("a label says out of memory"),
    OSError(errno.ENOSPC, "No space left on device"),
    WorkError("series.csv: out of memory"),
]


@pytest.mark.parametrize("error", OF_A_GPU, ids=str)
def test_every_way_in_which_a_gpu_is_full_is_one_line(error: Exception) -> None:
    with pytest.raises(WorkError) as caught, out_of_memory_advice("lower --tr_batch_size=8"):
        raise error
    assert str(caught.value) == "out of GPU memory: lower --tr_batch_size=8"


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_other_errors_stay_as_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, out_of_memory_advice("lower it"):
        raise error
    assert caught.value is error


def too_large_for_torch() -> object:
    return torch.empty(2**58, dtype=torch.uint8)


def too_large_for_numpy() -> object:
    return np.empty(2**50)


def too_large_for_opencv() -> object:
    return cv2.resize(np.zeros((1, 2**14, 4)), (2**20, 2**24))


class TooLarge:
    """A dataset whose images don't fit, which a loading process finds."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> object:
        return too_large_for_torch()


def too_large_for_a_loading_process() -> object:
    return list(DataLoader(TooLarge(), num_workers=1, multiprocessing_context="fork"))


@pytest.mark.parametrize(
    "allocate",
    [too_large_for_torch, too_large_for_numpy, too_large_for_opencv, too_large_for_a_loading_process],
)
def test_an_allocation_that_fails_on_the_host_is_one_line_with_what_to_lower(allocate, monkeypatch) -> None:
    monkeypatch.setattr(memory, "memory_limit", lambda: 3 * 2**30)
    with pytest.raises(WorkError) as caught, out_of_memory_advice("lower --batch_size"):
        allocate()
    line = "out of host memory (the container or job may use 3.0 GiB): lower --batch_size"
    assert str(caught.value) == line, "".join(traceback.format_exception(caught.value))


def test_an_error_that_came_from_a_full_gpu_counts() -> None:
    error = RuntimeError("backend='inductor' raised")
    error.__cause__ = OF_A_GPU[0]
    assert is_out_of_memory(error)
