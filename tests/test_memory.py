"""Tests of common/memory.py."""

from __future__ import annotations

import pytest
import torch

from common.errors import WorkError
from common.memory import out_of_memory_advice

CPU = torch.device("cpu")


def test_an_allocation_that_fails_on_the_host_is_one_line_with_what_to_lower() -> None:
    with pytest.raises(WorkError) as caught, out_of_memory_advice(64, CPU):
        torch.empty(2**58, dtype=torch.uint8)
    line = str(caught.value)
    assert line.startswith("out of host memory at --tr_batch_size=64: lower it")
    assert "--tr_accumulation_step" in line
    assert "\n" not in line


def test_a_gpus_out_of_memory_error_is_the_same_line_for_the_gpu() -> None:
    with pytest.raises(WorkError, match="out of GPU memory"), out_of_memory_advice(8, torch.device("cuda")):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_other_errors_stay_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), out_of_memory_advice(8, CPU):
        torch.zeros(2, 3) @ torch.zeros(2, 3)
