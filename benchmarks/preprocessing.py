"""From DICOM files to .npy files: how fast, against what can't be beaten. Prints medians and ratios.

python benchmarks/preprocessing.py [files] [folder]

One core, a chunk of 30 files each way in turn, ms of processor time for a file of 512 x 512 pixels, in memory unless
another folder is named:
  floor          read the bytes, scale those of the pixels at a known place, np.save
  plain pydicom  dcmread, pixel_array, rescale in float64, rounded and clipped to int16, 20 header values, np.save
  SimpleITK      ReadImage, array, np.save (where it is installed; it knows nothing of padding or wrapped values)
  ours           convert_tasks: all checks, header, statistics, hashes, HU, an .npy that is whole or absent
  general        the same without the fast reader of plain files
Where the time goes: the steps of convert_tasks, timed while it runs, so that caches are as they are there.
All cores: convert_files with a process for each, against as many processes that copy the same bytes. Both find the
source in the system's cache, or both not (posix_fadvise DONTNEED), and both end when the disk has all (sync).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if TYPE_CHECKING:
    from common.preprocessing.pseudonyms import Pseudonyms
    from common.preprocessing.records import ImageForm, Task

CHUNK, ROUNDS = 30, 3

HEADER_VALUES = (
    "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "Modality", "ImageType", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel", "PhotometricInterpretation",
    "RescaleSlope", "RescaleIntercept", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
    "PixelPaddingValue",
)  # fmt: skip


def make_files(folder: Path, count: int) -> list[Path]:
    """Write CT slices as the competition has them: noisy heads, padding, 16 bits, its header's fields."""
    import numpy as np

    from tests.dicom_files import new_ct, write_ct

    random = np.random.default_rng(0)
    y, x = np.ogrid[:512, :512]
    radius = (y - 256) ** 2 + (x - 256) ** 2
    paths = []
    for number in range(count):
        hu = np.where(radius < 190**2, random.normal(35, 12, (512, 512)), random.normal(-1000, 6, (512, 512)))
        stored = np.where(radius < 255**2, hu + 1024, -2000).astype(np.int16)
        dataset = new_ct(stored)
        dataset.PatientID, dataset.StudyInstanceUID = f"ID_{number // 30:08x}", f"1.2.3.{number // 30}"
        dataset.SOPInstanceUID = f"1.2.3.4.{number}"
        dataset.WindowCenter, dataset.WindowWidth = ["00036", "00036"], ["00080", "00080"]
        paths.append(write_ct(folder / f"ID_{number:09x}.dcm", dataset))
    return paths


def floor(path: Path, target: Path) -> None:
    """Read, scale, write."""
    import numpy as np

    content = path.read_bytes()
    stored = np.frombuffer(content, "<i2", 512 * 512, len(content) - 2 * 512 * 512).reshape(512, 512)
    np.save(target, stored - np.int16(1024))


def plain_pydicom(path: Path, target: Path) -> None:
    """What a plain script does, with the same exactness."""
    import numpy as np
    from pydicom import dcmread

    dataset = dcmread(path)
    _ = [dataset.get(keyword) for keyword in HEADER_VALUES]
    hu = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    hu[dataset.pixel_array == -2000] = -1024
    np.save(target, np.clip(np.rint(hu), -32768, 32767).astype(np.int16))


def simple_itk(path: Path, target: Path) -> None:
    """SimpleITK's reader."""
    import numpy as np
    import SimpleITK

    np.save(target, SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))[0])


@contextlib.contextmanager
def fresh(folder: Path) -> Iterator[None]:
    """A new folder, removed afterwards: a file written over an older one takes longer."""
    folder.mkdir()
    yield
    shutil.rmtree(folder)


def start_processes(count: int) -> None:
    """Have so many idle processes ready: they start once for a whole run, which is longer than this one."""
    from common.preprocessing.workers import PROCESSES

    with contextlib.ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(PROCESSES.borrow())


def make_task(path: Path, target: Path) -> Task:
    """Return what converts a file."""
    from common.preprocessing.records import Task

    status = path.stat()
    return Task(path.stem, path.stem, "train", status.st_size, status.st_mtime_ns, path, target)


def convert(paths: Sequence[Path], target: Path) -> None:
    """Ours."""
    from common.preprocessing.convert import convert_tasks

    records = convert_tasks([make_task(path, target) for path in paths], *conversion())
    assert not any(record.reason for record in records)


def conversion() -> tuple[ImageForm, Pseudonyms]:
    """Return what the files are converted to."""
    from common.preprocessing.pseudonyms import Pseudonyms
    from common.preprocessing.records import ImageForm
    from rsna.prepare.source import COMPETITION_NAMES

    return ImageForm(0, (), "int16"), Pseudonyms(bytes(32), COMPETITION_NAMES)


def general(paths: Sequence[Path], target: Path) -> None:
    """Ours by the general reader alone."""
    from common.dicom import reading

    with mock.patch.object(reading, "read_plain", return_value=None):
        convert(paths, target)


def one_by_one(way: Callable[[Path, Path], None]) -> Callable[[Sequence[Path], Path], None]:
    """Return what does the same for several files."""

    def all_of_them(paths: Sequence[Path], target: Path) -> None:
        for path in paths:
            way(path, target / f"{path.stem}.npy")

    return all_of_them


def measure_ways(paths: Sequence[Path], target: Path) -> None:
    """Print the time of a file for each way to convert it."""
    ways = {
        "floor": one_by_one(floor),
        "plain pydicom": one_by_one(plain_pydicom),
        "ours": convert,
        "general": general,
    }
    try:
        import SimpleITK  # noqa: F401

        ways["SimpleITK"] = one_by_one(simple_itk)
    except ImportError:
        print("SimpleITK is not installed: left out")
    times: dict[str, list[float]] = {way: [] for way in ways}
    names = list(ways)
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    for number, chunk in enumerate(chunks * ROUNDS):
        for way in names[number % len(names) :] + names[: number % len(names)]:
            with fresh(target):
                start = time.process_time()
                ways[way](chunk, target)
                times[way].append(1000 * (time.process_time() - start) / len(chunk))
    for way, values in times.items():
        median, low = statistics.median(values), statistics.quantiles(values, n=10)[0]
        ratio = statistics.median(value / base for value, base in zip(values, times["floor"], strict=True))
        print(f"{way:14} {median:6.2f} ms a file (fastest tenth {low:.2f}), {ratio:.2f} x the floor")


def measure_steps(paths: Sequence[Path], target: Path) -> None:
    """Print where the time of a file goes, in microseconds of one core."""
    from common.dicom import hounsfield, reading
    from common.preprocessing import convert as steps

    own: dict[str, list[float]] = {}
    inner: list[float] = []

    def timed(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            inner.append(0.0)
            start = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                took = time.thread_time() - start
                own.setdefault(name, []).append(1e6 * (took - inner.pop()))
                if inner:
                    inner[-1] += took

        return call

    rows = (
        (steps, "read_source", "read the file"),
        (reading, "read_plain", "header (fast reader)"),
        (hounsfield, "lowest_and_highest", "lowest and highest value"),
        (steps, "lowest_and_highest", "lowest and highest HU"),
        (hounsfield, "_padding_mask", "find padding"),
        (hounsfield, "_apply_rescale", "rescale"),
        (steps, "hounsfield", "rest of HU: fill padding"),
        (steps, "picture_hash", "hash of the picture"),
        (steps, "describe_image", "rest of the statistics: mean, solid share"),
        (steps, "_describe_header", "record: header, pseudonyms"),
        (steps, "encode_image", ".npy header"),
        (steps, "_write_all", "write the bytes"),
        (steps, "write_image", "make, close and rename the file"),
        (steps, "_convert_file", "all else: hash of the header, frames, records"),
    )
    with contextlib.ExitStack() as stack:
        for module, name, label in rows:
            stack.enter_context(mock.patch.object(module, name, timed(getattr(module, name), label)))
        for _ in range(ROUNDS):
            with fresh(target):
                convert(paths, target)
    total = 0.0
    for label, values in own.items():
        each = statistics.median(values) * len(values) / len(own["read the file"])
        total += each
        print(f"    {label:48} {each:6.0f} us")
    print(f"    {'sum, with the timers':48} {total:6.0f} us")


def copy_files(paths: Sequence[Path], target: Path) -> None:
    """Copy files, through memory as a conversion must."""
    for path in paths:
        (target / path.name).write_bytes(path.read_bytes())


def measure_all_cores(paths: Sequence[Path], target: Path) -> None:
    """Print the wall time of a run with all cores, and of copying the same bytes."""
    from common.machine import usable_cores
    from common.preprocessing.workers import convert_files

    cores = usable_cores()

    def copy() -> None:
        list(pool.map(copy_files, [paths[start::cores] for start in range(cores)], [target] * cores))

    def ours() -> None:
        form, pseudonyms = conversion()
        list(convert_files([make_task(path, target) for path in paths], form, cores, pseudonyms))

    rounds: dict[tuple[str, str], list[float]] = {}
    with ProcessPoolExecutor(cores) as pool:
        list(pool.map(copy_files, [[]] * cores, [target] * cores))
        for state in ("warm", "cold") * ROUNDS:
            for name, way in (("copy", copy), ("ours", ours)):
                start_processes(cores)
                for path in paths:
                    drop_from_cache(path) if state == "cold" else path.read_bytes()
                os.sync()
                with fresh(target):
                    start = time.perf_counter()
                    way()
                    os.sync()
                    rounds.setdefault((state, name), []).append(time.perf_counter() - start)
    for state in ("warm", "cold"):
        copied, wall = (statistics.median(rounds[state, name]) for name in ("copy", "ours"))
        print(
            f"{len(paths)} files on {cores} cores, source {state}: {wall:.2f} s, a copy of their bytes {copied:.2f} s, "
            f"{wall / copied:.2f} x; 874,035 files at this rate: {874_035 / len(paths) * wall / 60:.0f} minutes"
        )


def drop_from_cache(path: Path) -> None:
    """Make the next read of a file come from the disk."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


def main() -> None:
    """Measure."""
    import cv2

    count = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    parent = sys.argv[2] if len(sys.argv) > 2 else "/dev/shm"
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory(dir=parent) as name:
        source, target = Path(name) / "source", Path(name) / "target"
        source.mkdir()
        paths = make_files(source, count)
        measure_ways(paths, target)
        measure_steps(paths, target)
        measure_all_cores(paths, target)


if __name__ == "__main__":
    main()
