"""Check a finished dataset: read every image again (--pre_verify) or write its audit (--pre_audit).

Both need only the dataset, not its source, so they also work on one that was made earlier or elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from common.cli.arguments import to_dict
from common.cli.console import progress, tell
from common.cli.values import parse_windows
from common.errors import UsageError, UserError, WorkError, list_some
from common.files import write_csv, write_text
from common.machine import usable_cores
from common.preprocessing.audit import AuditedDataset, audit_page
from common.preprocessing.records import ImageForm
from common.preprocessing.verify import FAULTS, verify_images
from rsna.prepare.options import PreprocessingConfig
from rsna.prepare.series_choice import SERIES_FILE, read_series
from rsna_dataset import (
    AUDIT_FILE,
    FAILED_FILE,
    LABELS,
    PUBLISHED,
    content_hash,
    dataset_folder,
    has_holdout,
    is_labelled,
    read_dataset_info,
    read_fold,
    read_holdout,
    read_metadata,
)

FAULTS_FILE = "verify_failed.csv"


def leaves_dataset_alone(config: PreprocessingConfig) -> bool:
    """Whether the command only looks at the existing dataset.

    --pre_verify always does. --pre_audit does if the dataset is finished and the command gives no source and no option
    that differs from the dataset's. So the audit of an old dataset needs none of the flags that it was made with.
    """
    if config.pre_verify:
        return True
    asked = (config.pre_source, config.pre_labels, config.pre_masks, config.pseudonym_key)
    if not config.pre_audit or any(value is not None for value in asked):
        return False
    try:
        made_with = read_dataset_info(dataset_folder(config.data_input_folder, config.data_dataset))["options"]
    except UserError:
        return False
    return not asked_anew(config, made_with)


def asked_anew(config: PreprocessingConfig, made_with: dict[str, Any]) -> list[str]:
    """Return the names of the options that the command gives and whose value in the dataset differs."""
    asked, usual = to_dict(config), to_dict(PreprocessingConfig())
    return [name for name, value in made_with.items() if asked.get(name) not in (value, usual.get(name))]


def find_dataset(config: PreprocessingConfig) -> Path:
    """Return the folder of a finished dataset.

    Raises the errors of :func:`rsna_dataset.read_dataset_info`, and UsageError if --pre_verify comes with options that
    the dataset was not made with.
    """
    folder = dataset_folder(config.data_input_folder, config.data_dataset)
    made_with = read_dataset_info(folder)["options"]
    for name in asked_anew(config, made_with):
        raise UsageError(f"--{name}: {folder} was made with {made_with[name]}, and --pre_verify=1 converts nothing")
    if not config.pre_verify:
        tell(f"{folder}: is finished and left as it is; without --pre_audit it is brought up to date")
    return folder


def stored_form(info: dict[str, Any]) -> ImageForm:
    """Return the form of a dataset's images from its dataset.json."""
    options = info["options"]
    windows = parse_windows(info["windows"]) if info["windows"] else ()
    return ImageForm(
        int(options["pre_size"]), windows, info["dtype"], info["format"], options.get("pre_crop", "none") == "head"
    )


def verify_dataset(folder: Path, dataset: str, n_jobs: int) -> None:
    """Read all images and tables again. Raise WorkError, with counts, if anything differs from what was written.

    List the faulty images in verify_failed.csv.
    """
    info = read_dataset_info(folder)
    metadata = read_metadata(folder, described=True)
    for _ in read_folds(folder, dataset, info):
        pass
    form = stored_form(info)
    parts = []
    with progress(total=len(metadata), desc="verifying", unit="image") as bar:
        for part in verify_images(folder / "images", metadata, form, n_jobs or usable_cores()):
            parts.append(part)
            bar.update(len(part))
    found = pd.concat(parts, ignore_index=True).sort_values("id", ignore_index=True)
    faults = found[found["fault"] != ""]
    known = {f"{image_id}{form.suffix}" for image_id in metadata.index}
    unknown = sorted(path.name for path in (folder / "images").iterdir() if path.name not in known)
    if unknown:
        tell(f"{folder}: {len(unknown)} files in images/ belong to no image: {list_some(unknown)}")
    if len(faults):
        write_csv(folder / FAULTS_FILE, faults)
        counts = "; ".join(
            f"{FAULTS[fault]} {len(part)} ({list_some(part['id'])})" for fault, part in faults.groupby("fault")
        )
        raise WorkError(
            f"{folder}: {len(faults)} of {len(metadata)} images are not as they were written: {counts}; see "
            f"{folder / FAULTS_FILE}; remove these files and run python preprocessing.py again"
        )
    (folder / FAULTS_FILE).unlink(missing_ok=True)
    if content_hash(folder, info["options"]) != info["hash"]:
        raise WorkError(f"{folder}: all images are whole, but metadata.csv or a fold's CSV is not as it was written")
    tell(f"{folder}: {len(metadata)} images are there, with the right shape, type and hash")


def read_folds(folder: Path, dataset: str, info: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """Return the rows of each fold and of the hold-out by name, for example ``fold 0`` and ``held out``."""
    if not is_labelled(info):
        return {}
    count = int(info["options"]["pre_folds"])
    folds = {f"fold {number}": read_fold(folder, dataset, number) for number in range(count)}
    if has_holdout(info):
        folds["held out"] = read_holdout(folder, dataset)
    return folds


def published_text(facts: dict[str, Any]) -> str:
    """Say what dataset.json knows of a published dataset: name, licence, overlap, agreement of the readers."""
    if not facts:
        return ""
    said = f" It is the published dataset {facts['name']}; licence: {facts['licence']}; overlap: {facts['overlap']}."
    kappas = ", ".join(f"{label} {kappa:.2f}" for label, kappa in facts.get("agreement", {}).items())
    return said + f" The readers' agreement by study (Fleiss' kappa): {kappas}." * bool(kappas)


def audit_dataset(folder: Path, dataset: str) -> Path:
    """Write the audit of a finished dataset into its folder. Return the file's path."""
    info = read_dataset_info(folder)
    form = stored_form(info)
    failed = pd.read_csv(folder / FAILED_FILE, dtype=str, keep_default_na=False)
    kind = info["source"]["kind"]
    unit = "Hounsfield units" if form.name == "hu" else "windows"
    description = (
        f"Made from {kind} files as {form.dtype} {unit} ({form.file_format})"
        f"{f', {form.size} pixels' if form.size else ''}{', cropped to the head' if form.crop else ''}. "
        "Ids are pseudonyms; no picture or text here names a patient."
        f"{published_text(info.get('published', {}))}"
    )
    data = AuditedDataset(
        name=dataset,
        description=description,
        metadata=read_metadata(folder, described=True),
        failed=failed,
        folds=read_folds(folder, dataset, info),
        labels=LABELS if is_labelled(info) else (),
        published=PUBLISHED,
        images=folder / "images",
        suffix=form.suffix,
        is_hu=form.name == "hu",
        by_study=info["options"].get("pre_group") == "study",
        series=read_series(folder / SERIES_FILE),
    )
    path = folder / AUDIT_FILE
    write_text(path, audit_page(data))
    tell(f"audit: {path}")
    return path
