"""Provenance: which networks made predictions or features, row by row, and what these networks learnt from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.checkpoint import BEST, load_checkpoint
from common.cli.arguments import from_dict
from common.cli.console import tell
from common.errors import UserError, WorkError
from common.lineage import Lineage, Provenance, read_provenance
from config import TrainConfig
from rsna.forms import read_predictions
from rsna.kinds.features import (
    HOW,
    LINEAGE_FILE,
    NO_FOLD,
    OUT_OF_FOLD,
    ROWS_FILE,
    FeatureSet,
    feature_folder,
    features_hash,
    open_features,
)
from rsna.kinds.kind import kind_of
from rsna.training.lineage import overlap, overlap_lines, refuse_seen, weights_lineage
from rsna.training.outcome import CROSS_VALIDATION_FILE, OUT_OF_FOLD_FILE, VALID_FILE
from rsna_dataset import dataset_folder


def lineage_file(path: Path) -> Path:
    """Return the file for the lineage of the predictions in the CSV ``path``."""
    return path.with_name(f"{path.name.removesuffix('.csv')}.lineage.npz")


def write_provenance(path: Path, provenance: Provenance) -> None:
    """Write the provenance of predictions beside their CSV ``path``, which must exist already."""
    provenance.write(lineage_file(path), path.read_bytes())


def tell_lines(lines: Iterable[str]) -> None:
    """Tell the user each of these lines."""
    for line in lines:
        tell(line)


def features_used(config: TrainConfig, ids: pd.Index, kind: str = OUT_OF_FOLD) -> Provenance:
    """Return which networks made the features (--seq_features) of the images ``ids``."""
    features = open_features(config, kind)
    places = features.rows.index.get_indexer(ids)  # loading the features reports images without any
    return feature_provenance(feature_folder(config, kind), features, config.data_input_folder).rows(places)


def check_features_lineage(config: TrainConfig, ids: pd.Index) -> None:
    """Raise UsageError if a network that made features of the images ``ids`` learnt from these images."""
    folder = dataset_folder(config.data_input_folder, config.data_dataset)
    found = overlap(features_used(config, ids), folder, ids)
    what = f"{folder.name} that its features are of"
    refuse_seen(found, f"--seq_features={config.seq_features}", what, "cross-validate anew, and make features of that")
    tell_lines(overlap_lines(found))


def feature_provenance(folder: Path, features: FeatureSet, input_folder: Path) -> Provenance:
    """Return which networks made the features in ``folder``, row by row; for earlier versions by their weight files."""
    path = folder / LINEAGE_FILE
    if path.is_file():
        found = read_provenance(path, (folder / ROWS_FILE).read_bytes())
        if found is None:
            raise WorkError(f"{path}: belongs to other features than those that lie beside it; {HOW} anew")
        return found
    facts = features.document.get("folds", {})
    weights = {int(fold): known["weights"] for fold, known in facts.items() if known.get("weights")}
    if len(weights) < len(facts):  # written by another program
        return Provenance.of([Lineage(unknown=(f"features of {features.document['dataset']}",))], len(features.rows))
    files = {fold: folder.parent.parent / name for fold, name in weights.items()}
    return fold_provenance(files, features.rows["fold"].to_numpy(), input_folder)


def fold_provenance(
    weights: Mapping[int, Path], folds: np.ndarray, input_folder: Path, ids: pd.Index | None = None
) -> Provenance:
    """Return the provenance of images, each predicted by the network of its fold; ``folds`` (N,) are their folds.

    Images of NO_FOLD are predicted by all networks. With the images' ``ids``, the provenance of a sequence model also
    has the networks that made its features.
    """
    numbers = np.array(list(weights), dtype=np.int64)
    used = (folds[:, None] == numbers[None]) | (folds[:, None] == NO_FOLD)
    found = Provenance(tuple(weights_lineage(path, input_folder) for path in weights.values()), used)
    if ids is None:
        return found
    behind: dict[tuple[str, str | None], tuple[Path, TrainConfig, np.ndarray]] = {}
    for path, predicted in zip(weights.values(), used.T, strict=True):
        known = _sequence_model(path, input_folder)
        if known is not None:  # models of one cross-validation usually share their features
            config, made_of = known
            *_, before = behind.get((config.seq_features, made_of), (path, config, np.zeros(len(ids), dtype=bool)))
            behind[config.seq_features, made_of] = path, config, before | predicted
    for (_, made_of), (path, config, predicted) in behind.items():
        features = _features_behind(path, config, made_of, ids)
        found = found.beside(Provenance(features.lineages, features.used & predicted[:, None]))
    return found


def _sequence_model(path: Path, input_folder: Path) -> tuple[TrainConfig, str | None] | None:
    """Return the options of a sequence model and the hash of its features; None for any other file."""
    try:
        checkpoint = load_checkpoint(path)
        config = from_dict(TrainConfig, checkpoint["config"], str(path))
    except UserError:
        return None
    if not kind_of(config).reads_features:
        return None
    return replace(config, data_input_folder=input_folder), checkpoint["transforms"].get("features", {}).get("sha256")


def _features_behind(path: Path, config: TrainConfig, made_of: str | None, ids: pd.Index) -> Provenance:
    """Return which networks made the features of the sequence model in ``path``; lost if these features are gone."""
    lost = Provenance.of([Lineage(lost=(f"{path} (by its features, {config.seq_features})",))], len(ids))
    try:
        same = made_of == features_hash(feature_folder(config, OUT_OF_FOLD))
        has_all = ids.isin(open_features(config, OUT_OF_FOLD).rows.index).all()
        return features_used(config, ids) if same and has_all else lost
    except (UserError, OSError):
        return lost


def written_provenance(path: Path, input_folder: Path) -> tuple[pd.Index, Provenance]:
    """Return the ids of the predictions in a CSV, and which networks made them, row by row.

    The file beside the CSV says so, or else the weights in its experiment's folder. The provenance of other files is
    unknown, and so is that of a CSV that was changed after it was written.
    """
    ids, folder = read_predictions(path).index, path.parent
    beside = lineage_file(path)
    if beside.is_file():
        found = read_provenance(beside, path.read_bytes())
        if found is None or len(found.used) != len(ids):
            changed = Lineage(unknown=(f"{folder.name}/{path.name}, which changed since it was written",))
            return ids, Provenance.of([changed], len(ids))
        return ids, found
    if path.name == OUT_OF_FOLD_FILE and (folder / CROSS_VALIDATION_FILE).is_file():
        return ids, _of_folds(folder, ids, input_folder)
    if path.name == VALID_FILE and (folder / BEST).is_file():
        return ids, fold_provenance({0: folder / BEST}, np.zeros(len(ids)), input_folder, ids)
    return ids, Provenance.of([Lineage(unknown=(path.name,))], len(ids))


def _of_folds(folder: Path, ids: pd.Index, input_folder: Path) -> Provenance:
    """Return the provenance of out-of-fold predictions of an earlier version, by their folds."""
    try:
        facts: list[dict[str, Any]] = json.loads((folder / CROSS_VALIDATION_FILE).read_text("utf-8"))["folds"]
        weights = {int(fact["fold"]): folder / str(fact["weights"]) for fact in facts}
        folds = pd.Series(NO_FOLD, index=ids)
        for fact in facts:
            folds[read_predictions(folder / str(fact["experiment"]) / VALID_FILE).index] = int(fact["fold"])
    except (OSError, ValueError, KeyError, TypeError):
        return Provenance.of([Lineage(lost=(str(folder),))], len(ids))
    return fold_provenance(weights, folds.to_numpy(), input_folder, ids)
