"""rsna/kinds/features.py: embeddings are written block by block, and taken only where no model saw the image before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from common.errors import UsageError, WorkError
from rsna.kinds.features import Block, FeatureSet, read_features, write_features
from rsna_dataset import LABELS, fold_hash, fold_numbers, fold_path, read_dataset_info, read_fold
from tests.conftest import SmallDataset

WIDTH = 5


@pytest.fixture
def dataset(small_dataset: SmallDataset, tmp_path: Path) -> Path:
    """Tables of the small dataset that may be changed, without its images."""
    folder = tmp_path / "datasets" / "phantom"
    shutil.copytree(small_dataset.folder, folder, ignore=shutil.ignore_patterns("images"))
    return folder


def blocks(dataset: Path, size: int = 7) -> list[Block]:
    """Blocks of numbers that tell which image they are of: the place in its fold."""
    found = []
    for fold in fold_numbers(dataset, "phantom"):
        rows = read_fold(dataset, "phantom", fold)
        ids = rows.index[rows["sample_type"] == "valid"].tolist()
        for start in range(0, len(ids), size):
            part = ids[start : start + size]
            places = np.arange(start, start + len(part), dtype=np.float32)[:, None]
            found.append(Block(part, places + 100 * fold + np.zeros(WIDTH), places / 7 - np.arange(6), fold))
    return found


def document(dataset: Path, kind: str = "out_of_fold") -> dict:
    folds = {
        str(fold): {"hash": fold_hash(read_fold(dataset, "phantom", fold)), "weights": f"fold_{fold}/best.pt"}
        for fold in fold_numbers(dataset, "phantom")
    }
    info = read_dataset_info(dataset)
    return {"kind": kind, "dataset": "phantom", "dataset_hash": info["hash"], "folds": folds}


def write(folder: Path, dataset: Path, made: list[Block] | None = None, kind: str = "out_of_fold") -> Path:
    made = blocks(dataset) if made is None else made
    return write_features(folder, made, sum(len(block.ids) for block in made), WIDTH, document(dataset, kind))


def refused(folder: Path, dataset: Path, kind: type[Exception] = UsageError) -> str:
    with pytest.raises(kind) as caught:
        read_features(folder, dataset)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_was_written_in_blocks_is_read_as_one(dataset: Path, tmp_path: Path) -> None:
    found = read_features(write(tmp_path / "features", dataset), dataset)
    assert isinstance(found, FeatureSet)
    assert found.features.dtype == np.float16
    assert found.logits.dtype == np.float32
    assert found.num_features == WIDTH
    made = blocks(dataset)
    assert found.rows.index.tolist() == [name for block in made for name in block.ids]
    np.testing.assert_array_equal(found.features, np.concatenate([block.features for block in made]).astype(np.float16))
    np.testing.assert_array_equal(found.logits, np.concatenate([block.logits for block in made]).astype(np.float32))
    assert found.rows["fold"].tolist() == [block.fold for block in made for _ in block.ids]
    assert sorted(path.name for path in (tmp_path / "features").iterdir()) == [
        "features.json",
        "features.npy",
        "logits.npy",
        "rows.csv",
    ]


def test_features_that_are_not_out_of_fold_are_refused(dataset: Path, tmp_path: Path) -> None:
    assert "'in_sample'" in refused(write(tmp_path / "features", dataset, kind="in_sample"), dataset)


def test_features_of_a_fold_that_changed_since_are_refused(dataset: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "features", dataset)
    path = fold_path(dataset, "phantom", 1)
    rows = pd.read_csv(path, dtype={"patient_id": str})
    place = rows.index[rows["sample_type"] == "train"][0]
    rows.loc[place, "sample_type"] = "valid"
    rows.to_csv(path, index=False)
    message = refused(folder, dataset)
    assert str(path) in message
    assert "changed since fold 1 was trained" in message


def test_missing_images_are_counted_and_named(dataset: Path, tmp_path: Path) -> None:
    made = blocks(dataset)
    message = refused(write(tmp_path / "features", dataset, made[1:]), dataset)
    assert "has no features for 7 of" in message
    assert made[0].ids[0] in message


def test_an_image_under_another_fold_than_the_one_that_holds_it_out_is_refused(dataset: Path, tmp_path: Path) -> None:
    made = blocks(dataset)
    made[0] = Block(made[0].ids, made[0].features, made[0].logits, fold=1)
    assert "has no features for 7 of" in refused(write(tmp_path / "features", dataset, made), dataset)


def test_images_that_no_fold_holds_out_are_refused(dataset: Path, tmp_path: Path) -> None:
    made = [*blocks(dataset), Block(["ID_foreign"], np.zeros((1, WIDTH)), np.zeros((1, 6)), fold=-1)]
    assert "ID_foreign" in refused(write(tmp_path / "features", dataset, made), dataset)


def test_features_of_another_dataset_are_refused(dataset: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "features", dataset)
    info = json.loads((dataset / "dataset.json").read_text())
    (dataset / "dataset.json").write_text(json.dumps(info | {"hash": "0" * 32}))
    assert "another dataset or an earlier state" in refused(folder, dataset)


def test_a_folder_without_features_says_how_to_make_them(dataset: Path, tmp_path: Path) -> None:
    assert "--features=1 makes them" in refused(tmp_path, dataset)


@pytest.mark.parametrize("name", ["features.npy", "logits.npy", "rows.csv", "features.json"])
def test_a_cut_file_is_one_line(dataset: Path, tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "features", dataset)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    assert "damaged" in refused(folder, dataset, WorkError)


@pytest.mark.parametrize("name", ["features.npy", "logits.npy", "rows.csv"])
def test_more_than_features_of_the_datasets_images_is_refused_before_it_is_read(
    dataset: Path, tmp_path: Path, name: str
) -> None:
    folder = write(tmp_path / "features", dataset)
    with (folder / name).open("r+b") as file:
        file.truncate(9 * 10**11)  # a hole, it takes no disk
    assert f"damaged ({name}: larger than" in refused(folder, dataset, WorkError)


@pytest.mark.parametrize("value", [0, 10**9, -1, "5", 1.5])
def test_a_width_that_no_network_has_is_refused(dataset: Path, tmp_path: Path, value) -> None:
    folder = write(tmp_path / "features", dataset)
    known = json.loads((folder / "features.json").read_text())
    (folder / "features.json").write_text(json.dumps(known | {"num_features": value}))
    assert "damaged" in refused(folder, dataset, WorkError)


@pytest.mark.parametrize("fault", ["twice", "too few", "too wide", "infinite"])
def test_what_does_not_fit_leaves_nothing_that_could_be_read(dataset: Path, tmp_path: Path, fault: str) -> None:
    made = blocks(dataset)
    count = sum(len(block.ids) for block in made)
    first = made[0]
    if fault == "twice":
        made[1] = Block(first.ids, made[1].features, made[1].logits, 0)
    elif fault == "too few":
        made = made[1:]
    else:
        features = np.zeros((len(first.ids), 2 * WIDTH)) if fault == "too wide" else first.features * 0 + 1e6
        made[0] = Block(first.ids, features, first.logits, 0)
    folder = tmp_path / "features"
    with pytest.raises(WorkError):
        write_features(folder, made, count, WIDTH, document(dataset))
    assert list(folder.iterdir()) == []


def test_labels_are_not_a_part_of_the_features(dataset: Path, tmp_path: Path) -> None:
    columns = pd.read_csv(write(tmp_path / "features", dataset) / "rows.csv").columns
    assert not set(columns) & set(LABELS)
