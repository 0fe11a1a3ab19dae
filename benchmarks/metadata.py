"""Tables for many files: journal written and read, metadata sorted and written, folds made. Seconds and peak memory.

python benchmarks/metadata.py [files] [folder]

The records are made up in the competition's proportions (34 slices a series, 1.15 studies a patient, 4,000 patients in
pairs that share a picture, a cut file in every 10,000); the rest is what preprocessing.py runs after all conversions.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pandas as pd

SLICES, STUDIES_A_PATIENT, PAIRS, CUT = 34, 1.15, 2_000, 10_000
CHUNK = 32


def records(count: int) -> Iterator[list]:
    """Yield chunks of made-up records in random order of their series."""
    from common.preprocessing.records import Record

    generator = np.random.default_rng(0)
    order = generator.permutation(count)
    patients = int(count / SLICES / STUDIES_A_PATIENT)
    chunk = []
    for number in order.tolist():
        study = number // SLICES
        patient = study % patients
        twin = number % SLICES == 0 and patient < 2 * PAIRS
        record = Record(f"ID_{number:09x}", f"ID_{number:09x}", "train", 525_000, 10**18 + number)
        if number % CUT == 1:
            record.image_id, record.reason, record.message = "", "truncated", "PixelData holds 153710 bytes"
        else:
            record.patient_id, record.study_id = f"ID_{patient:08x}", f"ID_{study:010x}"
            record.series_id, record.instance_id = f"ID_{study:010x}", f"ID_{number:09x}"
            record.x, record.y, record.z = -120.0, -110.0, 4.9 * (number % SLICES)
            record.row_x, record.row_y, record.row_z, record.column_x = 1.0, 0.0, 0.0, 0.0
            record.column_y, record.column_z = 0.97437, 0.224951
            record.row_spacing_mm = record.column_spacing_mm = 0.488281
            record.pixel_form, record.rows, record.columns, record.mended = "12/0/1/-1024", 512, 512, "padding"
            record.hu_min, record.hu_max, record.hu_mean, record.solid = -1024, 2000, -456.7890123, 0.4567890123
            record.digest = f"{patient // 2 if twin else number + 10**9:032x}"
            record.image_hash, record.image_bytes = record.digest, 524_416
            record.crop_rows = record.crop_columns = 512
        chunk.append(record)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    yield chunk


def make_job(folder: Path, count: int) -> object:
    """Return the job that preprocessing.py would have for these files."""
    from common.preprocessing.id_map import IdMap
    from common.preprocessing.pseudonyms import Pseudonyms
    from common.preprocessing.sources import FolderTree
    from rsna.prepare.job import Job, image_form
    from rsna.prepare.options import PreprocessingConfig
    from rsna.prepare.source import COMPETITION_NAMES, Source
    from rsna_dataset import LABELS

    ids = pd.Index([f"ID_{number:09x}" for number in range(count)], name="source_id")
    generator = np.random.default_rng(1)
    positive = generator.random((count // SLICES + 1, len(LABELS))).repeat(SLICES, axis=0)[:count] < 0.12
    values = (positive & (generator.random(positive.shape) < 0.4)).astype(np.int8)
    labels = pd.DataFrame(values, index=ids.rename("id"), columns=list(LABELS))
    files = pd.DataFrame(
        {"file_id": ids, "own_id": ids, "by_path": False,
         "path": [f"stage_2_train/{one}.dcm" for one in ids], "split": "train",
         "bytes": 525_000, "mtime_ns": 10**18 + np.arange(count)},
        index=ids,
    )  # fmt: skip
    config = PreprocessingConfig(data_input_folder=folder)
    refused = pd.DataFrame({name: [] for name in ("id", "file_id", "file", "reason", "message")}, dtype=object)
    source = Source(FolderTree(folder), None)
    return Job(config, folder, image_form(config), source, Pseudonyms(b"0" * 32, COMPETITION_NAMES), labels, None,
               pd.Index([]), files, refused, IdMap(folder / "id_map.csv"))  # fmt: skip


def main() -> None:
    """Run the tables' part of preprocessing for made-up records."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    from common.preprocessing.journal import Journal
    from rsna.prepare.job import journal_options
    from rsna.prepare.tables import write_tables
    from rsna_dataset import JOURNAL

    parent = sys.argv[2] if len(sys.argv) > 2 else None  # none: the system's temporary folder
    with tempfile.TemporaryDirectory(dir=parent) as name:
        folder = Path(name)
        (folder / "images").mkdir()
        start = time.perf_counter()

        def tell(what: str) -> None:
            nonlocal start
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(f"{what}: {time.perf_counter() - start:.1f} s, peak memory so far {peak:.2f} GiB", flush=True)
            start = time.perf_counter()

        job = make_job(folder, count)
        tell(f"{count:,} files listed, labels")
        journal = Journal(folder / JOURNAL, journal_options(job))
        with journal:
            for chunk in records(count):
                journal.add(chunk)
        tell("journal written (with making the records up)")
        table = journal.read()
        tell("journal read")
        write_tables(job, table, "state")
        tell("metadata sorted and written, folds made and written")
        sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
        print(", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in sorted(sizes.items()) if size > 1e6))


if __name__ == "__main__":
    main()
