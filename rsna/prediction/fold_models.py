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
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from common.checkpoint import BEST
from common.cli.arguments import from_dict
from common.cli.console import progress
from common.cli.values import HOLDOUT
from common.datasets.batch import Batch
from common.errors import UsageError, WorkError
from common.experiments.resume import read_options
from common.files import atomic_path, write_json
from common.foreign import read_json
from common.lineage import Lineage, Provenance
from common.models.embedding import head_input
from common.networks.arrival import arrived
from common.networks.network import evaluation_mode
from common.training.hardware import loader_workers
from common.training.ways import AUTO
from config import TrainConfig
from rsna.kinds.features import (
    FEWEST_FOLDS,
    FOLDERS,
    HOW,
    NO_FOLD,
    OUT_OF_FOLD,
    TEST,
    Block,
    read_document,
    write_features,
)
from rsna.kinds.slices import build_loader, place_transform, select_rows
from rsna.prediction.options import PredictConfig, TrainedOptions, TTAOptions
from rsna.prediction.provenance import check_predicted, network_provenance
from rsna.prediction.trained import (
    TrainedNetwork,
    dataset_folder_of,
    load_network,
    load_views,
    mean_of,
    output_path,
    place_of,
    predict_with_studies,
    split_rows,
    write_predictions,
    write_studies,
)
from rsna.training.folds import Fold, finished_folds, read_folds
from rsna.training.lineage import weights_lineage
from rsna.training.outcome import HOLDOUT_FILE, is_cross_validation, write_flattery
from rsna.training.provenance import write_provenance
from rsna_dataset import dataset_folder, known_groups, new_images, read_dataset_info, read_fold, rows_hash
from rsna_model import way_of
from rsna_network import RSNANetwork

ANCHORS = 8192
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the ridge, as shares of the features' mean variance
FEWEST_PATIENTS = 10
ALIGNMENT_FILE = "alignment.npy"  # in features/, float32 (K, F + 1, F): of each fold the matrix, then the offset

REFIT = "refit"
REFIT_FILE, REFIT_INFO = "refit.npy", "refit.json"  # in features/, as ALIGNMENT_FILE, and which network it is for
Key = TypeVar("Key", int, str)

Floats = npt.NDArray[np.float32]


def load_fold_models(
    config: TrainedOptions, folder: Path, weights: Mapping[int, str] | None = None, **more: Any
) -> dict[int, TrainedNetwork]:
    """Load the models of all folds; UsageError where the folder is no finished cross-validation.

    ``weights``: which of each fold's (raw, ema, swa), instead of those that --net_weights names; ``more`` goes to
    :func:`rsna.prediction.trained.load_network`.
    """
    more |= place_of(config)
    models: dict[int, TrainedNetwork] = {}
    for fold, facts in finished_folds(folder).items():
        chosen = config.net_weights if weights is None else weights[fold]
        models[fold] = load_network(folder / facts["weights"], weights=chosen, **more)
        if more.get("compute") == AUTO:  # measured once, so that all compute alike
            more["compute"] = way_of(models[fold].config)
    return models


def predict_by_folds(config: PredictConfig) -> Path:
    """Write the mean of all folds' predictions of new images, as predict.py does for one model; return the path."""
    if config.split in ("train", "valid"):
        raise UsageError(
            f"--split={config.split}: {config.net_weight_file / 'predictions_oof.csv'} has the predictions of these "
            "images by the models that were not trained on them"
        )
    if config.calibrate:
        raise several_models(config.net_weight_file)
    models = load_fold_models(
        config, config.net_weight_file, sequences=True, seq_features=config.seq_features, compute=config.net_compute
    )
    first = next(iter(models.values()))
    rows = split_rows(first, config.split)
    path = output_path(config, first, config.net_weight_file)
    provenance = folds_provenance(models, config.net_weight_file, rows.index) if config.split != "test" else None
    if provenance is not None:
        check_predicted(provenance, dataset_folder_of(first), rows.index, config)
    predicted = predicted_by_folds(config, models, rows)
    (together, studies), prevalences = mean_of(predicted), mean_prevalences(models)
    if config.split == HOLDOUT and path == config.net_weight_file / HOLDOUT_FILE:
        facts = finished_folds(config.net_weight_file).values()
        losses, images = zip(*((fact["weighted_log_loss"], fact["images"]) for fact in facts), strict=True)
        chosen = np.average(losses, weights=images)
        print(write_flattery(config.net_weight_file, [alone for alone, _ in predicted.values()], rows, float(chosen)))
    if studies is not None:
        print(write_studies(studies, path))
    write_predictions(replace(first, prevalences=prevalences), together, config.split, path)
    if provenance is not None:
        write_provenance(path, provenance)
    return path


def folds_provenance(models: Mapping[int, TrainedNetwork], folder: Path, ids: pd.Index) -> Provenance:
    """Return what made the mean of a cross-validation's models' predictions of images that are in none of its folds."""
    facts = finished_folds(folder)
    parts = [
        network_provenance(model, folder / facts[fold]["weights"], ids, new=True) for fold, model in models.items()
    ]
    return reduce(Provenance.beside, parts)


def several_models(folder: Path) -> UsageError:
    """Return the refusal of --calibrate=1 for a cross-validation: no model saw an image as the mean of all sees one."""
    return UsageError(
        f"--calibrate=1 needs one model's weights, and the cross-validation {folder} has several; python ensemble.py "
        f"{folder.name} --ens_calibrate=temperature writes its calibrated submission, by images that none of them saw "
        "(preprocessing.py --pre_holdout, then predict.py --split=holdout)"
    )


def mean_by_folds(
    config: TTAOptions, models: Mapping[int, TrainedNetwork], rows: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame | None, np.ndarray]:
    """Return the models' mean probabilities of ``rows``, of whole studies where they judge these, and prevalences."""
    return *mean_of(predicted_by_folds(config, models, rows)), mean_prevalences(models)


def predicted_by_folds(
    config: TTAOptions, models: Mapping[int, TrainedNetwork], rows: pd.DataFrame
) -> dict[str, tuple[pd.DataFrame, pd.DataFrame | None]]:
    """Return each model's probabilities of ``rows``, and of whole studies where it judges these."""
    return {
        f"fold {fold}": predict_with_studies(model, rows, load_views(model, config)) for fold, model in models.items()
    }


def mean_prevalences(models: Mapping[int, TrainedNetwork]) -> np.ndarray:
    """Return the mean of the folds' prevalences (6,)."""
    return np.mean([model.prevalences for model in models.values()], axis=0)


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


def embed(network: RSNANetwork, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return embeddings (B, F) and logits (B, 6), float32, of a batch that is on the device, where they stay."""
    model = network.model
    with evaluation_mode([model]), torch.inference_mode(), head_input(model) as seen, network.autocast():
        logits = network.prediction_step(model, batch)
    return seen[0].float(), logits.float()


def embeddings(model: TrainedNetwork, rows: pd.DataFrame, label: str) -> Iterator[tuple[list[str], Floats, Floats]]:
    """Yield ids, embeddings and logits of ``rows``, a batch at a time."""
    network = model.network
    parts = ((batch.image_id, embed(network, network.prepare_batch(batch))) for batch in batches(model, rows, label))
    for ids, (features, logits) in arrived(parts):
        yield ids, features.numpy(), logits.numpy()


def batches(model: TrainedNetwork, rows: pd.DataFrame, label: str, workers: int | None = None) -> Iterator[Batch]:
    """Yield the batches of ``rows`` in order; ``workers`` as for :func:`rsna.prediction.trained.predict_rows`."""
    if workers is None:
        workers = loader_workers(model.config.n_jobs, model.network.device)
    pipeline = place_transform(model.pipeline, model.config, model.network.device)
    loader = build_loader(dataset_folder_of(model), rows, pipeline, model.config, workers)
    yield from progress(loader, desc=label, unit="batch")


def write_all_features(config: PredictConfig) -> Path:
    """Write features/train (out of fold) and, of images that no fold has, features/test; return features/.

    With --feature_refit features/test alone, by that network. Raises WorkError where a fold's images or labels are not
    those that its model was trained on.
    """
    if config.feature_refit is not None:
        return write_refit_features(config)
    parent = config.net_weight_file
    if not is_cross_validation(parent):
        finished_folds(parent)  # says so
    folder, folds = features_data(config)
    if len(folds) < FEWEST_FOLDS:  # also before they are trained
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


def features_data(config: PredictConfig) -> tuple[Path, dict[int, Fold]]:
    """Return the dataset's folder and the folds of the cross-validation that ``--net_weight_file`` names."""
    parent = config.net_weight_file
    options = from_dict(TrainConfig, read_options(parent), f"{parent} (its configuration)")
    options = replace(options, data_input_folder=config.data_input_folder or options.data_input_folder)
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
    """Write features/test, the mean of ``models`` with ``lineages``, where the dataset has images that no fold has."""
    new = new_images(dataset)
    if len(new):
        blocks = mean_blocks(models, alignments, new)
        width = first_width(alignments)
        write_features(parent / FOLDERS[TEST], blocks, len(new), width, {"kind": TEST, **document}, lineages)


def write_refit_features(config: PredictConfig) -> Path:
    """Write features/test by one network that was trained on all folds, and keep its map; return features/.

    The map into the first fold's space is fitted to images that both that fold's network and this one were trained on.
    Raises UsageError where there are no features/train, whose space it is, or the network was trained on other images
    than just those of all folds.
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
    lineages = {0: weights_lineage(refit_file(config.feature_refit), refit.config.data_input_folder)}
    write_test_features(parent, dataset, {REFIT: refit}, {REFIT: alignment}, common | {"refit": facts}, lineages)
    return parent / "features"


def load_refit(config: PredictConfig) -> TrainedNetwork:
    """Load the network of ``--feature_refit``; UsageError for one that was not trained on all folds."""
    path = config.feature_refit
    refit = load_network(refit_file(path), weights=config.net_weights, compute=config.net_compute, **place_of(config))
    if refit.config.data_fold != HOLDOUT:
        raise UsageError(
            f"--feature_refit={path}: was trained with --data_fold={refit.config.data_fold}; it takes a "
            "network that saw the images of all folds: train.py --data_fold=holdout"
        )
    return refit


def refit_file(path: Path) -> Path:
    """Return the weight file that ``--feature_refit`` names, itself or by its experiment's folder."""
    return path / BEST if path.is_dir() else path


def check_refit(config: PredictConfig, refit: TrainedNetwork, dataset: Path, folds: Mapping[int, Fold]) -> None:
    """Raise UsageError where the network was trained on other images than those of ``folds``, as they are now."""
    rows = read_fold(dataset, dataset.name, HOLDOUT)
    train, valid = (select_rows(rows, kind, refit.config.dev_enabled) for kind in ("train", "valid"))
    images = pd.concat([fold.valid for fold in folds.values()]).index
    if refit.data_hash != rows_hash(train, valid) or not images.isin(train.index).all():
        raise UsageError(
            f"--feature_refit={config.feature_refit}: was trained on other images or labels than {dataset} has in its "
            "folds"
        )


def read_refit_alignment(config: PredictConfig, refit: TrainedNetwork) -> Alignment:
    """Read the map of ``--feature_refit`` that was kept with features/test.

    Raises UsageError where there is none, or it is another network's, WorkError where the file is damaged.
    """
    parent = config.net_weight_file
    info, path = parent / "features" / REFIT_INFO, parent / "features" / REFIT_FILE
    again = f"python predict.py --net_weight_file={parent} --features=1 --feature_refit={config.feature_refit}"
    if not info.is_file():
        raise UsageError(f"--feature_refit: {parent / 'features'} keeps no map of it; {again} makes one")
    try:
        facts = read_json(info)
        known = (facts["chosen"], facts["iteration"])
        space, r2 = facts["space"], float(facts["alignment_r2"])
        (own,) = _read_maps(path, facts["alignment_sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WorkError(f"{path}: damaged ({' '.join(str(error).split())}); {again}") from None
    if known != (refit.weights, refit.iteration) or space != read_document(parent / FOLDERS[OUT_OF_FOLD]).get(
        "alignment_sha256"
    ):
        raise UsageError(f"--feature_refit: {path} is of another network or of earlier features; {again} makes it anew")
    return Alignment(own[:-1], own[-1], r2)


def first_width(alignments: Mapping[Any, Alignment]) -> int:
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
        maps = _read_maps(path, document["alignment_sha256"])
        facts = {int(fold): known for fold, known in document["folds"].items()}
        return {
            fold: Alignment(own[:-1], own[-1], float(known["alignment_r2"]))
            for own, (fold, known) in zip(maps, facts.items(), strict=True)
        }
    except (OSError, ValueError, KeyError) as error:
        raise WorkError(f"{path}: damaged ({' '.join(str(error).split())}); {HOW} anew") from None


def _read_maps(path: Path, sha256: str) -> Floats:
    """Read maps (K, F + 1, F); OSError or ValueError where the file is not the one that it was."""
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise ValueError("not the file that the features were made with")
    return np.load(path, allow_pickle=False)


def check_made_by(document: Mapping[str, Any], models: Mapping[int, TrainedNetwork], parent: Path) -> None:
    """Raise UsageError unless features of ``document`` were made by just these weights."""
    known = {int(fold): (facts["chosen"], facts["iteration"]) for fold, facts in document["folds"].items()}
    if known != {fold: (model.weights, model.iteration) for fold, model in models.items()}:
        raise UsageError(
            f"{parent}: its models were trained further since its features were made; make them anew "
            "(predict.py --features=1), and train the sequence model on them"
        )


def fit_alignments(models: Mapping[int, TrainedNetwork], folds: Mapping[int, Fold]) -> dict[int, Alignment]:
    """Fit each fold's map into the first one's space, by images that neither of the two held out."""
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


def table(parts: Iterator[tuple[list[str], Floats, Floats]]) -> Floats:
    """Return the embeddings (N, F) of all batches."""
    return np.concatenate([features for _, features, _ in parts])


def mean_blocks(
    models: Mapping[Key, TrainedNetwork],
    alignments: Mapping[Key, Alignment],
    rows: pd.DataFrame,
    workers: int | None = None,
) -> Iterator[Block]:
    """Yield the mean over all models of aligned embeddings and of logits, of images that no model has seen."""
    first = next(iter(models.values()))

    def seen() -> Iterator[tuple[list[str], list[Tensor]]]:
        for batch in batches(first, rows, "new images", workers):
            ready = first.network.prepare_batch(batch)
            yield batch.image_id, [part for model in models.values() for part in embed(model.network, ready)]

    for ids, parts in arrived(seen()):
        own, logits = ([part.numpy() for part in parts[start::2]] for start in (0, 1))
        features = np.mean([alignments[number](one) for number, one in zip(models, own, strict=True)], axis=0)
        yield Block(ids, features, np.mean(logits, axis=0), NO_FOLD)


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
