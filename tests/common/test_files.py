"""common/files.py: files are whole or absent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import WorkError
from common.files import atomic_path, write_csv, write_json, write_text
from tests import PROJECT


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_file_has_its_name_only_when_it_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.parent == tmp_path  # on the same disk: a rename, not a copy
    assert path.read_text() == "half"
    assert names(tmp_path) == ["a.txt"]


def test_an_error_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def interrupted() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_what_a_killed_writer_left_is_removed_by_the_next_and_what_a_living_one_writes_is_not(tmp_path):
    path = tmp_path / "[a].txt"
    (tmp_path / ".[a].txt.999.tmp").write_text("of a killed writer")
    (tmp_path / ".other.txt.999.tmp").write_text("of another file")
    code = f"""if True:
        from pathlib import Path
        from common.files import atomic_path
        with atomic_path(Path({str(path)!r})) as temporary:
            temporary.write_text("second")
            print(temporary.name, flush=True)
            input()
    """
    writer = [sys.executable, "-c", code]
    with subprocess.Popen(writer, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as living:
        its = living.stdout.readline().strip()
        write_text(path, "first")
        assert names(tmp_path) == sorted([its, ".other.txt.999.tmp", "[a].txt"])
        living.communicate("\n")
    assert path.read_text() == "second"
    assert names(tmp_path) == [".other.txt.999.tmp", "[a].txt"]


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fill() -> None:
        with atomic_path(path) as temporary:
            temporary.unlink()
            temporary.symlink_to("/dev/full")
            temporary.write_text("x" * 10_000)

    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(WorkError, match=r"a\.txt: the disk is full; make space"):
        fill()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_folder_that_is_missing_or_a_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in ("absent", "file"):
        with pytest.raises(WorkError, match=rf"{folder}/a\.txt: cannot be written \(.+\); check"):
            write_text(tmp_path / folder / "a.txt", "text")


def test_a_folder_without_write_permission_is_one_line(tmp_path):
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("root may write everywhere")
    try:
        with pytest.raises(WorkError, match=r"a\.txt: cannot be written \(Permission denied\); check"):
            write_text(tmp_path / "a.txt", "text")
    finally:
        tmp_path.chmod(0o700)


def test_a_target_that_is_a_folder_is_one_line_and_leaves_no_file(tmp_path):
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(WorkError, match=r"a\.txt: cannot be written"):
        write_text(tmp_path / "a.txt", "text")
    assert names(tmp_path) == ["a.txt"]


def test_an_error_about_another_file_is_not_blamed_on_this_one(tmp_path):
    def copy() -> None:
        with atomic_path(tmp_path / "a.txt") as temporary:
            temporary.write_bytes((tmp_path / "source.txt").read_bytes())

    with pytest.raises(FileNotFoundError, match=r"source\.txt"):
        copy()


def test_text_is_utf_8_whatever_the_locale(tmp_path):
    code = (
        "import sys, common.files as f; from pathlib import Path; f.write_text(Path(sys.argv[1]), '\\xe4\\u2212\\xb2')"
    )
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], cwd=PROJECT, env=environment, check=True)
    assert (tmp_path / "a").read_bytes() == "ä−²".encode()


def test_json_is_standard_json(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1, 2.5, None, "ä"]})
    assert json.loads((tmp_path / "a.json").read_bytes()) == {"a": [1, 2.5, None, "ä"]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "b.json", {"a": float("nan")})
    assert names(tmp_path) == ["a.json"]


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_floats_in_a_csv_read_back_to_the_bit(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    write_csv(path, pd.DataFrame({"value": np.array(values)}))
    back = [float(line) for line in path.read_text().splitlines()[1:]]
    assert [value.hex() for value in back] == [value.hex() for value in values]


WRITER = """
import sys
from pathlib import Path
from common.files import write_text
for number in range(10**6):
    write_text(Path(sys.argv[1]), str(number) * 200_000)
    print(number, flush=True)
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path):
    path = tmp_path / "a.txt"
    for delay in np.random.default_rng(0).uniform(0.0, 0.05, 10):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], cwd=PROJECT, stdout=subprocess.PIPE, text=True
        )
        process.stdout.readline()
        try:
            process.wait(timeout=delay)
        except subprocess.TimeoutExpired:
            process.kill()
        process.stdout.close()
        process.wait()
        text = path.read_text()
        assert text == text[: len(text) // 200_000] * 200_000


@given(values=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=50))
@settings(max_examples=50)
def test_pandas_reads_a_csv_back_to_the_last_bit(values, tmp_path_factory):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    write_csv(path, pd.DataFrame({"x": values}))
    assert pd.read_csv(path, dtype=float)["x"].tolist() == values  # older pandas than 3.1 are off by one bit here
