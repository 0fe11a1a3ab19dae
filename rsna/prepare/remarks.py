"""The messages of preprocessing.py about a dataset: failures, missing labels, unusual geometry."""

from __future__ import annotations

import logging
import math

import pandas as pd

from common.cli.console import tell
from common.errors import UsageError, WorkError, list_some
from common.preprocessing.failures import count_reasons, failure_table, is_no_slice
from common.preprocessing.tables import REPEATED_UID
from rsna.prepare.job import UNMATCHED, UNMATCHED_ROWS, Job, is_labelled, label_source, shown_ids
from rsna.prepare.series_choice import CHOSEN, describe_choice, without_choice
from rsna_dataset import FAILED_FILE, read_dataset_info

logger = logging.getLogger(__name__)

MARKS = {  # values of the metadata's column ``mended`` that deserve a warning
    "wrap_doubtful": "may hold wrapped values and were left alone",
    REPEATED_UID: "share their SOPInstanceUID with another file; all are kept",
}


def warn_of_other_source(job: Job) -> None:
    """Warn if a dataset made from a phantom is now made from real data, or the other way round."""
    try:
        made_from = read_dataset_info(job.folder)["source"]["kind"]
    except (UsageError, WorkError, KeyError, TypeError):
        return  # there is no finished dataset
    if made_from != job.source.kind:
        logger.warning(
            "%s: was made from %s files and is made anew from %s files", job.folder, made_from, job.source.kind
        )


def check_share(records: pd.DataFrame, job: Job) -> None:
    """Raise WorkError with a count of each reason if more files failed than --pre_max_failed accepts."""
    failed = failure_table(records, job.files, job.refused)
    count, total = failed_share(failed, len(job.files) + len(job.refused))
    if count > job.config.pre_max_failed * total:
        raise WorkError(
            f"{too_many_failed(count, total, job.config.pre_max_failed)}: "
            f"{count_reasons(failed[~is_no_slice(failed)].drop_duplicates('file'))}; the dataset is complete without "
            f"them; see {job.folder / FAILED_FILE}"
        )


def failed_share(failed: pd.DataFrame, files: int) -> tuple[int, int]:
    """Return how many files failed, and out of how many. ``files`` is the number of all files.

    A file counts once, however many of its frames failed. Files that are no CT slices count in neither number. A file
    is one of these if every frame that failed is no CT slice.
    """
    other = is_no_slice(failed)
    failed, other = failed[~other].drop_duplicates("file"), failed[other].drop_duplicates("file")
    return len(failed), files - int((~other["file"].isin(failed["file"])).sum())


def too_many_failed(count: int, files: int, accepted: float) -> str:
    """Return the message for more failures than the share ``accepted``, with a share that would accept them."""
    enough = math.ceil(100 * count / files) / 100
    return (
        f"{count} of {files} files failed ({count / files:.2%}), more than --pre_max_failed={accepted:g} accepts "
        f"(--pre_max_failed={enough:g} would)"
    )


def warn_about(job: Job, images: pd.DataFrame, failed: pd.DataFrame, unmatched: pd.DataFrame) -> None:
    """Report how many files gave no image and why. Warn of labels and images that don't fit each other."""
    other = is_no_slice(failed)
    if other.any():
        tell(f"{int(other.sum())} files are no CT slices and don't count as failures ({count_reasons(failed[other])})")
    archives = int((failed["reason"] == "archive").sum())
    if archives:
        logger.warning("%d archives were not looked into: unpack them beside, and start again", archives)
    if not other.all():
        logger.warning(
            "%d files gave no image (%s); see %s",
            int((~other).sum()), count_reasons(failed[~other]), job.folder / FAILED_FILE,
        )  # fmt: skip
    warn_about_labels(job, images, unmatched)
    missing = pd.Index(shown_ids(job, images, job.asked)).difference(images.index)
    if len(missing):
        logger.warning("%d images of the sample submission have no picture: %s", len(missing), list_some(missing))
    for name, meaning in MARKS.items():
        marked = images.index[[name in mended.split(";") for mended in images["mended"]]]
        if len(marked):
            logger.warning("%d images %s: %s", len(marked), meaning, list_some(marked))
    if images["warnings"].sum():
        logger.warning("pydicom had something to remark on %d files", int((images["warnings"] > 0).sum()))


def say_geometry(table: pd.DataFrame) -> None:
    """Report how many images have an unusual position in their series. ``table`` is the metadata."""
    marks = table["geometry"].astype(str).str.split(";").explode()
    counts = marks.value_counts().drop(["", "single_slice"], errors="ignore")
    if len(counts):
        listing = ", ".join(f"{name} {count}" for name, count in counts.items())
        tell(f"places along the series (the metadata's column geometry): {listing}")


def say_series(series: pd.DataFrame) -> None:
    """Report how many series were chosen. Warn of studies without any. ``series`` is series.csv."""
    if (series["choice"] != CHOSEN).any():
        tell(describe_choice(series))
    without = without_choice(series)
    if without:
        logger.warning("%d studies have no series to use: %s", len(without), list_reasons(without))


def list_reasons(without: dict[str, str]) -> str:
    """Return the studies without a chosen series and why, the first few by name."""
    return list_some(f"{study_id}: {reasons}" for study_id, reasons in without.items())


def warn_about_labels(job: Job, images: pd.DataFrame, unmatched: pd.DataFrame) -> None:
    """Warn of labels without an image and of images without labels."""
    if not is_labelled(job):
        logger.warning("%s: unlabelled: no label columns and no folds; --pre_labels=file.csv adds labels", job.folder)
    elif job.label_file is not None:
        counts = unmatched["table"].value_counts()
        if len(unmatched):
            logger.warning(
                "%d rows of %s fit no image, and %d images have no labels (split test); see %s",
                counts.get("labels", 0), label_source(job.config), counts.get("metadata", 0),
                job.folder / UNMATCHED_ROWS,
            )  # fmt: skip
    else:
        if len(unmatched):
            logger.warning(
                "%d labelled images have no picture and are left out: %s; see %s",
                len(unmatched), list_some(unmatched["id"]), job.folder / UNMATCHED,
            )  # fmt: skip
        unlabelled = images.index[(images["split"] == "train") & ~images.index.isin(job.labels.index)]
        if len(unlabelled):
            logger.warning(
                "%d training images have no labels in %s and are in no fold: %s",
                len(unlabelled), job.source.competition.train_csv, list_some(unlabelled),
            )  # fmt: skip
