"""The folder of an experiment that is made from others: an ensemble or a second level."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.experiments.folder import CONFIG, create_experiment, lock_experiment, plain
from common.files import remove_temporaries
from common.reports.record import FINISHED, RUNNING, read_record, write_status
from rsna.training.outcome import Conclude


@contextmanager
def put_together(
    output_dir: Path, experiment_id: str | None, options: Mapping[str, Any], typed: Sequence[str], conclude: Conclude
) -> Iterator[Path]:
    """Create the folder of an experiment, yield it under its lock, then conclude the experiment.

    If an experiment of this name and these options was killed before it was finished, its folder is written again.
    """
    folder = None if experiment_id is None else output_dir / experiment_id
    if folder is None or not is_left(folder, options):
        folder = create_experiment(output_dir, experiment_id, options, typed).folder
    with lock_experiment(folder):
        remove_temporaries(folder)
        write_status(folder, RUNNING)
        yield folder
        conclude(folder, FINISHED)


def is_left(folder: Path, options: Mapping[str, Any]) -> bool:
    """Whether ``folder`` holds an unfinished experiment with these options that no process writes any more."""
    if not (folder / CONFIG).is_file():
        return False
    record = read_record(folder)
    return record.status not in (FINISHED, RUNNING) and record.config == plain(options)
