"""From the competition's files to a dataset: Hounsfield units, order, folds, second runs, and what bad input says."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xxhash
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

import preprocessing
from common.dicom.reading import quiet_pydicom
from common.errors import UsageError
from rsna_dataset import LABELS, read_dataset_info, read_fold, read_holdout, read_metadata
from tests import PROJECT
from tests.runs import failure

CANARY = "CANARY^SECRET"
HEAD = 1064  # stored value of 40 HU at the usual intercept
JOURNAL = ".converted.csv"


def picture(seed: int, rows: int = 24, columns: int = 24) -> np.ndarray:
    """Stored 12-bit values around 40 HU (intercept -1024), another picture for each seed."""
    return np.random.default_rng(seed).integers(HEAD - 40, HEAD + 40, (rows, columns)).astype(np.uint16)


def dicom_file(
    path: Path, stored: np.ndarray, patient: str, study: str, position: tuple[float, ...], **header: object
) -> None:
    """Write a CT slice; ``header`` replaces elements."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[path.stem])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    elements = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "Modality": "CT",
        "PatientID": patient,
        "PatientName": CANARY,
        "StudyInstanceUID": study,
        "SeriesInstanceUID": f"ID_b{study[4:]}",
        "ImagePositionPatient": [f"{value:.6f}" for value in position],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [0.5, 0.25],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": stored.shape[0],
        "Columns": stored.shape[1],
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": int(stored.dtype.kind == "i"),
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
    } | header
    with quiet_pydicom():  # the competition's identifiers are no UIDs
        for name, value in elements.items():
            setattr(dataset, name, value)
        dataset.PixelData = stored.tobytes()
        dataset["PixelData"].VR = "OW"
        dataset.save_as(path, enforce_file_format=True)


@dataclass
class Source:
    """A competition folder that a test fills; ``rows`` are the labels of its training images."""

    folder: Path
    rows: dict[str, tuple[int, ...]] = field(default_factory=dict)
    test_ids: list[str] = field(default_factory=list)

    def add(
        self,
        name: str,
        patient: str,
        *,
        stored: np.ndarray | None = None,
        positives: tuple[int, ...] = (0, 0, 0, 0, 0, 0),
        split: str = "train",
        study: str | None = None,
        position: tuple[float, ...] = (0, 0, 0),
        **header: object,
    ) -> Path:
        folder = self.folder / f"stage_2_{split}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.dcm"
        stored = picture(abs(hash_of(name))) if stored is None else stored
        dicom_file(path, stored, patient, study or f"ID_aa{patient[3:]}", position, **header)
        if split == "train":
            self.rows[name] = positives
        else:
            self.test_ids.append(name)
        return path

    def write_tables(self) -> None:
        lines = [f"{i}_{label},{v}" for i, values in self.rows.items() for label, v in zip(LABELS, values, strict=True)]
        (self.folder / "stage_2_train.csv").write_text("\n".join(["ID,Label", *lines]) + "\n")
        if self.test_ids:
            lines = [f"{image_id}_{label},0.5" for image_id in self.test_ids for label in LABELS]
            (self.folder / "stage_2_sample_submission.csv").write_text("\n".join(["ID,Label", *lines]) + "\n")

    def flags(self, *more: str) -> list[str]:
        return [
            f"--data_input_folder={self.folder.parent / 'input'}",
            f"--pre_source={self.folder}",
            "--data_dataset=small",
            "--n_jobs=1",
            "--pre_folds=2",
            "--pre_max_failed=1",
            *more,
        ]

    def run(self, *more: str) -> Path:
        self.write_tables()
        return preprocessing.main(self.flags(*more))


def hash_of(name: str) -> int:
    return int.from_bytes(name.encode(), "big") % 2**32


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Four patients with two slices each, and a test image."""
    made = Source(tmp_path / "source")
    for patient in range(4):
        for place in range(2):
            positives = (0, 0, 0, 0, place, place)
            made.add(
                f"ID_0000000{patient}{place}", f"ID_{patient:08x}", positives=positives, position=(0, 0, 5.0 * place)
            )
    made.add("ID_0000000f0", "ID_00000009", split="test")
    return made


def image(folder: Path, name: str) -> np.ndarray:
    return np.load(folder / "images" / f"{name}.npy", allow_pickle=False)


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file of a dataset with the number of its node and its time: a file written again has another one."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def contents(folder: Path) -> dict[str, bytes]:
    """What a dataset holds, but for its journal: the order of finished chunks is nobody's business."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != JOURNAL
    }


# --- images -----------------------------------------------------------------------------------------------------------


def test_stored_values_become_hounsfield_units_by_hand(source: Source) -> None:
    unsigned = np.full((24, 24), 1064, np.uint16)
    unsigned[0, :3] = (0, 24, 4095)
    source.add("ID_00000000a", "ID_00000001", stored=unsigned)  # intercept -1024
    source.add("ID_00000000b", "ID_00000001", stored=unsigned, RescaleSlope=2, RescaleIntercept=-1000)
    signed = np.full((24, 24), 40, np.int16)
    signed[0, 0] = -1000
    source.add("ID_00000000c", "ID_00000001", stored=signed, BitsStored=16, HighBit=15, RescaleIntercept=0)
    folder = source.run()
    assert image(folder, "ID_00000000a").dtype == np.int16
    assert image(folder, "ID_00000000a")[0, :4].tolist() == [-1024, -1000, 3071, 40]
    assert image(folder, "ID_00000000b")[0, :4].tolist() == [-1000, -952, 7190, 1128]
    assert image(folder, "ID_00000000c")[0, :2].tolist() == [-1000, 40]
    assert read_metadata(folder).loc[["ID_00000000a", "ID_00000000b", "ID_00000000c"], "mended"].tolist() == [
        "",
        "",
        "",
    ]


def test_padding_outside_the_circle_becomes_air_and_is_marked(source: Source) -> None:
    stored = np.full((24, 24), 1064, np.int16)
    stored[0, 0] = -2000
    source.add("ID_00000000a", "ID_00000001", stored=stored, BitsStored=16, HighBit=15)
    folder = source.run()
    assert image(folder, "ID_00000000a")[0, :2].tolist() == [-1024, 40]
    assert read_metadata(folder).loc["ID_00000000a", "mended"] == "padding"


def test_wrapped_values_are_mended_and_marked(source: Source) -> None:
    # DATA: add 1000, take 4096 off what reaches it, intercept -1000; so 3096 is air (-1000) and 40 stays 40.
    stored = np.full((24, 24), 3096, np.uint16)
    stored[8:16, 8:16] = picture(1, 8, 8) - 1024
    stored[0, :2] = (40, 4095)
    source.add("ID_00000000a", "ID_00000001", stored=stored, RescaleIntercept=0)
    folder = source.run()
    assert image(folder, "ID_00000000a")[0, :3].tolist() == [40, -1, -1000]
    assert read_metadata(folder).loc["ID_00000000a", "mended"] == "wrap"


def test_a_picture_that_is_not_square_stays_so_unless_a_size_is_asked_for(source: Source) -> None:
    stored = np.full((20, 40), 1064, np.uint16)
    source.add("ID_00000000a", "ID_00000001", stored=stored)
    folder = source.run()
    assert image(folder, "ID_00000000a").shape == (20, 40)
    assert read_metadata(folder).loc["ID_00000000a", ["rows", "columns"]].tolist() == [20, 40]

    resized = image(source.run("--pre_size=20"), "ID_00000000a")
    expected = np.full((20, 20), -1024)  # 40 columns become 20, 20 rows become 10, in the middle
    expected[5:15] = 40
    np.testing.assert_array_equal(resized, expected)
    assert resized.dtype == np.int16


@pytest.mark.parametrize(
    ("form", "dtype", "expected"),
    [
        ("float32", np.float32, [[0.0, 0.1], [0.5, 0.3], [1.0, 0.5]]),
        ("uint8", np.uint8, [[0, 26], [128, 76], [255, 128]]),  # 25.5, 76.5 and 127.5: to the even one
    ],
)
def test_windows_are_stored_as_channels(source: Source, form: str, dtype: type, expected: list[list[float]]) -> None:
    stored = np.full((24, 24), 1024, np.uint16)
    stored[0, :3] = np.array([0, 40, 80]) + 1024
    source.add("ID_00000000a", "ID_00000001", stored=stored)
    folder = source.run("--pre_window=40/80,80/200", f"--pre_type={form}")
    shown = image(folder, "ID_00000000a")
    assert (shown.dtype, shown.shape) == (dtype, (24, 24, 2))
    np.testing.assert_allclose(shown[0, :3], expected, atol=1e-6)
    info = read_dataset_info(folder)
    assert (info["image_form"], info["dtype"]) == ("window", form)
    assert info["windows"] == "40/80,80/200"


# --- tables -----------------------------------------------------------------------------------------------------------


def test_the_metadata_has_a_row_for_each_image_with_the_columns_of_the_design(source: Source) -> None:
    folder = source.run()
    columns = (
        "id,split,patient_id,study_id,series_id,group_id,slice_index,position_mm,row_spacing_mm,column_spacing_mm,rows,"
    )
    columns = columns.replace(",rows", ",thickness_mm,rows")
    columns = (
        columns.replace(",row_s", ",slice_spacing_mm,normal_x,normal_y,normal_z,geometry,row_s")
        + "columns,pixel_form,mended,hu_min,hu_max,hu_mean,solid,"
    )
    columns += "picture_hash,crop_top,crop_left,crop_rows,crop_columns,image_hash,"
    columns += "skull_mm2,vendor,kernel,contrast,reconstruction,energy,series_number,"
    columns += "orientation,head,coverage_mm,head_mm,series_slices,"
    columns += "epidural,intraparenchymal,intraventricular,subarachnoid,subdural,any"
    lines = (folder / "metadata.csv").read_text().splitlines()
    assert lines[0] == columns
    hu = picture(hash_of("ID_000000011")).astype(np.int64) - 1024
    digest = xxhash.xxh3_128(np.array([24, 24], "<i8").tobytes() + hu.astype("<i2").tobytes())
    shown = (
        f"12/0/1/-1024,,{hu.min()},{hu.max()},{hu.mean():.17g},1,{digest.hexdigest()},0,0,24,24,{digest.hexdigest()}"
    )
    train_row = "ID_000000011,train,ID_00000001,ID_aa00000001,ID_ba00000001,ID_00000001,1,5,5,0,0,1,,0.5,0.25,,24,24,"
    assert f"{train_row}{shown},,,unknown,unknown,unknown,single,-1,axial,unknown,10,,2,0,0,0,0,1,1" in lines
    test_row = "ID_0000000f0,test,ID_00000009,ID_aa00000009,ID_ba00000009,ID_00000009,0,0,,0,0,1,single_slice,0.5,0.25,"
    test = [line for line in lines if line.startswith(f"{test_row},24,24,12/0/1/-1024,,")]
    assert len(test) == 1
    assert test[0].endswith(",,,,,,")
    assert len(lines) == 1 + 8 + 1


def test_slices_are_ordered_along_the_normal_and_repeated_positions_by_id(source: Source) -> None:
    angle = np.deg2rad(20)  # a tilted gantry: the columns lean, the normal is (0, -sin, cos)
    tilted = [1, 0, 0, 0, float(np.cos(angle)), float(np.sin(angle))]
    for name, distance in (("ID_00000000d", 15.0), ("ID_00000000a", 5.0), ("ID_00000000c", 0.0), ("ID_00000000b", 5.0)):
        position = (0.0, -np.sin(angle) * distance, np.cos(angle) * distance)
        source.add(
            name,
            "ID_00000001",
            study="ID_0000000077",
            position=position,
            ImageOrientationPatient=[f"{v:.10f}" for v in tilted],
        )
    rows = read_metadata(source.run()).query("study_id == 'ID_0000000077'").sort_values("slice_index")
    assert rows.index.tolist() == ["ID_00000000c", "ID_00000000a", "ID_00000000b", "ID_00000000d"]
    assert rows["slice_index"].tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(rows["position_mm"], [0, 5, 5, 15], atol=1e-4)


def test_a_cut_file_is_reported_by_name_and_stops_nothing(source: Source, caplog: pytest.LogCaptureFixture) -> None:
    path = source.add("ID_0000000c0", "ID_00000001")
    path.write_bytes(path.read_bytes()[:-100])
    folder = source.run()
    failed = pd.read_csv(folder / "failed.csv")
    assert failed.columns.tolist() == ["id", "reason", "message"]
    assert failed["id"].tolist() == ["ID_0000000c0"]
    assert failed["reason"].tolist() == ["truncated"]
    assert len(read_metadata(folder)) == 9
    assert "ID_0000000c0" not in read_fold(folder, "small", 0).index
    assert pd.read_csv(folder / "labels_without_image.csv").to_dict("list") == {
        "id": ["ID_0000000c0"],
        "reason": ["truncated"],
    }
    assert any("1 files gave no image" in message for message in caplog.messages)


def test_where_nothing_failed_the_list_of_failures_is_empty_but_there(source: Source) -> None:
    folder = source.run()
    assert (folder / "failed.csv").read_text() == "id,reason,message\n"


@pytest.mark.parametrize(
    "text", [b"", b"id,label\n1,2\n", b"\x89PNG\r\n\x1a\n" + b"\0" * 500, b"\0" * 128 + b"DICM\xff"]
)
def test_a_file_that_is_no_dicom_file_is_reported_and_stops_nothing(source: Source, text: bytes) -> None:
    (source.folder / "stage_2_train" / "ID_000000bad.dcm").write_bytes(text)
    failed = pd.read_csv(source.run() / "failed.csv")
    assert failed["id"].tolist() == ["ID_000000bad"]


def test_labels_without_a_file_are_listed_and_counted(source: Source, caplog: pytest.LogCaptureFixture) -> None:
    source.rows["ID_0000000e0"] = (0, 0, 0, 0, 0, 0)
    folder = source.run()
    assert pd.read_csv(folder / "labels_without_image.csv")["id"].tolist() == ["ID_0000000e0"]
    assert any("1 labelled images" in message and "ID_0000000e0" in message for message in caplog.messages)


def test_a_training_image_without_labels_is_counted_and_in_no_fold(
    source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    source.add("ID_00000ffff", "ID_00000001")
    del source.rows["ID_00000ffff"]
    folder = source.run()
    assert "ID_00000ffff" in read_metadata(folder).index
    assert "ID_00000ffff" not in read_fold(folder, "small", 0).index
    assert any("1 training images have no labels" in message for message in caplog.messages)


def test_a_source_without_test_images_works(tmp_path: Path) -> None:
    source = Source(tmp_path / "source")
    for patient in range(3):
        source.add(f"ID_{patient:09x}", f"ID_{patient:08x}")
    folder = source.run()
    assert read_dataset_info(folder)["images"] == {"train": 3, "test": 0}
    assert not (folder / "sample_submission.csv").exists()


def test_nothing_reads_the_source_again(source: Source) -> None:
    folder = source.run()
    sample = (source.folder / "stage_2_sample_submission.csv").read_bytes()
    source.folder.rename(source.folder.with_name("elsewhere"))
    assert (folder / "sample_submission.csv").read_bytes() == sample
    assert len(read_metadata(folder)) == 9
    assert set(read_fold(folder, "small", 1)["sample_type"]) == {"train", "valid"}
    assert str(source.folder) not in (folder / "dataset.json").read_text()


def test_a_truth_file_beside_the_tables_makes_the_source_a_phantom(source: Source) -> None:
    assert read_dataset_info(source.run())["source"]["kind"] == "competition"
    (source.folder / "phantom_truth.csv").write_text("id\n")
    (source.folder / "stage_2_train" / "ID_0000000f0.dcm").unlink(missing_ok=True)
    source.add("ID_00000ffff", "ID_00000001")
    assert read_dataset_info(source.run())["source"]["kind"] == "phantom"


def test_no_header_text_reaches_the_console_the_log_or_the_tables(
    source: Source, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    bad = source.add("ID_00000000a", "ID_00000001", PatientBirthDate="19000101", SliceThickness="3.000000")
    bad.write_bytes(bad.read_bytes().replace(b"19000101", b"CANARY-1").replace(b"3.000000", b"CANARY-2"))
    bad = source.add("ID_00000000b", "ID_00000001")
    bad.write_bytes(bad.read_bytes().replace(b"MONOCHROME2 ", b"CANARY^SECRE"))
    bad = source.add("ID_00000000c", "ID_00000001")
    bad.write_bytes(bad.read_bytes().replace(b"-1024.0 ", b"CANARY  "))
    capfd.readouterr()
    caplog.clear()  # of what pydicom said while the files were written
    caplog.set_level(logging.DEBUG)
    folder = source.run()
    shown = "".join(capfd.readouterr()) + caplog.text
    written = b"".join(contents(folder).values()) + (folder / JOURNAL).read_bytes()
    assert "CANARY" not in shown
    assert b"CANARY" not in written
    assert sorted(pd.read_csv(folder / "failed.csv")["id"]) == ["ID_00000000b", "ID_00000000c"]


# --- folds ------------------------------------------------------------------------------------------------------------


def test_every_labelled_image_is_valid_in_exactly_one_fold_and_no_patient_on_both_sides(source: Source) -> None:
    folder = source.run()
    folds = [read_fold(folder, "small", number) for number in range(2)]
    for fold in folds:
        assert sorted(fold.index) == sorted(source.rows)
        assert fold.groupby("patient_id")["sample_type"].nunique().max() == 1
        assert (fold["sample_type"] == "valid").sum() == 4  # four patients of the same kind: two on each side
        expected = np.array([source.rows[image_id] for image_id in fold.index])
        np.testing.assert_array_equal(fold[list(LABELS)], expected)
    valid = sum((fold["sample_type"] == "valid").astype(int) for fold in folds)
    assert (valid == 1).all()
    assert not (folder / "dataset_small_fold_2.csv").exists()


def test_patients_who_share_a_picture_stay_on_one_side(source: Source) -> None:
    for patient in ("ID_00000000", "ID_00000001", "ID_00000002"):
        source.add(f"ID_5a{patient[4:]}", patient, stored=picture(77))
    folder = source.run()
    fold = read_fold(folder, "small", 0)
    sides = fold.groupby("patient_id")["sample_type"].first()
    assert sides["ID_00000000"] == sides["ID_00000001"] == sides["ID_00000002"] != sides["ID_00000003"]


def test_pictures_of_air_link_nobody(source: Source) -> None:
    noise = np.random.default_rng(0).integers(20, 30, (24, 24)).astype(np.uint16)
    for patient in range(4):
        source.add(f"ID_a1{patient:07x}", f"ID_{patient:08x}", stored=noise)
        source.add(f"ID_f1{patient:07x}", f"ID_{patient:08x}", stored=np.full((24, 24), 1064, np.uint16))
    fold = read_fold(source.run(), "small", 0)
    assert (fold.drop_duplicates("patient_id")["sample_type"] == "valid").sum() == 2


def test_patients_held_out_are_in_no_fold_and_can_be_read(source: Source) -> None:
    folder = source.run("--pre_holdout=0.25")
    held_out = read_holdout(folder, "small")
    assert set(held_out["sample_type"]) == {"holdout"}
    assert len(held_out) == 2
    assert len(set(held_out["patient_id"])) == 1
    folds = [read_fold(folder, "small", number) for number in range(2)]
    assert sorted([*folds[0].index, *held_out.index]) == sorted(source.rows)
    assert sorted(folds[0].index) == sorted(folds[1].index)
    before = state(folder)
    assert state(source.run("--pre_holdout=0.25")) == before
    source.run()
    assert not (folder / "dataset_small_holdout.csv").exists()
    with pytest.raises(UsageError, match="--pre_holdout"):
        read_holdout(folder, "small")


def test_one_fold_is_one_split_that_validates_on_what_is_held_out(source: Source) -> None:
    folder = source.run("--pre_folds=1", "--pre_holdout=0.5")
    assert [path.name for path in folder.glob("dataset_small_*")] == ["dataset_small_fold_0.csv"]
    fold = read_fold(folder, "small", 0)
    assert fold["sample_type"].value_counts().to_dict() == {"train": 4, "valid": 4}


@pytest.mark.parametrize("folds", [3, 4])
def test_any_number_of_folds_that_there_are_patients_for(source: Source, folds: int) -> None:
    folder = source.run(f"--pre_folds={folds}")
    valid = [set(read_fold(folder, "small", n).query("sample_type == 'valid'").index) for n in range(folds)]
    assert sorted(name for part in valid for name in part) == sorted(source.rows)


# --- second runs ------------------------------------------------------------------------------------------------------


def test_a_second_run_writes_nothing(source: Source, capsys: pytest.CaptureFixture[str]) -> None:
    path = source.add("ID_0000000c0", "ID_00000001")
    path.write_bytes(path.read_bytes()[:-100])
    before = state(source.run())
    capsys.readouterr()
    folder = preprocessing.main(source.flags())
    assert state(folder) == before
    out, err = capsys.readouterr()
    assert "nothing has changed" in err
    assert out == f"{folder}\n"


def test_a_run_after_a_file_was_added_converts_only_that(source: Source, tmp_path: Path) -> None:
    before = state(source.run())
    source.add("ID_00000fff0", "ID_00000003")
    folder = source.run()
    after = state(folder)
    assert {name for name in after if name.startswith("images/") and after[name] != before.get(name)} == {
        "images/ID_00000fff0.npy"
    }
    assert "ID_00000fff0" in read_fold(folder, "small", 0).index
    result = contents(folder)
    fresh = preprocessing.main([*source.flags(), f"--data_input_folder={tmp_path / 'fresh'}"])
    assert contents(fresh) == result


def test_a_file_that_changed_is_converted_again_and_one_that_went_is_dropped(source: Source) -> None:
    before = state(source.run())
    time.sleep(0.01)
    source.add("ID_000000000", "ID_00000000", stored=np.full((24, 24), 1124, np.uint16))
    (source.folder / "stage_2_train" / "ID_000000011.dcm").unlink()
    folder = source.run()
    after = state(folder)
    assert (image(folder, "ID_000000000") == 100).all()
    assert {name for name in before if name.startswith("images/") and after.get(name) != before[name]} == {
        "images/ID_000000000.npy",
        "images/ID_000000011.npy",
    }
    assert "images/ID_000000011.npy" not in after
    assert "ID_000000011" not in read_metadata(folder).index


def test_a_lost_or_cut_image_is_made_again(source: Source) -> None:
    folder = source.run()
    whole = contents(folder)
    (folder / "images" / "ID_000000000.npy").unlink()
    cut = folder / "images" / "ID_000000010.npy"
    cut.write_bytes(cut.read_bytes()[:-10])
    assert contents(preprocessing.main(source.flags())) == whole


def test_a_table_that_a_killed_run_left_half_written_is_removed(source: Source) -> None:
    folder = source.run()
    whole = contents(folder)
    (folder / "dataset.json").unlink()
    for name in (".failed.csv.23206.tmp", ".dataset.json.1.tmp", "images/.ID_000000000.npy.23206.tmp"):
        (folder / name).write_bytes(b"half")
    assert contents(preprocessing.main(source.flags())) == whole


def test_changed_options_make_all_images_anew_and_say_so(source: Source, capsys: pytest.CaptureFixture[str]) -> None:
    source.run()
    capsys.readouterr()
    folder = source.run("--pre_size=12")
    out, err = capsys.readouterr()
    assert "options" in out + err
    assert {np.load(path).shape for path in (folder / "images").iterdir()} == {(12, 12)}
    assert read_dataset_info(folder)["options"]["pre_size"] == 12


def test_a_phantom_and_the_competitions_data_never_mix_under_one_name(
    source: Source, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source.run()
    phantom = Source(tmp_path / "phantom")
    for patient in range(3):
        phantom.add(f"ID_aa{patient:07x}", f"ID_{patient:08x}")
    phantom.add("ID_000000000", "ID_00000000", stored=picture(5))  # a name that both have
    (phantom.folder / "phantom_truth.csv").write_text("id\n")
    caplog.clear()
    folder = phantom.run()
    assert sum("made from competition files" in message for message in caplog.messages) == 1
    fresh = preprocessing.main([*phantom.flags(), f"--data_input_folder={tmp_path / 'fresh'}"])
    assert contents(folder) == contents(fresh)


def test_other_folds_need_no_new_images(source: Source) -> None:
    before = state(source.run("--pre_folds=3"))
    folder = source.run("--pre_folds=2")
    after = state(folder)
    assert {name: value for name, value in before.items() if name.startswith("images/")} == {
        name: value for name, value in after.items() if name.startswith("images/")
    }
    assert sorted(path.name for path in folder.glob("*_fold_*")) == [
        "dataset_small_fold_0.csv",
        "dataset_small_fold_1.csv",
    ]


def test_a_journal_whose_last_line_was_cut_is_no_hindrance(source: Source) -> None:
    folder = source.run()
    whole = contents(folder)
    journal = folder / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-20])
    (folder / "dataset.json").unlink()
    assert contents(preprocessing.main(source.flags())) == whole


def test_one_process_and_two_make_the_same_bytes(source: Source, tmp_path: Path) -> None:
    one = source.run()
    two = preprocessing.main([*source.flags(), "--n_jobs=2", f"--data_input_folder={tmp_path / 'two'}"])
    assert contents(one) == contents(two)


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was_and_ends_the_same(source: Source, tmp_path: Path) -> None:
    for number in range(1200):
        source.add(
            f"ID_f{number:08d}",
            f"ID_{number % 40:08d}",
            stored=picture(number, 128, 128),
            study=f"ID_aa{number % 40:08d}",
        )
    undisturbed = contents(source.run())
    command = [sys.executable, str(PROJECT / "preprocessing.py"), *source.flags()]
    command += ["--n_jobs=2", f"--data_input_folder={tmp_path / 'killed'}"]
    folder = tmp_path / "killed" / "datasets" / "small"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if folder.joinpath(JOURNAL).exists() and folder.joinpath(JOURNAL).read_bytes().count(b"\n") > 200:
            break
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "dataset.json").exists(), "it had ended before it was killed"
    finished = state(folder)
    images_before = {name: value for name, value in finished.items() if name.endswith(".npy")}
    journal_before = (folder / JOURNAL).read_bytes().count(b"\n") - 1

    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    kept = sum(state(folder)[name] == value for name, value in images_before.items())
    assert kept >= journal_before - 1  # all but what was cut in the middle of a line
    assert contents(folder) == undisturbed


# --- bad input --------------------------------------------------------------------------------------------------------


def test_a_folder_without_the_competitions_files_says_what_was_expected_and_how_to_make_a_phantom(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = failure(preprocessing.main, [f"--data_input_folder={tmp_path / 'nothing'}"], capsys)
    for part in (
        str(tmp_path / "nothing"),
        "stage_2_train",
        "stage_2_train.csv",
        "python rsna_phantom.py",
        "--pre_source=input/phantom",
    ):
        assert part in line
    assert not (tmp_path / "nothing").exists()
    (tmp_path / "stage_2_train.zip").write_bytes(b"PK")
    assert "unpack what lies there as stage_2_train.zip" in failure(
        preprocessing.main, [f"--data_input_folder={tmp_path}"], capsys
    )


def test_a_source_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--data_input_folder={tmp_path / 'input'}", f"--pre_source={tmp_path / 'archive.zip'}"]
    assert (
        failure(preprocessing.main, flags, capsys)
        == f"error: --pre_source={tmp_path}/archive.zip: no such folder, archive or file"
    )
    assert not (tmp_path / "input").exists()


def test_a_source_without_files_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    flags = [f"--data_input_folder={tmp_path / 'input'}", f"--pre_source={tmp_path / 'empty'}"]
    assert failure(preprocessing.main, flags, capsys) == f"error: {tmp_path}/empty: holds no files"


def spoil_labels(edit: Callable[[str], str]) -> Callable[[Source], None]:
    def change(source: Source) -> None:
        path = source.folder / "stage_2_train.csv"
        path.write_text(edit(path.read_text()))

    return change


BAD_LABELS = {
    "a column missing": (lambda text: text.replace("Label", "Value", 1), 1, "Label"),
    "a wrong class": (lambda text: text.replace("_subdural", "_subdurral", 1), 1, "did you mean 'subdural'"),
    "an empty label": (lambda text: text.replace("ID_000000000_any,0", "ID_000000000_any,", 1), 1, "is empty"),
    "no number": (lambda text: text.replace("ID_000000000_any,0", "ID_000000000_any,yes", 1), 1, "is not a number"),
    "a contradiction": (lambda text: text + "ID_000000000_any,1\n", 1, "contradicts row"),
    "a label too few": (lambda text: text.replace("ID_000000000_any,0\n", "", 1), 1, "has no row for the label any"),
    "an id that climbs": (lambda text: text + "../../x_any,1\n", 1, "not allowed"),
}


@pytest.mark.parametrize("name", BAD_LABELS)
def test_a_bad_label_file_is_one_line_that_names_it(
    source: Source, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    edit, expected, part = BAD_LABELS[name]
    source.write_tables()
    spoil_labels(edit)(source)
    line = failure(preprocessing.main, source.flags(), capsys, expected)
    assert str(source.folder / "stage_2_train.csv") in line
    assert part in line


def test_repeated_identical_rows_count_once_with_a_warning(source: Source, caplog: pytest.LogCaptureFixture) -> None:
    source.write_tables()
    spoil_labels(lambda text: text + "ID_000000000_any,0\n")(source)
    folder = preprocessing.main(source.flags())
    assert read_fold(folder, "small", 0).index.tolist().count("ID_000000000") == 1
    assert sum("repeated rows" in message and "ID_000000000" in message for message in caplog.messages) == 1


@pytest.mark.parametrize(
    ("flag", "part"),
    [
        ("--pre_folds=0", "pre_folds"),
        ("--pre_folds=1", "--pre_folds=1 needs --pre_holdout"),
        ("--pre_holdout=1", "pre_holdout"),
        ("--pre_size=-1", "pre_size"),
        ("--pre_window=40", "pre_window"),
        ("--pre_window=40/0", "pre_window"),
        ("--pre_type=int8", "pre_type"),
        ("--pre_type=uint8", "--pre_window"),
        ("--pre_fold=3", "--pre_folds"),
        ("--data_dataset=../x", "--data_dataset"),
        ("--pre_folds=5", "--pre_folds=5"),
    ],
)
def test_a_bad_option_is_one_line_that_names_it(
    source: Source, capsys: pytest.CaptureFixture[str], flag: str, part: str
) -> None:
    source.write_tables()
    line = failure(preprocessing.main, [*source.flags(), flag], capsys)
    assert part in line


def test_a_folder_that_cannot_be_written_is_found_before_the_work(
    source: Source, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source.write_tables()
    (tmp_path / "input").write_text("a file where a folder should be")
    line = failure(preprocessing.main, source.flags(), capsys)
    assert str(tmp_path / "input") in line


def test_a_disk_too_small_is_found_before_the_work(
    source: Source, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**6, 10**6 - 100, 100))
    source.write_tables()
    line = failure(preprocessing.main, source.flags(), capsys, 1)
    assert "free" in line
    assert not list((source.folder.parent / "input").rglob("*.npy"))


def test_a_source_where_no_image_can_be_read_is_an_error_that_points_to_the_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Source(tmp_path / "source")
    source.add("ID_00000000a", "ID_00000001").write_bytes(b"no DICOM")
    source.write_tables()
    line = failure(preprocessing.main, source.flags(), capsys, 1)
    assert "failed.csv" in line
    assert not (tmp_path / "input/datasets/small/dataset.json").exists()


def test_a_second_run_at_the_same_time_is_refused(source: Source, capsys: pytest.CaptureFixture[str]) -> None:
    from common.preprocessing.folder import claim_folder

    source.write_tables()
    with claim_folder(source.folder.parent / "input/datasets/small"):
        line = failure(preprocessing.main, source.flags(), capsys, 1)
    assert "another run" in line


def test_a_damaged_description_of_a_dataset_leads_to_a_new_one(source: Source) -> None:
    folder = source.run()
    whole = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text("{")
    preprocessing.main(source.flags())
    assert json.loads((folder / "dataset.json").read_text()) == whole


# Masks


def test_masks_are_taken_by_their_images_ids_and_a_change_of_the_dataset_without_them_removes_them(
    source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = tmp_path / "source" / "truth"  # within the source: no file to convert
    masks.mkdir(parents=True)
    drawn = np.zeros((24, 24), np.uint8)
    drawn[6:12, 4:10] = 16
    np.save(masks / "ID_000000001.npy", drawn)
    folder = source.run()
    before = contents(folder)
    assert not (folder / "masks").exists()
    source.run(f"--pre_masks={masks}")
    assert "masks of 1 of 9 images" in capsys.readouterr().err
    assert contents(folder).items() - before.items() == {
        ("masks/ID_000000001.npy", (masks / "ID_000000001.npy").read_bytes())
    }
    assert before.keys() <= contents(folder).keys()
    source.run()  # nothing changes: the masks stay
    assert (folder / "masks" / "ID_000000001.npy").exists()
    source.run(f"--pre_masks={masks}", "--pre_size=12")
    assert np.array_equal(np.load(folder / "masks" / "ID_000000001.npy"), drawn[1::2, 1::2])
    capsys.readouterr()
    source.run()
    assert "masks: removed, since the dataset changes; give --pre_masks again" in capsys.readouterr().err
    assert not (folder / "masks").exists()


def test_a_mask_of_another_shape_ends_the_command_in_one_line(
    source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "ID_000000001.npy", np.zeros((3, 3), np.uint8))
    source.write_tables()
    said = failure(preprocessing.main, source.flags(f"--pre_masks={tmp_path}"), capsys, code=1)
    assert "ID_000000001.npy: the mask has shape (3, 3) and type uint8; its image needs (24, 24) and uint8" in said
    assert "--pre_masks doesn't go with --check=1" in failure(
        preprocessing.main, source.flags(f"--pre_masks={tmp_path}", "--check=1"), capsys
    )
