"""Lineage in this task: which images a network learnt from, by its dataset, its starting weights and its run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.checkpoint import load_checkpoint
from common.cli.arguments import from_dict
from common.cli.values import HOLDOUT
from common.errors import UsageError, UserError, WorkError
from common.lineage import Images, Lineage, Overlap, Provenance, learnt, name_hashes, picture_hashes, read_lineage
from config import TrainConfig
from rsna_dataset import (
    DATASET_INFO,
    METADATA_FILE,
    dataset_folder,
    fold_hash,
    key_fingerprint,
    read_fold,
    read_identities,
    rows_hash,
    select_rows,
)


def dataset_images(folder: Path) -> tuple[pd.Index, Images]:
    """Return the ids and the hashed identities of all images of a dataset; errors as :func:`read_identities`."""
    states = ((folder / name).stat() for name in (METADATA_FILE, DATASET_INFO) if (folder / name).is_file())
    return _dataset_images(folder, tuple((state.st_mtime_ns, state.st_size) for state in states))


@lru_cache(maxsize=2)  # a command asks several times: for training and validation images, for each fold
def _dataset_images(folder: Path, stamp: tuple[tuple[int, int], ...]) -> tuple[pd.Index, Images]:
    rows = read_identities(folder)
    names = np.stack([name_hashes(rows[column]) for column in ("patient_id", "study_id")], axis=1)
    groups, _ = pd.factorize(rows["group_id"])
    return rows.index, Images(picture_hashes(rows["picture"].tolist()), names, key_fingerprint(folder), groups)


def learnt_from(folder: Path, ids: Iterable[str]) -> Lineage:
    """Return the lineage of a network that is trained on images of a dataset."""
    index, images = dataset_images(folder)
    places = index.get_indexer(pd.Index(ids))
    return learnt(images, places[places >= 0])


def overlap(provenance: Provenance, folder: Path, ids: pd.Index) -> Overlap:
    """Compare images of a dataset with those that their networks learnt from; ``provenance`` has a row for each."""
    index, images = dataset_images(folder)
    return provenance.overlap(images, index.get_indexer(ids))


def checkpoint_lineage(
    checkpoint: Mapping[str, Any], source: str, input_folder: Path, trail: tuple[Path, ...] = ()
) -> Lineage:
    """Return the lineage of a network of this project; ``source`` names its file.

    Checkpoints of earlier versions, and those exported without lineage, hold none. It then follows from the fold that
    the network was trained on, if that is unchanged, and from the weight files that it started from. Otherwise the
    lineage is lost. Raises WorkError if it is damaged.
    """
    if "lineage" in checkpoint:
        return read_lineage(checkpoint["lineage"], source)
    found = training_rows(checkpoint, input_folder)
    try:
        options = from_dict(TrainConfig, checkpoint["config"], source)
    except UserError:
        found = None
    if found is None:
        return Lineage(lost=(source,))
    folder, rows = found
    return learnt_from(folder, rows.index) | starting_lineage(options, input_folder, trail)


def weights_lineage(path: Path, input_folder: Path, trail: tuple[Path, ...] = ()) -> Lineage:
    """Return the lineage of a weight file: unknown for other programs' files, lost if the file is gone."""
    if path.resolve() in trail:
        return Lineage(lost=(str(path),))
    try:
        checkpoint = load_checkpoint(path)
    except UsageError:
        return Lineage(lost=(str(path),))
    except WorkError:
        return Lineage(unknown=(path.name,))
    return checkpoint_lineage(checkpoint, str(path), input_folder, (*trail, path.resolve()))


def starting_lineage(config: TrainConfig, input_folder: Path, trail: tuple[Path, ...] = ()) -> Lineage:
    """Return the lineage of a training's starting weights; it is empty for random weights."""
    if config.net_weight_file is not None:
        return weights_lineage(config.net_weight_file, input_folder, trail)
    return Lineage(unknown=(f"timm's {config.net_model} (--net_pretrained=1)",)) if config.net_pretrained else Lineage()


def training_lineage(
    config: TrainConfig, train_ids: Iterable[str], valid_ids: Iterable[str], resumed: Mapping[str, Any] | None = None
) -> Lineage | None:
    """Return the lineage that a run will have: its training images and the lineage of its starting weights.

    ``resumed`` is the checkpoint that a resumed run continues from. Such a run is never refused; the result is None if
    its lineage is lost. Raises UsageError as :func:`check_starting_weights`.
    """
    own = learnt_from(dataset_folder(config.data_input_folder, config.data_dataset), train_ids)
    if resumed is not None and "lineage" in resumed:
        return own | read_lineage(resumed["lineage"], "the run's checkpoint")
    started = starting_lineage(config, config.data_input_folder)
    if resumed is not None:
        return None if started.lost else own | started
    check_starting_weights(config, valid_ids, started)
    return own | started


def check_starting_weights(config: TrainConfig, valid_ids: Iterable[str], started: Lineage | None = None) -> None:
    """Raise UsageError if ``--net_weight_file``, or a network that it started from, learnt from validation images.

    Also raise it if the lineage of a network of this project is lost. Files of other programs pass: results then say
    that their lineage is unknown. A run with --tr_overfit passes too, since it validates on its training images anyway.
    """
    path = config.net_weight_file
    if path is None or config.tr_overfit or not path.is_file():  # loading the model reports a missing file
        return
    started = starting_lineage(config, config.data_input_folder) if started is None else started
    ids = pd.Index(valid_ids)
    found = overlap(
        Provenance.of([started], len(ids)), dataset_folder(config.data_input_folder, config.data_dataset), ids
    )
    place = f"fold {config.data_fold} of {config.data_dataset}"
    if found.seen.any():
        raise UsageError(
            f"--net_weight_file={path}: it, or a network that it started from, was trained on patients who validate "
            f"{place} ({found.seen.sum()} of {len(ids)} images); use the network of the same fold (for a "
            "cross-validation the folder of another one), or weights of other data"
        )
    if found.lost:
        raise UsageError(
            f"--net_weight_file={path}: {lost_text(found)}, so that it may have seen what validates {place}; bring "
            "that dataset and fold back, or start from other weights"
        )


def lost_text(found: Overlap) -> str:
    """Return the part of a sentence that names the networks whose lineage is lost."""
    return f"{', '.join(found.lost)} doesn't say what it learnt from, and its training's data is gone or changed"


def refuse_seen(found: Overlap, source: str, what: str, advice: str) -> None:
    """Raise UsageError if the networks behind ``source`` learnt from images of ``what``, or their lineage is lost."""
    if found.seen.any():
        raise UsageError(
            f"{source}: it, or a network that it started from, was trained on {found.seen.sum()} of the "
            f"{len(found.seen)} images of {what}, or on others of their patients; {advice}"
        )
    if found.lost:
        raise UsageError(f"{source}: {lost_text(found)}, so that it may have seen {what}; {advice}")


def overlap_lines(found: Overlap, *, left_out: bool = True) -> list[str]:
    """Return the lines that a result must show about its images' lineage; none if everything is known.

    ``left_out``: images of patients that the model was trained on are left out of the result.
    """
    lines = []
    if found.seen.any():
        lines.append(
            f"{found.seen.sum()} of {len(found.seen)} images are of patients that the model was trained on: "
            f"{'left out' if left_out else 'it is judged by them too'} (it, or a network that it started from)"
        )
    if found.unknown:
        lines.append(f"unknown lineage: {', '.join(found.unknown)}; nobody knows whether it learnt from these images")
    if found.lost:
        lines.append(f"lost lineage: {lost_text(found)}")
    if found.unchecked.any() and not (found.unknown or found.lost):
        lines.append(f"{found.unchecked.sum()} images can't be checked: no telling picture, and no comparable name")
    if found.by_picture.any():
        lines.append(
            f"{found.by_picture.sum()} images are checked by their pictures alone: another key made the pseudonyms"
        )
    return lines


def training_rows(checkpoint: Mapping[str, Any], input_folder: Path) -> tuple[Path, pd.DataFrame] | None:
    """Return the dataset's folder and the images that a checkpoint's network was trained on, as ``read_fold``.

    Look for the dataset in the training's input folder, then in ``input_folder``. Return None if it is in neither, or
    if its fold has changed since the training.
    """
    place = checkpoint["config"]
    dataset, fold = str(place.get("data_dataset")), str(place.get("data_fold"))
    for parent in (Path(str(place.get("data_input_folder", input_folder))), input_folder):
        try:
            folder = dataset_folder(parent, dataset)
            rows = read_fold(folder, dataset, fold if fold == HOLDOUT else int(fold))
        except (UserError, ValueError):
            continue
        if checkpoint.get("data_hash") in fold_hashes(rows):
            return folder, rows[rows["sample_type"] == "train"]
    return None


def fold_hashes(rows: pd.DataFrame) -> set[str]:
    """Return the hashes that runs on a fold may have: of all its images, and of those used by --dev_enabled=1."""
    return {fold_hash(rows), rows_hash(*(select_rows(rows, split, True) for split in ("train", "valid")))}
