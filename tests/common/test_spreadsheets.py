"""CSV tables as spreadsheets and other people's programs write them; most are written by Python's csv and pandas."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from common.errors import UserError, WorkError
from rsna.forms import read_competition_labels, read_label_file, read_predictions, read_submission
from rsna.judging.members import read_labels
from rsna_dataset import LABELS

KINDS = LABELS[:-1]
ROWS = {"ID_00000000a": (0, 1, 0, 0, 0, 1), "ID_00000000b": (0, 0, 0, 0, 0, 0), "ID_00000000c": (0, 0, 0, 0, 0, 1)}


def as_table(form: str, rows: dict[str, tuple[float, ...]], labels: tuple[str, ...] = LABELS) -> pd.DataFrame:
    """The same rows in the long form, or with this name of their column of keys."""
    if form == "long":
        cells = [(f"{key}_{label}", value) for key, values in rows.items() for label, value in zip(LABELS, values,
                 strict=True) if label in labels]  # fmt: skip
        return pd.DataFrame(cells, columns=["ID", "Label"])
    wide = pd.DataFrame.from_dict(rows, orient="index", columns=list(LABELS))[list(labels)]
    return wide.rename_axis(form).reset_index()


def shouted(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its names in capitals, and spaces around them."""
    table = table.rename(columns=lambda name: f" {name.upper()}  ")
    first = table.columns[0]
    keys = table[first]
    if len(table.columns) == 2:
        keys = keys.str.replace("_[a-z]+$", lambda found: found[0].title(), regex=True)
    return table.assign(**{first: " " + keys + " "})


WRITTEN = {
    "comma, line feeds": lambda table: table.to_csv(index=False).encode(),
    "semicolon, decimal comma, byte order mark": lambda table: table.astype(
        dict.fromkeys([name for name in table if table[name].dtype.kind in "if"], float)
    ).to_csv(index=False, sep=";", decimal=",", encoding="utf-8", lineterminator="\r\n").encode("utf-8-sig"),
    "Excel's Unicode text": lambda table: table.to_csv(index=False, sep="\t", lineterminator="\r\n").encode("utf-16"),
    "sep=; and empty rows": lambda table: (
        "sep=;\r\n" + table.to_csv(index=False, sep=";", lineterminator="\r\n") + ";" * (len(table.columns) - 1)
    ).encode(),
    "the old Mac's line ends": lambda table: table.to_csv(index=False, sep=";", lineterminator="\r").encode(),
    "all quoted": lambda table: table.to_csv(index=False, quoting=csv.QUOTE_ALL, lineterminator="\r\n").encode(),
    "capitals and spaces": lambda table: shouted(table).to_csv(index=False).encode(),
}  # fmt: skip
READERS = {
    "path": read_label_file,
    "SOPInstanceUID": read_label_file,
    "StudyInstanceUID": read_label_file,
    "Study Instance UID": read_label_file,
    "long": read_label_file,
}


def read(path: Path, form: str, content: bytes) -> list[list[float]]:
    path.write_bytes(content)
    found = READERS[form](path)
    assert found.index.tolist() == list(ROWS)
    return found[list(LABELS)].to_numpy().tolist()


@pytest.mark.parametrize("form", READERS)
@pytest.mark.parametrize("written", WRITTEN)
def test_labels_are_the_same_however_a_program_writes_them(tmp_path: Path, form: str, written: str) -> None:
    content = WRITTEN[written](as_table(form, ROWS))
    assert read(tmp_path / "labels.csv", form, content) == [list(values) for values in ROWS.values()]


@pytest.mark.parametrize("written", WRITTEN)
def test_the_competitions_forms_are_read_however_a_program_writes_them(tmp_path: Path, written: str) -> None:
    """Its labels, also for an ensemble, submissions, and predictions with a column for each label."""
    path = tmp_path / "table.csv"
    path.write_bytes(WRITTEN[written](as_table("long", ROWS)))
    for found in (read_competition_labels(path), read_labels(path)):
        pd.testing.assert_frame_equal(found, pd.DataFrame.from_dict(ROWS, orient="index", columns=list(LABELS)),
                                      check_dtype=False, check_names=False)  # fmt: skip
    chances = {key: tuple(np.random.default_rng(7).random(6)) for key in ROWS}
    for form, reader in (("long", read_submission), ("id", read_predictions)):
        path.write_bytes(WRITTEN[written](as_table(form, chances)))
        np.testing.assert_allclose(reader(path).to_numpy(), list(chances.values()), rtol=1e-14)


@pytest.mark.parametrize("form", ["path", "StudyInstanceUID", "long"])
def test_any_is_taken_from_the_kinds_where_a_table_has_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    expected = [[*values[:-1], int(any(values[:-1]))] for values in ROWS.values()]
    content = as_table(form, ROWS, KINDS).to_csv(index=False).encode()
    assert read(tmp_path / "labels.csv", form, content) == expected
    assert "has no label any" in capsys.readouterr().err
    if form == "long":
        assert read_competition_labels(tmp_path / "labels.csv").to_numpy().tolist() == expected


def test_any_that_is_missing_for_one_image_only_is_a_hole_and_no_form(tmp_path: Path) -> None:
    table = as_table("long", ROWS)
    table[table["ID"] != "ID_00000000b_any"].to_csv(tmp_path / "labels.csv", index=False)
    for reader in (read_label_file, read_competition_labels):
        with pytest.raises(WorkError, match=r"row 8: .*label any"):
            reader(tmp_path / "labels.csv")


@pytest.mark.parametrize("form", ["path", "StudyInstanceUID", "long"])
def test_any_of_0_beside_a_kind_is_refused_by_its_row(tmp_path: Path, form: str) -> None:
    path = tmp_path / "labels.csv"
    as_table(form, ROWS | {"ID_00000000d": (0, 0, 0, 0, 1, 0)}).to_csv(path, index=False)
    part = (
        "row 25: any is 0, and subdural in row 24 is 1"
        if form == "long"
        else "row 5: any is 0, and subdural in the same"
    )
    for reader in (read_label_file, read_competition_labels)[: 1 + (form == "long")]:
        with pytest.raises(WorkError) as caught:
            reader(path)
        assert part in str(caught.value)
        assert "ID_" not in str(caught.value)


def test_truth_values_of_a_program_are_labels(tmp_path: Path) -> None:
    table = as_table("path", ROWS)
    table[list(LABELS)] = table[list(LABELS)].astype(bool)
    content = table.to_csv(index=False).encode()
    assert b"True" in content
    assert read(tmp_path / "labels.csv", "path", content) == [list(values) for values in ROWS.values()]


def test_a_public_table_of_three_readers_is_told_which_columns_may_be_which_label(tmp_path: Path) -> None:
    """The header of CQ500's reads.csv, and a row of it."""
    header = "name,Category,R1:ICH,R1:IPH,R1:IVH,R1:SDH,R1:EDH,R1:SAH,R1:BleedLocation-Left,R2:ICH,R2:SDH"
    path = tmp_path / "reads.csv"
    path.write_text(f"{header}\nCQ500-CT-0,B1,1,1,0,0,0,0,1,1,0\n")
    with pytest.raises(WorkError, match=r"no key columns; expected exactly one of path, .*studyinstanceuid"):
        read_label_file(path)
    path.write_text(path.read_text().replace("name", "StudyInstanceUID"))
    with pytest.raises(WorkError, match=r"R1:IPH may be intraparenchymal, .* one value for each label"):
        read_label_file(path)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("path,any,Any,epidural\n", "has the column any 2 times"),
        ("\n\n", "it has no header"),
        ("path;größe".encode("cp1252") + b"\na;1\n", "save it as 'CSV UTF-8'"),
        ("sep=;\npath;epidural;any\nx;0;0;0\n", "row 3: has more fields"),
    ],
)
def test_a_table_that_can_not_be_read_says_what_to_do(tmp_path: Path, content: str | bytes, part: str) -> None:
    from common.spreadsheets import read_texts

    (tmp_path / "x.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        read_texts(tmp_path / "x.csv", ["path", "any"] if b"gr" not in (tmp_path / "x.csv").read_bytes() else ["path"])
    assert part in str(caught.value)


def test_a_row_keeps_its_number_behind_excels_first_line(tmp_path: Path) -> None:
    text = io.StringIO()
    csv.writer(text, dialect="excel", delimiter=";").writerows([("path", *LABELS), ("a", *"000000"), ("b", *"00000x")])
    (tmp_path / "x.csv").write_bytes(b"sep=;\r\n" + text.getvalue().encode())
    with pytest.raises(WorkError, match="row 4: any is not 0 or 1"):
        read_label_file(tmp_path / "x.csv")
