"""rsna_dataset: the competition's CSV forms, where its files lie, and the preprocessed dataset on disk."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import UsageError, UserError, WorkError
from rsna_dataset import (
    COMPETITION_FOLDER,
    LABEL_WEIGHTS,
    LABELS,
    RSNADataset,
    check_image_id,
    check_submission,
    dataset_folder,
    find_competition,
    fold_path,
    image_path,
    read_competition_labels,
    read_dataset_info,
    read_fold,
    read_metadata,
    read_predictions,
    read_submission,
    write_submission,
)
from tests import PROJECT

FIRST, SECOND = "ID_00000000a", "ID_00000000b"


def long_rows(image_id: str, values: tuple[object, ...]) -> list[str]:
    return [f"{image_id}_{label},{value}" for label, value in zip(LABELS, values, strict=True)]


def write_rows(path: Path, rows: list[str], header: str = "ID,Label") -> Path:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def rows() -> list[str]:
    """Twelve rows: the file's rows 2 to 7 are of the first image, 8 to 13 of the second."""
    return long_rows(FIRST, (0, 1, 0, 0, 0, 1)) + long_rows(SECOND, (0, 0, 0, 0, 0, 0))


# --- labels ---------------------------------------------------------------------------------------------------------


def test_the_label_order_and_weights_are_the_competitions() -> None:
    assert LABELS == ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
    assert LABEL_WEIGHTS == (1, 1, 1, 1, 1, 2)


def test_labels_are_a_row_for_each_image_in_the_files_order(tmp_path, rows) -> None:
    labels = read_competition_labels(write_rows(tmp_path / "train.csv", rows[6:] + rows[:6]))
    assert labels.index.name == "id"
    assert list(labels.index) == [SECOND, FIRST]
    assert list(labels.columns) == list(LABELS)
    assert (labels.dtypes == np.int8).all()
    assert labels.loc[FIRST].tolist() == [0, 1, 0, 0, 0, 1]
    assert labels.loc[SECOND].tolist() == [0] * 6


@pytest.mark.parametrize("form", ["\ufeff{}", "{}\n\n", "{}\r\n"])
def test_a_byte_order_mark_blank_lines_and_windows_line_ends_are_no_obstacle(tmp_path, rows, form) -> None:
    path = tmp_path / "train.csv"
    text = form.format("\n".join(["ID,Label", *rows]))
    path.write_bytes(text.replace("\n", "\r\n").encode() if "\r" in form else text.encode())
    assert read_competition_labels(path).shape == (2, 6)


def test_other_columns_are_ignored_and_the_two_may_stand_in_any_order(tmp_path, rows) -> None:
    turned = [",".join(["x", *reversed(row.split(","))]) for row in rows]
    labels = read_competition_labels(write_rows(tmp_path / "train.csv", turned, "note,Label,ID"))
    assert labels.loc[FIRST].tolist() == [0, 1, 0, 0, 0, 1]


def test_an_id_is_split_at_its_last_underscore(tmp_path) -> None:
    labels = read_competition_labels(write_rows(tmp_path / "train.csv", long_rows("a_any_b", (0, 0, 0, 0, 1, 1))))
    assert list(labels.index) == ["a_any_b"]


def test_identical_repeated_rows_count_once_with_one_warning(tmp_path, rows, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        labels = read_competition_labels(write_rows(tmp_path / "train.csv", rows + rows[:6]))
    assert list(labels.index) == [FIRST, SECOND]
    assert len(caplog.records) == 1
    assert FIRST in caplog.text
    assert SECOND not in caplog.text


BAD_LABELS = {
    "another class, with the nearest": (
        lambda rows: [rows[0].replace("epidural", "epidurl"), *rows[1:]],
        2,
        "epidural",
    ),
    "an id without a label": (lambda rows: [*rows, "ID000000001,0"], 14, "does not end in one of the labels"),
    "an empty label": (lambda rows: [*rows[:3], f"{FIRST}_subarachnoid,", *rows[4:]], 5, "Label is empty"),
    "a label of spaces": (lambda rows: [*rows[:3], f"{FIRST}_subarachnoid,  ", *rows[4:]], 5, "Label is empty"),
    "a row without comma": (lambda rows: [*rows[:3], f"{FIRST}_subarachnoid", *rows[4:]], 5, "Label is empty"),
    "a text": (lambda rows: [*rows[:3], f"{FIRST}_subarachnoid,yes", *rows[4:]], 5, "'yes' is not a number"),
    "nan": (lambda rows: [*rows[:3], f"{FIRST}_subarachnoid,nan", *rows[4:]], 5, "'nan' is not a number"),
    "infinity": (lambda rows: [*rows[:3], f"{FIRST}_subarachnoid,inf", *rows[4:]], 5, "'inf' is not a number"),
    "two": (lambda rows: [*rows[:3], f"{FIRST}_subarachnoid,2", *rows[4:]], 5, "2 is not 0 or 1"),
    "a half": (lambda rows: [*rows[:3], f"{FIRST}_subarachnoid,0.5", *rows[4:]], 5, "0.5 is not 0 or 1"),
    "a missing label": (lambda rows: rows[:9] + rows[10:], 8, "no row for the label subarachnoid"),
    "a contradiction": (lambda rows: [*rows, f"{FIRST}_any,0"], 14, "contradicts row 7"),
    "an id that climbs": (lambda rows: rows + long_rows("../x", (0,) * 6), 14, "'../x' is not allowed"),
    "an empty id": (lambda rows: rows + long_rows("", (0,) * 6), 14, "'' is not allowed"),
    "a bad row behind a blank line": (
        lambda rows: [*rows[:3], "", *rows[3:], f"{FIRST}_any,0"],
        15,
        "contradicts row 8",
    ),
}


@pytest.mark.parametrize("name", BAD_LABELS)
def test_a_wrong_row_is_named_by_file_and_number(tmp_path, rows, name) -> None:
    change, row, part = BAD_LABELS[name]
    path = write_rows(tmp_path / "train.csv", change(rows))
    with pytest.raises(WorkError) as caught:
        read_competition_labels(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: row {row}")
    assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "kind", "part"),
    [
        (None, UsageError, "no such file"),
        (b"", UsageError, "not a CSV file"),
        (b"\xff\xfe\x00", UsageError, "not a CSV file"),
        (b"ID,Label\n", WorkError, "has no rows"),
        (b"ID,Lable\nx_any,0\n", WorkError, "has no column Label; expected ID,Label; did you mean 'Lable'?"),
        (b"id\nx\n", WorkError, "has no column Label; expected ID,Label"),
        (b'ID,Label\n"x_any,0\n', UsageError, "not a CSV file"),
    ],
)
@pytest.mark.parametrize("read", [read_competition_labels, read_submission])
def test_a_file_that_is_no_such_csv_is_one_line(tmp_path, read, content, kind, part) -> None:
    path = tmp_path / "file.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(kind) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", [0, 3, 11])
@pytest.mark.parametrize("read", [read_competition_labels, read_predictions])
def test_a_decimal_comma_is_not_taken_for_a_whole_number(tmp_path, rows, read, place) -> None:
    rows[place] = rows[place].partition(",")[0] + ",0,5"
    path = write_rows(tmp_path / "file.csv", rows)
    with pytest.raises(
        UserError, match=rf"fields in line {place + 2}, saw 3|row {place + 2}: has more fields"
    ) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_decimal_comma_in_every_row_is_found_too(tmp_path, rows) -> None:
    path = write_rows(tmp_path / "file.csv", [f"{row.partition(',')[0]},0,5" for row in rows])
    with pytest.raises(UserError, match="fields"):
        read_submission(path)


def test_a_folder_in_place_of_a_csv_is_one_line(tmp_path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_competition_labels(tmp_path)


def test_the_competitions_size_is_read_by_whole_columns(tmp_path) -> None:
    """60,000 rows; compared with a table made by pandas' own pivot. (4.5 million take 4 s and 1.1 GB.)"""
    generator = np.random.default_rng(0)
    ids = [f"ID_{number:09x}" for number in generator.choice(16**7, 10_000, replace=False)]
    values = generator.integers(0, 2, (10_000, 6))
    values[:, 5] |= values[:, :5].max(axis=1)  # no kind without any
    long = pd.DataFrame({"ID": [f"{one}_{label}" for one in ids for label in LABELS], "Label": values.ravel()}).sample(
        frac=1, random_state=0
    )
    long.to_csv(tmp_path / "train.csv", index=False)
    found = read_competition_labels(tmp_path / "train.csv")
    parts = long["ID"].str.rsplit("_", n=1, expand=True)
    expected = long.assign(id=parts[0], label=parts[1]).pivot_table(index="id", columns="label", values="Label")
    pd.testing.assert_frame_equal(
        found.sort_index(), expected[list(LABELS)].astype(np.int8), check_names=False, check_index_type=False
    )


# --- submissions and predictions --------------------------------------------------------------------------------------


def predictions(seed: int = 0) -> pd.DataFrame:
    values = np.random.default_rng(seed).random((2, 6))
    return pd.DataFrame(values, index=pd.Index([FIRST, SECOND], name="id"), columns=list(LABELS))


def test_a_submission_has_the_samples_rows_in_the_samples_order_to_the_last_bit(tmp_path, rows) -> None:
    shuffled = [rows[place] for place in np.random.default_rng(1).permutation(12)]
    sample = write_rows(tmp_path / "sample.csv", shuffled)
    frame = predictions()
    write_submission(frame[::-1], sample, tmp_path / "out.csv")
    written = pd.read_csv(tmp_path / "out.csv", dtype={"ID": str, "Label": str})
    assert list(written.columns) == ["ID", "Label"]
    assert written["ID"].tolist() == [row.split(",")[0] for row in shuffled]
    for name, value in zip(written["ID"], written["Label"], strict=True):
        image_id, _, label = name.rpartition("_")
        assert float(value) == frame.loc[image_id, label]
    check_submission(tmp_path / "out.csv", sample)
    pd.testing.assert_frame_equal(read_submission(tmp_path / "out.csv").loc[frame.index], frame, check_exact=True)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(st.lists(st.floats(0, 1), min_size=6, max_size=6), min_size=1, max_size=4),
    order=st.randoms(use_true_random=False),
)
def test_any_probabilities_survive_the_file_whatever_the_rows_order(tmp_path, values, order) -> None:
    frame = pd.DataFrame(values, columns=list(LABELS), dtype=np.float64)
    frame.index = pd.Index([f"ID_{number:09x}" for number in range(len(values))], name="id")
    lines = [row for image_id in frame.index for row in long_rows(image_id, (0,) * 6)]
    order.shuffle(lines)
    sample = write_rows(tmp_path / "sample.csv", lines)
    write_submission(frame, sample, tmp_path / "out.csv")
    check_submission(tmp_path / "out.csv", sample)
    found = read_submission(tmp_path / "out.csv").loc[frame.index]
    pd.testing.assert_frame_equal(found, frame, check_exact=True)


def test_images_that_the_sample_does_not_ask_for_are_left_out(tmp_path, rows) -> None:
    sample = write_rows(tmp_path / "sample.csv", rows[6:])
    write_submission(predictions(), sample, tmp_path / "out.csv")
    assert list(read_submission(tmp_path / "out.csv").index) == [SECOND]


def test_a_submission_is_not_written_without_a_prediction_for_each_image(tmp_path, rows) -> None:
    sample = write_rows(tmp_path / "sample.csv", rows)
    with pytest.raises(WorkError, match=SECOND):
        write_submission(predictions()[:1], sample, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1e-9, 1.0000001])
def test_a_submission_is_not_written_with_anything_but_probabilities(tmp_path, rows, value) -> None:
    frame = predictions()
    frame.loc[SECOND, "subdural"] = value
    with pytest.raises(WorkError, match=SECOND):
        write_submission(frame, write_rows(tmp_path / "sample.csv", rows), tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda rows: rows[:6], "1 images of .* are missing: " + SECOND),
        (lambda rows: rows[:-1], "no row for the label any"),
        (lambda rows: rows + long_rows("ID_00000000c", (0,) * 6), "1 images are not in .*: ID_00000000c"),
        (lambda rows: [*rows, rows[0]], "stand there twice: " + FIRST),
        (lambda rows: [*rows[:-1], f"{SECOND}_any,1.5"], "row 13: 1.5 is no probability"),
        (lambda rows: [*rows[:-1], f"{SECOND}_any,-0.5"], "row 13: -0.5 is no probability"),
        (lambda rows: [*rows[:-1], f"{SECOND}_any,nan"], "row 13: Label 'nan' is not a number"),
        (lambda rows: [*rows[:-1], f"{SECOND}_any,"], "row 13: Label is empty"),
    ],
)
def test_a_submission_that_differs_from_the_sample_is_found(tmp_path, rows, change, part) -> None:
    sample = write_rows(tmp_path / "sample.csv", rows)
    with pytest.raises(WorkError, match=part):
        check_submission(write_rows(tmp_path / "out.csv", change(rows)), sample)


def test_predictions_are_read_in_both_forms_to_the_last_bit(tmp_path) -> None:
    frame = predictions()
    long = [
        row for image_id in frame.index for row in long_rows(image_id, tuple(map(repr, frame.loc[image_id].tolist())))
    ]
    long_form = read_predictions(write_rows(tmp_path / "long.csv", long))
    frame.to_csv(tmp_path / "wide.csv", float_format="%.17g")
    for found in (long_form, read_predictions(tmp_path / "wide.csv")):
        pd.testing.assert_frame_equal(found, frame, check_exact=True)


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (f"{FIRST},0,0,0,0,0,0", f"row 3: image {FIRST} stands there twice"),
        (f"{SECOND},0,0,,0,0,0", "row 3: intraventricular is empty"),
        (f"{SECOND},0,0,x,0,0,0", "row 3: intraventricular 'x' is not a number"),
        (f"{SECOND},0,0,1.5,0,0,0", "row 3: intraventricular 1.5 is no probability"),
        (f"{SECOND},0,0", "row 3: intraventricular is empty"),
        ("../../etc/x,0,0,0,0,0,0", "row 3: image id '../../etc/x' is not allowed"),
    ],
)
def test_a_wrong_row_of_wide_predictions_is_named(tmp_path, line, part) -> None:
    path = write_rows(tmp_path / "wide.csv", [f"{FIRST},0,0,0,0,0,0.5", line], ",".join(["id", *LABELS]))
    with pytest.raises(WorkError) as caught:
        read_predictions(path)
    assert str(caught.value).startswith(f"{path}: {part}")


def test_predictions_of_another_form_say_which_columns_are_expected(tmp_path) -> None:
    with pytest.raises(WorkError, match=r"neither the columns ID,Label nor id,epidural,.*,any"):
        read_predictions(write_rows(tmp_path / "x.csv", ["1"], "a"))
    with pytest.raises(WorkError, match="has no column subdural"):
        read_predictions(write_rows(tmp_path / "x.csv", ["x,0,0,0,0,0"], "id," + ",".join(set(LABELS) - {"subdural"})))


# --- the competition's folder -----------------------------------------------------------------------------------------


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


# --- the preprocessed dataset -----------------------------------------------------------------------------------------

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
    for rows in (table, table.drop(columns=list(LABELS)), table.drop(columns="any")):
        assert RSNADataset(folder, rows, Scale(), image_size=0, seed=0)[1].target is None
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
    """Preprocessing imports this module in many processes."""
    code = "import sys, rsna_dataset; print([m for m in ('torch', 'albumentations', 'timm') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True, env={"PYTHONPATH": "."}
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
