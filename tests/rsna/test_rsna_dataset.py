"""rsna_dataset.py: the preprocessed dataset on disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.datasets.csv_tables import check_image_id
from common.errors import UsageError, WorkError
from rsna.forms import read_competition_labels
from rsna_dataset import (
    LABELS,
    RSNADataset,
    dataset_folder,
    fold_path,
    image_path,
    read_dataset_info,
    read_fold,
    read_metadata,
)
from tests import PROJECT

FIRST, SECOND = "ID_00000000a", "ID_00000000b"


def write_rows(path: Path, rows: list[str], header: str) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


FOLD_HEADER = ",".join(["id", "sample_type", *LABELS, "patient_id", "study_id"])
FOLD_LINES = [f"{FIRST},train,0,1,0,0,0,1,NA,S1", f"{SECOND},valid,0,0,0,0,0,0,007,S2"]
METADATA_HEADER = (
    "id,split,patient_id,study_id,series_id,slice_index,position_mm,row_spacing_mm,column_spacing_mm,rows,columns,mended,"
    + ",".join(LABELS)
)
METADATA_LINES = [
    f"{FIRST},train,NA,S1,R1,0,-12.5,0.5,0.5,4,4,wrap;padding,0,1,0,0,0,1",
    f"{SECOND},test,007,S2,R2,1,,,,4,4,,,,,,,",
]


@pytest.fixture
def input_folder(tmp_path) -> Path:
    """Holds the dataset demo with two images, folds 0 and 10."""
    folder = tmp_path / "datasets" / "demo"
    (folder / "images").mkdir(parents=True)
    for image_id in (FIRST, SECOND):
        np.save(folder / "images" / f"{image_id}.npy", np.full((4, 4), -1000, np.int16))
    (folder / "dataset.json").write_text('{"format_version": 1, "source_kind": "phantom", "image_form": "hu"}')
    write_rows(folder / "metadata.csv", METADATA_LINES, METADATA_HEADER)
    for fold in (0, 10):
        write_rows(fold_path(folder, "demo", fold), FOLD_LINES, FOLD_HEADER)
    return tmp_path


@pytest.fixture
def folder(input_folder) -> Path:
    return dataset_folder(input_folder, "demo")


def test_a_dataset_and_its_files_have_the_designs_names(tmp_path) -> None:
    folder = dataset_folder(tmp_path, "demo")
    assert folder == tmp_path / "datasets" / "demo"
    assert fold_path(folder, "demo", 3) == folder / "dataset_demo_fold_3.csv"
    assert image_path(folder, FIRST) == folder / "images" / f"{FIRST}.npy"


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/etc", ".hidden", "a b", "a\n", "a" * 101, "ü"])
def test_a_dataset_name_cannot_leave_its_folder(tmp_path, name) -> None:
    with pytest.raises(UsageError, match="--data_dataset="):
        dataset_folder(tmp_path, name)


@pytest.mark.parametrize("image_id", ["", ".", "..", "../x", "a/b", "a\\b", "/etc/x", ".x", "a b", "a\n", "a\0", "ü"])
def test_an_image_id_cannot_leave_its_folder(tmp_path, image_id) -> None:
    for check in (check_image_id, lambda one: image_path(tmp_path, one)):
        with pytest.raises(WorkError, match="is not allowed") as caught:
            check(image_id)
        assert "\n" not in str(caught.value)


@given(st.text(max_size=12))
def test_an_id_that_is_allowed_names_a_file_in_the_images_folder(image_id) -> None:
    folder = Path("/x/datasets/demo")
    try:
        path = image_path(folder, image_id)
    except WorkError:
        return
    assert path.resolve().parent == folder / "images"
    assert path.name == f"{image_id}.npy"


def test_a_fold_is_read_by_id_with_types(folder) -> None:
    rows = read_fold(folder, "demo", 0)
    assert rows.index.name == "id"
    assert rows.index.tolist() == [FIRST, SECOND]
    assert rows["sample_type"].tolist() == ["train", "valid"]
    assert rows[list(LABELS)].to_numpy().tolist() == [[0, 1, 0, 0, 0, 1], [0] * 6]
    assert (rows[list(LABELS)].dtypes == np.int8).all()
    assert rows["patient_id"].tolist() == ["NA", "007"], "identifiers are texts, whatever they look like"
    assert rows["study_id"].tolist() == ["S1", "S2"]


def test_metadata_is_read_by_id_and_unknown_labels_and_positions_are_nan(folder) -> None:
    table = read_metadata(folder)
    assert table.index.tolist() == [FIRST, SECOND]
    assert table["patient_id"].tolist() == ["NA", "007"]
    assert table["mended"].tolist() == ["wrap;padding", ""]
    assert table["position_mm"].iloc[0] == -12.5
    assert np.isnan(table["position_mm"].iloc[1])
    assert table.loc[FIRST, list(LABELS)].tolist() == [0, 1, 0, 0, 0, 1]
    assert table.loc[SECOND, list(LABELS)].isna().all()


def test_a_patient_on_both_sides_of_an_edited_fold_is_a_warning(folder, caplog) -> None:
    assert read_fold(folder, "demo", 0)["patient_id"].nunique() == 2
    assert not caplog.records
    write_rows(fold_path(folder, "demo", 0), [FOLD_LINES[0], FOLD_LINES[1].replace(",007,", ",NA,")], FOLD_HEADER)
    read_fold(folder, "demo", 0)
    assert "1 patients (or groups of them) stand in both train and valid" in caplog.text


def test_a_missing_fold_lists_those_that_exist(folder) -> None:
    with pytest.raises(UsageError, match=r"--data_fold=7: .* 0, 10$"):
        read_fold(folder, "demo", 7)


def test_a_missing_dataset_lists_those_that_exist_and_the_nearest(input_folder) -> None:
    for read in (read_dataset_info, read_metadata, lambda one: read_fold(one, "deemo", 0)):
        with pytest.raises(
            UsageError, match=r"--data_dataset=deemo: .*there are demo.*preprocessing\.py.*'demo'\?"
        ) as e:
            read(dataset_folder(input_folder, "deemo"))
        assert "\n" not in str(e.value)


def test_where_there_is_no_dataset_at_all_the_command_to_make_one_is_named(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"--data_dataset=demo: .*there are none.*preprocessing\.py"):
        read_fold(dataset_folder(tmp_path / "nowhere", "demo"), "demo", 0)


def test_a_dataset_that_was_not_finished_is_not_used(folder) -> None:
    (folder / "dataset.json").unlink()
    with pytest.raises(UsageError, match=r"not complete; run python preprocessing\.py"):
        read_fold(folder, "demo", 0)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "damaged"),
        (b"{", "damaged"),
        (b"\xff", "damaged"),
        (b"[]", "damaged"),
        (b"{}", "damaged"),
        (b'{"format_version": 1}', "damaged"),
        (b'{"format_version": 2, "image_form": "hu"}', "another version"),
        (b'{"format_version": "1", "image_form": "hu"}', "another version"),
        (b'{"format_version": 1, "image_form": "png"}', "another version"),
        (b'{"format_version": 1, "image_form": ["hu"]}', "another version"),
    ],
)
def test_a_damaged_or_newer_dataset_description_is_one_line(folder, content, part) -> None:
    (folder / "dataset.json").write_bytes(content)
    with pytest.raises(WorkError, match=part) as caught:
        read_dataset_info(folder)
    assert str(caught.value).startswith(f"{folder / 'dataset.json'}: ")
    assert "preprocessing.py" in str(caught.value)


def change_line(old: str, new: str) -> list[str]:
    changed = [line.replace(old, new) for line in FOLD_LINES]
    assert changed != FOLD_LINES
    return changed


BAD_FOLDS = {
    "an empty file": (b"", "not a CSV file"),
    "no text": (b"\xff\xfe\xfa", "not a CSV file"),
    "another header": ((FOLD_LINES, "a,b"), "has no column id, sample_type, patient_id"),
    "a column is missing": ((FOLD_LINES, FOLD_HEADER.replace("subdural", "x")), "has no column subdural"),
    "an image without labels": ([f"{FIRST},train,,,,,,,P,S"], "row 2: epidural is empty"),
    "one label is empty": ([*FOLD_LINES, f"{FIRST}x,train,0,0,0,0,,0,P,S"], "row 4: subdural is empty"),
    "a label is a text": ([f"{FIRST},train,0,0,0,0,yes,0,P,S"], "row 2: subdural 'yes' is not a number"),
    "a label is two": ([f"{FIRST},train,0,0,0,0,2,0,P,S"], f"image {FIRST}: subdural 2 is not 0 or 1"),
    "a label is a half": ([f"{FIRST},train,0,0,0,0,0.5,0,P,S"], "damaged"),
    "a label is huge": ([f"{FIRST},train,0,0,0,0,99999,0,P,S"], "damaged"),
    "another sample type": (change_line("valid", "test"), f"image {SECOND}: sample_type test is not train or valid"),
    "an id twice": ([FOLD_LINES[0], FOLD_LINES[0]], f"image {FIRST} stands there twice"),
    "an id that climbs": (change_line(SECOND, "../../x"), "row 3: image id '../../x' is not allowed"),
    "a field too many in a row": ([FOLD_LINES[0], f"{SECOND},valid,0,0,0,0,0,0,0,P,S"], "line 3"),
    "a field too many in each row": ([f"{line},x" for line in FOLD_LINES], "row 2: has more fields than the header"),
    "a cut row": ([FOLD_LINES[0], f"{SECOND},valid,0,0,0"], "row 3: subarachnoid is empty"),
}


@pytest.mark.parametrize("name", BAD_FOLDS)
def test_a_fold_with_a_fault_is_one_line_that_names_file_and_fault(folder, name) -> None:
    content, part = BAD_FOLDS[name]
    path = fold_path(folder, "demo", 0)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        write_rows(path, *(content if isinstance(content, tuple) else (content, FOLD_HEADER)))
    with pytest.raises(WorkError) as caught:
        read_fold(folder, "demo", 0)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert part in message
    assert "\n" not in message


def test_metadata_with_a_fault_is_one_line_that_names_it(folder) -> None:
    path = folder / "metadata.csv"
    write_rows(path, [METADATA_LINES[0], METADATA_LINES[1].replace(",4,4,", ",4,,")], METADATA_HEADER)
    with pytest.raises(WorkError, match=r"row 3: columns is empty; run python preprocessing\.py again"):
        read_metadata(folder)
    write_rows(path, METADATA_LINES, METADATA_HEADER.replace("mended", "mendet"))
    with pytest.raises(WorkError, match=r"has no column mended.*'mendet'"):
        read_metadata(folder)
    path.unlink()
    with pytest.raises(WorkError, match=r"metadata.csv: cannot be read .*; run python preprocessing.py again"):
        read_metadata(folder)


class Scale:
    """The shortest pipeline there is: one channel, HU / 1000."""

    def set_random_seed(self, seed: int) -> None:
        """Draws nothing."""

    def __call__(self, *, image: np.ndarray) -> dict[str, np.ndarray]:
        return {"image": (image[..., None] / 1000).astype(np.float32)}


def test_the_dataset_gives_each_row_of_a_fold_with_its_labels(folder) -> None:
    rows = read_fold(folder, "demo", 0)
    dataset = RSNADataset(folder, rows, Scale(), image_size=2, seed=0)
    assert len(dataset) == 2
    assert dataset.image_form == "hu"
    for index, image_id in enumerate(rows.index):
        sample = dataset[index]
        assert sample.image_id == image_id
        assert sample.target.dtype == np.float32
        assert sample.target.tolist() == rows.loc[image_id, list(LABELS)].tolist()
        np.testing.assert_array_equal(sample.image, np.full((1, 2, 2), -1, np.float32))


def test_images_without_known_labels_have_no_target(folder) -> None:
    table = read_metadata(folder)
    for rows in (
        table.assign(**dict.fromkeys(LABELS, np.nan)),
        table.drop(columns=list(LABELS)),
        table.drop(columns="any"),
    ):
        assert RSNADataset(folder, rows, Scale(), image_size=0, seed=0)[1].target is None
    assert np.isnan(RSNADataset(folder, table, Scale(), image_size=0, seed=0)[1].target).all()
    labelled = RSNADataset(folder, table[table["split"] == "train"], Scale(), image_size=0, seed=0)
    assert labelled[0].target.tolist() == [0, 1, 0, 0, 0, 1]


def test_a_dataset_of_windowed_pictures_says_so(folder) -> None:
    info = read_dataset_info(folder) | {"image_form": "window"}
    (folder / "dataset.json").write_text(json.dumps(info))
    assert RSNADataset(folder, read_metadata(folder), Scale(), image_size=0, seed=0).image_form == "window"


def test_what_preprocessing_writes_is_what_is_read(small_dataset) -> None:
    """The phantom: every labelled image with a picture is in each fold once, with the labels of the train CSV."""
    table = read_metadata(small_dataset.folder)
    labels = read_competition_labels(small_dataset.source / "stage_2_train.csv")
    train = table[table["split"] == "train"]
    assert len(train) > 100
    assert all(image_path(small_dataset.folder, one).is_file() for one in table.index)
    valid = []
    for fold in range(5):
        rows = read_fold(small_dataset.folder, "phantom", fold)
        assert set(rows.index) == set(train.index)
        pd.testing.assert_frame_equal(
            rows[list(LABELS)], labels.loc[rows.index], check_names=False, check_index_type=False
        )
        assert not set(rows[rows["sample_type"] == "train"]["patient_id"]) & set(
            rows[rows["sample_type"] == "valid"]["patient_id"]
        )
        valid += rows.index[rows["sample_type"] == "valid"].tolist()
    assert sorted(valid) == sorted(train.index)


def test_formats_need_neither_torch_nor_albumentations(tmp_path) -> None:
    """Preprocessing imports these modules in many processes."""
    code = (
        "import sys, rsna_dataset, rsna.forms, rsna.prepare.job; "
        "print([m for m in ('torch', 'albumentations', 'timm') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True, env={"PYTHONPATH": "."}
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
