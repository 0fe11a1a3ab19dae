"""From DICOM files to .npy files: how fast, against what can't be beaten. Prints medians and ratios.

python benchmarks/preprocessing.py [files] [folder]

One core, interleaved, ms of processor time for a file of 512 x 512 pixels, in memory unless another folder is named:
  floor          read the bytes, scale those of the pixels at a known place, np.save
  plain pydicom  dcmread, pixel_array, rescale in float64, rounded and clipped to int16, 20 header values, np.save
  SimpleITK      ReadImage, array, np.save (where it is installed; it knows nothing of padding or wrapped values)
  ours           convert_file: all checks, header, statistics, hashes, HU, an .npy that is whole or absent
  general        the same without the fast reader of plain files
All cores: convert_files with a process for each, against copying the same bytes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

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
    """A new folder, removed afterwards."""
    folder.mkdir()
    yield
    shutil.rmtree(folder)


def start_processes(count: int) -> None:
    """Have so many idle processes ready: they start once for a whole run, which is longer than this one."""
    from common.preprocessing.workers import PROCESSES

    with contextlib.ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(PROCESSES.borrow())


def main() -> None:
    """Measure."""
    import cv2

    from common.dicom import reading
    from common.preprocessing.convert import ImageForm, Task, convert_file
    from common.preprocessing.pseudonyms import Pseudonyms
    from common.preprocessing.workers import convert_files

    count = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    parent = sys.argv[2] if len(sys.argv) > 2 else "/dev/shm"
    cv2.setNumThreads(1)
    form, pseudonyms = ImageForm(0, (), "int16"), Pseudonyms(bytes(32), public="ID_.*")

    with tempfile.TemporaryDirectory(dir=parent) as name:
        source, target = Path(name) / "source", Path(name) / "target"
        source.mkdir()
        paths = make_files(source, count)

        def task(path: Path) -> Task:
            status = path.stat()
            return Task(path.stem, path.stem, "train", status.st_size, status.st_mtime_ns, path, target)

        def ours(path: Path, _: Path) -> None:
            (record,) = convert_file(task(path), form, pseudonyms)
            assert record.reason == "", record.message

        def general(path: Path, other: Path) -> None:
            with mock.patch.object(reading, "read_plain", return_value=None):
                ours(path, other)

        ways: dict[str, Callable[[Path, Path], None]] = {
            "floor": floor,
            "plain pydicom": plain_pydicom,
            "ours": ours,
            "general": general,
        }
        try:
            import SimpleITK  # noqa: F401

            ways["SimpleITK"] = simple_itk
        except ImportError:
            print("SimpleITK is not installed: left out")
        times: dict[str, list[float]] = {way: [] for way in ways}
        names = list(ways)
        for number, path in enumerate(paths):
            for way in names[number % len(names) :] + names[: number % len(names)]:
                with fresh(target):  # a file written over an older one takes longer
                    start = time.process_time()
                    ways[way](path, target / f"{path.stem}.npy")
                    times[way].append(1000 * (time.process_time() - start))
        base = statistics.median(times["floor"])
        for way, values in times.items():
            median, low = statistics.median(values), statistics.quantiles(values, n=10)[0]
            print(f"{way:14} {median:6.2f} ms a file (fastest tenth {low:.2f}), {median / base:.2f} x the floor")
        stages(paths[0])

        cores, tasks = len(os.sched_getaffinity(0)), [task(path) for path in paths]
        rounds: dict[str, list[float]] = {"copy": [], "ours": []}
        start_processes(cores)
        for _ in range(5):
            with fresh(target):
                start = time.perf_counter()
                for path in paths:
                    shutil.copyfile(path, target / path.name)
                rounds["copy"].append(time.perf_counter() - start)
            with fresh(target):
                start = time.perf_counter()
                list(convert_files(tasks, form, cores, pseudonyms))
                rounds["ours"].append(time.perf_counter() - start)
            start_processes(cores)
        copy, wall = (statistics.median(rounds[way]) for way in ("copy", "ours"))
        print(f"{count} files on {cores} cores: {wall:.2f} s, a copy of their bytes {copy:.2f} s, {wall / copy:.2f} x")
        print(f"874,035 files at this rate: {874_035 / count * wall / 60:.0f} minutes")


def stages(path: Path) -> None:
    """Print where the time of a file goes, in microseconds: medians of 200 calls each."""
    import numpy as np

    from common.dicom.hounsfield import hounsfield
    from common.dicom.plain import read_plain
    from common.dicom.reading import quiet_pydicom, read_dicom
    from common.preprocessing.convert import ImageForm, Record, describe_image, picture_hash, write_image

    content = path.read_bytes()
    file = read_dicom(content)
    (header,), (stored,) = file.header.frames, file.frames()
    image_hu, _ = hounsfield(stored.container, file.header.form, header)
    record, form, target = Record("", "", "", 0, 0), ImageForm(0, (), "int16"), path.with_suffix(".npy")

    def quiet() -> None:
        with quiet_pydicom():
            pass

    parts: dict[str, Callable[[], object]] = {
        "read": path.read_bytes,
        "header (fast reader)": lambda: read_plain(content),
        "pydicom kept quiet": quiet,
        "HU, padding": lambda: hounsfield(stored.container, file.header.form, header),
        "statistics and hash": lambda: describe_image(image_hu, form, record),
        "of which the hash": lambda: picture_hash(image_hu),
        "write, whole or absent": lambda: write_image(target, image_hu),
        "np.save alone": lambda: np.save(target, image_hu),
    }
    for name, call in parts.items():
        values = []
        for _ in range(200):
            start = time.process_time()
            call()
            values.append(time.process_time() - start)
            target.unlink(missing_ok=True)
        print(f"    {name:24} {1e6 * statistics.median(values):6.0f} us")


if __name__ == "__main__":
    main()
