"""Features on disk: embeddings and logits of slices, by models that were not trained on these slices.

A folder of features has

- ``features.npy``: float16 (N, F), ``logits.npy``: float32 (N, 6)
- ``rows.csv``: id and fold of the N images, in the order of the arrays; fold -1 for an image in no fold
- ``lineage.npz``: what the networks learnt from, row by row
- ``features.json``: description and hashes of the other files, written last.

A second stage must not learn from other features: on its own training images a network looks more certain than it is.
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
FEWEST_FOLDS = 3  # in a cross-validation, so that any two networks have training images in common
FOLDERS = {OUT_OF_FOLD: "features/train", TEST: "features/test"}  # inside a cross-validation's folder
NO_FOLD = -1
FEATURES_FILE, LOGITS_FILE, ROWS_FILE, INFO_FILE = "features.npy", "logits.npy", "rows.csv", "features.json"
LINEAGE_FILE = "lineage.npz"
HASHED_ROWS = 2**14
MOST_FEATURES = 2**16  # timm's widest network has about 5,000
MOST_ROW_BYTES = 300  # of rows.csv: an image's id is the name of its file
MOST_HEADER_BYTES = 4096
HOW = "python predict.py --net_weight_file=<a cross-validation's folder> --features=1 makes them"


@dataclass(frozen=True)
class FeatureSet:
    """Features of N images. ``rows`` (index ``id``, column ``fold``) has the order of the arrays.

    ``features`` (N, F) float16 and ``logits`` (N, 6) float32 are memory maps of the files. ``document`` is the content
    of features.json.
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
    """Features of n images of one fold: ``ids`` (n,), ``features`` (n, F), ``logits`` (n, 6) and the fold's number."""

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
    """Write ``count`` rows, block by block, whole or not at all; return the folder.

    ``document`` is the content of features.json without format, size and hashes. ``lineages``: what the network of each
    fold learnt from, if known; all networks saw the images of :data:`NO_FOLD`. Raises WorkError for another number of
    rows, an image twice, or values that float16 can't hold.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INFO_FILE).unlink(missing_ok=True)  # nobody reads the rest of a killed writer without it
    ids: list[str] = []
    folds: list[int] = []
    digests = {FEATURES_FILE: xxhash.xxh3_128(), LOGITS_FILE: xxhash.xxh3_128()}
    with ExitStack() as stack:
        # Plain writes: on a full disk a memory map would kill the process.
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
    """Raise ValueError if a file changed since it was written; earlier versions stored no hashes.

    If the order of rows.csv changed, images would get each other's features.
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
    """Raise ValueError, before reading them, if the files are larger than features of this many images can be."""
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
    """Return a block's features as float16; WorkError, naming ``folder``, for values that float16 can't hold."""
    with np.errstate(over="ignore"):
        features = np.asarray(block.features).astype(np.float16)
    wrong = ~np.isfinite(features).all(axis=-1)
    if wrong.any():
        raise WorkError(f"{folder}: the features of image {block.ids[int(np.argmax(wrong))]} exceed float16")
    return features


def features_in_memory(blocks: Iterable[Block], folder: Path) -> FeatureSet:
    """Return features without writing them, with the same values as from disk.

    Raises WorkError, naming ``folder``, as :func:`write_features`.
    """
    parts = list(blocks)
    rows = pd.DataFrame({"fold": NO_FOLD}, index=pd.Index([name for part in parts for name in part.ids], name="id"))
    features = np.concatenate([_stored(part, folder) for part in parts])
    return FeatureSet(rows, features, np.concatenate([part.logits for part in parts]).astype(np.float32), {})


def read_features(folder: Path, dataset: Path, kind: str = OUT_OF_FOLD) -> FeatureSet:
    """Read and check a folder of features of the dataset in the folder ``dataset``.

    Raises UsageError if there are no features, if they are of another kind or dataset, if the folds changed since, or
    if images of the folds are missing. Raises WorkError for damaged files.
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
    """Read features.json; UsageError if it is missing or of another version, WorkError if it is damaged."""
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
    """Raise UsageError unless ``rows`` are exactly the images that the folds hold out now, each with its fold."""
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
    """Return the cross-validation's folder that ``--seq_features`` names, by id or by path."""
    named, path = config.output_dir / config.seq_features, Path(config.seq_features)
    if not named.is_dir() and not path.is_dir():
        experiment_folder(config.output_dir, config.seq_features, "--seq_features")  # its error lists the experiments
    return named if named.is_dir() else path


def feature_folder(config: TrainConfig, kind: str) -> Path:
    """Return the folder of features (out of fold or test) in the cross-validation that ``--seq_features`` names."""
    return features_parent(config) / FOLDERS[kind]


def open_features(config: TrainConfig, kind: str) -> FeatureSet:
    """Read the features that ``--seq_features`` names and check them; errors as :func:`read_features`."""
    dataset = dataset_folder(config.data_input_folder, config.data_dataset)
    return read_features(feature_folder(config, kind), dataset, kind)


def features_hash(folder: Path) -> str:
    """Return the sha256 of features.json, which holds the hashes of the other files."""
    return hashlib.sha256((folder / INFO_FILE).read_bytes()).hexdigest()
