"""``predict.py --features=1``: write the features of all images by a cross-validation's networks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.cli.arguments import from_dict
from common.cli.values import HOLDOUT
from common.errors import UsageError, WorkError
from common.experiments.resume import read_options
from common.files import write_json
from common.lineage import Lineage
from config import TrainConfig
from rsna.kinds.features import FEWEST_FOLDS, FOLDERS, OUT_OF_FOLD, TEST, Block, read_document, write_features
from rsna.kinds.kind import TrainedNetwork, kind_of
from rsna.prediction.alignment import (
    ALIGNMENT_FILE,
    REFIT,
    REFIT_FILE,
    REFIT_INFO,
    Alignment,
    first_width,
    fit_alignment,
    read_alignments,
    write_alignments,
)
from rsna.prediction.embeddings import Key, embeddings, mean_blocks, table
from rsna.prediction.fold_models import check_made_by, load_fold_models, load_refit, weight_file
from rsna.prediction.options import FeaturesConfig
from rsna.training.folds import Fold, read_folds
from rsna.training.lineage import weights_lineage
from rsna.training.outcome import finished_folds, is_cross_validation
from rsna_dataset import dataset_folder, known_groups, new_images, read_dataset_info, read_fold, rows_hash, select_rows

ANCHORS = 8192  # largest number of images to fit a map to


def write_all_features(config: FeaturesConfig) -> Path:
    """Write features/train (out of fold), and features/test for images in no fold; return features/.

    With --feature_refit, write only features/test, by that network. Raises WorkError if a fold's images or labels have
    changed since its model was trained.
    """
    if config.feature_refit is not None:
        return write_refit_features(config)
    parent = config.net_weight_file
    if not is_cross_validation(parent):
        finished_folds(parent)  # its error says so
    folder, folds = features_data(config)
    if len(folds) < FEWEST_FOLDS:  # checked first: the folds may not be trained yet
        raise UsageError(f"--features=1 needs {FEWEST_FOLDS} folds or more: {parent} has {len(folds)}")
    trained = finished_folds(parent)
    check_trained_on(trained, folds, parent)
    models = load_fold_models(config, parent)
    alignments = fit_alignments(models, folds)
    document = features_document(folder, trained, folds, alignments, models)
    document["alignment_sha256"] = write_alignments(parent / "features" / ALIGNMENT_FILE, alignments)
    width = first_width(alignments)

    def held_out() -> Iterator[Block]:
        for number, fold in folds.items():
            for ids, features, logits in embeddings(models[number], fold.valid, f"fold {number}"):
                yield Block(ids, alignments[number](features), logits, number)

    count = sum(len(fold.valid) for fold in folds.values())
    place = models[next(iter(folds))].config.data_input_folder
    lineages = {number: weights_lineage(parent / trained[number]["weights"], place) for number in folds}
    write_features(parent / FOLDERS[OUT_OF_FOLD], held_out(), count, width, {"kind": OUT_OF_FOLD, **document}, lineages)
    write_test_features(parent, folder, models, alignments, document, lineages)
    return parent / "features"


def features_data(config: FeaturesConfig) -> tuple[Path, dict[int, Fold]]:
    """Return the dataset's folder and the folds of the cross-validation ``--net_weight_file``."""
    parent = config.net_weight_file
    options = from_dict(TrainConfig, read_options(parent), f"{parent} (its configuration)")
    options = replace(options, data_input_folder=config.data_input_folder or options.data_input_folder)
    kind = kind_of(options)
    if not kind.gives_features:
        raise UsageError(f"--features=1: {parent} is of {kind.noun}; features are what the heads of slice networks see")
    folds = {fold.number: fold for fold in read_folds(options)}
    return dataset_folder(options.data_input_folder, options.data_dataset), folds


def write_test_features(
    parent: Path,
    dataset: Path,
    models: Mapping[Key, TrainedNetwork],
    alignments: Mapping[Key, Alignment],
    document: Mapping[str, Any],
    lineages: Mapping[int, Lineage],
) -> None:
    """Write features/test, the mean of ``models``, if the dataset has images in no fold."""
    new = new_images(dataset)
    if len(new):
        blocks = mean_blocks(models, alignments, new)
        width = first_width(alignments)
        write_features(parent / FOLDERS[TEST], blocks, len(new), width, {"kind": TEST, **document}, lineages)


def write_refit_features(config: FeaturesConfig) -> Path:
    """Write features/test and the map of one network that was trained on all folds; return features/.

    The map into the first fold's space is fitted to images that both this network and that fold's were trained on.
    Raises UsageError if there is no features/train, or if the network was trained on other images than those of all
    folds.
    """
    parent = config.net_weight_file
    document = read_document(parent / FOLDERS[OUT_OF_FOLD])
    read_alignments(parent)
    dataset, folds = features_data(config)
    reference = next(iter(folds))
    chosen = {int(fold): facts["chosen"] for fold, facts in document["folds"].items()}
    models = load_fold_models(config, parent, chosen)
    check_made_by(document, models, parent)
    refit = load_refit(config)
    check_trained_on(finished_folds(parent), folds, parent)
    check_refit(config, refit, dataset, folds)
    anchors = common_images(folds, reference)
    target = table(embeddings(models[reference], anchors, "common images, first fold"))
    own = table(embeddings(refit, anchors, "common images, refit"))
    alignment = fit_alignment(own, target, known_groups(anchors))
    facts = {
        "chosen": refit.weights,
        "iteration": refit.iteration,
        "alignment_r2": alignment.r2,
        "space": document["alignment_sha256"],
        "alignment_sha256": write_alignments(parent / "features" / REFIT_FILE, {reference: alignment}),
    }
    write_json(parent / "features" / REFIT_INFO, facts)
    common = {name: document[name] for name in ("dataset", "dataset_hash", "folds", "space", "alignment_sha256")}
    lineages = {0: weights_lineage(weight_file(config.feature_refit), refit.config.data_input_folder)}
    write_test_features(parent, dataset, {REFIT: refit}, {REFIT: alignment}, common | {"refit": facts}, lineages)
    return parent / "features"


def check_refit(config: FeaturesConfig, refit: TrainedNetwork, dataset: Path, folds: Mapping[int, Fold]) -> None:
    """Raise UsageError if the network was trained on other images or labels than ``folds`` have now."""
    rows = read_fold(dataset, dataset.name, HOLDOUT)
    train, valid = (select_rows(rows, kind, refit.config.dev_enabled) for kind in ("train", "valid"))
    images = pd.concat([fold.valid for fold in folds.values()]).index
    if refit.data_hash != rows_hash(train, valid) or not images.isin(train.index).all():
        raise UsageError(
            f"--feature_refit={config.feature_refit}: was trained on other images or labels than {dataset} has in its "
            "folds"
        )


def fit_alignments(models: Mapping[int, TrainedNetwork], folds: Mapping[int, Fold]) -> dict[int, Alignment]:
    """Fit each fold's map into the first fold's space, to images that both networks were trained on."""
    reference, *others = folds
    anchors = common_images(folds, reference)
    target = table(embeddings(models[reference], anchors, "common images, first fold"))
    width = target.shape[1]
    found = {reference: Alignment(np.eye(width, dtype=np.float32), np.zeros(width, dtype=np.float32), 1.0)}
    for number in others:
        common = anchors.drop(index=anchors.index.intersection(folds[number].valid.index))
        own = table(embeddings(models[number], common, f"common images, fold {number}"))
        place = anchors.index.get_indexer(common.index)
        found[number] = fit_alignment(own, target[place], known_groups(common))
    return found


def common_images(folds: Mapping[int, Fold], reference: int) -> pd.DataFrame:
    """Return images, evenly spread over the folds, that the model of the fold ``reference`` was trained on."""
    labelled = pd.concat([fold.valid for fold in folds.values()])
    spread = np.linspace(0, len(labelled) - 1, min(ANCHORS, len(labelled))).round().astype(int)
    anchors = labelled.iloc[spread]
    return anchors.drop(index=anchors.index.intersection(folds[reference].valid.index))


def features_document(
    dataset: Path,
    trained: Mapping[int, Mapping[str, Any]],
    folds: Mapping[int, Fold],
    alignments: Mapping[int, Alignment],
    models: Mapping[int, TrainedNetwork],
) -> dict[str, Any]:
    """Return the models' part of features.json; ``trained`` are the folds' entries in cross_validation.json."""
    return {
        "dataset": dataset.name,
        "dataset_hash": read_dataset_info(dataset).get("hash"),
        "folds": {
            str(number): {
                "hash": fold.hash,
                "weights": trained[number]["weights"],
                "chosen": models[number].weights,
                "iteration": models[number].iteration,
                "alignment_r2": alignments[number].r2,
            }
            for number, fold in folds.items()
        },
        "space": f"fold {next(iter(folds))}",
    }


def check_trained_on(trained: Mapping[int, Mapping[str, Any]], folds: Mapping[int, Fold], parent: Path) -> None:
    """Raise WorkError if a fold's images or labels have changed since its model was trained."""
    for number, fold in folds.items():
        if trained.get(number, {}).get("hash") != fold.hash:
            raise WorkError(f"{parent}: fold {number}'s images or labels changed since; cross-validate anew")
