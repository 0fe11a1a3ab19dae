"""Labels whose keys name files otherwise than the source does: absolute paths, other folders, names alone."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from common.errors import WorkError
from common.preprocessing.labels import LocatedLabels, locate_labels

FILES = ("a/CT/1.dcm", "a/CT/2.dcm", "b/CT/1.dcm", "c/IM7", "d/Scan.DCM.gz")
ROOT = Path("/mnt/pacs/export")


def locate(*keys: str, files: tuple[str, ...] = FILES) -> LocatedLabels:
    table = pd.DataFrame({"row": range(2, 2 + len(keys))}, index=pd.Index(keys, name="key", dtype=object))
    return locate_labels(table, files, ROOT)


@pytest.mark.parametrize(
    ("key", "file"),
    [
        ("a/CT/1.dcm", "a/CT/1.dcm"),
        ("/mnt/pacs/export/a/CT/1.dcm", "a/CT/1.dcm"),
        ("C:/Users/eve/a/CT/2.dcm", "a/CT/2.dcm"),
        ("A/ct/2", "a/CT/2.dcm"),
        ("/x/c/im7.dcm", "c/IM7"),
        ("IM7", "c/IM7"),
        ("CT/2.dcm", "a/CT/2.dcm"),
        ("/x/d/scan", "d/Scan.DCM.gz"),
        ("1.dcm", None),  # two files have this name
        ("CT/1.dcm", None),
        ("/x/e/CT/9.dcm", None),
        ("e/IM7", None),  # another folder's
        ("1.2.840.113", None),
        ("image_0123456789abcdef", None),
    ],
)
def test_a_path_names_the_file_that_is_its_tail_or_whose_tail_it_is(key: str, file: str | None) -> None:
    found = locate(key)
    assert found.table.index.tolist() == [key if file is None else file]
    assert found.by_tail.tolist() == ([] if file in (None, key) else [2])
    assert found.lost.tolist() == ([2] if (file is None and "/" in key) or key == "1.dcm" else [])


def test_of_two_keys_for_one_file_the_one_through_the_sources_own_folder_counts() -> None:
    found = locate("/mnt/pacs/export/1.dcm", "/mnt/pacs/other/1.dcm", files=("1.dcm",))
    assert found.table.index.tolist() == ["1.dcm", "/mnt/pacs/other/1.dcm"]
    assert found.lost.tolist() == [3]
    turned = locate("/x/export/1.dcm", "1.dcm", files=("1.dcm",))
    assert turned.table.index.tolist() == ["/x/export/1.dcm", "1.dcm"]  # the source's own path comes first


def test_two_keys_that_may_both_be_one_file_are_refused_by_their_rows() -> None:
    with pytest.raises(WorkError, match="row 4 may name the same file as row 2") as caught:
        locate("/x/a/1.dcm", "b.dcm", "/x/b/1.dcm", files=("1.dcm", "b.dcm"))
    assert "/x/" not in str(caught.value)
