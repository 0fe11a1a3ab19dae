"""common/cli/console.py: --verbosity, and bars on terminals (a real one), in log files and where nobody wants them."""

from __future__ import annotations

import logging
import os
import pty
import re
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

import pytest

from common.cli import console
from common.cli.command import command
from common.errors import UsageError
from common.experiments.logfile import setup_logging
from tests import PROJECT

FIRST = """
import sys
from common.cli import console
console.set_verbosity(int(sys.argv[1]), "a folder")
"""
BAR = """
import sys, time
from common.cli import console
from common.cli.command import command

@command
def main():
    console.set_verbosity(int(sys.argv[1]))
    console.LINE_S = float(sys.argv[2])
    with console.progress(total=1000, unit="it", desc="work") as bar:
        for number in range(1000):
            bar.update()
            if number == 500:
                console.tell("half of it")
                time.sleep(0.2)
    print("first\\nresult")

main()
"""


def bar(level: int, line_s: float) -> tuple[str, str]:
    """What a command with a bar writes to stdout, and to a stderr that is no terminal."""
    command = [sys.executable, "-c", BAR, str(level), str(line_s)]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    return result.stdout, result.stderr


def on_terminal(columns: int, line_s: float, code: str = BAR, level: int = 1) -> list[str]:
    """The lines that a command with a bar leaves on a terminal; a bar returns to its line's begin by \\r."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24 if columns else 0, columns))
    command = [sys.executable, "-c", code, str(level), str(line_s)]
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # how a terminal's end reads
        while part := os.read(ours, 65536):
            shown += part
    os.close(ours)
    assert process.communicate()[0] == (b"first\nresult\n" if "result" in code else b"")
    assert process.returncode == 0
    return [line for line in shown.decode().split("\r\n") if line]


def test_on_a_terminal_there_is_one_bar_that_is_drawn_in_place() -> None:
    lines = on_terminal(80, 60.0)
    assert len(lines) == 2
    assert "half of it" in lines[0]
    assert re.search(r"\rwork: 100%\|█+\| 1000/1000", lines[1]), lines


def test_a_terminal_shows_at_once_what_is_read_unless_it_shall_be_quiet() -> None:
    assert on_terminal(60, 60.0, FIRST) == ["reading a folder ..."]
    assert on_terminal(60, 60.0, FIRST, level=0) == []
    seen = f"{FIRST}print(sorted({{'torch', 'tqdm'}} & {{*sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", seen, "1"], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")  # nothing heavy before it, and no line in a log file


def test_every_bar_fits_a_narrow_terminal() -> None:
    postfix = 'bar.set_postfix_str("1:02:05 left, loss 0.2500, 100 images/s, waits for data 7%, GPU 11.3 GB")'
    lines = on_terminal(60, 60.0, BAR.replace("        bar.update()\n", f"        bar.update(); {postfix}\n"))
    drawn = [part for line in lines for part in line.split("\r") if "work" in part]
    assert all(len(part) <= 60 for part in drawn), drawn
    assert len(drawn) > 2


def test_on_a_terminal_without_a_width_there_are_lines() -> None:
    lines = on_terminal(0, 0.1)
    assert "half of it" in lines
    assert lines[-1].startswith("work: 100%| 1000/1000")


def test_a_short_job_says_nothing_of_its_progress_to_a_log_file() -> None:
    assert bar(1, 60.0) == ("first\nresult\n", "half of it\n")


def test_a_long_job_writes_a_line_now_and_then_to_a_log_file() -> None:
    said = bar(1, 0.1)[1].splitlines()
    assert said.count("half of it") == 1
    said.remove("half of it")
    assert 1 <= len(said) <= 4  # of a thousand updates
    assert all(re.fullmatch(r"work: +\d+%\| \d+/1000 \[\d\d:\d\d<\d\d:\d\d\]", line) for line in said), said
    assert said[-1].startswith("work: 100%| 1000/1000")


def test_a_quiet_command_says_its_result_alone() -> None:
    assert bar(0, 0.0) == ("result\n", "")


def log_some(folder: Path, level: int, dev_enabled: bool) -> None:
    @command
    def main() -> None:
        console.set_verbosity(level)
        with setup_logging(folder, dev_enabled):
            logging.getLogger("common.something").info("a message")
            logging.getLogger("common.something").warning("a warning")
            logging.getLogger("common.something").info("told", extra={console.FILE_ONLY: True})

    main()


@pytest.mark.parametrize(
    ("level", "dev_enabled", "shown"),
    [
        (0, False, ["WARNING: a warning"]),
        (0, True, ["WARNING: a warning"]),
        (1, False, ["WARNING: a warning"]),
        (1, True, ["a message", "a warning"]),
        (2, False, ["a message", "a warning"]),
        (2, True, ["a message", "a warning"]),
    ],
)
def test_the_log_is_whole_with_its_times_however_much_the_console_shows(
    tmp_path: Path, capsys, level: int, dev_enabled: bool, shown: list[str]
) -> None:
    handlers = list(logging.getLogger().handlers)
    log_some(tmp_path, level, dev_enabled)
    assert capsys.readouterr().err.splitlines() == shown
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert [line.split(": ", 1)[1] for line in lines] == ["a message", "a warning", "told"]
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ", line) for line in lines)
    assert logging.getLogger().handlers == handlers
    assert console.verbosity() == console.NORMAL


def test_a_quiet_command_that_fails_says_why_and_no_result(capsys) -> None:
    @command
    def main() -> None:
        console.set_verbosity(console.QUIET)
        print("half a result")
        raise UsageError("--seed=x: no")

    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr() == ("", "error: --seed=x: no\n")
    assert console.verbosity() == console.NORMAL


def test_every_command_can_be_quiet_and_talkative() -> None:
    for script in sorted(PROJECT.glob("*.py")):
        text = script.read_text()
        if "parse_args(" in text and "@command" in text:
            assert "set_verbosity(config.verbosity" in text, script.name
