"""Convert many files at once, isolated so that a damaged file can't harm the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from common.preprocessing.convert import convert_tasks, read_persons
from common.preprocessing.isolation import CallFailed, Processes
from common.preprocessing.pseudonyms import Pseudonyms
from common.preprocessing.records import ImageForm, Record, Task, failure

FILES_PER_CHUNK = 32
FILE_SECONDS = 60.0  # for a file; a chunk that takes longer is converted again file by file
PROCESSES = Processes("common.preprocessing.convert", "pydicom.pixels")


def convert_files(tasks: Sequence[Task], form: ImageForm, jobs: int, pseudonyms: Pseudonyms) -> Iterator[list[Record]]:
    """Convert files in ``jobs`` processes. Yield the records of each chunk when it is finished.

    Threads of this process wait for the processes, or workers elsewhere with a ``joblib.parallel_config``. Raises
    WorkError if an image can't be written. All images of the records yielded before have been written.
    """
    import joblib

    size = max(1, min(FILES_PER_CHUNK, len(tasks) // (4 * jobs)))
    chunks = [tasks[start : start + size] for start in range(0, len(tasks), size)]
    calls = (joblib.delayed(convert_chunk)(chunk, form, pseudonyms) for chunk in chunks)
    parallel = joblib.Parallel(
        n_jobs=max(1, min(jobs, len(chunks))),
        prefer="threads",
        return_as="generator_unordered",
        pre_dispatch="3*n_jobs",
        batch_size=1,
    )
    PROCESSES.stopped = False
    try:
        yield from parallel(calls)
    except BaseException:  # Ctrl-C, a full disk: don't wait for calls in progress
        PROCESSES.stop()
        raise
    PROCESSES.close(keep=1)


def spread(count: int) -> np.ndarray:
    """Return the indices of ``count`` files in an order whose first N are spread over all files, for any N."""
    return np.random.default_rng(0).permutation(count)


def find_persons(
    tasks: Sequence[Task], wanted: int, *, by_study: bool = False, most_files: int | None = None
) -> tuple[int, int]:
    """Return how many patients and studies the files name. Stop reading at ``wanted`` patients.

    A file without a patient counts its study as one; with ``by_study`` every file does. The order of reading is spread
    over all files, and at most ``most_files`` are read. A file that can't be read is ignored and raises nothing.
    """
    order = spread(len(tasks))[:most_files]
    persons: set[tuple[str, str]] = set()
    studies: set[str] = set()
    for start in range(0, len(order), FILES_PER_CHUNK):
        sources = [tasks[place].source for place in order[start : start + FILES_PER_CHUNK]]
        try:
            with PROCESSES.borrow() as process:
                found = process.call(read_persons, FILE_SECONDS, sources)
        except CallFailed:
            continue
        for patient, study in found:
            person = ("study", study) if by_study or not patient else ("patient", patient)
            if person[1]:
                persons.add(person)
            if study:
                studies.add(study)
        if len(persons) >= wanted:
            break
    return len(persons), len(studies)


def convert_chunk(tasks: Sequence[Task], form: ImageForm, pseudonyms: Pseudonyms) -> list[Record]:
    """Convert some files in another process.

    If it dies or hangs, convert each file on its own, so that only the faulty one fails.
    """
    try:
        with PROCESSES.borrow() as process:
            return process.call(convert_tasks, FILE_SECONDS, tasks, form, pseudonyms)
    except CallFailed:
        return [record for task in tasks for record in _convert_alone(task, form, pseudonyms)]


def _convert_alone(task: Task, form: ImageForm, pseudonyms: Pseudonyms) -> list[Record]:
    """Convert one file. It counts as failed only if it times out or fails in a process that has read no other."""
    for fresh in (False, True):
        if PROCESSES.stopped:
            break
        with PROCESSES.borrow(fresh=fresh) as process:
            fresh = process.fresh
            try:
                return process.call(convert_tasks, FILE_SECONDS, [task], form, pseudonyms)
            except CallFailed as error:
                if fresh or error.reason == "timeout":
                    return [failure(task, error.reason, str(error))]
    return []
