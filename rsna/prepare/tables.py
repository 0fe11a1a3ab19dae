"""Write the tables of a dataset: metadata, folds, failures, map of ids, dataset.json."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from common.cli.console import tell
from common.errors import WorkError
from common.files import atomic_path, write_csv, write_json
from common.preprocessing.crop_sheet import choose_images, write_crop_sheet
from common.preprocessing.failures import failure_table, is_no_slice, shown
from common.preprocessing.folds import assign_folds, check_folds, check_parts, fold_tables
from common.preprocessing.groups import describe_links, group_images, large_group
from common.preprocessing.id_map import file_rows, need_rows
from common.preprocessing.labels import LEVEL, join_labels
from common.preprocessing.pseudonyms import IMAGE
from common.preprocessing.series import describe_singles
from common.preprocessing.tables import mark_repeated, metadata_table, remove_leftovers, unique_images, unmatched_labels
from rsna.forms import read_submission_texts
from rsna.prepare.adapters.table import ADAPTERS
from rsna.prepare.job import Job, dataset_options, is_labelled, label_report, shown_ids, tasks_of
from rsna.prepare.remarks import say_geometry, say_series, warn_about
from rsna.prepare.series_choice import CHOSEN, NOT_CHOSEN, SERIES_FILE, series_of, series_table
from rsna_dataset import (
    DATASET_INFO,
    FAILED_FILE,
    FORMAT_VERSION,
    IDENTITY_COLUMNS,
    LABELS,
    METADATA_FILE,
    SAMPLE_FILE,
    STUDY_LABELS,
    content_hash,
    identities_of,
    label_columns,
)

logger = logging.getLogger(__name__)

CROP_SHEET = "crop_sheet.png"


def write_tables(job: Job, records: pd.DataFrame, state: str) -> None:
    """Write everything but the images, dataset.json last. Raise WorkError if no file gave an image (with labels)."""
    folder = job.folder
    records = records[records["source_id"].isin(job.files.index)]
    images = mark_repeated(unique_images(records).sort_index())
    failed = failure_table(records, job.files, job.refused)
    write_csv(folder / FAILED_FILE, shown(failed))
    write_id_map(job, images, failed)
    job, images, unmatched = label_images(job, images, failed)
    images = images.assign(group_id=make_groups(job, images))
    table = metadata_table(images, job.labels, file_order(job.files, images))
    series = series_table(table.set_index("id"), job.config.series_mode(competition=job.source.competition is not None))
    job, images, dropped = leave_out(job, images, table, series)
    if dropped:
        table = metadata_table(images, job.labels, file_order(job.files, images))
    if job.label_file is not None:
        unlabelled = np.flatnonzero((table["split"] == "test").to_numpy()) + 2
        unmatched = pd.concat(
            [unmatched.assign(table="labels"), pd.DataFrame({"row": unlabelled, "table": "metadata"})]
        )[["table", "row"]]
    write_csv(folder / label_report(job), unmatched)
    write_csv(folder / SERIES_FILE, series, index=True)
    warn_about(job, images, failed, unmatched)
    say_series(series)
    say_geometry(table)
    if singles := describe_singles(table):
        logger.warning("%s", singles)
    train = images[(images["split"] == "train") & images.index.isin(job.labels.index)]
    if images.empty or (train.empty and is_labelled(job)):
        raise WorkError(
            f"{folder}: none of the {len(job.files)} files gave an image{' with labels' * is_labelled(job)}; "
            f"{folder / FAILED_FILE} and {folder / label_report(job)} say why"
        )
    fold_paths = job.fold_paths if len(train) else []
    fold = make_folds(job, train) if len(train) else np.zeros(0, dtype=np.int64)
    remove_leftovers(folder, images.index + job.form.suffix, fold_paths)
    write_csv(folder / METADATA_FILE, table)
    del table  # 300 MB for a million images
    # Without labels there are no rows.
    rows = train.join(job.labels).reindex(columns=[*label_columns(job.labels), *IDENTITY_COLUMNS])
    for path, part in zip(fold_paths, fold_tables(rows, fold, job.config.pre_folds), strict=False):
        write_csv(path, part.rename_axis("id"), index=True)
    copy_sample(job, images)
    if job.form.crop:
        chosen = choose_images(images)
        files = job.files.loc[images.loc[chosen, "source_id"].unique()]
        write_crop_sheet(folder / CROP_SHEET, tasks_of(job, files), chosen, job.pseudonyms)
    write_json(folder / DATASET_INFO, dataset_info(job, images, failed, state))
    counts = images["split"].value_counts()
    other = int(is_no_slice(failed).sum())
    said = [f"{counts.get('train', 0)} train and {counts.get('test', 0)} test images"]
    said += [f"{dropped} of series that were not chosen"] * bool(dropped)
    said += [f"{len(failed) - other} failed files", f"{other} that are no slices"]
    if len(train):
        said.append(label_shares(rows))
    tell("; ".join(said))


def label_shares(rows: pd.DataFrame, digits: int = 2) -> str:
    """Return in words the share of positives among the rows that have each label, in per cent with ``digits``."""
    shares = rows[list(LABELS)].mean()
    texts = {name: "not labelled" if np.isnan(share) else f"{share:.{digits}%}" for name, share in shares.items()}
    return ", ".join(f"{name} {text}" for name, text in texts.items())


def write_id_map(job: Job, images: pd.DataFrame, failed: pd.DataFrame) -> None:
    """Finish the map of ids: one row for each id made here, of an image or of a file without one."""
    needed = need_rows(images)
    rows = job.id_map.read()
    rows = rows[rows.index.isin(needed.index[needed])].reset_index()
    rows = pd.concat([rows, file_rows(failed)], ignore_index=True)
    job.id_map.finish(rows)


def file_order(files: pd.DataFrame, images: pd.DataFrame) -> np.ndarray:
    """Return the keys (N,) that order slices at the same position: their own ids, or their files' paths."""
    files = files.loc[images["source_id"], ["own_id", "path"]]
    return np.array(
        [image_id if own else f"{path}\n{frame:09d}"
         for image_id, own, path, frame in zip(images.index, files["own_id"], files["path"], images["frame"],
                                               strict=True)],
        dtype=object,
    )  # fmt: skip


def label_images(job: Job, images: pd.DataFrame, failed: pd.DataFrame) -> tuple[Job, pd.DataFrame, pd.DataFrame]:
    """Return the job with labels by image id, the images with their split, and the labels that fit no image.

    The competition's folders give the split. In any other source, images with labels are the training images.
    """
    if job.label_file is not None:
        found = job.published
        named = {} if found is None else {"named": found.key_of, "of_study": found.of_study}
        joined = join_labels(job.label_file, images, job.files["path"], job.pseudonyms, **named)
        labels, unmatched = joined.labels, joined.unmatched
    else:
        file_id = job.files["file_id"].reindex(images["source_id"]).to_numpy()
        labelled = pd.Index(file_id).isin(job.labels.index)  # np.isin would compare each pair of objects
        labels = job.labels.loc[file_id[labelled]].set_axis(images.index[labelled])
        without = job.labels.index.difference(pd.Index(file_id))
        unmatched = unmatched_labels(without, failed.assign(id=failed["file_id"]))
        unmatched["id"] = shown_ids(job, images, unmatched["id"])
    if job.source.competition is None:
        images = images.assign(split=np.where(images.index.isin(labels.index), "train", "test"))
    return replace(job, labels=labels), images, unmatched


def leave_out(
    job: Job, images: pd.DataFrame, table: pd.DataFrame, series: pd.DataFrame
) -> tuple[Job, pd.DataFrame, int]:
    """Take the series that were not chosen out of training and test. Return the job, the images and their number.

    Their images stay in the dataset, with the split ``not_chosen`` and without the label of their study. An image with
    a label of its own stays in training.
    """
    named = series_of(table.set_index("id"))
    left = named.index[~named.isin(series.index[series["choice"] == CHOSEN])]
    own = job.labels.index if LEVEL not in job.labels else job.labels.index[job.labels[LEVEL] != "study"]
    left = left.difference(own)
    if left.empty:
        return job, images, 0
    split = images["split"].astype(object).mask(images.index.isin(left), NOT_CHOSEN)
    return replace(job, labels=job.labels.drop(index=left, errors="ignore")), images.assign(split=split), len(left)


def dataset_info(job: Job, images: pd.DataFrame, failed: pd.DataFrame, state: str) -> dict[str, Any]:
    """Return the content of dataset.json. ``hash`` covers all that training reads, ``source.hash`` the source."""
    options = dataset_options(job.config)
    competition = job.source.competition
    info = {
        "format_version": FORMAT_VERSION,
        "source": {"kind": job.source.kind, "stage": competition.stage if competition else None, "hash": state},
        "options": options,
        "image_form": job.form.name,
        "windows": options["pre_window"],
        "dtype": job.form.dtype,
        "format": job.form.file_format,
        "images": {split: int((images["split"] == split).sum()) for split in ("train", "test")},
        "labelled": int(images.index.isin(job.labels.index).sum()),
        "failed": len(failed),
        "hash": content_hash(job.folder, options),
    }
    if job.published is not None:
        adapter = ADAPTERS[job.config.pre_dataset]
        known = {name: value for name, value in job.published.agreement.items() if np.isfinite(value)}
        info["published"] = {"name": adapter.name, "licence": adapter.licence, "overlap": adapter.overlap}
        info["published"] |= {"agreement": known} if known else {}
    if missing := int(job.labels.reindex(columns=list(LABELS)).isna().to_numpy().sum()):
        info["missing_labels"] = missing
    # If all names are the competition's own, there is no key to identify.
    return info | ({"pseudonyms": job.pseudonyms.fingerprint} if need_rows(images).any() else {})


def make_groups(job: Job, images: pd.DataFrame) -> np.ndarray:
    """Return the group of each image (N,). Report what joins patients; warn of a group too large for one."""
    identities = identities_of(images.rename(columns={"digest": "picture_hash"}), job.config.pre_group)
    groups = group_images(identities)
    lines = describe_links(identities)
    if "study" in lines:
        logger.warning("%s; each with all its patients stays together", lines["study"])
    if "picture" in lines:
        tell(lines["picture"])
    large = large_group(groups, identities)
    if large is not None:
        name, studies, share = large
        logger.warning(
            "%.0f %% of the images, of %d studies, are one group (%s): if that PatientID stands for many patients, "
            "--pre_group=study takes each study for a patient",
            100 * share, studies, name,
        )  # fmt: skip
    return groups


def make_folds(job: Job, train: pd.DataFrame) -> np.ndarray:
    """Return the fold of each training image (N,). ``train`` is sorted by its index ``image_id`` and has group_id."""
    groups = train["group_id"].to_numpy(dtype=object)
    labels = job.labels.loc[train.index, list(LABELS)]
    if STUDY_LABELS[0] in job.labels:  # what a slice lacks is balanced by its study's label
        labels = labels.fillna(job.labels.loc[train.index, list(STUDY_LABELS)].set_axis(list(LABELS), axis=1))
    labels = labels.fillna(0).to_numpy()
    studies = group_images(identities_of(train, "study"))
    check_parts(job.config.pre_folds, job.config.pre_holdout, len(set(groups)), len(set(studies)))
    fold = assign_folds(groups, labels, job.config.pre_folds, job.config.seed, job.config.pre_holdout)
    check_folds(fold, groups, identities_of(train.rename(columns={"digest": "picture_hash"}), job.config.pre_group))
    return fold


def copy_sample(job: Job, images: pd.DataFrame) -> None:
    """Copy the sample submission to the dataset. Names that are not the competition's become pseudonyms."""
    target = job.folder / SAMPLE_FILE
    competition = job.source.competition
    if competition is None or competition.sample_submission is None:
        target.unlink(missing_ok=True)
        return
    if all(job.pseudonyms.is_public(IMAGE, name) for name in job.asked):
        with atomic_path(target) as temporary:
            temporary.write_bytes(competition.sample_submission.read_bytes())
        return
    ids = dict(zip(job.asked, shown_ids(job, images, job.asked), strict=True))
    rows = read_submission_texts(competition.sample_submission)
    parts = [name.rpartition("_") for name in rows["ID"]]
    write_csv(target, rows.assign(ID=[f"{ids[part[0]]}_{part[2]}" for part in parts]))
