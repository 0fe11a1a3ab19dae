"""Tables that options choose from: their rows, and the check that a choice knows the options given with it."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from common.errors import UsageError, nearest

PROJECT = Path(__file__).parent.parent.parent  # the folder for modules of your own


@dataclass(frozen=True)
class Row:
    """One choice: its name on the command line, a summary, and the options that it knows with their defaults.

    ``parameters`` maps an option's name (``optim_momentum``) to its default for this choice. The default is written
    nowhere else.
    """

    name: str
    summary: str
    parameters: Mapping[str, Any] = field(default_factory=dict, kw_only=True)


RowT = TypeVar("RowT", bound=Row)


def table(rows: Iterable[RowT]) -> dict[str, RowT]:
    """Return rows by their names."""
    return {row.name: row for row in rows}


def choose(option: str, name: str, rows: Mapping[str, RowT]) -> RowT:
    """Return the row called ``name``, or the row of your own that a dotted path names: ``examples.kind.HISTOGRAM``.

    Raises UsageError, naming the nearest choice, if ``--option`` has no such choice.
    """
    if name in rows:
        return rows[name]
    if is_dotted_path(name):
        return own_row(option, name, type(next(iter(rows.values()))))
    raise UsageError(f"--{option}={name}: unknown; choose from {', '.join(rows)}{nearest(name, rows)}")


def is_dotted_path(text: str) -> bool:
    """Whether a text has the form of a path to something in a module, as ``examples.kind.HISTOGRAM``."""
    parts = text.split(".")
    return len(parts) > 1 and all(part.isidentifier() for part in parts)


def own_row(option: str, path: str, kind: type[RowT]) -> RowT:
    """Return the row that a dotted path names; UsageError if there is none or it is no row for ``--option``."""
    module, _, name = path.rpartition(".")
    file = own_file(module)
    if not file.is_file():
        raise UsageError(f"--{option}={path}: there is no {file}; a row of your own is named <module>.<name>")
    try:
        found = importlib.import_module(module)
    except MemoryError:
        raise
    except Exception as error:  # whatever the user's module raises
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(f"--{option}={path}: {file} can't be imported ({said})") from error
    row = getattr(found, name, None)
    if not isinstance(row, kind):
        raise UsageError(f"--{option}={path}: {file} has no {kind.__name__} of the name {name}")
    return row


def own_file(module: str) -> Path:
    """Return the file of a module of the user's own, in this project's folder, whether it exists or not.

    Modules elsewhere are never imported by name: checkpoints hold such names too, and a stranger's checkpoint could
    otherwise import any module.
    """
    return PROJECT.joinpath(*module.split(".")).with_suffix(".py")


def settings(option: str, row: Row, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the value of every option that ``row`` knows: the ``given`` value, or the default if that is None.

    Raises UsageError, listing the known options, for a given option that ``row`` doesn't know.
    """
    for name, value in given.items():
        if value is not None and name not in row.parameters:
            known = ", ".join(f"--{known}" for known in row.parameters) or "no option of this kind"
            raise UsageError(f"--{name}: --{option}={row.name} doesn't know it; it knows {known}")
    return {name: default if given.get(name) is None else given[name] for name, default in row.parameters.items()}


def describe(rows: Mapping[str, Row]) -> list[str]:
    """Return a line for each row: name, summary, and the options that it knows with their defaults."""
    width = max(map(len, rows))
    return [
        f"{name:{width}}  {row.summary}" + "".join(f" --{key}={_text(value)}" for key, value in row.parameters.items())
        for name, row in rows.items()
    ]


def summaries(rows: Mapping[str, Row]) -> str:
    """Return names and summaries for the help of an option: ``mean: mean of the probabilities; logit: …``."""
    return "; ".join(f"{name}: {row.summary}" for name, row in rows.items())


def load(path: str) -> Any:
    """Import a module and return what a dotted path names in it, such as ``torch.optim.SGD``."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ",".join(_text(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)
