"""Experiment folders: claiming and locking them, config.yaml, and the history of resumed runs."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import yaml

from common.errors import UsageError, UserError, WorkError, list_some, nearest
from common.experiments.environment import environment
from common.files import write_json, write_text
from common.foreign import read_json, read_yaml
from common.waiting import LIMIT_S, LOCK_POLL_S, lock_file, wait_for

logger = logging.getLogger(__name__)

ID_PATTERN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")
MOST_NAMED = 50  # experiments that a message names
NUMBER_PATTERN = re.compile(r"[0-9]+")
LOCK_FILE = ".lock"
LOCK_ATTEMPTS = 5
ENVIRONMENT = "environment.json"
CONFIG = "config.yaml"
PLACE = ("experiment_id", "output_dir")  # a resumed run can't change these options


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

    Processes that claim at the same time get different folders. ``config`` is flat. ``command`` is what the user typed.
    The disk must have ``free_bytes`` free. All restarts of one launch share the same ``launch``.

    Raises UsageError for an id that exists or isn't allowed and for an output folder that can't be made, WorkError for
    a full disk. An error leaves no experiment behind.
    """
    if experiment_id is not None:
        check_experiment_id(experiment_id)
    try:
        _check_free_space(output_dir, free_bytes)
        output_dir.mkdir(parents=True, exist_ok=True)
        with _claimed(output_dir, experiment_id) as experiment:
            try:
                write_json(experiment.folder / ENVIRONMENT, {**environment(command), "launch": launch})
                write_text(experiment.folder / CONFIG, config_text(config))  # last: it makes an experiment of it
            except BaseException:
                shutil.rmtree(experiment.folder, ignore_errors=True)
                raise
    except OSError as error:
        raise folder_error(output_dir, error) from error
    return experiment


def config_text(config: Mapping[str, Any]) -> str:
    """Return the text of config.yaml for flat options."""
    return yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)


def check_experiment_id(experiment_id: str, flag: str = "--experiment_id") -> None:
    """Raise UsageError unless ``experiment_id`` is a plain name that can't leave the output folder."""
    if not ID_PATTERN.fullmatch(experiment_id):
        raise UsageError(f"{flag}={experiment_id!r}: use letters, digits, '_', '-' and '.', at most 100, not '.' first")


def wait_for_orphan(folder: Path, limit_s: float = LIMIT_S) -> None:
    """Wait until a run whose parent was killed has saved its state, ended, and so released ``folder``.

    Raises Stalled after ``limit_s`` seconds.
    """

    def ready(seconds: float) -> bool:
        if free := not is_in_progress(folder):
            return free
        time.sleep(min(seconds, LOCK_POLL_S))
        return False

    wait_for(ready, f"this process waits for another that trains {folder}", limit_s=limit_s)


@contextmanager
def lock_experiment(folder: Path) -> Iterator[None]:
    """Hold the experiment's lock until this context or this process ends. WorkError if another process holds it."""
    try:
        file = (folder / LOCK_FILE).open("a")
    except OSError as error:
        raise folder_error(folder, error) from error
    with file:
        _take(file, folder)
        yield


def _take(file: IO[str], folder: Path) -> None:
    for attempt in range(LOCK_ATTEMPTS):  # is_in_progress may hold the lock for a moment
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
    """Record that the run goes on from ``iteration`` with the flat options ``config``.

    config.yaml gets the options, but keeps the experiment's id and place. environment.json gets an entry in ``resumed``
    with the command, the options that changed (``changed``: ``{name: [before, now]}``), and those of them that the user
    named (``named``).
    """
    path = folder / ENVIRONMENT
    try:
        document = dict(read_json(path))
    except (OSError, ValueError, TypeError):  # a process was killed while it made the folder
        document = {}
    before = experiment_options(folder)
    now = plain(config) | {name: before[name] for name in PLACE if name in before}
    changed = {name: [before[name], value] for name, value in now.items() if before.get(name, value) != value}
    entry = {"iteration": iteration, "changed": changed, "named": list(named), **environment(command)}
    document.setdefault("resumed", []).append(entry)
    write_json(path, document)
    write_text(folder / CONFIG, config_text(now))


def experiment_options(folder: Path) -> dict[str, Any]:
    """Return the options of an experiment's config.yaml in plain types. WorkError if it can't be read."""
    path = folder / CONFIG
    try:
        return dict(read_yaml(path))
    except OSError as error:
        raise WorkError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError) as error:
        raise WorkError(f"{path}: damaged ({error})") from None


def launched_experiment(output_dir: Path, launch: str | None) -> str | None:
    """Return the folder, as text, of the newest experiment of this ``launch``, or None."""
    files = output_dir.glob(f"*/{ENVIRONMENT}") if launch is not None else ()
    for file in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True):
        with suppress(OSError, ValueError, AttributeError):
            known = read_json(file)
            if known.get("launch") == launch and (file.parent / CONFIG).is_file():
                return str(file.parent.resolve())
    return None


def experiment_folder(output_dir: Path, experiment_id: str, flag: str = "--experiment_id") -> Path:
    """Return the folder of an experiment by its name on the leaderboard, such as ``3`` or ``search/trial_0001``.

    Raises UsageError for an unknown experiment, naming ``flag`` and the known ones.
    """
    folder = output_dir / experiment_id
    if {"", ".", ".."} & set(experiment_id.split("/")) or not folder.is_dir():
        found = sorted(path.name for path in output_dir.iterdir() if path.is_dir()) if output_dir.is_dir() else []
        listing = f"there are {list_some(found, MOST_NAMED)}" if found else "there are none"
        raise UsageError(
            f"{flag}={experiment_id}: no such experiment in {output_dir}; {listing}{nearest(experiment_id, found)}"
        )
    return folder


def plain(value: Any) -> Any:
    """Return a configuration's ``value`` in types of YAML and JSON: paths as text, tuples as lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"a configuration holds plain values and paths, not {type(value).__name__}: {value!r}")


@contextmanager
def _claimed(output_dir: Path, experiment_id: str | None) -> Iterator[Experiment]:
    """Yield an experiment whose folder no other process has.

    A named folder without config.yaml was left by a killed process and is taken over. While another process is making
    the folder, this one waits for its config.yaml.
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
    """Make the next numbered folder. mkdir gives each number to one process only."""
    while True:
        numbers = [int(entry.name) for entry in output_dir.iterdir() if NUMBER_PATTERN.fullmatch(entry.name)]
        folder = output_dir / str(max(numbers, default=0) + 1)
        with suppress(FileExistsError):  # another process was quicker
            folder.mkdir()
            return folder


def _check_free_space(folder: Path, free_bytes: int) -> None:
    """Raise WorkError if the disk of ``folder`` has less than ``free_bytes`` free. The folder need not exist yet."""
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < free_bytes:
        raise WorkError(
            f"--output_dir={folder}: the disk has {free / 1e9:.2f} GB free, the run needs {free_bytes / 1e9:.2f} GB; "
            "make space or choose another folder"
        )


def folder_error(folder: Path, error: OSError) -> UserError:
    """Return the error to raise if ``folder`` can't be made or written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return WorkError(f"--output_dir={folder}: the disk is full; make space or choose another folder")
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        blocking = next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), folder)
        return UsageError(f"--output_dir={folder}: {blocking} is a file, not a folder; choose another folder")
    return UsageError(
        f"--output_dir={folder}: cannot be written ({error.strerror}); check owner and mode or choose another folder"
    )
