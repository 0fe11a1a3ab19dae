"""common/experiments/logfile.py: train.log, which no two runs share."""

from __future__ import annotations

import logging
import re
import warnings
from pathlib import Path

import pytest

from common.errors import WorkError
from common.experiments.logfile import setup_logging


def test_every_line_is_in_the_file_at_once_with_a_utc_time(tmp_path):
    with setup_logging(tmp_path, console=False):
        logging.getLogger("common.x").info("first ä")
        lines = (tmp_path / "train.log").read_text(encoding="utf-8").splitlines()
        assert len(lines) == 1
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO common\.x: first ä", lines[0])


def test_the_console_gets_warnings_only_unless_all_is_asked_for(tmp_path, capsys):
    for console, expected in ((False, "WARNING: careful\n"), (True, "told\ncareful\n")):
        with setup_logging(tmp_path, console=console):
            logging.getLogger("x").debug("detail")
            logging.getLogger("x").info("told")
            logging.getLogger("x").warning("careful")
        out, err = capsys.readouterr()
        assert (out, err) == ("", expected)
    assert (tmp_path / "train.log").read_text().count("told") == 2


def test_a_second_run_in_the_process_writes_only_its_own_file(tmp_path):
    root = logging.getLogger()
    before = (root.level, list(root.handlers), warnings.showwarning)
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
        with setup_logging(tmp_path / name, console=True):
            logging.getLogger("x").info("run %s", name)
        assert (root.level, list(root.handlers), warnings.showwarning) == before
    logging.getLogger("x").warning("after")
    for name in ("1", "2"):
        text = (tmp_path / name / "train.log").read_text()
        assert text.count("\n") == 1
        assert text.endswith(f"run {name}\n")


def test_warnings_of_libraries_go_to_the_file_and_not_to_the_console(tmp_path, capsys):
    with setup_logging(tmp_path, console=False), warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old argument", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == ""
    assert "UserWarning: old argument" in (tmp_path / "train.log").read_text()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (WorkError("a.npy: cut"), "ERROR common.experiments.logfile: a.npy: cut\n"),
        (ZeroDivisionError("by us"), "ZeroDivisionError: by us\n"),
        (KeyboardInterrupt(), "ERROR common.experiments.logfile: interrupted (KeyboardInterrupt)\n"),
    ],
)
def test_what_ends_the_run_is_in_the_file_and_is_printed_by_others(tmp_path, capsys, error, words):
    def run() -> None:
        with setup_logging(tmp_path, console=True):
            raise error

    with pytest.raises(type(error)):
        run()
    text = (tmp_path / "train.log").read_text()
    assert text.endswith(words)
    assert ("Traceback" in text) == isinstance(error, ZeroDivisionError)
    assert capsys.readouterr().err == ""


def test_a_log_that_cannot_be_written_warns_once_and_the_run_goes_on(tmp_path, capsys):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    (tmp_path / "train.log").symlink_to("/dev/full")
    with setup_logging(tmp_path, console=False):
        for number in range(5):
            logging.getLogger("x").info("line %d", number)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "train.log: cannot be written (No space left on device), so it has gaps" in err
