"""An experiment's folder: claimed once, with its configuration, its environment and its log."""

from __future__ import annotations

import errno
import fcntl
import getpass
import importlib.metadata
import logging
import os
import platform
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import yaml

from common.cli.console import ALL, FILE_ONLY, NORMAL, verbosity
from common.errors import UsageError, UserError, WorkError, nearest
from common.files import write_json, write_text
from common.foreign import read_json, read_yaml
from common.machine import usable_cores
from common.waiting import LIMIT_S, LOCK_POLL_S, lock_file, wait_for

logger = logging.getLogger(__name__)

PROJECT_FOLDER = Path(__file__).resolve().parent.parent.parent
ID_PATTERN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")
MOST_NAMED = 50  # experiments that a message names
NUMBER_PATTERN = re.compile(r"[0-9]+")
PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "albumentations",
    "opencv-python-headless",
    "numpy",
    "pandas",
    "scikit-learn",
    "pydicom",
    "joblib",
    "neptune-client",
)
GIT_TIMEOUT_S = 10.0
LOCK_FILE = ".lock"
LOCK_ATTEMPTS = 5
ENVIRONMENT = "environment.json"
CONFIG = "config.yaml"
PLACE = ("experiment_id", "output_dir")  # options that a resumed run can't change
LOG_FILE = "train.log"


@dataclass(frozen=True)
class Experiment:
    """A claimed experiment: its id (a number as text, or a name) and its folder, which exists."""

    id: str
    folder: Path


def create_experiment(
    output_dir: Path,
    experiment_id: str | None,
    config: Mapping[str, Any],
    command: Sequence[str],
    *,
    free_bytes: int = 0,
    launch: str | None = None,
) -> Experiment:
    """Claim ``output_dir/<experiment_id>`` (None: the next number), write config.yaml and environment.json into it.

    ``config`` is flat, ``command`` is what the user typed, ``free_bytes`` is how much the disk must have free,
    ``launch`` what the restarts of one launch have in common. Of
    several processes that ask at once, each gets a folder of its own. Raises UsageError for an id that exists or isn't
    allowed and for an output folder that can't be one, WorkError for a full disk; then no experiment is left behind.
    """
    if experiment_id is not None:
        check_experiment_id(experiment_id)
    try:
        _check_free_space(output_dir, free_bytes)
        output_dir.mkdir(parents=True, exist_ok=True)
        with _claimed(output_dir, experiment_id) as experiment:
            try:
                write_json(experiment.folder / ENVIRONMENT, {**environment(command), "launch": launch})
                write_text(experiment.folder / CONFIG, config_text(config))  # last: it makes the folder an experiment's
            except BaseException:
                shutil.rmtree(experiment.folder, ignore_errors=True)
                raise
    except OSError as error:
        raise _folder_error(output_dir, error) from error
    return experiment


def config_text(config: Mapping[str, Any]) -> str:
    """Return flat options as config.yaml holds them."""
    return yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)


def check_experiment_id(experiment_id: str, flag: str = "--experiment_id") -> None:
    """Raise UsageError unless ``experiment_id`` is a plain name that can't leave the output folder."""
    if not ID_PATTERN.fullmatch(experiment_id):
        raise UsageError(f"{flag}={experiment_id!r}: use letters, digits, '_', '-' and '.', at most 100, not '.' first")


def wait_for_orphan(folder: Path, limit_s: float = LIMIT_S) -> None:
    """Wait for the run of an experiment whose parent was killed: it saves its state. Stalled where it goes on."""

    def ready(seconds: float) -> bool:
        if free := not is_in_progress(folder):
            return free
        time.sleep(min(seconds, LOCK_POLL_S))
        return False

    wait_for(ready, f"this process waits for another that trains {folder}", limit_s=limit_s)


@contextmanager
def lock_experiment(folder: Path) -> Iterator[None]:
    """Hold the experiment's lock, which ends with this context or this process; WorkError where another holds it."""
    try:
        file = (folder / LOCK_FILE).open("a")
    except OSError as error:
        raise _folder_error(folder, error) from error
    with file:
        _take(file, folder)
        yield


def _take(file: IO[str], folder: Path) -> None:
    for attempt in range(LOCK_ATTEMPTS):  # who asks whether it is held holds it for a moment
        time.sleep(0.1 if attempt else 0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            pass
        except OSError as error:  # a file system without locks
            logger.warning("%s: can't be locked (%s); don't start this experiment twice", folder, error.strerror)
            return
    raise WorkError(f"{folder}: the experiment is in progress in another process; wait for it or stop it")


def is_in_progress(folder: Path) -> bool:
    """Return whether a process holds the experiment's lock."""
    try:
        with (folder / LOCK_FILE).open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no lock file, or a file system without locks
        return False
    return False


def add_to_history(
    folder: Path, command: Sequence[str], iteration: int, config: Mapping[str, Any], named: Sequence[str] = ()
) -> None:
    """Note how, from which iteration and with which flat options ``config`` the run was gone on with.

    config.yaml gets the options, under the name and in the place that it has; environment.json's ``resumed`` the
    command, as ``changed`` the options that were others before (``{name: [before, now]}``), and as ``named`` those of
    them that the user had to name.
    """
    path = folder / ENVIRONMENT
    try:
        document = dict(read_json(path))
    except (OSError, ValueError, TypeError):  # killed while the folder was made, or changed by hand
        document = {}
    before = experiment_options(folder)
    now = plain(config) | {name: before[name] for name in PLACE if name in before}
    changed = {name: [before[name], value] for name, value in now.items() if before.get(name, value) != value}
    entry = {"iteration": iteration, "changed": changed, "named": list(named), **environment(command)}
    document.setdefault("resumed", []).append(entry)
    write_json(path, document)
    write_text(folder / CONFIG, config_text(now))


def experiment_options(folder: Path) -> dict[str, Any]:
    """Return the options of an experiment's config.yaml in plain types; WorkError where it can't be read."""
    path = folder / CONFIG
    try:
        return dict(read_yaml(path))
    except OSError as error:
        raise WorkError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError) as error:
        raise WorkError(f"{path}: damaged ({error})") from None


def launched_experiment(output_dir: Path, launch: str | None) -> str | None:
    """Return the folder, as text, of the newest experiment of this ``launch``; None where there is none."""
    files = output_dir.glob(f"*/{ENVIRONMENT}") if launch is not None else ()
    for file in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True):
        with suppress(OSError, ValueError, AttributeError):
            known = read_json(file)
            if known.get("launch") == launch and (file.parent / CONFIG).is_file():
                return str(file.parent.resolve())
    return None


def experiment_folder(output_dir: Path, experiment_id: str, flag: str = "--experiment_id") -> Path:
    """Return the folder of an experiment by the name that the leaderboard shows, as in ``3`` or ``search/trial_0001``.

    Raises UsageError, naming ``flag`` and the experiments that there are, where it is not there.
    """
    folder = output_dir / experiment_id
    if {"", ".", ".."} & set(experiment_id.split("/")) or not folder.is_dir():
        found = sorted(path.name for path in output_dir.iterdir() if path.is_dir()) if output_dir.is_dir() else []
        more = ", ..." if len(found) > MOST_NAMED else ""
        listing = f"there are {', '.join(found[:MOST_NAMED])}{more}" if found else "there are none"
        raise UsageError(
            f"{flag}={experiment_id}: no such experiment in {output_dir}; {listing}{nearest(experiment_id, found)}"
        )
    return folder


def plain(value: Any) -> Any:
    """Return ``value`` (of a configuration) in types that YAML and JSON have: paths as text, tuples as lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"a configuration holds plain values and paths, not {type(value).__name__}: {value!r}")


def anonymous(text: str) -> str:
    """Return ``text`` without the user's home folder (``~``), and without user and host name as parts of paths.

    What is written here is shared with others, in reports and on tracking servers.
    """
    home = str(Path.home())
    if len(home) > 1:
        text = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text)
    for name, replacement in ((_user_name(), "<user>"), (socket.gethostname(), "<host>"), (platform.node(), "<host>")):
        if name:
            text = re.sub(rf"(?<=[/@]){re.escape(name)}(?![\w.-])", replacement, text)
    return text


def environment(command: Sequence[str]) -> dict[str, Any]:
    """Return what a person needs to run ``command`` again: versions, commit, platform; no user, host or home folder.

    Imports nothing heavy: versions come from the packages' metadata, and the GPU's name only where torch is loaded.
    """
    return {
        "command": anonymous(shlex.join(command)),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        **_git_state(PROJECT_FOLDER),
        "platform": anonymous(platform.platform()),
        "cpu_count": os.cpu_count(),
        "cpu_usable": usable_cores(),
        "gpus": _gpu_names(),
    }


@contextmanager
def setup_logging(folder: Path, console: bool) -> Iterator[None]:
    """Within this context everything that is logged goes to ``folder/train.log``, a line at a time, with UTC times.

    Warnings also go to stderr, and all messages with --verbosity=2, or with ``console`` unless it shall be quiet.
    Python's own warnings go to the file, and to the console only where all messages do. An error that leaves the
    context is logged to the file. Afterwards logging is as it was, so that a second run in the same process doesn't
    write into the first one's file.
    """
    try:
        log_file = LogFile(folder / LOG_FILE, encoding="utf-8")
    except OSError as error:
        raise _folder_error(folder, error) from error
    log_file.setFormatter(UtcFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    console = console and verbosity() == NORMAL
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setLevel(logging.INFO if console else logging.WARNING)
    terminal.setFormatter(logging.Formatter("%(message)s" if console else "%(levelname)s: %(message)s"))
    terminal.addFilter(lambda record: not hasattr(record, FILE_ONLY) and (console or record.name != "py.warnings"))

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.INFO)
    root.addHandler(log_file)
    if verbosity() != ALL:  # else the console gets all that is logged already
        root.addHandler(terminal)
    logging.captureWarnings(True)
    try:
        yield
    except UserError as error:
        logger.error("%s", error, extra={FILE_ONLY: True})  # the command prints it
        raise
    except Exception:
        logger.exception("the run failed", extra={FILE_ONLY: True})  # Python prints it
        raise
    except BaseException as error:
        logger.error("interrupted (%s)", type(error).__name__, extra={FILE_ONLY: True})
        raise
    finally:
        logging.captureWarnings(False)
        root.removeHandler(terminal)
        root.removeHandler(log_file)
        root.setLevel(level)
        log_file.close()


class UtcFormatter(logging.Formatter):
    """Times as 2026-11-24T14:05:09.123Z, so that logs of several machines can be put side by side."""

    converter = time.gmtime
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"


class LogFile(logging.FileHandler):
    """A log file whose disk may fill up: the run goes on, and the console gets one line instead of a traceback each."""

    def __init__(self, path: Path, encoding: str) -> None:
        super().__init__(path, encoding=encoding)
        self.failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self.warn_once(error)
        else:
            super().handleError(record)

    def close(self) -> None:
        try:
            super().close()
        except OSError as error:  # closing writes what the full disk refused before
            self.warn_once(error)

    def warn_once(self, error: OSError) -> None:
        if not self.failed:
            self.failed = True
            reason = f"cannot be written ({error.strerror}), so it has gaps"
            print(f"warning: {self.baseFilename}: {reason}", file=sys.stderr)


@contextmanager
def _claimed(output_dir: Path, experiment_id: str | None) -> Iterator[Experiment]:
    """Yield the experiment with a folder that is this process's alone.

    A named one that is there is taken where who made it was killed before it wrote config.yaml; who comes second waits
    for the first to do so.
    """
    if experiment_id is None:
        folder = _next_number(output_dir)
    else:
        folder = output_dir / experiment_id
        if not folder.is_file():
            folder.mkdir(exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            lock_file(handle, f"this process waits for another that makes the experiment {folder}")
        if folder.is_file() or any(
            path.name != ENVIRONMENT and not path.name.endswith(".tmp") for path in folder.iterdir()
        ):
            raise UsageError(
                f"--experiment_id={experiment_id}: exists in {output_dir}; choose another name, or leave "
                "--experiment_id out to get the next number"
            )
        yield Experiment(folder.name, folder)
    finally:
        os.close(handle)


def _next_number(output_dir: Path) -> Path:
    """Make the next folder by a mkdir that fails if it exists: the file system decides who gets a number."""
    while True:
        numbers = [int(entry.name) for entry in output_dir.iterdir() if NUMBER_PATTERN.fullmatch(entry.name)]
        folder = output_dir / str(max(numbers, default=0) + 1)
        try:
            folder.mkdir()
        except FileExistsError:  # another process was quicker: look again
            continue
        return folder


def _check_free_space(folder: Path, free_bytes: int) -> None:
    """Raise WorkError if the disk of ``folder``, which need not exist yet, has less than ``free_bytes`` free."""
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < free_bytes:
        raise WorkError(
            f"--output_dir={folder}: the disk has {free / 1e9:.2f} GB free, the run needs {free_bytes / 1e9:.2f} GB; "
            "make space or choose another folder"
        )


def _folder_error(folder: Path, error: OSError) -> UserError:
    """Return the error to raise where ``folder`` can't be made or written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return WorkError(f"--output_dir={folder}: the disk is full; make space or choose another folder")
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        blocking = next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), folder)
        return UsageError(f"--output_dir={folder}: {blocking} is a file, not a folder; choose another folder")
    return UsageError(
        f"--output_dir={folder}: cannot be written ({error.strerror}); check owner and mode or choose another folder"
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_state(folder: Path) -> dict[str, Any]:
    """Return ``git_commit`` and ``git_dirty`` of the checkout whose top is ``folder``; None where it is not one."""
    top = _git(folder, "rev-parse", "--show-toplevel")
    if not top or Path(top).resolve() != folder:  # none, or the project lies as plain files in another repository
        return {"git_commit": None, "git_dirty": None}
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"git_commit": commit, "git_dirty": None if commit is None or status is None else status != ""}


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints, or None where it fails. GIT_DIR and the like (set in hooks) name other checkouts."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=GIT_TIMEOUT_S,
            check=True,
            env=variables,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def _gpu_names() -> list[str] | None:
    """Return the names of the GPUs, or None where torch isn't loaded yet."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user id without a name
        return ""
