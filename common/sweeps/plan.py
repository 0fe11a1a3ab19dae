"""The plan of a sweep: experiments as lines of flags or as a grid of options."""

from __future__ import annotations

import itertools
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UsageError
from common.experiments.folder import check_experiment_id
from common.foreign import read_text, read_yaml
from common.reports.record import RUNNING, read_record

NAME = "--experiment_id="
TRAIN = "train.py"
FINISHED = "finished"
LONGEST_NAME = 100
MOST_EXPERIMENTS = 5000


@dataclass(frozen=True)
class Planned:
    """One experiment: the flags of train.py, or of another ``script``. ``name`` None: it gets the next free number.

    ``state``: new, resume (it was interrupted and goes on), finished or running (nothing to train).
    ``folder``: that of a finished training.
    """

    flags: tuple[str, ...]
    name: str | None = None
    state: str = "new"
    folder: Path | None = None
    script: str = TRAIN

    @property
    def command(self) -> list[str]:
        """The arguments of the script."""
        return [*self.flags, *([f"--tr_resume={self.name}"] if self.state == "resume" else [])]

    def __str__(self) -> str:
        return shlex.join(["python", self.script, *self.command])


def planned(flags: Sequence[str], results: Path) -> Planned:
    """Return the experiment of a line of flags, with its state below ``results``."""
    names = [flag.removeprefix(NAME) for flag in flags if flag.startswith(NAME)]
    if not names:
        return Planned(tuple(flags))
    name = names[-1]
    check_experiment_id(name)
    folder = results / name
    if not (folder / "config.yaml").is_file():
        return Planned(tuple(flags), name)
    status = read_record(folder).status
    if status == FINISHED:
        return Planned(tuple(flags), name, FINISHED, folder)
    return Planned(tuple(flags), name, RUNNING if status == RUNNING else "resume")


def read_lines(path: Path) -> list[list[str]]:
    """Read experiments from a text file: a line of flags each, quoted as in a shell; # begins a comment."""
    try:
        lines = read_text(path).splitlines()
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from None
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise UsageError(f"{path}, line {number}: {error}") from None
        if words:
            found.append(words)
    check_count(path, len(found))
    return found


def check_count(path: Path, experiments: int) -> None:
    """Raise UsageError for too many experiments; all are checked before the first one runs."""
    if experiments > MOST_EXPERIMENTS:
        raise UsageError(f"{path}: {experiments:,} experiments; a sweep has at most {MOST_EXPERIMENTS:,}")


def read_options(path: Path, key: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the mappings ``base`` (empty if left out) and ``key`` of a YAML file of options.

    Raises UsageError if the file can't be read or has another form.
    """
    try:
        document = read_yaml(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None
    parts = document if isinstance(document, Mapping) else {}
    base, options = parts.get("base") or {}, parts.get(key)
    if set(parts) - {"base", key} or not options or not all(isinstance(part, Mapping) for part in (base, options)):
        raise UsageError(f"{path}: expected '{key}: {{option: ...}}' and, if needed, 'base: {{option: value}}'")
    return base, options


def read_grid(path: Path) -> list[list[str]]:
    """Read the experiments of a grid file: all combinations of ``grid``'s values, with the options of ``base``.

    The form is ``{base: {option: value}, grid: {option: [value, ...]}}``, options without dashes. Experiments are named
    after the file and their values, so that a second start skips finished ones. Raises UsageError for another form.
    """
    base, grid = read_options(path, "grid")
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UsageError(f"{path}: grid, {name}: give a list of values, as in [1, 2]")
    check_count(path, math.prod(map(len, grid.values())))
    found, names = [], set()
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        name = name_of(path.stem, chosen)
        if name in names:
            raise UsageError(f"{path}: two of its experiments would be called {name}; give the values shorter names")
        names.add(name)
        found.append([f"{NAME}{name}", *flags_of({**base, **chosen})])
    return found


def name_of(stem: str, chosen: Mapping[str, Any]) -> str:
    """Return an experiment's name, made from the values in which it differs."""
    words = [stem, *(f"{option.rpartition('_')[2]}-{value}" for option, value in chosen.items())]
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", "_".join(words))[:LONGEST_NAME]


def flags_of(options: Mapping[str, Any]) -> list[str]:
    """Return flat, plain options as flags: ``{"seed": 1}`` gives ``["--seed=1"]``."""
    return [f"--{name}={word_of(value)}" for name, value in options.items()]


def word_of(value: Any) -> str:
    """Return a value of a YAML file as a person types it on a command line."""
    if isinstance(value, bool):
        return str(int(value))
    return ",".join(map(word_of, value)) if isinstance(value, list) else str(value)
