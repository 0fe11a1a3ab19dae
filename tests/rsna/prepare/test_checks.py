"""--pre_verify and --pre_audit on finished datasets, by command line, without their source."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import preprocessing
from common.datasets.image_files import load_image
from common.dicom.pictures import resize_area
from rsna_dataset import read_metadata
from tests.runs import failure


@pytest.fixture
def flags(small_dataset, tmp_path) -> list[str]:
    """A copy of the small dataset alone: there is no source."""
    shutil.copytree(small_dataset.folder, tmp_path / "datasets" / "phantom")
    return [f"--data_input_folder={tmp_path}", "--data_dataset=phantom", "--n_jobs=1"]


@pytest.fixture
def folder(flags, tmp_path) -> Path:
    return tmp_path / "datasets" / "phantom"


def state(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_a_whole_dataset_is_verified_without_its_source_and_left_alone(flags, folder, capsys) -> None:
    before = state(folder)
    assert preprocessing.main([*flags, "--pre_verify=1"]) == folder
    assert (
        f"{len(read_metadata(folder))} images are there, with the right shape, type and hash" in capsys.readouterr().err
    )
    assert state(folder) == before


def test_a_verification_of_a_form_that_the_dataset_does_not_have_is_refused(flags, folder, capsys) -> None:
    error = failure(preprocessing.main, [*flags, "--pre_verify=1", "--pre_size=512"], capsys)
    assert f"--pre_size: {folder} was made with 0" in error


def test_every_kind_of_fault_is_counted_listed_and_ends_with_exit_code_1(flags, folder, capsys) -> None:
    images = sorted((folder / "images").iterdir())[:5]
    images[0].unlink()
    images[1].write_bytes(images[1].read_bytes()[:-7])
    np.save(images[2], np.load(images[2])[:-1])
    np.save(images[3], np.load(images[3]).astype(np.int32))
    changed = np.load(images[4])
    changed[0, 0] += 1
    np.save(images[4], changed)
    error = failure(preprocessing.main, [*flags, "--pre_verify=1"], capsys, 1)
    assert f"5 of {len(read_metadata(folder))} images are not as they were written" in error
    for part in ("missing 1", "damaged 1", "shape or type 2", "pixels are others 1", images[4].stem):
        assert part in error
    listed = pd.read_csv(folder / "verify_failed.csv").set_index("id")["fault"]
    assert listed.to_dict() == dict(
        zip([path.stem for path in images], ["missing", "unreadable", "shape", "shape", "hash"], strict=True)
    )


def test_a_changed_fold_is_noticed(flags, folder, capsys) -> None:
    path = folder / "dataset_phantom_fold_0.csv"
    path.write_text(path.read_text().replace(",train,", ",valid,", 1))
    error = failure(preprocessing.main, [*flags, "--pre_verify=1"], capsys, 1)
    assert "a fold's CSV is not as it was written" in error


@pytest.mark.parametrize("flag", ["--pre_verify=1"])
def test_a_dataset_that_is_not_there_or_not_complete_can_t_be_verified(flags, folder, capsys, flag) -> None:
    error = failure(preprocessing.main, [*flags, "--data_dataset=other", flag], capsys)
    assert "no such dataset" in error
    (folder / "dataset.json").unlink()
    error = failure(preprocessing.main, [*flags, flag], capsys)
    assert "not complete" in error


def test_an_earlier_dataset_is_audited_without_its_source_and_left_alone(flags, folder, capsys) -> None:
    before = state(folder)
    preprocessing.main([*flags, "--pre_audit=1"])
    after = state(folder)
    assert {path for path in after if after[path] != before.get(path)} == {str(folder / "audit.html")}
    html = (folder / "audit.html").read_text()
    assert "is finished and left as it is" in capsys.readouterr().err
    assert not re.search(r"<script|(src|href)=\"(?!data:|#)|https?:", html)
    for part in ("files gave no image (truncated 1)", "wrap", "Prevalence by image", "fold 4", "Outliers", "published"):
        assert part in html
    assert html.count("<img ") == html.count(' alt="') > 10
    first = html
    preprocessing.main([*flags, "--pre_audit=1"])
    assert (folder / "audit.html").read_text() == first


def test_an_audit_with_other_options_makes_the_dataset_first(flags, folder, small_dataset, capsys) -> None:
    # It looks for the source, which isn't there, instead of auditing another dataset than asked for.
    error = failure(preprocessing.main, [*flags, "--pre_audit=1", "--pre_size=32"], capsys)
    assert "no competition data" in error
    assert not (folder / "audit.html").exists()


def test_a_cropped_dataset_keeps_boxes_a_sheet_and_a_true_audit(small_dataset, tmp_path, capsys) -> None:
    flags = [f"--data_input_folder={tmp_path}", "--data_dataset=head", "--n_jobs=1"]
    source = f"--pre_source={small_dataset.source}"
    folder = preprocessing.main([*flags, source, "--pre_crop=head", "--pre_size=48", "--pre_audit=1"])
    table, whole = read_metadata(folder, described=True), read_metadata(small_dataset.folder, described=True)
    pd.testing.assert_series_equal(table["picture_hash"], whole["picture_hash"])
    assert (table["crop_rows"] < table["rows"]).mean() > 0.9
    assert (folder / "crop_sheet.png").read_bytes().startswith(b"\x89PNG")
    assert "Cropped to the head" in (folder / "audit.html").read_text()
    for image_id, row in table.iloc[::40].iterrows():
        full = load_image(small_dataset.folder / "images" / f"{image_id}.npy")
        top, left = row["crop_top"], row["crop_left"]
        box = full[top : top + row["crop_rows"], left : left + row["crop_columns"]]
        stored = load_image(folder / "images" / f"{image_id}.npy")
        assert stored.shape == (48, 48)
        expected = resize_area(box, 48)
        assert (stored[stored > -500] - expected[stored > -500]).max(initial=0) < 300  # only air replaced other things
        assert np.median(np.abs(stored.astype(int) - expected)) < 30
    preprocessing.main([*flags, "--pre_verify=1"])
    assert "right shape, type and hash" in capsys.readouterr().err
    preprocessing.main([*flags, source])  # other options: the dataset changes, and what was said of it goes
    assert not (folder / "audit.html").exists()
    assert not (folder / "crop_sheet.png").exists()
