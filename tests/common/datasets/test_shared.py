"""common/datasets/shared.py: what loading processes hold of a dataset does not grow with its rows."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from common.datasets.images import ImageDataset
from common.datasets.shared import SharedArray

ROWS = 1_000_000


def private_bytes() -> int:
    """Memory that belongs to this process alone."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Dirty", "Private_Clean")))


def measure(dataset: ImageDataset, answers) -> None:
    """In a worker: touch every row, then tell this process's own memory and what it saw."""
    checksum = int(dataset._ids.array.view(np.uint8).sum(dtype=np.int64)) + int(dataset.targets.sum())
    answers.put((private_bytes(), checksum, len(dataset)))


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's account of private memory")
def test_a_workers_own_memory_is_the_same_for_ten_rows_and_a_million(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "common.datasets.images"])
    answers = context.Queue()
    found = []
    for rows in (10, ROWS):
        ids = [f"ID_{number:09x}" for number in range(rows)]
        dataset = ImageDataset(tmp_path, ids, np.ones((rows, 6)), None, 0, 0, "hu")
        process = context.Process(target=measure, args=(dataset, answers))
        process.start()
        found.append(answers.get(timeout=300))
        process.join()
        assert found[-1][1] == sum(sum(name.encode()) for name in ids) + 6 * rows
    (few, _, _), (many, _, length) = found
    assert length == ROWS
    assert many - few < 10_000_000  # the rows are 36 MB


@pytest.mark.parametrize(
    "array",
    [np.arange(6, dtype=np.float32).reshape(2, 3), np.array([b"ab", b"c"]), np.zeros((0, 6)), np.zeros(0, "S1")],
)
def test_an_array_of_any_fixed_type_comes_back_and_lies_in_shared_memory(array: np.ndarray) -> None:
    shared = SharedArray(array)
    np.testing.assert_array_equal(shared.array, array)
    assert shared.array.dtype == array.dtype
    if array.size and Path("/proc/self/maps").exists():
        assert "/memfd:table" in Path("/proc/self/maps").read_text()  # not in /dev/shm, which may be small
