"""rsna/forms.py: the competition's labels and submissions, and predictions."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import UsageError, UserError, WorkError
from rsna.forms import check_submission, read_competition_labels, read_predictions, read_submission, write_submission
from rsna_dataset import LABEL_WEIGHTS, LABELS

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
