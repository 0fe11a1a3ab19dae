"""The models of a finished cross-validation together: mean predictions of new images, and embeddings of all.

The embeddings of two models have nothing in common: each model's features mean what its own head makes of them. A
second stage that learns from all folds would meet another language in each. So the features of every fold are brought
into the first fold's space by a linear map (ridge regression), fitted to images that both models were trained on: those
of the other folds, so that no image takes part in the map that is applied to it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from tqdm import tqdm

from common.arguments import from_dict
from common.datasets.batch import Batch
from common.ensembling import combine
from common.errors import UsageError, WorkError
from common.files import atomic_path, check_output
from common.hardware import loader_workers
from common.models.embedding import head_input
from common.networks.network import evaluation_mode
from common.resume import read_options
from config import PredictConfig, TrainConfig
from rsna_crossvalidation import Fold, finished_folds, read_folds
from rsna_data import build_loader, place_transform
from rsna_dataset import dataset_folder, read_dataset_info, read_metadata
from rsna_features import FOLDERS, HOW, NO_FOLD, OUT_OF_FOLD, TEST, Block, read_document, write_features
from rsna_network import RSNANetwork
from rsna_prediction import (
    TrainedNetwork,
    dataset_folder_of,
    load_network,
    load_views,
    predict_rows,
    sample_submission,
    split_rows,
    write_predictions,
)

ANCHORS = 8192
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the ridge, as shares of the features' mean variance
FEWEST_FOLDS = 3
FEWEST_PATIENTS = 10
ALIGNMENT_FILE = "alignment.npy"  # in features/, float32 (K, F + 1, F): of each fold the matrix, then the offset

Floats = npt.NDArray[np.float32]


def load_fold_models(
    config: PredictConfig, folder: Path, weights: Mapping[int, str] | None = None, **more: Any
) -> dict[int, TrainedNetwork]:
    """Load the models of all folds; UsageError where the folder is no finished cross-validation.

    ``weights``: which of each fold's (raw, ema, swa), instead of those that --net_weights names; ``more`` goes to
    :func:`rsna_prediction.load_network`.
    """
    options = (config.n_jobs, config.data_input_folder, config.data_dataset)
    return {
        fold: load_network(
            folder / facts["weights"], *options, config.net_weights if weights is None else weights[fold], **more
        )
        for fold, facts in finished_folds(folder).items()
    }


def predict_by_folds(config: PredictConfig) -> Path:
    """Write the mean of all folds' predictions of new images, as predict.py does for one model; return the path."""
    if config.split in ("train", "valid"):
        raise UsageError(
            f"--split={config.split}: {config.net_weight_file / 'predictions_oof.csv'} has the predictions of these "
            "images by the models that were not trained on them"
        )
    if config.calibrate:
        raise UsageError("--calibrate=1 needs one model's weights; a cross-validation has several")
    models = load_fold_models(config, config.net_weight_file, sequences=True, seq_features=config.seq_features)
    first = next(iter(models.values()))
    rows = split_rows(first, config.split)
    name = "submission.csv" if sample_submission(first, config.split) else f"predictions_{config.split}.csv"
    path = config.output_file or config.net_weight_file / name
    check_output("output_file", path)
    frames = {f"fold {fold}": predict_rows(model, rows, load_views(model, config)) for fold, model in models.items()}
    prevalences = np.mean([model.prevalences for model in models.values()], axis=0)
    together = combine(frames, [1.0] * len(frames), "mean")
    write_predictions(replace(first, prevalences=prevalences), together, config.split, path)
    return path


@dataclass(frozen=True)
class Alignment:
    """An affine map into the first fold's space: x → x · ``matrix`` + ``offset``; ``r2`` of held-out patients."""

    matrix: Floats
    offset: Floats
    r2: float

    def __call__(self, features: Floats) -> Floats:
        """Map features (n, F)."""
        return features @ self.matrix + self.offset


def fit_alignment(features: Floats, reference: Floats, patients: np.ndarray) -> Alignment:
    """Fit the map from ``features`` (n, F) to ``reference`` (n, F) of the same images.

    The penalty is the one that explains most of a fifth of the patients (of the images where there are few patients),
    who are left out.
    """
    names = np.unique(patients)
    held = np.isin(patients, names[::5]) if len(names) >= FEWEST_PATIENTS else np.arange(len(patients)) % 5 == 0
    best = max(PENALTIES, key=lambda penalty: _explained(features, reference, held, penalty))
    matrix, offset = _ridge(features, reference, best)
    return Alignment(matrix, offset, _explained(features, reference, held, best))


def _ridge(features: Floats, reference: Floats, penalty: float) -> tuple[Floats, Floats]:
    mean, target_mean = features.mean(axis=0, dtype=np.float64), reference.mean(axis=0, dtype=np.float64)
    centred = features - mean
    gram = centred.T @ centred
    gram[np.diag_indices_from(gram)] += penalty * np.trace(gram) / len(gram) + 1e-12
    matrix = np.linalg.solve(gram, centred.T @ (reference - target_mean))
    return matrix.astype(np.float32), (target_mean - mean @ matrix).astype(np.float32)


def _explained(features: Floats, reference: Floats, held: np.ndarray, penalty: float) -> float:
    """Return the share of the reference's variance that a map fitted to the others explains of the ``held`` rows."""
    matrix, offset = _ridge(features[~held], reference[~held], penalty)
    left = reference[held] - (features[held] @ matrix + offset)
    spread = reference[held] - reference[~held].mean(axis=0)
    return 1.0 - float((left**2).sum()) / max(float((spread**2).sum()), 1e-30)


def embed(network: RSNANetwork, batch: Batch) -> tuple[Floats, Floats]:
    """Return embeddings (B, F) and logits (B, 6) of a batch that is on the device."""
    model = network.model
    with evaluation_mode([model]), torch.inference_mode(), head_input(model) as seen, network.autocast():
        logits = network.prediction_step(model, batch)
    return seen[0].float().cpu().numpy(), logits.float().cpu().numpy()


def embeddings(model: TrainedNetwork, rows: pd.DataFrame, label: str) -> Iterator[tuple[list[str], Floats, Floats]]:
    """Yield ids, embeddings and logits of ``rows``, a batch at a time."""
    for batch in batches(model, rows, label):
        yield batch.image_id, *embed(model.network, model.network.prepare_batch(batch))


def batches(model: TrainedNetwork, rows: pd.DataFrame, label: str, workers: int | None = None) -> Iterator[Batch]:
    """Yield the batches of ``rows`` in order; ``workers`` as for :func:`rsna_prediction.predict_rows`."""
    if workers is None:
        workers = loader_workers(model.config.n_jobs, model.network.device)
    pipeline = place_transform(model.pipeline, model.config, model.network.device)
    loader = build_loader(dataset_folder_of(model), rows, pipeline, model.config, workers)
    yield from tqdm(loader, desc=label, unit="batch", disable=None)


def write_all_features(config: PredictConfig) -> Path:
    """Write features/train (out of fold) and, where the dataset has test images, features/test; return features/.

    Raises WorkError where a fold's images or labels are not those that its model was trained on.
    """
    parent = config.net_weight_file
    trained = finished_folds(parent)
    options = from_dict(TrainConfig, read_options(parent), f"{parent} (its configuration)")
    options = replace(options, data_input_folder=config.data_input_folder or options.data_input_folder)
    folds = {fold.number: fold for fold in read_folds(options)}
    if len(folds) < FEWEST_FOLDS:
        raise UsageError(f"--features=1 needs {FEWEST_FOLDS} folds or more: {parent} has {len(folds)}")
    check_trained_on(trained, folds, parent)
    models = load_fold_models(config, parent)
    folder = dataset_folder(options.data_input_folder, options.data_dataset)
    alignments = fit_alignments(models, folds)
    document = features_document(folder, trained, folds, alignments, models)
    document["alignment_sha256"] = write_alignments(parent / "features" / ALIGNMENT_FILE, alignments)
    width = first_width(alignments)

    def held_out() -> Iterator[Block]:
        for number, fold in folds.items():
            for ids, features, logits in embeddings(models[number], fold.valid, f"fold {number}"):
                yield Block(ids, alignments[number](features), logits, number)

    count = sum(len(fold.valid) for fold in folds.values())
    write_features(parent / FOLDERS[OUT_OF_FOLD], held_out(), count, width, {"kind": OUT_OF_FOLD, **document})
    metadata = read_metadata(folder)
    test = metadata[metadata["split"] == "test"]
    if len(test):
        blocks = mean_blocks(models, alignments, test)
        write_features(parent / FOLDERS[TEST], blocks, len(test), width, {"kind": TEST, **document})
    return parent / "features"


def first_width(alignments: Mapping[int, Alignment]) -> int:
    """Return the width of the common space."""
    return len(next(iter(alignments.values())).offset)


def write_alignments(path: Path, alignments: Mapping[int, Alignment]) -> str:
    """Write the maps of all folds, in their order, as one array; return the file's sha256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    maps = np.stack([np.vstack([alignment.matrix, alignment.offset]) for alignment in alignments.values()])
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, maps, allow_pickle=False)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_alignments(parent: Path) -> dict[int, Alignment]:
    """Read the map of each fold that a cross-validation's features were made with.

    Raises UsageError where there are no features, or ones of a program that didn't keep the maps; WorkError where the
    file is not the one that features.json tells of.
    """
    document = read_document(parent / FOLDERS[OUT_OF_FOLD])
    path = parent / "features" / ALIGNMENT_FILE
    if "alignment_sha256" not in document:
        raise UsageError(f"{parent / 'features'}: an older program made them and kept no maps of the folds; {HOW} anew")
    try:
        if hashlib.sha256(path.read_bytes()).hexdigest() != document["alignment_sha256"]:
            raise ValueError("not the file that the features were made with")
        maps = np.load(path, allow_pickle=False)
        facts = {int(fold): known for fold, known in document["folds"].items()}
        return {
            fold: Alignment(own[:-1], own[-1], float(known["alignment_r2"]))
            for own, (fold, known) in zip(maps, facts.items(), strict=True)
        }
    except (OSError, ValueError, KeyError) as error:
        raise WorkError(f"{path}: damaged ({' '.join(str(error).split())}); {HOW} anew") from None


def made_by(document: Mapping[str, Any], models: Mapping[int, TrainedNetwork]) -> bool:
    """Whether features of ``document`` were made by just these weights."""
    known = {int(fold): (facts.get("chosen"), facts.get("iteration")) for fold, facts in document["folds"].items()}
    return known == {fold: (model.weights, model.iteration) for fold, model in models.items()}


def fit_alignments(models: Mapping[int, TrainedNetwork], folds: Mapping[int, Fold]) -> dict[int, Alignment]:
    """Fit each fold's map into the first one's space, by images that neither of the two held out."""
    reference, *others = folds
    labelled = pd.concat([fold.valid for fold in folds.values()])
    spread = np.linspace(0, len(labelled) - 1, min(ANCHORS, len(labelled))).round().astype(int)
    anchors = labelled.iloc[spread]
    anchors = anchors.drop(index=anchors.index.intersection(folds[reference].valid.index))
    target = table(embeddings(models[reference], anchors, "common images, first fold"))
    width = target.shape[1]
    found = {reference: Alignment(np.eye(width, dtype=np.float32), np.zeros(width, dtype=np.float32), 1.0)}
    for number in others:
        common = anchors.drop(index=anchors.index.intersection(folds[number].valid.index))
        own = table(embeddings(models[number], common, f"common images, fold {number}"))
        place = anchors.index.get_indexer(common.index)
        patients = common["patient_id"].where(common["patient_id"] != "", common.index.to_series()).to_numpy(dtype=str)
        found[number] = fit_alignment(own, target[place], patients)
    return found


def table(parts: Iterator[tuple[list[str], Floats, Floats]]) -> Floats:
    """Return the embeddings (N, F) of all batches."""
    return np.concatenate([features for _, features, _ in parts])


def mean_blocks(
    models: Mapping[int, TrainedNetwork],
    alignments: Mapping[int, Alignment],
    rows: pd.DataFrame,
    workers: int | None = None,
) -> Iterator[Block]:
    """Yield the mean over all folds' models of aligned embeddings and of logits, of images that no model has seen."""
    first = next(iter(models.values()))
    for batch in batches(first, rows, "new images", workers):
        ready = first.network.prepare_batch(batch)
        parts = {number: embed(model.network, ready) for number, model in models.items()}
        features = np.mean([alignments[number](own) for number, (own, _) in parts.items()], axis=0)
        yield Block(batch.image_id, features, np.mean([logits for _, logits in parts.values()], axis=0), NO_FOLD)


def features_document(
    dataset: Path,
    trained: Mapping[int, Mapping[str, Any]],
    folds: Mapping[int, Fold],
    alignments: Mapping[int, Alignment],
    models: Mapping[int, TrainedNetwork],
) -> dict[str, Any]:
    """Return what features.json says of the models (``trained``: their parts of cross_validation.json)."""
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
    """Raise WorkError where images or labels of a fold are not those that its model was trained on."""
    for number, fold in folds.items():
        if trained.get(number, {}).get("hash") != fold.hash:
            raise WorkError(f"{parent}: fold {number}'s images or labels changed since; cross-validate anew")
