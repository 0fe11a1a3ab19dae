"""rsna/prepare/competition.py: where the competition's files lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from rsna.prepare.competition import COMPETITION_FOLDER, find_competition

FIRST = "ID_00000000a"


def make_competition(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        if name.endswith(".csv"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("ID,Label\n")
        else:
            path.mkdir(parents=True)
            (path / f"{FIRST}.dcm").write_bytes(b"")


@pytest.mark.parametrize("nested", ["", COMPETITION_FOLDER])
@pytest.mark.parametrize("suffix", ["", "_images"])
def test_the_competition_is_found_by_either_naming_and_nested(tmp_path, nested, suffix) -> None:
    root = tmp_path / nested
    images, test = f"stage_2_train{suffix}", f"stage_2_test{suffix}"
    make_competition(root, images, "stage_2_train.csv", test, "stage_2_sample_submission.csv")
    source = find_competition(tmp_path)
    assert source.stage == 2
    assert source.tree.root / source.train_images == root / images
    assert source.train_csv == root / "stage_2_train.csv"
    assert source.tree.root / source.test_images == root / test
    assert source.sample_submission == root / "stage_2_sample_submission.csv"


def test_of_several_stages_the_highest_with_images_and_csv_is_taken(tmp_path) -> None:
    make_competition(tmp_path, "stage_1_train_images", "stage_1_train.csv")
    make_competition(tmp_path, "stage_2_train.csv", "stage_2_test_images", "stage_2_sample_submission.csv")
    source = find_competition(tmp_path)
    assert (source.stage, source.train_images) == (1, "stage_1_train_images")
    assert source.test_images == "stage_2_test_images"
    make_competition(tmp_path, "stage_2_train")
    assert find_competition(tmp_path).stage == 2


def test_test_images_of_stage_1_are_not_taken_beside_the_training_images_of_stage_2(tmp_path) -> None:
    """In stage 2 they are training images."""
    make_competition(tmp_path, "stage_2_train", "stage_2_train.csv")
    make_competition(tmp_path, "stage_1_test_images", "stage_1_sample_submission.csv")
    source = find_competition(tmp_path)
    assert (source.test_images, source.sample_submission) == (None, None)


def test_folders_without_images_or_csv_are_no_competition(tmp_path) -> None:
    assert find_competition(tmp_path) is None
    assert find_competition(tmp_path / "missing") is None
    (tmp_path / "stage_2_train").mkdir()
    (tmp_path / "stage_2_train.csv").write_text("ID,Label\n")
    assert find_competition(tmp_path) is None
    make_competition(tmp_path, "stage_1_train_images")
    assert find_competition(tmp_path) is None
