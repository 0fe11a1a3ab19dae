"""Slice embeddings on disk: what each model of a cross-validation says of images that it was not trained on.

A folder of features has ``features.npy`` float16 (N, F), ``logits.npy`` float32 (N, 6), ``rows.csv`` (id, fold; N rows
in the arrays' order, fold -1 where no fold has the image), ``lineage.npz`` (what the networks learnt from, by row) and
``features.json`` with the others' hashes, which is written last. Models of a second stage take these alone: embeddings
of images that the network was trained on promise a certainty that it hasn't on others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xxhash

from common.errors import UsageError, WorkError, list_some
from common.experiments.folder import experiment_folder
from common.files import atomic_path, write_csv, write_json
from common.foreign import Unreadable, check_bytes, check_written, read_json
from common.lineage import Lineage, Provenance
from config import TrainConfig
from rsna_dataset import LABELS, dataset_folder, fold_hash, fold_path, read_dataset_info, read_fold

FORMAT_VERSION = 1
OUT_OF_FOLD, TEST = "out_of_fold", "test"
FEWEST_FOLDS = 3  # of a cross-validation: an image that two folds saw, by which their networks are compared
FOLDERS = {OUT_OF_FOLD: "features/train", TEST: "features/test"}  # in a cross-validation's
NO_FOLD = -1
FEATURES_FILE, LOGITS_FILE, ROWS_FILE, INFO_FILE = "features.npy", "logits.npy", "rows.csv", "features.json"
LINEAGE_FILE = "lineage.npz"
HASHED_ROWS = 2**14
MOST_FEATURES = 2**16  # timm's widest network has some 5,000
MOST_ROW_BYTES = 300  # of rows.csv: an image's id is the name of its file
MOST_HEADER_BYTES = 4096
HOW = "python predict.py --net_weight_file=<a cross-validation's folder> --features=1 makes them"


@dataclass(frozen=True)
class FeatureSet:
    """Features as read: ``rows`` has index ``id`` and column ``fold``, in the order of the arrays' rows.

    ``features`` (N, F) float16 and ``logits`` (N, 6) float32 stay on disk (memory maps). ``document``: features.json.
    """

    rows: pd.DataFrame
    features: npt.NDArray[np.float16]
    logits: npt.NDArray[np.float32]
    document: Mapping[str, Any]

    @property
    def num_features(self) -> int:
        """Width of an embedding."""
        return self.features.shape[1]


@dataclass(frozen=True)
class Block:
    """Features of some images: ``ids`` (n), ``features`` (n, F), ``logits`` (n, 6), and the fold that holds them."""

    ids: list[str]
    features: np.ndarray
    logits: np.ndarray
    fold: int


def write_features(
    folder: Path,
    blocks: Iterable[Block],
    count: int,
    num_features: int,
    document: Mapping[str, Any],
    lineages: Mapping[int, Lineage] | None = None,
) -> Path:
    """Write ``count`` rows that come in blocks, whole or not at all, never holding more than one; return the folder.

    ``document`` is features.json without its format, size and the files' hashes. ``lineages``: what the networks of
    each fold learnt from, where that is known; images of :data:`NO_FOLD` were seen by all of them. Raises WorkError
    for another number of rows, an image twice, or values that float16 can't hold.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INFO_FILE).unlink(missing_ok=True)  # without it what a killed writer leaves is not read
    ids: list[str] = []
    folds: list[int] = []
    digests = {FEATURES_FILE: xxhash.xxh3_128(), LOGITS_FILE: xxhash.xxh3_128()}
    with ExitStack() as stack:
        # Plain writes, since a memory map on a full disk ends the process.
        paths = [stack.enter_context(atomic_path(folder / name)) for name in (FEATURES_FILE, LOGITS_FILE)]
        files = [stack.enter_context(path.open("wb")) for path in paths]
        for file, dtype, width in zip(files, (np.float16, np.float32), (num_features, len(LABELS)), strict=True):
            _write_header(file, dtype, (count, width))
        for block in blocks:
            features = _stored(block, folder)
            if features.shape != (len(block.ids), num_features) or block.logits.shape != (len(block.ids), len(LABELS)):
                raise WorkError(f"{folder}: {features.shape[1]} features for an image where {num_features} are due")
            logits = np.ascontiguousarray(block.logits, dtype=np.float32)
            for file, digest, part in zip(files, digests.values(), (features, logits), strict=True):
                file.write(part.tobytes())
                digest.update(part.tobytes())
            ids += block.ids
            folds += [block.fold] * len(block.ids)
        if len(ids) != count or len(set(ids)) != count:
            raise WorkError(f"{folder}: {len(set(ids))} different images came where {count} were due")
    write_csv(folder / ROWS_FILE, pd.DataFrame({"id": ids, "fold": folds}))
    (folder / LINEAGE_FILE).unlink(missing_ok=True)
    if lineages is not None:
        used = np.array([[fold in (NO_FOLD, number) for number in lineages] for fold in folds], dtype=bool)
        Provenance(tuple(lineages.values()), used).write(folder / LINEAGE_FILE, (folder / ROWS_FILE).read_bytes())
    hashes = {name: digest.hexdigest() for name, digest in digests.items()}
    hashes[ROWS_FILE] = xxhash.xxh3_128_hexdigest((folder / ROWS_FILE).read_bytes())
    size = {"images": count, "num_features": num_features}
    write_json(folder / INFO_FILE, {"format_version": FORMAT_VERSION, **document, **size, "hashes": hashes})
    return folder


def _check_hashes(folder: Path, document: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError where a file is another than the one that was written; earlier versions kept no hashes.

    Rows in another order than their arrays would give each image another one's features.
    """
    known = document.get("hashes")
    if known is None:
        return
    found = {ROWS_FILE: xxhash.xxh3_128_hexdigest((folder / ROWS_FILE).read_bytes())}
    for name, array in arrays.items():
        digest = xxhash.xxh3_128()
        for start in range(0, len(array), HASHED_ROWS):
            digest.update(np.ascontiguousarray(array[start : start + HASHED_ROWS]))
        found[name] = digest.hexdigest()
    for name, value in found.items():
        if known[name] != value:
            raise ValueError(f"{name} changed since it was written, and its rows need not be those of the others")


def _check_sizes(folder: Path, document: Mapping[str, Any], images: int) -> None:
    """Raise ValueError where the files hold more than features of so many images can, before one of them is read."""
    if not 0 < document["num_features"] <= MOST_FEATURES:
        raise ValueError(f"{INFO_FILE}: num_features is not 1 to {MOST_FEATURES:,}")
    widths = {FEATURES_FILE: 2 * document["num_features"], LOGITS_FILE: 4 * len(LABELS), ROWS_FILE: MOST_ROW_BYTES}
    for name, width in widths.items():
        try:
            check_bytes(folder / name, images * width + MOST_HEADER_BYTES)
            check_written(folder / name)
        except Unreadable as error:
            raise ValueError(f"{name}: {error}") from None


def _write_header(file: IO[bytes], dtype: Any, shape: tuple[int, int]) -> None:
    description = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, description)


def _stored(block: Block, folder: Path) -> npt.NDArray[np.float16]:
    """Return a block's features as they are kept; WorkError, naming ``folder``, for values that float16 can't hold."""
    with np.errstate(over="ignore"):
        features = np.asarray(block.features).astype(np.float16)
    wrong = ~np.isfinite(features).all(axis=-1)
    if wrong.any():
        raise WorkError(f"{folder}: the features of image {block.ids[int(np.argmax(wrong))]} exceed float16")
    return features


def features_in_memory(blocks: Iterable[Block], folder: Path) -> FeatureSet:
    """Return features that are not written, with the values that they would have on disk.

    WorkError, naming ``folder``, as :func:`write_features`.
    """
    parts = list(blocks)
    rows = pd.DataFrame({"fold": NO_FOLD}, index=pd.Index([name for part in parts for name in part.ids], name="id"))
    features = np.concatenate([_stored(part, folder) for part in parts])
    return FeatureSet(rows, features, np.concatenate([part.logits for part in parts]).astype(np.float32), {})


def read_features(folder: Path, dataset: Path, kind: str = OUT_OF_FOLD) -> FeatureSet:
    """Read and check a folder of features of the dataset in the folder ``dataset``.

    Raises UsageError where there are none, they are of another kind (features of images that a model was trained on
    are never taken) or another dataset, the folds changed since, or images of the folds are missing; WorkError for
    damaged files.
    """
    document = read_document(folder)
    if document["kind"] != kind:
        raise UsageError(f"{folder}: features of the kind {document['kind']!r} where {kind!r} ones are needed; {HOW}")
    info = read_dataset_info(dataset)
    if info.get("hash") != document["dataset_hash"]:
        raise UsageError(f"{folder}: made from {document['dataset']}, another dataset or an earlier state of {dataset}")
    try:
        _check_sizes(folder, document, sum(info["images"].values()))
        rows = pd.read_csv(folder / ROWS_FILE, dtype={"id": str, "fold": np.int64}, keep_default_na=False)
        rows = rows.set_index("id")[["fold"]]
        if not rows.index.is_unique:
            raise ValueError("an image stands there twice")
        features, logits = (
            np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in (FEATURES_FILE, LOGITS_FILE)
        )
        forms = {
            "features": ((len(rows), document["num_features"]), np.float16),
            "logits": ((len(rows), 6), np.float32),
        }
        for array, (shape, dtype) in zip((features, logits), forms.values(), strict=True):
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(f"{array.dtype} {array.shape} where {np.dtype(dtype)} {shape} is due")
        _check_hashes(folder, document, {FEATURES_FILE: features, LOGITS_FILE: logits})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WorkError(f"{folder}: damaged ({' '.join(str(error).split())}); {HOW}") from None
    if kind == OUT_OF_FOLD:
        _check_folds(folder, dataset, rows, document["folds"])
    return FeatureSet(rows, features, logits, document)


def read_document(folder: Path) -> dict[str, Any]:
    """Read features.json; UsageError where there is none or one of another version, WorkError where it is damaged."""
    path = folder / INFO_FILE
    try:
        document = read_json(path)
        known = {name: document[name] for name in ("kind", "dataset", "dataset_hash", "num_features", "folds")}
        {int(fold): str(facts["hash"]) for fold, facts in known["folds"].items()}
    except FileNotFoundError:
        raise UsageError(f"{folder}: has no features; {HOW}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise WorkError(f"{path}: damaged; {HOW}") from None
    if document.get("format_version") != FORMAT_VERSION:
        version = document.get("format_version")
        raise UsageError(f"{path}: format version {version}, this program reads {FORMAT_VERSION}; {HOW}")
    return document


def _check_folds(folder: Path, dataset: Path, rows: pd.DataFrame, folds: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise UsageError unless ``rows`` are exactly the images that the present folds hold out, each in its own."""
    for fold, facts in folds.items():
        table = read_fold(dataset, dataset.name, int(fold))
        path = fold_path(dataset, dataset.name, int(fold))
        if fold_hash(table) != facts["hash"]:
            raise UsageError(
                f"{folder}: {path} changed since fold {fold} was trained, so that its features may be of images that "
                "the model saw; cross-validate anew"
            )
        due = table.index[table["sample_type"] == "valid"]
        missing = due.difference(rows.index[rows["fold"] == int(fold)])
        if len(missing):
            raise UsageError(
                f"{folder}: has no features for {len(missing)} of {len(due)} images of fold {fold} "
                f"({list_some(missing)}); {HOW}"
            )
    others = rows.index[~rows["fold"].isin([int(fold) for fold in folds])]
    if len(others):
        raise UsageError(f"{folder}: has features of images that are in none of its folds ({list_some(others)}); {HOW}")


def features_parent(config: TrainConfig) -> Path:
    """Return the cross-validation's folder that ``--seq_features`` means: an experiment's id, or the folder."""
    named, path = config.output_dir / config.seq_features, Path(config.seq_features)
    if not named.is_dir() and not path.is_dir():
        experiment_folder(config.output_dir, config.seq_features, "--seq_features")  # says which there are
    return named if named.is_dir() else path


def feature_folder(config: TrainConfig, kind: str) -> Path:
    """Return the folder of features of a kind that ``--seq_features`` means."""
    return features_parent(config) / FOLDERS[kind]


def open_features(config: TrainConfig, kind: str) -> FeatureSet:
    """Read features of a kind, checked against the dataset; errors as :func:`rsna.kinds.features.read_features`."""
    dataset = dataset_folder(config.data_input_folder, config.data_dataset)
    return read_features(feature_folder(config, kind), dataset, kind)


def features_hash(folder: Path) -> str:
    """Return the hash of what describes a folder of features."""
    return hashlib.sha256((folder / INFO_FILE).read_bytes()).hexdigest()
