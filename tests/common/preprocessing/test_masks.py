"""Masks taken into a dataset: placed as the images are, whole or not at all, and what bad ones say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from common.dicom.pictures import resize_area, resize_mask
from common.errors import UserError
from common.preprocessing.masks import check_source, take_masks

ROWS, COLUMNS, KINDS = 24, 36, 5


def metadata(*ids: str, top: int = 0, left: int = 0, rows: int = ROWS, columns: int = COLUMNS) -> pd.DataFrame:
    row = {
        "rows": ROWS,
        "columns": COLUMNS,
        "crop_top": top,
        "crop_left": left,
        "crop_rows": rows,
        "crop_columns": columns,
    }
    return pd.DataFrame([row] * len(ids), index=pd.Index(ids, name="id"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Masks of the images a and b, and one that belongs to no image."""
    folder = tmp_path / "source"
    folder.mkdir()
    for seed, name in enumerate(("a", "b", "stranger")):
        values = np.random.default_rng(seed).integers(0, 1 << KINDS, (ROWS, COLUMNS), dtype=np.uint8)
        np.save(folder / f"{name}.npy", values)
    return folder


def test_masks_are_taken_for_the_images_that_have_one_and_the_others_are_counted(source: Path, tmp_path: Path) -> None:
    said = take_masks(source, tmp_path / "masks", metadata("a", "b", "c"), 0, KINDS)
    assert said == "masks of 2 of 3 images; 1 masks fit no image"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["masks", "source"]
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == ["a.npy", "b.npy"]
    assert np.array_equal(np.load(tmp_path / "masks/a.npy"), np.load(source / "a.npy"))


def test_a_mask_is_cropped_by_its_images_box_and_each_pixel_of_the_square_is_the_nearest(
    source: Path, tmp_path: Path
) -> None:
    take_masks(source, tmp_path / "masks", metadata("a", top=4, left=6, rows=10, columns=30), 15, KINDS)
    box = np.load(source / "a.npy")[4:14, 6:36]
    expected = np.zeros((15, 15), np.uint8)
    for row in range(5):  # 10 x 30 becomes 5 x 15: the centre of target pixel i lies at 2 i + 1, between two pixels
        for column in range(15):
            expected[5 + row, column] = box[2 * row + 1, 2 * column + 1]
    assert np.array_equal(np.load(tmp_path / "masks/a.npy"), expected)


@pytest.mark.parametrize(("shape", "size"), [((24, 36), 96), ((51, 40), 17), ((40, 40), 33), ((512, 400), 96)])
def test_a_rectangle_of_a_mask_stays_where_the_rectangle_of_its_image_is(shape: tuple[int, int], size: int) -> None:
    mask = np.zeros(shape, np.uint8)
    mask[shape[0] // 4 : shape[0] // 2, shape[1] // 3 : shape[1] // 3 + shape[1] // 4] = 16
    picture = resize_area(mask.astype(np.int16) * 1000, size, 0)  # what is at least half within
    assert ((resize_mask(mask, size) == 16) ^ (picture >= 8000)).mean() < 0.03
    assert set(np.unique(resize_mask(mask, size))) == {0, 16}


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (np.zeros((ROWS, COLUMNS + 1), np.uint8), r"shape \(24, 37\) and type uint8; its image needs \(24, 36\)"),
        (np.zeros((ROWS, COLUMNS), np.int16), "type int16"),
        (np.full((ROWS, COLUMNS), 32, np.uint8), "the value 32; a bit for each of 5 kinds gives at most 31"),
        (None, "cut or damaged"),
    ],
)
def test_a_bad_mask_is_named_and_the_masks_that_were_there_stay(
    source: Path, tmp_path: Path, mask: np.ndarray | None, says: str
) -> None:
    take_masks(source, tmp_path / "masks", metadata("a"), 0, KINDS)
    if mask is None:
        (source / "b.npy").write_bytes((source / "b.npy").read_bytes()[:200])
    else:
        np.save(source / "b.npy", mask)
    with pytest.raises(UserError, match=rf"b\.npy: the mask .*{says}"):
        take_masks(source, tmp_path / "masks", metadata("a", "b"), 0, KINDS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["masks", "source"]
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["a.npy"]


def test_a_folder_without_a_mask_of_these_images_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--pre_masks=.*: none of its 3 \.npy files .* as other\.npy would be"):
        take_masks(source, tmp_path / "masks", metadata("other"), 0, KINDS)


def test_a_source_is_a_folder_outside_the_dataset_whose_masks_it_replaces(source: Path, tmp_path: Path) -> None:
    check_source(source, tmp_path / "dataset")
    with pytest.raises(UserError, match=r"--pre_masks=.*: is no folder"):
        check_source(tmp_path / "none", tmp_path / "dataset")
    with pytest.raises(UserError, match=r"--pre_masks=.*: is part of the dataset itself"):
        check_source(source, tmp_path)
