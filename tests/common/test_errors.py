"""common/errors.py: one line on stderr and an exit code, from the main process and from workers."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from common.cli.arguments import parse_args
from common.cli.command import command
from common.errors import UsageError, UserError, WorkError, nearest
from config import TrainConfig
from tests import PROJECT

MESSAGE = "input/a.npy: cut or damaged; run python preprocessing.py again"


class DamagedDataset(Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index):
        raise WorkError(MESSAGE)


@command
def fail(error: BaseException) -> None:
    """Raise what is given."""
    raise error


@pytest.mark.parametrize(
    ("error", "code"), [(UsageError("--a=1: no"), 2), (WorkError("a.csv: no"), 1), (UserError("x"), 1)]
)
def test_a_users_error_is_one_line_and_its_exit_code(capsys, error, code):
    with pytest.raises(SystemExit) as caught:
        fail(error)
    assert caught.value.code == code
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"error: {error}\n")


def test_a_value_of_100000_characters_is_quoted_by_its_ends_and_its_length(tmp_path):
    (tmp_path / "options.yaml").write_text(f"optim_lr: {'1' * 100_000}\nseed: 3")
    with pytest.raises(UsageError) as caught:
        parse_args(TrainConfig, [f"--config={tmp_path / 'options.yaml'}"])
    message = str(caught.value)
    assert len(message) < 500
    assert f"--optim_lr: '{'1' * 99}...{'1' * 49}' (100,002 characters)" in message


def test_a_value_of_many_words_loses_its_middle_and_the_advice_stays():
    message = str(WorkError(f"a.csv: no label: {'word ' * 20_000}; look at line 7"))
    assert message.startswith("a.csv: no label: word word")
    assert message.endswith("; look at line 7")
    assert len(message) < 4100


def test_a_path_of_500_characters_is_named_whole():
    path = "/" + "/".join(["folder"] * 71)
    assert str(UsageError(f"{path}: no such file")) == f"{path}: no such file"


def test_a_message_with_a_line_break_is_still_one_line(capsys):
    with pytest.raises(SystemExit):
        fail(WorkError("a\nb.csv: no such file"))
    assert capsys.readouterr().err == "error: a b.csv: no such file\n"


def test_ctrl_c_is_130_without_a_traceback(capsys):
    with pytest.raises(SystemExit) as caught:
        fail(KeyboardInterrupt())
    assert caught.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_reader_that_stops_early_ends_the_command_without_a_traceback():
    code = "from common.cli.command import command\n@command\ndef main():\n    print('x\\n' * 10**6)\nmain()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "x\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 141


def test_a_name_that_no_file_system_takes_is_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        command(Path("a" * 300).read_text)()
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {'a' * 300}: no file can have so long a name\n"


def test_a_command_without_the_memory_to_load_its_libraries_is_one_line():
    """As under ulimit -v: torch alone takes more addresses."""
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (2 * 10**9, 2 * 10**9))\n"
        "import train; train.main(['--data_input_folder=/nowhere'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert line.startswith("error: out of host memory (")
    assert "failed to map segment" in line


@pytest.mark.parametrize("megabytes", [450, 600])
def test_a_command_with_too_few_addresses_ends_before_its_libraries_crash_or_spin(megabytes):
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({megabytes * 10**6}, {megabytes * 10**6}))\n"
        "import preprocessing; preprocessing.main(['--pre_source=/nowhere'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert f"ulimit -v leaves {megabytes} MB" in line


def test_a_thread_that_cannot_start_is_one_line_and_other_errors_of_its_kind_are_ours(capsys):
    with pytest.raises(SystemExit) as ended:
        fail(RuntimeError("can't start new thread"))
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: out of host memory (can't start new thread)")
    assert "ulimit -u" in line
    with pytest.raises(RuntimeError, match="something else"):
        fail(RuntimeError("something else"))


def test_a_fault_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        fail(ZeroDivisionError())


def test_the_wrapped_command_returns_its_value_and_keeps_its_name():
    @command
    def main(argv: list[str], *, answer: int = 1) -> tuple[list[str], int]:
        """What it does."""
        return argv, answer

    assert main(["a"], answer=42) == (["a"], 42)
    assert (main.__name__, main.__doc__) == ("main", "What it does.")


def test_a_whole_process_ends_with_the_line_and_the_code():
    code = (
        "from common.cli.command import command\nfrom common.errors import UsageError\n"
        "@command\ndef main(): raise UsageError('--x=1: no')\nmain()"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", "error: --x=1: no\n")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_loader_worker_arrives_as_its_own_line(workers):
    loader = DataLoader(
        DamagedDataset(), num_workers=workers, multiprocessing_context="forkserver" if workers else None
    )
    with pytest.raises(WorkError) as caught:
        next(iter(loader))
    assert str(caught.value) == MESSAGE


@pytest.mark.parametrize("kind", [UserError, UsageError, WorkError])
def test_an_error_survives_pickling_as_between_processes(kind):
    copy = pickle.loads(pickle.dumps(kind(MESSAGE)))
    assert (type(copy), str(copy), copy.exit_code) == (kind, MESSAGE, kind.exit_code)


def test_a_near_miss_names_the_nearest_words_and_a_far_one_none():
    assert nearest("resnet81", ["resnet18", "vgg16"]) == "; did you mean 'resnet18'?"
    assert nearest("resnet3", ["resnet34", "resnet18", "vgg16"], count=2) in (
        "; did you mean 'resnet34' or 'resnet18'?",
        "; did you mean 'resnet34'?",
    )
    assert nearest("zzz", ["resnet18"]) == ""
    assert nearest("a", []) == ""
