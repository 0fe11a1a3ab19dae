"""Many files at once, each where it can harm no other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from common.preprocessing.convert import convert_tasks, read_persons
from common.preprocessing.isolation import CallFailed, Processes
from common.preprocessing.pseudonyms import Pseudonyms
from common.preprocessing.records import ImageForm, Record, Task, failure

FILES_PER_CHUNK = 32
FILE_SECONDS = 60.0  # for a file; a chunk of files that takes longer is tried again file by file
PROCESSES = Processes("common.preprocessing.convert", "pydicom.pixels")


def convert_files(tasks: Sequence[Task], form: ImageForm, jobs: int, pseudonyms: Pseudonyms) -> Iterator[list[Record]]:
    """Convert files in ``jobs`` processes; yield records in chunks as they are finished.

    Threads of this process wait for them, or workers elsewhere where a ``joblib.parallel_config`` says so. Raises
    WorkError where an image can't be written. Everything yielded before is on the disk.
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
    except BaseException:  # Ctrl-C, a full disk: no need to wait for what is under way
        PROCESSES.stop()
        raise
    PROCESSES.close(keep=1)


def spread(count: int) -> np.ndarray:
    """Return the places of ``count`` files in an order of which each beginning is spread over all of them."""
    return np.random.default_rng(0).permutation(count)


def find_persons(
    tasks: Sequence[Task], wanted: int, *, by_study: bool = False, most_files: int | None = None
) -> tuple[int, int]:
    """Return how many patients and studies files name, reading no more of them than until there are ``wanted``.

    A file that names no patient counts its study; with ``by_study`` all do. The files are read in an order that is
    spread over all of them, at most ``most_files``, and what can't be read counts nothing. Raises nothing for any file.
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
    """Convert some files in a process beside this one.

    Where it dies or hangs, each file is converted on its own, so that only the guilty one fails.
    """
    try:
        with PROCESSES.borrow() as process:
            return process.call(convert_tasks, FILE_SECONDS, tasks, form, pseudonyms)
    except CallFailed:
        return [record for task in tasks for record in _convert_alone(task, form, pseudonyms)]


def _convert_alone(task: Task, form: ImageForm, pseudonyms: Pseudonyms) -> list[Record]:
    """Convert one file; it fails only if it fails in a process that has read no other."""
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
