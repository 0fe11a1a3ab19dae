"""What networks of this task learnt from: the lineage of a dataset's images, of weights, and of a training run."""

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
    """Return the ids of all images of a dataset, and whose they are in hashes; errors as :func:`read_identities`."""
    states = ((folder / name).stat() for name in (METADATA_FILE, DATASET_INFO) if (folder / name).is_file())
    return _dataset_images(folder, tuple((state.st_mtime_ns, state.st_size) for state in states))


@lru_cache(maxsize=2)  # a command asks several times: of its training and of its validation images, of each fold
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
    """Compare images of a dataset, which ``provenance`` tells row by row who predicted, with what those learnt from."""
    index, images = dataset_images(folder)
    return provenance.overlap(images, index.get_indexer(ids))


def checkpoint_lineage(
    checkpoint: Mapping[str, Any], source: str, input_folder: Path, trail: tuple[Path, ...] = ()
) -> Lineage:
    """Return what a network of this project learnt from; ``source`` names its file.

    A checkpoint of an earlier version, and one that was handed on without it, doesn't say it: it follows from the fold
    that the network was trained on, where this is still here as it was, and from its ancestors' files. Otherwise it is
    lost. Raises WorkError where it is damaged.
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
    """Return what the weights in a file learnt from: unknown of other programs' files, lost of one that is gone."""
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
    """Return what a training's starting weights learnt from; nothing where it starts from random ones."""
    if config.net_weight_file is not None:
        return weights_lineage(config.net_weight_file, input_folder, trail)
    return Lineage(unknown=(f"timm's {config.net_model} (--net_pretrained=1)",)) if config.net_pretrained else Lineage()


def training_lineage(
    config: TrainConfig, train_ids: Iterable[str], valid_ids: Iterable[str], resumed: Mapping[str, Any] | None = None
) -> Lineage | None:
    """Return what a run will have learnt from, its starting weights' ancestors included.

    ``resumed``: the checkpoint that it goes on from, which is never refused; None is returned where nobody can know it
    any more. Raises UsageError as :func:`check_starting_weights`.
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
    """Raise UsageError where ``--net_weight_file``, or a network it started from, learnt from what validates a run.

    Also where a network of this project no longer tells what it learnt from. Files of other programs pass: what is made
    of them says that their lineage is unknown. A run of --tr_overfit validates on what it trains on anyway.
    """
    path = config.net_weight_file
    if path is None or config.tr_overfit or not path.is_file():  # the model's loading names a file that is missing
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
    """Say whose lineage is lost, as the middle of a sentence."""
    return f"{', '.join(found.lost)} doesn't say what it learnt from, and its training's data is gone or changed"


def refuse_seen(found: Overlap, source: str, what: str, advice: str) -> None:
    """Raise UsageError where the networks behind ``source`` learnt from images of ``what``, or nobody can know it."""
    if found.seen.any():
        raise UsageError(
            f"{source}: it, or a network that it started from, was trained on {found.seen.sum()} of the "
            f"{len(found.seen)} images of {what}, or on others of their patients; {advice}"
        )
    if found.lost:
        raise UsageError(f"{source}: {lost_text(found)}, so that it may have seen {what}; {advice}")


def overlap_lines(found: Overlap, *, left_out: bool = True) -> list[str]:
    """Return what a result that depends on these images has to say of them, a line each; none where all is known.

    ``left_out``: what was learnt from judges nothing.
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

    The dataset is looked for where the training had it and in ``input_folder``; None where it is not there, or its
    fold is another one than that of the training.
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
    """Return the hashes that runs on a fold may have: of all its images, and of those of a rehearsal."""
    return {fold_hash(rows), rows_hash(*(select_rows(rows, split, True) for split in ("train", "valid")))}
