"""Data that is not the competition's: folder trees and archives, labels from a file, privacy, shares of failures."""

from __future__ import annotations

import base64
import json
import logging
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydicom.dataset import FileDataset

import preprocessing
import train
from benchmarks.canaries import Planted, pack, plant, search, wanted_forms, write_labels
from common.errors import WorkError
from rsna.forms import read_label_file
from rsna_dataset import LABELS, PUBLIC_NAMES, key_fingerprint, read_dataset_info, read_fold, read_metadata
from tests.conftest import SmallDataset
from tests.dicom_files import head, ids_of_files, new_ct, write_ct
from tests.runs import failure

JOURNAL = ".converted.csv"
KEY = "pseudonyms.key"


def slice_of(patient: int, place: int, **header: object) -> FileDataset:
    dataset = new_ct((head(10 * patient + place) + 1024).astype(np.uint16), bits=12)
    uid = f"1.2.826.77.{patient}"
    values = {
        "PatientID": f"MRN-{patient}-4711",
        "PatientName": f"Mustermann{patient}^Erika",
        "StudyInstanceUID": uid,
        "SeriesInstanceUID": f"{uid}.1",
        "SOPInstanceUID": f"{uid}.1.{place}",
        "ImagePositionPatient": [0, 0, 5 * place],
    }
    for name, value in (values | header).items():
        setattr(dataset, name, value)
    return dataset


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A hospital's export: four patients with three slices each, and files of other kinds among them."""
    root = tmp_path / "export"
    for patient in range(4):
        folder = root / f"case{patient}" / "CT head"
        folder.mkdir(parents=True)
        for place in range(3):
            write_ct(folder / f"IM{place}", slice_of(patient, place))
    write_ct(root / "single.DCM", slice_of(7, 0))
    write_ct(root / "report.dcm", slice_of(7, 1, Modality="SR"))
    write_ct(root / "scout", slice_of(7, 2, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]))
    (root / "README.txt").write_text("Viewer: start setup.exe")
    (root / "AUTORUN.INF").write_text("[autorun]")
    return root


def flags(source: Path, *more: str, dataset: str = "own") -> list[str]:
    return [
        f"--data_input_folder={source.parent / 'input'}",
        f"--pre_source={source}",
        f"--data_dataset={dataset}",
        "--n_jobs=1",
        "--pre_folds=2",
        *more,
    ]


def ids_in(source: Path, dataset: str = "own") -> dict[str, str]:
    """The id of each file of the source, by the user's map."""
    return ids_of_files(source.parent / f"input/id_map_{dataset}.csv")


def run(source: Path, *more: str, dataset: str = "own") -> Path:
    return preprocessing.main(flags(source, *more, dataset=dataset))


def packed(folder: Path, path: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as target:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                target.write(file, file.relative_to(folder))
    return path


def contents(folder: Path, *without: str) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (JOURNAL, *without)
    }


# --- trees and archives -----------------------------------------------------------------------------------------------


def test_a_hospitals_export_becomes_an_unlabelled_dataset(archive: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = run(archive)
    metadata = read_metadata(folder)
    ids = ids_in(archive)
    assert sorted(metadata.index) == sorted(ids[name] for name in [*BY_PATH, "single.DCM"])
    assert metadata.index.str.fullmatch("image_[0-9a-f]{16}").all()
    assert (metadata["split"] == "test").all()
    assert not set(LABELS) & set((folder / "metadata.csv").read_text().splitlines()[0].split(","))
    assert metadata[list(LABELS)].isna().all(axis=None)
    one = ids["case2/CT head/IM1"]
    assert metadata.loc[one, ["slice_index", "position_mm"]].tolist() == [1, 5.0]
    np.testing.assert_array_equal(np.load(folder / f"images/{one}.npy"), head(21))
    assert not list(folder.glob("*_fold_*"))
    failed = pd.read_csv(folder / "failed.csv").set_index("id")
    assert failed.columns.tolist() == ["reason", "message"]
    assert failed["reason"].to_dict() == {
        ids["AUTORUN.INF"]: "not_dicom",
        ids["README.txt"]: "not_dicom",
        ids["report.dcm"]: "not_ct",
        ids["scout"]: "localizer",
    }
    info = read_dataset_info(folder)
    assert (info["source"]["kind"], info["labelled"], info["images"]) == ("dicom", 0, {"train": 0, "test": 13})
    assert sum("unlabelled" in message for message in caplog.messages) == 1


def test_an_archive_is_read_in_place_and_gives_the_same_as_its_folder(archive: Path) -> None:
    folder = run(archive)
    path = packed(archive, archive.parent / "export.zip")
    before = sorted(file for file in archive.parent.rglob("*") if "input" not in file.parts)
    from_zip = run(path, dataset="zip")
    assert contents(from_zip, "dataset.json") == contents(folder, "dataset.json")
    assert sorted(file for file in archive.parent.rglob("*") if "input" not in file.parts) == before
    assert read_dataset_info(from_zip)["hash"] == read_dataset_info(folder)["hash"]


def test_a_second_run_on_an_archive_does_nothing_and_a_changed_member_is_noticed(
    archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = packed(archive, archive.parent / "export.zip")
    folder = run(path)
    times = {file.name: file.stat().st_mtime_ns for file in (folder / "images").iterdir()}
    run(path)
    assert "nothing has changed" in capsys.readouterr().err
    first = ids_in(archive)["single.DCM"]
    write_ct(archive / "single.DCM", slice_of(8, 0))
    packed(archive, path)  # all members are packed anew, one of them has another content
    run(path)
    after = {file.name: file.stat().st_mtime_ns for file in (folder / "images").iterdir()}
    before, now = f"{first}.npy", f"{ids_in(archive)['single.DCM']}.npy"  # of another SOPInstanceUID: another id
    assert {name for name in times if times[name] != after.get(name)} == {before}
    assert set(after) - set(times) == {now}


@pytest.mark.parametrize("inside", ["", "rsna-intracranial-hemorrhage-detection/"])
def test_the_competitions_archive_gives_the_same_dataset_as_its_folders(
    small_dataset: SmallDataset, tmp_path: Path, inside: str
) -> None:
    """As the competition names it, lying in the input folder, without any flag that names it."""
    source, labels = tmp_path / "some", pd.read_csv(small_dataset.source / "stage_2_train.csv")
    ids = sorted(set(labels["ID"].str.rpartition("_")[0]))[::8]
    test_ids = [path.stem for path in sorted((small_dataset.source / "stage_2_test").iterdir())[:2]]
    for split, names in (("train", ids), ("test", test_ids)):
        (source / inside / f"stage_2_{split}").mkdir(parents=True)
        for name in names:
            shutil.copy(
                small_dataset.source / f"stage_2_{split}/{name}.dcm", source / inside / f"stage_2_{split}/{name}.dcm"
            )
    labels[labels["ID"].str.rpartition("_")[0].isin(ids)].to_csv(source / inside / "stage_2_train.csv", index=False)
    sample = pd.read_csv(small_dataset.source / "stage_2_sample_submission.csv")
    sample = sample[sample["ID"].str.rpartition("_")[0].isin(test_ids)]
    sample.to_csv(source / inside / "stage_2_sample_submission.csv", index=False)
    (tmp_path / "zipped").mkdir()
    packed(source, tmp_path / "zipped/rsna-intracranial-hemorrhage-detection.zip")
    folders = preprocessing.main([f"--data_input_folder={source}", "--pre_max_failed=1", "--n_jobs=1", "--pre_folds=2"])
    from_zip = preprocessing.main(
        [f"--data_input_folder={tmp_path / 'zipped'}", "--pre_max_failed=1", "--n_jobs=1", "--pre_folds=2"]
    )
    without = ("dataset.json",)  # which holds the times of files
    assert contents(from_zip, *without) == contents(folders, *without)
    assert read_dataset_info(from_zip)["source"]["kind"] == "competition"
    assert read_metadata(from_zip)["patient_id"].str.fullmatch("ID_[0-9a-f]+").all()
    assert sorted(path.name for path in (tmp_path / "zipped").iterdir()) == [
        "datasets",
        KEY,
        "rsna-intracranial-hemorrhage-detection.zip",
    ]


def test_the_datasets_of_this_program_are_no_source(archive: Path) -> None:
    """Also where someone names the input folder itself, whose archive lies beside the datasets."""
    shutil.move(archive, archive.parent / "input" / "export")
    arguments = flags(archive.parent / "input")
    arguments[0] = f"--data_input_folder={archive.parent / 'input'}"
    folder = preprocessing.main(arguments)
    assert len(read_metadata(folder)) == 13
    assert len(pd.read_csv(folder / "failed.csv")) == 4
    before = contents(folder)
    assert contents(preprocessing.main(arguments)) == before


def test_a_source_that_is_neither_folder_nor_archive_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.txt").write_text("no archive")
    line = failure(preprocessing.main, flags(tmp_path / "x.txt"), capsys)
    assert "x.txt: neither a folder, a DICOM file (the mark DICM is missing) nor a zip or tar archive" in line


def test_files_that_share_their_uid_are_all_kept_and_marked(archive: Path, caplog: pytest.LogCaptureFixture) -> None:
    (archive / "copy").mkdir()
    shutil.copy(archive / "case1/CT head/IM2", archive / "copy/other.dcm")
    metadata = read_metadata(run(archive))
    marked = metadata.index[metadata["mended"] == "repeated_uid"]
    ids = ids_in(archive)
    assert sorted(marked) == sorted([ids["case1/CT head/IM2"], ids["copy/other.dcm"]])
    assert any("2 images share their SOPInstanceUID" in message for message in caplog.messages)


# --- labels -----------------------------------------------------------------------------------------------------------


def wide(path: Path, key: str, rows: dict[str, str]) -> Path:
    path.write_text(
        "\n".join([",".join([key, *LABELS]), *(f"{name},{values}" for name, values in rows.items())]) + "\n"
    )
    return path


BY_PATH = {
    f"case{patient}/CT head/IM{place}": (0, 0, 0, 0, place % 2, place % 2) for patient in range(4) for place in range(3)
}


def as_long(path: Path, rows: dict[str, tuple[int, ...]]) -> Path:
    lines = [
        f"{key}_{label},{value}" for key, values in rows.items() for label, value in zip(LABELS, values, strict=True)
    ]
    path.write_text("\n".join(["ID,Label", *lines]) + "\n")
    return path


def uids(level: str) -> dict[str, str]:
    """The key of each path of ``BY_PATH``."""
    parts = {path: (path[4], path[-1]) for path in BY_PATH}
    return {path: f"1.2.826.77.{p}.1.{s}" if level == "SOP" else f"1.2.826.77.{p}" for path, (p, s) in parts.items()}


@pytest.mark.parametrize(
    "form", ["wide path", "wide file on a Windows disk", "wide SOPInstanceUID", "long path", "long SOPInstanceUID"]
)
def test_labels_of_images_come_by_path_or_uid_in_both_forms(archive: Path, tmp_path: Path, form: str) -> None:
    keys = uids("SOP") if form.endswith("UID") else {path: path for path in BY_PATH}
    if form.endswith("disk"):
        keys = {path: "D:\\studies\\" + path.replace("/", "\\") + ".DCM" for path in BY_PATH}
    rows = {keys[path]: values for path, values in BY_PATH.items()}
    if form.startswith("wide"):
        texts = {key: ",".join(map(str, values)) for key, values in rows.items()}
        file = wide(tmp_path / "labels.csv", form.split()[1], texts)
    else:
        file = as_long(tmp_path / "labels.csv", rows)
    folder = run(archive, f"--pre_labels={file}")
    metadata = read_metadata(folder)
    for path, values in BY_PATH.items():
        assert tuple(metadata.loc[ids_in(archive)[path], list(LABELS)]) == values
    assert metadata["split"].value_counts().to_dict() == {"train": 12, "test": 1}
    levels = pd.read_csv(folder / "metadata.csv", keep_default_na=False).set_index("id")["label_level"]
    assert levels.value_counts().to_dict() == {"image": 12, "": 1}
    fold = read_fold(folder, "own", 0)
    assert len(fold) == 12
    assert fold.groupby("patient_id")["sample_type"].nunique().max() == 1
    row = int(np.flatnonzero(levels.index == ids_in(archive)["single.DCM"])[0]) + 2
    assert (folder / "unmatched_rows.csv").read_text() == f"table,row\nmetadata,{row}\n"


def test_labels_can_name_images_by_the_ids_that_they_have_here(archive: Path, tmp_path: Path) -> None:
    run(archive)
    rows = {ids_in(archive)[path]: ",".join(map(str, values)) for path, values in BY_PATH.items()}
    metadata = read_metadata(run(archive, f"--pre_labels={wide(tmp_path / 'labels.csv', 'id', rows)}"))
    for path, values in BY_PATH.items():
        assert tuple(metadata.loc[ids_in(archive)[path], list(LABELS)]) == values


def test_labels_of_a_study_are_marked_and_an_images_own_come_first(
    archive: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    studies = dict.fromkeys(uids("study").values(), "0,0,0,0,0,0")
    rows = studies | {uids("SOP")["case1/CT head/IM1"]: "0,0,0,0,1,1", "1.2.999.1": "0,0,0,0,0,0"}
    file = wide(tmp_path / "labels.csv", "StudyInstanceUID", rows)
    folder = run(archive, f"--pre_labels={file}")
    table = pd.read_csv(folder / "metadata.csv", keep_default_na=False).set_index("id")
    assert table.loc[ids_in(archive)["case1/CT head/IM1"], ["any", "label_level"]].tolist() == ["1", "image"]
    assert table["label_level"].value_counts().to_dict() == {"study": 11, "image": 1, "": 1}
    unmatched = pd.read_csv(folder / "unmatched_rows.csv")
    assert unmatched[unmatched["table"] == "labels"]["row"].tolist() == [7]  # the header is row 1
    assert any("1 rows" in message and "fit no image, and 1 images" in message for message in caplog.messages)
    written = b"".join(contents(folder).values()) + (folder / JOURNAL).read_bytes()
    assert b"1.2.999.1" not in written
    assert b"1.2.826" not in written


def test_other_labels_need_no_new_images(archive: Path, tmp_path: Path) -> None:
    folder = run(archive)
    times = {file.name: file.stat().st_mtime_ns for file in (folder / "images").iterdir()}
    file = wide(tmp_path / "labels.csv", "path", dict.fromkeys(BY_PATH, "0,0,0,0,0,0"))
    run(archive, f"--pre_labels={file}")
    assert len(read_fold(folder, "own", 1)) == 12
    wide(file, "path", dict.fromkeys(BY_PATH, "1,0,0,0,0,1"))
    run(archive, f"--pre_labels={file}")
    assert read_fold(folder, "own", 1)["epidural"].all()
    assert times == {file.name: file.stat().st_mtime_ns for file in (folder / "images").iterdir()}
    run(archive)
    assert not list(folder.glob("*_fold_*"))


def test_labels_that_fit_nothing_are_an_error(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = wide(tmp_path / "labels.csv", "path", {"other": "0,0,0,0,0,0"})
    line = failure(preprocessing.main, flags(archive, f"--pre_labels={file}"), capsys, 1)
    assert "with labels" in line
    assert "unmatched_rows.csv" in line
    wide(file, "path", {"/elsewhere/case9/IM0": "0,0,0,0,0,0", "case9\\IM1.dcm": "0,0,0,0,0,0"})
    line = failure(preprocessing.main, flags(archive, f"--pre_labels={file}", dataset="other"), capsys)
    assert "none of its 2 keys is the path of a file" in line
    assert "rows 2, 3" in line
    assert "elsewhere" not in line
    assert not list((archive.parent / "input/datasets/other/images").iterdir())  # before anything was converted


HEADER = "path," + ",".join(LABELS)
BAD_FILES = {
    "no key column": ("patient," + ",".join(LABELS) + "\nx,0,0,0,0,0,0\n", "no key columns"),
    "two key columns": ("path,SOPInstanceUID," + ",".join(LABELS) + "\n", "2 key columns path, SOPInstanceUID"),
    "a label missing": ("path," + ",".join(LABELS[1:]) + "\nx,0,0,0,0,0\n", "epidural"),
    "no number": (f"{HEADER}\nCANARY,0,0,0,0,0,0\nCANARY2,0,0,CANARY,0,0,0\n", "row 3: intraventricular is not 0 or 1"),
    "an empty label in the competition's form": ("ID,Label\nCANARY_any,\n", "row 2: any is not 0 or 1"),
    "a probability": (f"{HEADER}\nCANARY,0,0,0,0,0,0.5\n", "row 2: any is not 0 or 1"),
    "no key": (f"{HEADER}\n,0,0,0,0,0,0\n", "row 2: epidural has no key"),
    "a contradiction": (f"{HEADER}\nCANARY,0,0,0,0,0,0\nx,0,0,0,0,0,0\nCANARY,0,0,0,0,1,0\n", "4 contradicts row 2"),
    "no rows": (f"{HEADER}\n", "no rows"),
    "a class unknown": ("ID,Label\nCANARY_any,0\nCANARY_subdurral,0\n", "row 3: ID does not end in one of"),
    "a class missing": ("ID,Label\nCANARY_any,0\n", "row 2: there is no value for the label epidural"),
    "too many fields": (f"{HEADER}\nCANARY,0,0,0,0,0,0,1\n", "row 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_label_file_is_one_line_that_names_the_row_and_no_key(tmp_path: Path, name: str) -> None:
    text, part = BAD_FILES[name]
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(WorkError) as error:
        read_label_file(tmp_path / "labels.csv")
    assert str(error.value).startswith(f"{tmp_path / 'labels.csv'}: ")
    assert part in str(error.value)
    assert "CANARY" not in str(error.value)


def test_identical_rows_count_once_and_keys_are_read_as_people_write_them(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(f"{HEADER}\n./a\\b.dcm,0,0,0,0,1,1\na/b.dcm,0,0.0,0,0,1,1.0\n")
    table = read_label_file(tmp_path / "labels.csv")
    assert table.index.tolist() == ["a/b.dcm"]
    assert table["row"].tolist() == [2]
    assert table[list(LABELS)].to_numpy().tolist() == [[0, 0, 0, 0, 1, 1]]


def test_training_on_an_unlabelled_dataset_is_one_line_that_says_so(
    archive: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run(archive)
    assert "has no labels to train on" in failure(
        train.main,
        [
            f"--data_input_folder={archive.parent / 'input'}",
            "--data_dataset=own",
            f"--output_dir={tmp_path / 'out'}",
        ],
        capsys,
    )
    assert not list(tmp_path.glob("out/*/last.pt"))


# --- shares of failures -----------------------------------------------------------------------------------------------


def test_too_many_failures_end_with_their_counts_after_all_is_written(
    archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = archive / "case0/CT head/IM0"
    cut.write_bytes(cut.read_bytes()[:-100])
    for _ in range(2):  # the second time nothing is left to do, which changes nothing about it
        line = failure(preprocessing.main, flags(archive), capsys, 1)
        assert "1 of 13 files failed (7.69%)" in line
        assert "--pre_max_failed=0.01" in line
        assert "truncated 1" in line
    folder = archive.parent / "input/datasets/own"
    assert len(read_metadata(folder)) == 12
    assert not (folder / "audit.html").exists()
    failure(preprocessing.main, flags(archive, "--pre_audit=1"), capsys, 1)
    assert "1 of 13 files gave no image (truncated 1)" in (folder / "audit.html").read_text()
    assert run(archive, "--pre_max_failed=0.08") == folder


def test_space_is_asked_for_the_images_and_not_for_what_lies_beside_them(archive: Path) -> None:
    with (archive / "backup.tar").open("wb") as file:
        file.truncate(900 * 10**9)  # a hole, it takes no disk
    with (archive / "film.mp4").open("wb") as file:
        file.truncate(200 * 2**20)
    free = shutil.disk_usage(archive).free
    if free > 900 * 10**9:
        pytest.skip(f"the disk has {free} bytes free, more than the hole is large")
    folder = run(archive)
    assert len(read_metadata(folder)) == 13
    assert (pd.read_csv(folder / "failed.csv")["reason"] == "not_dicom").sum() == 4


def test_in_the_competitions_folders_every_file_counts(small_dataset: SmallDataset, tmp_path: Path) -> None:
    failed = pd.read_csv(small_dataset.folder / "failed.csv")
    share = len(failed) / (len(failed) + sum(read_dataset_info(small_dataset.folder)["images"].values()))
    assert 0 < share <= 0.01  # the phantom's cut file: the default accepts it
    arguments = [*small_dataset.flags, f"--pre_source={small_dataset.source}", "--n_jobs=1"]
    shutil.copytree(small_dataset.folder, tmp_path / "datasets/phantom", copy_function=os.link)
    shutil.copy(small_dataset.input_folder / KEY, tmp_path)
    with pytest.raises(SystemExit) as ended:
        preprocessing.main([*arguments, f"--data_input_folder={tmp_path}", "--pre_max_failed=0"])
    assert ended.value.code == 1


# --- privacy ----------------------------------------------------------------------------------------------------------


def test_nothing_that_identifies_a_patient_leaves_the_source(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """benchmarks/canaries.py says what is planted; the map of ids shows that it would be found."""
    planted, labels = plant(tmp_path / "export")
    archive = pack(tmp_path / "export", tmp_path / "QXARCHIVENAME.zip")
    file = write_labels(tmp_path / "labels.csv", labels | {"QXNOBODY": "0,0,0,0,0,0"})
    wanted = wanted_forms([*planted, *(Planted(text, "archive") for text in ("QXARCHIVENAME", "QXNOBODY"))])
    caplog.set_level(logging.DEBUG)
    capfd.readouterr()
    caplog.clear()
    more = ["--pre_max_failed=1", f"--pre_labels={file}", "--n_jobs=2", "--pre_audit=1"]
    folder = run(archive, *more, f"--pseudonym_key={tmp_path / 'vault' / KEY}", dataset="zip")
    shown = "".join(capfd.readouterr()) + caplog.text
    assert len(read_metadata(folder)) == 20
    assert read_metadata(folder)["any"].notna().sum() == 18
    assert set(pd.read_csv(folder / "failed.csv")["reason"]) >= {
        "not_dicom", "name", "not_ct", "colour", "rescale", "localizer", "truncated", "transfer_syntax", "no_image"
    }  # fmt: skip
    (tmp_path / "input/printed.txt").write_text(shown)
    hits, _ = search((path for path in (tmp_path / "input").rglob("*") if path.is_file()), wanted, tmp_path)
    assert hits == []
    found, _ = search((tmp_path / "vault").glob("id_map_*"), wanted, tmp_path)
    assert len(found) == 1


@pytest.mark.parametrize(
    ("text", "leak"),
    [
        ("Zwürgelmöß^Jürg", "image_ZWUERGELMOESS_1"),
        ("Zwürgelmöß^Jürg", "image_zwurgelmoß"),
        ("van der Brinkhuysen^Aafje", "x/VANDERBRINKHUYSEN.npy"),
        ("19310203", "born 3.2.1931 or 1931-02-03"),
        ("000917456302", '{"id": "917456302"}'),
        ("白河辺^一蔵", "id_\\u767d\\u6cb3\\u8fba"),
        ("Петрошкевич", "ПЕТРОШКЕВИЧ"),
        ("Fennimorgh", f'<img src="data:image/png;base64,{base64.b64encode(b"of O Fennimorgh").decode()}">'),
    ],
)
def test_the_search_for_canaries_finds_their_other_forms(tmp_path: Path, text: str, leak: str) -> None:
    (tmp_path / "a.txt").write_text(leak)
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as packed_file:
        packed_file.writestr("c", leak)
    assert len(search(tmp_path.iterdir(), wanted_forms([Planted(text, "")]), tmp_path)[0]) == 2
    (tmp_path / "c.html").write_text("base64,AAquastelborgAAA=")  # a picture's letters tell nothing
    assert search(tmp_path.iterdir(), wanted_forms([Planted("Quastelborg", "")]), tmp_path)[0] == []


@pytest.mark.slow
def test_no_command_writes_or_prints_what_identifies_a_patient() -> None:
    done = subprocess.run([sys.executable, "benchmarks/canaries.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "found elsewhere: 0" in done.stdout


def test_pseudonyms_are_the_same_in_every_dataset_and_another_key_makes_all_anew(
    archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = read_metadata(run(archive))
    key = archive.parent / "input" / KEY
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    second = read_metadata(run(archive, dataset="second"))
    columns = ["patient_id", "study_id", "series_id"]
    pd.testing.assert_frame_equal(first[columns], second[columns])
    assert first["patient_id"].nunique() == 5
    key.unlink()
    capsys.readouterr()
    third = read_metadata(run(archive))
    assert "converting all files anew" in capsys.readouterr().err
    assert not set(first["patient_id"]) & set(third["patient_id"])


def test_a_dataset_says_which_key_made_its_pseudonyms_and_the_competitions_names_need_none(
    archive: Path, small_dataset: SmallDataset
) -> None:
    first, second = run(archive), run(archive, dataset="second")
    own = key_fingerprint(first)
    assert len(own) == 16
    assert key_fingerprint(second) == own
    info = read_dataset_info(second)
    del info["pseudonyms"]  # as in a dataset of before: its journal says it
    (second / "dataset.json").write_text(json.dumps(info))
    assert key_fingerprint(second) == own
    (second / JOURNAL).unlink()
    assert key_fingerprint(second) == ""
    assert key_fingerprint(small_dataset.folder) == PUBLIC_NAMES
    assert "pseudonyms" not in read_dataset_info(small_dataset.folder)
    (archive.parent / "input" / KEY).unlink()
    assert key_fingerprint(run(archive)) not in ("", own)


def test_the_map_says_whose_image_it_is_and_lies_beside_the_key_for_its_owner_alone(
    archive: Path, tmp_path: Path
) -> None:
    write_ct(archive / "=cmd", slice_of(9, 0, PatientID="@SUM(1)"))
    key = tmp_path / "vault" / "my.key"
    folder = run(archive, f"--pseudonym_key={key}")
    assert not (archive.parent / "input" / KEY).exists()
    path = key.parent / "id_map_own.csv"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    table = pd.read_csv(path, dtype=str, keep_default_na=False).set_index("id")
    metadata = read_metadata(folder)
    assert set(table.index) == set(metadata.index) | set(pd.read_csv(folder / "failed.csv")["id"])
    one = table[table["file"] == "case2/CT head/IM1"].iloc[0]
    assert one.to_dict() == {
        "file": "case2/CT head/IM1", "frame": "1", "patient_id": "MRN-2-4711", "study_id": "1.2.826.77.2",
        "series_id": metadata.loc[one.name, "series_id"], "SeriesInstanceUID": "1.2.826.77.2.1",
        "instance_id": "1.2.826.77.2.1.1",
    }  # fmt: skip
    assert metadata.loc[one.name, "slice_index"] == 1
    assert table[table["file"] == "README.txt"]["patient_id"].tolist() == [""]
    assert table[table["file"] == "'=cmd"]["patient_id"].tolist() == ["'@SUM(1)"]
    assert [file.name for file in folder.parent.rglob("*id_map*")] == []


def test_the_map_is_whole_whatever_was_lost_of_it(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line that a kill has cut, a map of which the end is missing, one that was removed, a file that went."""
    folder = run(archive)
    path = archive.parent / "input/id_map_own.csv"
    whole, before = path.read_bytes(), contents(folder)
    for content in (whole[:-9], whole[:400], b"", None):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        capsys.readouterr()
        run(archive)
        assert "has no row for" in capsys.readouterr().err
        assert path.read_bytes() == whole
        assert contents(folder) == before
    (archive / "single.DCM").unlink()
    run(archive)
    assert len(path.read_bytes().splitlines()) == len(whole.splitlines()) - 1
    path.write_bytes(b"no,map\n1,2\n")
    assert "no map of ids" in failure(preprocessing.main, flags(archive), capsys, 1)


def test_an_id_is_of_the_path_where_files_share_their_uid_and_doesnt_depend_on_their_order(archive: Path) -> None:
    first = ids_in(archive) if run(archive) else {}
    shutil.copytree(archive / "case1", archive / "twin")
    write_ct(archive / "case0/CT head/nameless", slice_of(0, 5, SOPInstanceUID=""))
    run(archive)
    second = ids_in(archive)
    twins = [f"{name}/CT head/IM{place}" for name in ("case1", "twin") for place in range(3)]
    assert len({second[name] for name in twins}) == 6
    assert {name for name in first if first[name] != second[name]} == set(twins[:3])
    run(archive, dataset="at_once")
    assert ids_in(archive, "at_once") == second
    shutil.rmtree(archive / "twin")
    (archive / "case0/CT head/nameless").unlink()
    run(archive)
    assert ids_in(archive) == first  # once more of their UIDs


def test_a_dataset_whose_ids_held_names_is_made_anew_and_a_warning_says_so(
    archive: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its journal says that it is of the version before; --pre_verify looks at it as it is."""
    folder = run(archive)
    first, _, rest = (folder / JOURNAL).read_text().partition("\n")
    options = json.loads(first)
    del options["names"]
    (folder / JOURNAL).write_text(json.dumps(options | {"public": None}, sort_keys=True) + f"\n{rest}")
    before = contents(folder)
    preprocessing.main([f"--data_input_folder={archive.parent / 'input'}", "--data_dataset=own", "--pre_verify=1"])
    assert contents(folder) == before
    caplog.clear()
    run(archive)
    assert sum("ids become keyed hashes" in message for message in caplog.messages) == 1
    assert contents(folder) == before
    caplog.clear()
    run(archive)
    assert not any("keyed" in message for message in caplog.messages)


@pytest.mark.parametrize("place", ["input/datasets/pseudonyms.key", "input/datasets/own/k.key"])
def test_a_key_among_the_datasets_is_refused(archive: Path, capsys: pytest.CaptureFixture[str], place: str) -> None:
    line = failure(preprocessing.main, flags(archive, f"--pseudonym_key={archive.parent / place}"), capsys)
    assert "--pseudonym_key" in line
    assert not (archive.parent / place).exists()


def test_in_the_competitions_folders_names_of_another_form_go_everywhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images, labels and the sample submission of someone who laid out files of their own like the competition's."""
    for split, names in {"train": ["Mueller_1", "Mueller_2", "Kim_1", "Lee_1"], "test": ["Roe_1"]}.items():
        (tmp_path / f"rsna/stage_2_{split}").mkdir(parents=True)
        for number, name in enumerate(names):
            write_ct(tmp_path / f"rsna/stage_2_{split}/{name}.dcm", slice_of(number + 5 * (split == "test"), 0))
    rows = dict.fromkeys(("Mueller_1", "Mueller_2", "Kim_1", "Lee_1", "Gone_1"), (0, 0, 0, 0, 1, 1))
    as_long(tmp_path / "rsna/stage_2_train.csv", rows)
    as_long(tmp_path / "rsna/stage_2_sample_submission.csv", {"Roe_1": (0,) * 6, "Lost_1": (0,) * 6})
    folder = run(tmp_path / "rsna", "--pre_audit=1")
    assert read_metadata(folder)["any"].sum() == 4
    assert pd.read_csv(folder / "labels_without_image.csv")["reason"].tolist() == ["no_file"]
    test_id = read_metadata(folder).query("split == 'test'").index[0]
    assert (pd.read_csv(folder / "sample_submission.csv")["ID"].str.rpartition("_")[0] == test_id).sum() == 6
    shown = b"".join(contents(folder).values()) + (folder / JOURNAL).read_bytes() + caplog.text.encode()
    shown += "".join(capsys.readouterr()).encode() + "".join(map(str, folder.rglob("*"))).encode()
    for name in (b"Mueller", b"Kim", b"Lee", b"Roe", b"Gone", b"Lost"):
        assert name not in shown


def test_in_the_competitions_folders_a_strangers_identifiers_become_pseudonyms(tmp_path: Path) -> None:
    (tmp_path / "rsna/stage_2_train").mkdir(parents=True)
    ids = [f"ID_{number:09x}" for number in range(4)]
    for number, name in enumerate(ids):
        dataset = slice_of(number, 0)
        if number < 2:
            dataset.PatientID = f"ID_aa00000{number}"
        write_ct(tmp_path / f"rsna/stage_2_train/{name}.dcm", dataset)
    as_long(tmp_path / "rsna/stage_2_train.csv", dict.fromkeys(ids, (0, 0, 0, 0, 0, 0)))
    metadata = read_metadata(run(tmp_path / "rsna"))
    assert metadata["patient_id"].reindex(ids[:2]).tolist() == ["ID_aa000000", "ID_aa000001"]
    assert metadata["patient_id"].reindex(ids[2:]).str.startswith("patient_").all()
    assert metadata["study_id"].str.startswith("study_").all()


# --- names that lead elsewhere ----------------------------------------------------------------------------------------


def climbing_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as target:
        target.writestr("../../evil.dcm", b"\0" * 128 + b"DICM")


def escaping_link(folder: Path) -> None:
    write_ct(folder.parent / "secret.dcm", slice_of(9, 9))
    (folder / "link.dcm").symlink_to(folder.parent / "secret.dcm")


@pytest.mark.parametrize(("packs", "spoil", "reason"), [(True, climbing_zip, "name"), (False, escaping_link, "link")])
def test_what_leads_out_of_the_source_is_refused_by_name(
    archive: Path, packs: bool, spoil: Callable[[Path], None], reason: str
) -> None:
    source = packed(archive, archive.parent / "export.zip") if packs else archive
    spoil(source)
    folder = run(source, "--pre_max_failed=1")
    failed = pd.read_csv(folder / "failed.csv")
    assert (failed["reason"] == reason).sum() == 1
    assert len(read_metadata(folder)) == 13
    assert not list(archive.parent.parent.glob("evil*"))


# --- what belongs together --------------------------------------------------------------------------------------------


def studies_of(root: Path, patient_ids: Callable[[int, int], str], studies: int = 6) -> list[str]:
    """Write studies of two slices whose PatientID is that of a study's number and place; return the label flags."""
    texts = {}
    for study in range(studies):
        (root / f"case{study}").mkdir(parents=True)
        for place in range(2):
            write_ct(root / f"case{study}" / f"IM{place}", slice_of(study, place, PatientID=patient_ids(study, place)))
            texts[f"case{study}/IM{place}"] = "0,0,0,0,0,0"
    return [f"--pre_labels={wide(root.parent / 'labels.csv', 'path', texts)}"]


def test_a_study_of_two_patient_ids_is_whole_in_every_fold_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = studies_of(tmp_path / "export", lambda study, place: f"MRN-{study}-{place}")
    folder = run(tmp_path / "export", *labels)
    assert "studies of several PatientIDs join 12 patients to 6 groups" in caplog.text
    for number in range(2):
        fold = read_fold(folder, "own", number)
        assert fold.groupby("study_id")["sample_type"].nunique().max() == 1
        assert fold["patient_id"].nunique() == 12
        assert fold["group_id"].nunique() == 6
    assert "both train and valid" not in caplog.text


def test_one_patient_id_for_all_studies_is_told_before_anything_is_converted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    labels = studies_of(tmp_path / "export", lambda study, place: "ANONYMOUS")
    line = failure(preprocessing.main, flags(tmp_path / "export", *labels), capsys)
    assert "all 6 studies carry the same PatientID" in line
    assert "--pre_group=study takes each of the 6 studies" in line
    assert not list((tmp_path / "input" / "datasets" / "own" / "images").iterdir())
    line = failure(preprocessing.main, flags(tmp_path / "export", *labels, "--pre_folds=9"), capsys)
    assert "--pre_group=study --pre_folds=6 takes each" in line

    run(tmp_path / "export", dataset="unlabelled")
    assert "all 6 studies carry the same PatientID: folds and intervals will take them for one patient" in caplog.text

    folder = run(tmp_path / "export", *labels, "--pre_group=study")
    for number in range(2):
        fold = read_fold(folder, "own", number)
        assert fold["group_id"].nunique() == fold["study_id"].nunique() == 6
        assert fold.groupby("study_id")["sample_type"].nunique().max() == 1
    assert "both train and valid" not in caplog.text


def test_a_new_study_of_a_known_patient_is_added_to_a_dataset_of_many(tmp_path: Path) -> None:
    labels = studies_of(tmp_path / "export", lambda study, place: f"MRN-{study}")
    run(tmp_path / "export", *labels)
    write_ct(tmp_path / "export" / "IM9", slice_of(0, 9, PatientID="MRN-0"))
    assert len(read_metadata(run(tmp_path / "export", *labels))) == 13


def test_nearly_all_studies_of_one_patient_id_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels = studies_of(tmp_path / "export", lambda study, place: "ANONYMOUS" if study else "MRN", studies=7)
    run(tmp_path / "export", *labels)
    assert "86 % of the images, of 6 studies, are one group" in caplog.text


def test_a_dataset_of_an_earlier_version_has_the_same_groups(tmp_path: Path) -> None:
    """They wrote no group_id: it follows from patients, studies and pictures, of folds too."""
    labels = studies_of(tmp_path / "export", lambda study, place: f"MRN-{10 + study if place else study // 2}")
    folder = run(tmp_path / "export", *labels)
    due = read_metadata(folder)["group_id"], read_fold(folder, "own", 0)["group_id"]
    for path in folder.glob("*.csv"):
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        table.drop(columns="group_id", errors="ignore").to_csv(path, index=False)
    pd.testing.assert_series_equal(read_metadata(folder)["group_id"], due[0])
    pd.testing.assert_series_equal(read_fold(folder, "own", 0)["group_id"], due[1])
